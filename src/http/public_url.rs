//! The URL below which clients find this API behind a proxy that adds a path prefix: it is put in front of the references in
//! answers.

use std::{convert::Infallible, fmt, net::IpAddr, str::FromStr};

use axum::{
    extract::FromRequestParts,
    http::{HeaderMap, HeaderName, HeaderValue, Uri, header, request::Parts},
};
use ipnet::IpNet;

/// The URL below which clients find the API, for example `https://shop.example/antre`; empty for "where it listens".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PublicUrl(String);

impl FromStr for PublicUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let url = text.trim().trim_end_matches('/');
        let is_plain = || {
            let uri: Uri = url.parse().ok()?;
            let authority = uri.authority()?.as_str();
            let is_http = matches!(uri.scheme_str(), Some("http" | "https"));
            (is_http && !authority.contains('@') && !url.contains(['?', '#', '<', '>'])).then_some(())
        };
        if url.is_empty() || is_plain().is_some() {
            Ok(Self(url.to_owned()))
        } else {
            Err("it must be http:// or https://, a host, and perhaps a path, for example \
                 https://shop.example/antre"
                .to_owned())
        }
    }
}

impl fmt::Display for PublicUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The proxies whose `X-Forwarded-Prefix` counts: addresses and networks, separated by commas. None by default.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TrustedProxies(Vec<IpNet>);

impl FromStr for TrustedProxies {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let one = |part: &str| {
            part.parse::<IpNet>().or_else(|_| part.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
                format!(
                    "\"{part}\" is no IP address or network; write them like 10.0.0.7 or 10.0.0.0/8, \
                         separated by commas"
                )
            })
        };
        text.split(',')
            .map(str::trim)
            .filter(|part| !part.is_empty())
            .map(one)
            .collect::<Result<_, _>>()
            .map(Self)
    }
}

impl fmt::Display for TrustedProxies {
    /// As the setting is written.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let networks: Vec<_> = self.0.iter().map(IpNet::to_string).collect();
        f.write_str(&networks.join(","))
    }
}

impl TrustedProxies {
    fn has(&self, peer: IpAddr) -> bool {
        // A socket that listens on both families shows an IPv4 client as ::ffff:…
        let peer = peer.to_canonical();
        self.0.iter().any(|network| network.contains(&peer))
    }
}

/// How references in answers become URLs that clients can follow.
#[derive(Clone, Debug, Default)]
pub struct Links {
    pub public_url: PublicUrl,
    pub trusted_proxies: TrustedProxies,
}

pub(super) const X_FORWARDED_PREFIX: HeaderName = HeaderName::from_static("x-forwarded-prefix");

impl Links {
    /// The URL or path in front of every path of an answer to this request, if there is one. The setting wins over the proxy's header.
    pub(super) fn base(&self, peer: IpAddr, request: &HeaderMap) -> Option<String> {
        if !self.public_url.0.is_empty() {
            return Some(self.public_url.0.clone());
        }
        self.forwarded_prefix(peer, request).map(|prefix| prefix.0)
    }

    /// The prefix that a trusted proxy has added to the path of this request.
    pub(super) fn forwarded_prefix(&self, peer: IpAddr, request: &HeaderMap) -> Option<ForwardedPrefix> {
        let mut given = request.get_all(X_FORWARDED_PREFIX).iter();
        let (Some(prefix), None) = (given.next(), given.next()) else { return None };
        let prefix = prefix.to_str().ok().and_then(path_prefix)?;
        self.trusted_proxies.has(peer).then(|| ForwardedPrefix(prefix.to_owned()))
    }

    /// Puts `base` in front of the references of an answer. Handlers write them as paths.
    pub(super) fn rebase(base: &str, answer: &mut HeaderMap) {
        if let Some(rebased) = answer.get(header::LOCATION).and_then(|path| before(base, "", path)) {
            answer.insert(header::LOCATION, rebased);
        }
        if let Some(rebased) = answer.get(header::LINK).and_then(|link| before(base, "<", link)) {
            answer.insert(header::LINK, rebased);
        }
    }
}

/// See [`Links::forwarded_prefix`].
#[derive(Clone)]
pub(super) struct ForwardedPrefix(String);

/// What leads from a page to the root of this API: `./`, `../` and so on, or the path that a proxy says. Never a host, so that a
/// page loads its files from where it came itself.
pub(super) struct Root(pub(super) String);

impl<S: Sync> FromRequestParts<S> for Root {
    type Rejection = Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Infallible> {
        if let Some(ForwardedPrefix(prefix)) = parts.extensions.get() {
            return Ok(Self(format!("{prefix}/")));
        }
        let ups = parts.uri.path().matches('/').count().saturating_sub(1);
        Ok(Self(if ups == 0 { "./".to_owned() } else { "../".repeat(ups) }))
    }
}

impl Root {
    /// The same for another page, which without a proxy's prefix is `own`.
    pub(super) fn of_page(self, own: &str) -> String {
        if self.0.starts_with('/') { self.0 } else { own.to_owned() }
    }
}

/// A prefix as it is put in front of paths; `None` if it is invalid. `//host` is: it names another host.
fn path_prefix(text: &str) -> Option<&str> {
    let prefix = text.trim().trim_end_matches('/');
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"/-._~%!$&'()*+,;=:@".contains(&byte);
    (prefix.starts_with('/')
        && !prefix.starts_with("//")
        && prefix.len() <= 256
        && prefix.bytes().all(allowed))
    .then_some(prefix)
}

/// `value` with `base` between its `opening` and the path.
fn before(base: &str, opening: &str, value: &HeaderValue) -> Option<HeaderValue> {
    let path = value.to_str().ok()?.strip_prefix(opening)?;
    path.starts_with('/').then(|| HeaderValue::try_from(format!("{opening}{base}{path}")).ok())?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn public_urls_are_parsed() {
        let parsed = |text: &str| text.parse::<PublicUrl>().map(|url| url.0);
        assert_eq!(parsed(""), Ok(String::new()));
        assert_eq!(parsed("https://shop.example"), Ok("https://shop.example".to_owned()));
        assert_eq!(parsed("https://shop.example:8443/a/b/"), Ok("https://shop.example:8443/a/b".to_owned()));
        for bad in [
            "shop.example",
            "/antre",
            "ftp://shop.example",
            "https://",
            "https://me:secret@shop.example",
            "https://shop.example/?a=b",
            "https://shop.example/#a",
            "https://shop example",
        ] {
            assert!(parsed(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_a_trusted_proxy_sets_a_prefix() {
        let links = |proxies: &str| Links { trusted_proxies: proxies.parse().unwrap(), ..Links::default() };
        let base = |links: &Links, peer: &str, prefixes: &[&str]| {
            let mut headers = HeaderMap::new();
            for prefix in prefixes {
                headers.append(X_FORWARDED_PREFIX, prefix.parse().unwrap());
            }
            links.base(peer.parse().unwrap(), &headers)
        };
        let trusting = links("10.0.0.0/8, 127.0.0.1,::1");
        for peer in ["10.1.2.3", "127.0.0.1", "::1", "::ffff:10.1.2.3"] {
            assert_eq!(base(&trusting, peer, &["/antre/"]).as_deref(), Some("/antre"), "{peer}");
        }
        assert_eq!(base(&trusting, "127.0.0.2", &["/antre"]), None);
        assert_eq!(base(&links(""), "127.0.0.1", &["/antre"]), None);
        for bad in ["antre", "//evil.example", "/", "", "/a?b", "/a#b", "/<b>", "/a b", "http://evil.example"]
        {
            assert_eq!(base(&trusting, "::1", &[bad]), None, "{bad}");
        }
        assert_eq!(base(&trusting, "::1", &["/a", "/b"]), None, "of two, it is unclear which one counts");
        assert!("10.0.0.0/33".parse::<TrustedProxies>().is_err());
        assert!("proxy.example".parse::<TrustedProxies>().is_err());
    }
}
