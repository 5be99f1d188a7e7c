//! Where the load goes: the URL of an API, as a person gives it.

use std::{fmt, str::FromStr};

use url::{Host, Url};

/// An `http://` or `https://` URL without credentials, query and fragment. A path is kept: an API may be reached through a
/// gateway below a prefix.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    url: Url,
    /// Without a slash at its end.
    prefix: String,
    host: String,
    port: u16,
}

impl Target {
    /// The host as the system resolves it: an IPv6 address has no brackets.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port, of the scheme where the URL has none.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Whether the connection is encrypted.
    pub fn is_https(&self) -> bool {
        self.url.scheme() == "https"
    }

    /// Whether the URL names this machine: `localhost` or a loopback address. Other names are not resolved.
    pub fn is_loopback(&self) -> bool {
        match self.url.host() {
            Some(Host::Domain(name)) => name.eq_ignore_ascii_case("localhost"),
            Some(Host::Ipv4(address)) => address.is_loopback(),
            Some(Host::Ipv6(address)) => address.is_loopback(),
            None => false,
        }
    }

    /// What a request's `Host` header says.
    pub fn authority(&self) -> &str {
        self.url.authority()
    }

    /// The target of a request, for a path such as `/api/orders`.
    pub fn path(&self, path: &str) -> String {
        format!("{}{path}", self.prefix)
    }
}

impl fmt::Display for Target {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}{}", self.url.scheme(), self.url.authority(), self.prefix)
    }
}

impl FromStr for Target {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let example = "write it like http://localhost:3000";
        if !text.contains("://") {
            return Err(format!("it has no scheme; {example}"));
        }
        let url = Url::parse(text).map_err(|error| format!("{error}; {example}"))?;
        if !matches!(url.scheme(), "http" | "https") {
            return Err(format!("it must begin with http:// or https://; {example}"));
        }
        if !url.username().is_empty() || url.password().is_some() {
            return Err(format!("a user and a password are not supported; {example}"));
        }
        if url.query().is_some() || url.fragment().is_some() {
            return Err(format!("it must end before the ? or #; {example}"));
        }
        let prefix = url.path().trim_end_matches('/').to_owned();
        if prefix.ends_with("/api") || prefix.contains("/api/") {
            return Err(format!("it must end before /api, which is added; {example}"));
        }
        let host = match url.host() {
            Some(Host::Domain(name)) => name.to_owned(),
            Some(Host::Ipv4(address)) => address.to_string(),
            Some(Host::Ipv6(address)) => address.to_string(),
            None => return Err(format!("it has no host; {example}")),
        };
        let port = url.port_or_known_default().unwrap_or_default();
        Ok(Self { prefix, host, port, url })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_is_taken_apart() {
        let target: Target = "https://shop.example/antre/".parse().unwrap();
        assert_eq!((target.host(), target.port(), target.is_https()), ("shop.example", 443, true));
        assert_eq!(target.authority(), "shop.example");
        assert_eq!(target.path("/api/orders"), "/antre/api/orders");
        assert_eq!(target.to_string(), "https://shop.example/antre");
        let target: Target = "http://[::1]:3000".parse().unwrap();
        assert_eq!((target.host(), target.port(), target.authority()), ("::1", 3000, "[::1]:3000"));
        assert_eq!(target.path("/api/orders"), "/api/orders");
    }

    #[test]
    fn loopback_is_named_not_resolved() {
        for (url, is_loopback) in [
            ("http://localhost:3000", true),
            ("http://LOCALHOST", true),
            ("http://127.0.0.1:3000", true),
            ("http://127.9.9.9", true),
            ("http://[::1]:3000", true),
            ("http://localhost.example", false),
            ("http://10.0.0.1", false),
            ("https://shop.example", false),
        ] {
            assert_eq!(url.parse::<Target>().unwrap().is_loopback(), is_loopback, "{url}");
        }
    }

    #[test]
    fn a_wrong_url_is_explained() {
        for (url, word) in [
            ("localhost:3000", "scheme"),
            ("ftp://localhost", "http://"),
            ("http://", "http://localhost:3000"),
            ("http://shop:secret@localhost:3000", "password"),
            ("http://localhost:3000/api", "/api"),
            ("http://localhost:3000/api/orders", "/api"),
            ("http://localhost:3000?x=1", "?"),
            ("http://localhost:99999", "port"),
        ] {
            let error = url.parse::<Target>().unwrap_err();
            assert!(error.contains(word) && !error.contains("secret"), "{url}: {error}");
        }
    }
}
