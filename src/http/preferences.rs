//! Request headers that say how an order is to be placed: `Idempotency-Key` and `Prefer`.

use std::{mem, time::Duration};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, request::Parts},
    response::{IntoResponse, Response},
};

use super::envelope::{ApiError, Reason};
use crate::domain::ids::IdempotencyKey;

/// The `Idempotency-Key` of a request, if it has one: quoted, as the IETF's draft says, or bare.
pub(super) struct IdempotencyKeyHeader(pub(super) Option<IdempotencyKey>);

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");

impl<S: Send + Sync> FromRequestParts<S> for IdempotencyKeyHeader {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        let mut given = parts.headers.get_all(IDEMPOTENCY_KEY).iter();
        let Some(value) = given.next() else { return Ok(Self(None)) };
        let key = value
            .to_str()
            .ok()
            .filter(|_| given.next().is_none())
            .and_then(|text| idempotency_key(text.trim()));
        let key = key.ok_or_else(|| {
            let message = format!("Idempotency-Key must be {}", IdempotencyKey::EXPECTED);
            ApiError::field(Reason::InvalidIdempotencyKey, "Idempotency-Key", message)
        })?;
        Ok(Self(Some(key)))
    }
}

/// A key, quoted or bare: both spell the same one.
pub(super) fn idempotency_key(text: &str) -> Option<IdempotencyKey> {
    unquoted(text)?.try_into().ok()
}

/// The text of a structured field's string (RFC 8941, section 3.3.3), or a text without quotes as it is.
fn unquoted(text: &str) -> Option<String> {
    let Some(quoted) = text.strip_prefix('"') else { return Some(text.to_owned()) };
    let mut plain = String::with_capacity(quoted.len());
    let mut rest = quoted.chars();
    loop {
        match rest.next()? {
            '"' => return rest.next().is_none().then_some(plain),
            '\\' => plain.push(rest.next().filter(|escaped| matches!(escaped, '"' | '\\'))?),
            other => plain.push(other),
        }
    }
}

/// How long the client wants to wait for a verdict: `Prefer` (RFC 7240). Preferences that are unknown or malformed are
/// ignored, as the RFC says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Preferences {
    respond_async: bool,
    wait: Option<Duration>,
}

const PREFER: HeaderName = HeaderName::from_static("prefer");
const PREFERENCE_APPLIED: HeaderName = HeaderName::from_static("preference-applied");

impl<S: Send + Sync> FromRequestParts<S> for Preferences {
    type Rejection = ApiError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, ApiError> {
        Ok(Self::read(&parts.headers))
    }
}

impl Preferences {
    fn read(headers: &HeaderMap) -> Self {
        let mut preferences = Self::default();
        let given = headers.get_all(PREFER).iter().filter_map(|value| value.to_str().ok());
        for preference in given.flat_map(|value| parts(value, ',')) {
            // Parameters, after a semicolon, are defined for none of these.
            let preference = parts(preference, ';').next().unwrap_or_default();
            let (name, value) = preference.split_once('=').unwrap_or((preference, ""));
            match name.trim().to_ascii_lowercase().as_str() {
                "respond-async" => preferences.respond_async = true,
                // The first of its name counts.
                "wait" if preferences.wait.is_none() => {
                    preferences.wait = unquoted(value.trim()).and_then(|value| delta_seconds(&value));
                }
                _ => {}
            }
        }
        preferences
    }

    /// How long the client wants to wait, if it says so. Both preferences together mean: answer asynchronously after so long.
    pub(super) fn wait(self) -> Option<Duration> {
        self.wait.or(self.respond_async.then_some(Duration::ZERO))
    }

    /// The answer, with the header that says which preferences were applied when the service waits for `waiting_time`.
    pub(super) fn applied(self, waiting_time: Duration, answer: impl IntoResponse) -> Response {
        if self == Self::default() {
            return answer.into_response();
        }
        let mut applied = Vec::new();
        if self.respond_async {
            applied.push("respond-async".to_owned());
        }
        if self.wait.is_some() {
            // Rounded up: "wait=0" would say that there was no wait.
            let seconds = waiting_time.as_secs() + u64::from(waiting_time.subsec_nanos() > 0);
            applied.push(format!("wait={seconds}"));
        }
        let applied = HeaderValue::try_from(applied.join(", ")).ok().filter(|value| !value.is_empty());
        (applied.map(|applied| [(PREFERENCE_APPLIED, applied)]), answer).into_response()
    }
}

/// The parts of a list, or of one of its members. A separator in a quoted string (RFC 7230, section 3.2.6) does not count.
fn parts(text: &str, separator: char) -> impl Iterator<Item = &str> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    text.split(move |character| {
        match character {
            _ if mem::take(&mut is_escaped) => {}
            '\\' => is_escaped = is_quoted,
            '"' => is_quoted = !is_quoted,
            _ => {}
        }
        character == separator && !is_quoted
    })
}

/// A number of seconds: nothing but digits, however many (RFC 7240, section 4.3).
pub(super) fn delta_seconds(text: &str) -> Option<Duration> {
    let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| Duration::from_secs(text.parse().unwrap_or(u64::MAX)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_may_be_quoted_or_bare() {
        for (given, key) in [
            ("abc", Some("abc")),
            ("\"abc\"", Some("abc")),
            (r#""a\"b\\c""#, Some(r#"a"b\c"#)),
            ("a\"b", Some("a\"b")),
            ("\"\"", Some("")),
            ("\"abc", None),
            ("\"abc\"x", None),
            ("\"abc\";x=1", None),
            (r#""a\bc""#, None),
            ("\"", None),
        ] {
            assert_eq!(unquoted(given).as_deref(), key, "{given}");
        }
    }

    #[test]
    fn preferences_are_read_as_the_rfc_says() {
        let read = |values: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for value in values {
                headers.append(PREFER, HeaderValue::from_static(value));
            }
            Preferences::read(&headers)
        };
        let applied = |values: &[&'static str]| {
            let preferences = read(values);
            let waiting_time =
                preferences.wait().unwrap_or(Duration::from_secs(10)).min(Duration::from_secs(10));
            let answer = preferences.applied(waiting_time, ());
            answer.headers().get(PREFERENCE_APPLIED).map(|value| value.to_str().unwrap().to_owned())
        };
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (values, wait, answer) in [
            (&[][..], None, None),
            (&["respond-async"], seconds(0), Some("respond-async")),
            (&["Respond-Async; foo=bar"], seconds(0), Some("respond-async")),
            (&["wait=3"], seconds(3), Some("wait=3")),
            (&["wait = \"3\""], seconds(3), Some("wait=3")),
            (&["respond-async, wait=3"], seconds(3), Some("respond-async, wait=3")),
            (&["respond-async", "wait=3", "wait=5"], seconds(3), Some("respond-async, wait=3")),
            (&["wait=100"], seconds(100), Some("wait=10")),
            (&["wait=0"], seconds(0), Some("wait=0")),
            (&["wait=99999999999999999999"], seconds(u64::MAX), Some("wait=10")),
            (&["wait=-1", "wait=+3", "wait=", "wait=x", "wait=\"3", "wait=1.5"], None, None),
            // In a quoted string, commas and semicolons are nothing special.
            (&["foo=\"a, wait=3\", wait=4"], seconds(4), Some("wait=4")),
            (&["foo=\"a\\\", wait=3\"; bar=\";\", wait=4"], seconds(4), Some("wait=4")),
            (&["foo=\"; respond-async, wait=3\""], None, None),
            (&["respond-async; foo=\", wait=3\""], seconds(0), Some("respond-async")),
            (&["return=minimal", "handling=strict"], None, None),
        ] {
            assert_eq!(read(values).wait(), wait, "{values:?}");
            assert_eq!(applied(values).as_deref(), answer, "{values:?}");
        }
    }

    #[test]
    fn a_granted_wait_is_never_answered_as_zero() {
        let preferences = Preferences { respond_async: false, wait: Some(Duration::from_secs(5)) };
        for (waiting_ms, told) in
            [(0, "wait=0"), (1, "wait=1"), (500, "wait=1"), (1_000, "wait=1"), (1_001, "wait=2")]
        {
            let answer = preferences.applied(Duration::from_millis(waiting_ms), ());
            assert_eq!(answer.headers()[PREFERENCE_APPLIED], told, "{waiting_ms} ms");
        }
    }
}
