//! Where a command comes from, for logs and traces. It travels with the command, and no decision depends on it.

use std::{fmt, str::FromStr, sync::Arc};

use uuid::Uuid;

/// The request that led to a command. An expiry has none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Origin {
    pub request_id: Option<RequestId>,
    /// Only where traces are recorded.
    pub trace: Option<Arc<TraceContext>>,
}

/// The `x-request-id` of a request: the client's own, or one that the API generated. 1 to [`RequestId::MAX_LENGTH`] visible
/// ASCII characters.
///
/// Those that an API generates are UUIDs, and most clients send UUIDs too: such an id needs no memory of its own.
#[derive(Clone, PartialEq, Eq, Hash)]
pub struct RequestId(Text);

#[derive(Clone, PartialEq, Eq, Hash)]
enum Text {
    /// In lower case, with hyphens.
    Uuid(Uuid),
    Other(Arc<str>),
}

impl RequestId {
    /// In characters.
    pub const MAX_LENGTH: usize = 128;

    pub fn is_valid(text: &str) -> bool {
        (1..=Self::MAX_LENGTH).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Text::Uuid(uuid) => uuid.hyphenated().fmt(f),
            Text::Other(text) => f.write_str(text),
        }
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The text cannot be a request id.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a request id is 1 to {} visible ASCII characters", RequestId::MAX_LENGTH)]
pub struct InvalidRequestId;

impl FromStr for RequestId {
    type Err = InvalidRequestId;

    fn from_str(text: &str) -> Result<Self, InvalidRequestId> {
        if !Self::is_valid(text) {
            return Err(InvalidRequestId);
        }
        // The text must come out as it went in.
        let is_lower_case = || !text.bytes().any(|byte| byte.is_ascii_uppercase());
        Ok(Self(match uuid::fmt::Hyphenated::from_str(text) {
            Ok(uuid) if is_lower_case() => Text::Uuid(uuid.into_uuid()),
            _ => Text::Other(text.into()),
        }))
    }
}

/// The place of a command in a trace, as W3C Trace Context has it (<https://www.w3.org/TR/trace-context/>). Its text is the
/// header `traceparent`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TraceContext {
    /// Not 0.
    pub trace_id: u128,
    /// The parent of the spans that follow. Not 0.
    pub span_id: u64,
    /// Bit 0: the caller records this trace.
    pub flags: u8,
    /// The header `tracestate`: what the tracing systems of others want to find again.
    state: Option<Arc<str>>,
}

impl TraceContext {
    /// In characters. The specification wants at least this much to be passed on.
    pub const MAX_STATE_LENGTH: usize = 512;

    pub fn new(trace_id: u128, span_id: u64, flags: u8) -> Self {
        Self { trace_id, span_id, flags, state: None }
    }

    /// With this `tracestate`, unless it is empty, too long, or not printable ASCII: then without one.
    pub fn with_state(mut self, state: Option<&str>) -> Self {
        let is_valid = |state: &&str| {
            (1..=Self::MAX_STATE_LENGTH).contains(&state.len())
                && state.bytes().all(|byte| matches!(byte, b' '..=b'~' | b'\t'))
        };
        self.state = state.filter(is_valid).map(Into::into);
        self
    }

    /// The header `tracestate`.
    pub fn state(&self) -> Option<&str> {
        self.state.as_deref()
    }
}

impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "00-{:032x}-{:016x}-{:02x}", self.trace_id, self.span_id, self.flags)
    }
}

/// The text is not a `traceparent`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("it is not a traceparent")]
pub struct InvalidTraceContext;

impl FromStr for TraceContext {
    type Err = InvalidTraceContext;

    /// A later version than 00 may have more behind the flags. Nothing of it is passed on.
    fn from_str(text: &str) -> Result<Self, InvalidTraceContext> {
        let mut parts = text.split('-');
        let mut next = |length: usize| {
            let is_hex = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
            parts
                .next()
                .filter(|part| part.len() == length && part.bytes().all(is_hex))
                .and_then(|part| u128::from_str_radix(part, 16).ok())
                .ok_or(InvalidTraceContext)
        };
        let (version, trace_id, span_id, flags) = (next(2)?, next(32)?, next(16)?, next(2)?);
        let is_valid =
            version != 0xff && trace_id != 0 && span_id != 0 && (version != 0 || parts.next().is_none());
        match (u64::try_from(span_id), u8::try_from(flags)) {
            (Ok(span_id), Ok(flags)) if is_valid => Ok(Self::new(trace_id, span_id, flags)),
            _ => Err(InvalidTraceContext),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_id_stays_as_it_is() {
        let long = "~".repeat(RequestId::MAX_LENGTH);
        for text in [
            "abc",
            "!",
            "\"\\",
            &long,
            "0193ab5e-0000-7000-8000-000000000000",
            "0193AB5E-0000-7000-8000-000000000000",
            "0193ab5e000070008000000000000000",
            "{0193ab5e-0000-7000-8000-000000000000}",
        ] {
            assert_eq!(text.parse::<RequestId>().unwrap().to_string(), text);
        }
        for bad in ["", " ", "a b", "\u{e4}", "a\n", &format!("{long}~")] {
            assert_eq!(bad.parse::<RequestId>(), Err(InvalidRequestId), "{bad:?}");
        }
    }

    #[test]
    fn most_commands_pay_little_for_their_origin() {
        assert!(size_of::<Origin>() <= 32, "{}", size_of::<Origin>());
        let id: RequestId = "0193ab5e-0000-7000-8000-000000000000".parse().unwrap();
        assert!(matches!(id.0, Text::Uuid(_)));
    }

    #[test]
    fn a_traceparent_is_what_the_specification_says() {
        let good = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        let context: TraceContext = good.parse().unwrap();
        assert_eq!(context.to_string(), good);
        assert_eq!(context.trace_id, 0x4bf9_2f35_77b3_4da6_a3ce_929d_0e0e_4736);
        assert_eq!((context.span_id, context.flags), (0x00f0_67aa_0ba9_02b7, 1));
        let later: TraceContext =
            "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more".parse().unwrap();
        assert_eq!(later, context);
        for bad in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-000f067aa0ba902b7-01",
            "00-+bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        ] {
            assert_eq!(bad.parse::<TraceContext>(), Err(InvalidTraceContext), "{bad:?}");
        }
    }

    #[test]
    fn a_tracestate_that_is_too_long_or_unprintable_is_left_out() {
        let context = TraceContext::new(1, 2, 1);
        let state = |text: &str| context.clone().with_state(Some(text)).state().map(str::to_owned);
        assert_eq!(state("rojo=00f067aa0ba902b7").as_deref(), Some("rojo=00f067aa0ba902b7"));
        for bad in ["", "a\nb", "\u{e4}", &"a".repeat(TraceContext::MAX_STATE_LENGTH + 1)] {
            assert_eq!(state(bad), None, "{bad:?}");
        }
    }
}
