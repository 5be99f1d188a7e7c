//! Request bodies: small JSON objects, parsed once into types that cannot be invalid.

use std::{collections::HashMap, time::Duration};

use axum::{
    body::{BodyDataStream, Bytes},
    extract::{FromRequest, FromRequestParts, Request},
    http::{HeaderMap, header},
};
use futures_util::StreamExt;
use serde::de::DeserializeOwned;
use serde_json::value::RawValue;

use super::envelope::{ApiError, Reason};

/// The maximum size of a body.
const MAX_BYTES: usize = 16 * 1024;

/// How long a body may take to arrive.
const MAX_TIME: Duration = Duration::from_secs(10);

/// A field's name, the reason if its value is invalid, and what it must be.
pub(super) type Field = (&'static str, Reason, &'static str);

/// The fields of a JSON body.
pub(super) trait Fields: DeserializeOwned {
    /// Those that are required: name, reason if the value is invalid, what it must be.
    const FIELDS: &'static [Field];
    /// Those that may be left out, or be null.
    const OPTIONAL: &'static [Field] = &[];
}

/// Extracts a JSON object with the fields of `T`, and no others.
pub(super) struct JsonBody<T>(pub(super) T);

impl<S: Send + Sync, T: Fields> FromRequest<S> for JsonBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        if !is_json(request.headers()) {
            drain_body(request).await;
            return Err(not_json());
        }
        parse(&read(request).await?).map(Self)
    }
}

/// Extracts an empty body, for calls whose path says all. An empty JSON object counts as empty.
pub(super) struct NoBody;

impl<S: Send + Sync> FromRequest<S> for NoBody {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let bytes = read(request).await?;
        if is_empty(&bytes) {
            Ok(Self)
        } else {
            Err(ApiError::new(Reason::InvalidBody, "this call takes no body; send it without one"))
        }
    }
}

/// Extracts a JSON object as [`JsonBody`] does, or nothing: then all fields are left out. Needs no content type for that.
pub(super) struct OptionalBody<T>(pub(super) T);

impl<S: Send + Sync, T: Fields + Default> FromRequest<S> for OptionalBody<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, _: &S) -> Result<Self, ApiError> {
        let is_json = is_json(request.headers());
        let bytes = read(request).await?;
        // Some generated clients send `null` for a body that was not set.
        match is_empty(&bytes) || bytes.trim_ascii() == b"null" {
            true => Ok(Self(T::default())),
            false if is_json => parse(&bytes).map(Self),
            false => Err(not_json()),
        }
    }
}

/// Extracts from the head of a request, then from its body. If the head is refused, the body is read before the answer: see
/// [`drain_body`].
pub(super) struct PartsAndBody<H, B>(pub(super) H, pub(super) B);

impl<S, H, B> FromRequest<S> for PartsAndBody<H, B>
where
    S: Send + Sync,
    H: FromRequestParts<S, Rejection = ApiError> + Send,
    B: FromRequest<S, Rejection = ApiError>,
{
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let (mut parts, body) = request.into_parts();
        let head = H::from_request_parts(&mut parts, state).await;
        let request = Request::from_parts(parts, body);
        match head {
            Ok(head) => Ok(Self(head, B::from_request(request, state).await?)),
            Err(error) => {
                drain_body(request).await;
                Err(error)
            }
        }
    }
}

/// There must be exactly one header: of two, it is unclear which one counts.
fn is_json(headers: &HeaderMap) -> bool {
    let mut given = headers.get_all(header::CONTENT_TYPE).iter();
    let (Some(value), None) = (given.next(), given.next()) else { return false };
    let essence = value.to_str().ok().and_then(|value| value.split(';').next());
    essence.is_some_and(|essence| essence.trim().eq_ignore_ascii_case("application/json"))
}

fn not_json() -> ApiError {
    ApiError::new(Reason::UnsupportedMediaType, "the Content-Type header must be application/json")
}

/// The object that these bytes are.
fn parse<T: Fields>(bytes: &[u8]) -> Result<T, ApiError> {
    match serde_json::from_slice(bytes) {
        Ok(fields) if is_object(bytes) => Ok(fields),
        Ok(_) | Err(_) => Err(explain::<T>(bytes)),
    }
}

/// Whether a body says nothing. An empty JSON object does not.
fn is_empty(bytes: &[u8]) -> bool {
    bytes.trim_ascii().is_empty()
        || serde_json::from_slice::<HashMap<String, &RawValue>>(bytes).is_ok_and(|fields| fields.is_empty())
}

/// Serde also accepts `[1, 1]` for an object with two fields.
fn is_object(json: &[u8]) -> bool {
    json.iter().find(|byte| !byte.is_ascii_whitespace()) == Some(&b'{')
}

async fn read(request: Request) -> Result<Bytes, ApiError> {
    tokio::time::timeout(MAX_TIME, read_all(request)).await.unwrap_or_else(|_| Err(ApiError::late("body")))
}

async fn read_all(request: Request) -> Result<Bytes, ApiError> {
    let too_large =
        || ApiError::new(Reason::BodyTooLarge, format!("a body may have {MAX_BYTES} bytes at the most"));
    let announced =
        request.headers().get(header::CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    if announced.is_some_and(|bytes: usize| bytes > MAX_BYTES) {
        drain_body(request).await;
        return Err(too_large());
    }
    let mut chunks = request.into_body().into_data_stream();
    let mut whole = Vec::with_capacity(announced.unwrap_or_default());
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            ApiError::new(Reason::InvalidBody, format!("the body did not arrive: {error}"))
        })?;
        if whole.is_empty() && announced == Some(chunk.len()) {
            return Ok(chunk); // the usual case, and no copy
        }
        if whole.len() + chunk.len() > MAX_BYTES {
            drain(chunks).await;
            return Err(too_large());
        }
        whole.extend_from_slice(&chunk);
    }
    Ok(whole.into())
}

/// Reads the body of a request that is refused whatever it contains.
pub(super) async fn drain_body(request: Request) {
    // A client that expects `100 Continue` has not sent it yet.
    if !request.headers().contains_key(header::EXPECT) {
        drain(request.into_body().into_data_stream()).await;
    }
}

/// Reads and discards, within limits: a client that is still sending when the connection closes would see a reset instead of
/// the answer.
async fn drain(mut chunks: BodyDataStream) {
    const MAX_DRAINED: usize = 64 * 1024 * 1024;
    const MAX_TIME: Duration = Duration::from_secs(5);
    let mut seen = 0;
    let reading = async {
        while let Some(Ok(chunk)) = chunks.next().await {
            seen += chunk.len();
            if seen > MAX_DRAINED {
                break;
            }
        }
    };
    let _ = tokio::time::timeout(MAX_TIME, reading).await;
}

/// A field that is required and not there.
pub(super) fn missing((name, reason, expected): Field) -> ApiError {
    ApiError::field(reason, name, format!("{name} is missing; it must be {expected}"))
}

/// Why the body is no `T`. Runs only if it is none.
fn explain<T: Fields>(bytes: &[u8]) -> ApiError {
    // Raw values: only the syntax is checked, so that a number out of range is an error of its field.
    if let Err(error) = serde_json::from_slice::<&RawValue>(bytes) {
        return ApiError::new(Reason::InvalidJson, format!("the body is not JSON: {error}"));
    }
    let Ok(fields) = serde_json::from_slice::<HashMap<String, &RawValue>>(bytes) else {
        return ApiError::new(Reason::InvalidBody, "the body must be a JSON object");
    };
    let known = || T::FIELDS.iter().chain(T::OPTIONAL);
    if let Some(unknown) = fields.keys().find(|key| known().all(|(name, ..)| name != key)) {
        let names: Vec<_> = known().map(|(name, ..)| *name).collect();
        let shown: String = unknown.chars().take(100).collect();
        return ApiError::field(
            Reason::InvalidField,
            shown,
            format!("unknown field; the fields are: {}", names.join(", ")),
        );
    }
    if let Some((name, reason, expected)) = T::FIELDS.iter().find(|(name, ..)| !fields.contains_key(*name)) {
        return missing((name, *reason, expected));
    }
    let mut track = serde_path_to_error::Track::new();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let parsed = T::deserialize(serde_path_to_error::Deserializer::new(&mut json, &mut track));
    let path = track.path().to_string();
    // `lines[2].total` is a `total`, `lines[2]` one of the `lines`.
    let last = path.rsplit('.').next().unwrap_or_default();
    let (name, is_element) = last.split_once('[').map_or((last, false), |(name, _)| (name, true));
    match (known().find(|known| known.0 == name), parsed.err()) {
        (Some((_, reason, expected)), _) if !is_element => {
            ApiError::field(*reason, path.as_str(), format!("{path} must be {expected}"))
        }
        (Some((_, reason, _)), Some(error)) => {
            ApiError::field(*reason, path.as_str(), format!("{path}: {error}"))
        }
        (_, error) => {
            let what = error.map(|error| error.to_string()).unwrap_or_default();
            ApiError::new(Reason::InvalidBody, format!("the body is not what it must be: {what}"))
        }
    }
}
