//! Files that are a part of this release, as browsers get them: compressed where they accept it, and known by a tag.

use std::{
    collections::hash_map::DefaultHasher,
    hash::{Hash, Hasher},
    io::Write,
};

use axum::{
    body::Bytes,
    http::{HeaderMap, HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
};
use flate2::{Compression, write::GzEncoder};

/// One file.
pub(super) struct Asset {
    content_type: &'static str,
    plain: Variant,
    zipped: Option<Variant>,
}

impl Asset {
    pub(super) fn new(content_type: &'static str, bytes: &'static [u8]) -> Self {
        Self {
            content_type,
            plain: Variant::new(Bytes::from_static(bytes)),
            zipped: gzip(bytes).map(Variant::new),
        }
    }

    /// A file that is compressed already.
    pub(super) fn compressed(content_type: &'static str, bytes: Bytes, zipped: Bytes) -> Self {
        Self { content_type, plain: Variant::new(bytes), zipped: Some(Variant::new(zipped)) }
    }

    /// Its URL with its version, so that a browser need not ask for it again until the file changes.
    pub(super) fn href(&self, path: &str) -> String {
        format!("{path}?{}", self.version())
    }

    #[cfg(test)]
    pub(super) fn bytes(&self) -> (&[u8], Option<&[u8]>) {
        (&self.plain.bytes, self.zipped.as_ref().map(|variant| &*variant.bytes))
    }

    fn version(&self) -> String {
        format!("v={}", self.plain.tag.to_str().unwrap_or_default().trim_matches('"'))
    }

    /// Answers a GET for it. `query` is the one of its URL.
    pub(super) fn answer(&self, request: &HeaderMap, query: Option<&str>) -> Response {
        let zipped = self.zipped.as_ref().filter(|_| accepts_gzip(request));
        let variant = zipped.unwrap_or(&self.plain);

        let mut headers = HeaderMap::new();
        headers.insert(header::ETAG, variant.tag.clone());
        headers.insert(header::VARY, HeaderValue::from_static("Accept-Encoding"));
        let is_versioned = query.is_some_and(|query| query == self.version());
        headers.insert(
            header::CACHE_CONTROL,
            HeaderValue::from_static(match is_versioned {
                true => "public, max-age=31536000, immutable",
                // Cached, but revalidated at each use: a new release may bring a new file.
                false => "no-cache",
            }),
        );
        if variant.is_known(request) {
            return (StatusCode::NOT_MODIFIED, headers).into_response();
        }
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(self.content_type));
        if zipped.is_some() {
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static("gzip"));
        }
        (headers, variant.bytes.clone()).into_response()
    }
}

/// One encoding of a file. Each has its own tag: a strong tag says that all bytes are the same.
struct Variant {
    bytes: Bytes,
    tag: HeaderValue,
}

impl Variant {
    fn new(bytes: Bytes) -> Self {
        let mut hasher = DefaultHasher::new();
        bytes.hash(&mut hasher);
        let tag = HeaderValue::try_from(format!("\"{:016x}\"", hasher.finish()));
        Self { bytes, tag: tag.unwrap_or(HeaderValue::from_static("\"antre\"")) }
    }

    /// Whether the client has it (RFC 9110, section 13.1.2).
    fn is_known(&self, request: &HeaderMap) -> bool {
        items(request, header::IF_NONE_MATCH)
            .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag).as_bytes() == self.tag.as_bytes())
    }
}

fn gzip(bytes: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::best());
    encoder.write_all(bytes).ok()?;
    encoder.finish().ok().map(Bytes::from)
}

/// Whether the client accepts gzip (RFC 9110, section 12.5.3). A name counts more than `*`.
fn accepts_gzip(request: &HeaderMap) -> bool {
    let weight = |names: &[&str]| {
        items(request, header::ACCEPT_ENCODING).find_map(|item| {
            let mut parts = item.split(';').map(str::trim);
            let name = parts.next().unwrap_or_default();
            let is_one = names.iter().any(|wanted| name.eq_ignore_ascii_case(wanted));
            let quality = parts.find_map(|part| part.strip_prefix("q=").or(part.strip_prefix("Q=")));
            is_one.then(|| quality.map_or(1.0, |quality| quality.parse().unwrap_or(0.0)))
        })
    };
    weight(&["gzip", "x-gzip"]).or_else(|| weight(&["*"])).is_some_and(|weight: f32| weight > 0.0)
}

/// The items of a list header.
fn items(headers: &HeaderMap, name: header::HeaderName) -> impl Iterator<Item = &str> {
    let values = headers.get_all(name).into_iter().filter_map(|value| value.to_str().ok());
    values.flat_map(|value| value.split(',')).map(str::trim)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gzip_is_sent_to_clients_that_accept_it() {
        let accepts = |value: &'static str| {
            accepts_gzip(&HeaderMap::from_iter([(header::ACCEPT_ENCODING, HeaderValue::from_static(value))]))
        };
        for yes in ["gzip", "GZIP", "x-gzip", "br, gzip;q=0.1", "*", "deflate, *;q=0.5", "gzip; q=1.0"] {
            assert!(accepts(yes), "{yes}");
        }
        for no in
            ["", "identity", "br", "gzip;q=0", "gzip; q=0.000", "*;q=0", "gzip;q=0, *", "gzip;q=x", "xgzip"]
        {
            assert!(!accepts(no), "{no}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }
}
