//! The URLs of the database and the broker. They contain passwords, which must not appear on the terminal or in the log.

use url::{Host, Url};

/// A URL without its password: scheme, host and path. Passwords are not always percent-encoded as they should be, so everything up
/// to the last `@` is removed first.
pub fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else { return "(not a URL)".to_owned() };
    if scheme == "sqlite" {
        return url.to_owned(); // a file has no password
    }
    let shown = match rest.rsplit_once('@') {
        Some((_, behind)) => behind,
        // Perhaps a user and a password without a host.
        None if Url::parse(url).is_err() => "…",
        None => rest,
    };
    let shown = shown.split(['?', '#']).next().unwrap_or_default();
    format!("{scheme}://{shown}")
}

/// The URL at the end of a text.
pub fn within(text: &str) -> Option<&str> {
    let scheme_end = text.find("://")?;
    let scheme = text[..scheme_end].rsplit(|before: char| !before.is_ascii_alphanumeric()).next()?;
    Some(&text[scheme_end - scheme.len()..])
}

/// Checks that the URL is parsed as it was meant. The error does not show the URL.
pub fn check(setting: &str, url: &str) -> Result<(), String> {
    let (_, rest) = url.split_once("://").unwrap_or_default();
    let after_host = rest.find(['/', '?', '#']).map_or("", |at| &rest[at..]);
    let wrong = if after_host.contains('@') {
        "it has an @ after its host".to_owned()
    } else {
        match Url::parse(url) {
            Ok(parsed) if parsed.fragment().is_some() => "it has a # after its host".to_owned(),
            Ok(parsed) if parsed.host().is_none() && !parsed.username().is_empty() => {
                "it has no host".to_owned()
            }
            Ok(_) => return Ok(()),
            Err(error) => error.to_string(),
        }
    };
    Err(format!(
        "{setting} is not a URL like scheme://user:password@host:port/name: {wrong}. Special characters in the user and the \
         password must be percent-encoded: @ as %40, : as %3A, / as %2F, ? as %3F, # as %23, % as %25"
    ))
}

/// Whether the URL's host is this machine. `false` for an invalid URL.
pub fn is_this_machine(url: &str) -> bool {
    let Ok(url) = Url::parse(url) else { return false };
    match url.host() {
        // The scheme is not one of the web, so addresses are not parsed.
        Some(Host::Domain(name)) => match name.parse::<std::net::Ipv4Addr>() {
            Ok(address) => address.is_loopback(),
            Err(_) => name.eq_ignore_ascii_case("localhost"),
        },
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => true,
    }
}

/// The parameter of the URL that has one of these names.
pub fn parameter(url: &str, names: &[&str]) -> Option<String> {
    let url = Url::parse(url).ok()?;
    url.query_pairs().find(|(name, _)| names.contains(&&**name)).map(|(_, value)| value.into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every character that somebody may type.
    fn awkward() -> impl Iterator<Item = char> {
        (b' '..=b'~').map(char::from).chain(['ä', '\t'])
    }

    #[test]
    fn no_character_in_a_password_shows_it() {
        for scheme in ["mysql", "amqp", "amqps"] {
            for character in awkward() {
                for (before, behind) in [("top", "secret"), ("4", "secret"), ("", "secret"), ("top", "")] {
                    let url =
                        format!("{scheme}://root:{before}{character}{behind}@db.example:3306/antre?a=b");
                    assert_eq!(shown(&url), format!("{scheme}://db.example:3306/antre"), "{url}");
                    if let Err(complaint) = check("DATABASE_URL", &url) {
                        assert!(!complaint.contains("secret") && !complaint.contains("top"), "{complaint}");
                        assert!(complaint.contains("percent-encoded"), "{complaint}");
                    }
                }
                let without_host = format!("{scheme}://root:top{character}secret");
                let behind_at = if character == '@' { "secret" } else { "…" };
                assert_eq!(shown(&without_host), format!("{scheme}://{behind_at}"));
            }
        }
    }

    /// A URL is parsed as it was meant, or refused.
    #[test]
    fn a_password_is_taken_as_typed_or_refused() {
        for character in awkward() {
            for password in [format!("to{character}p"), format!("4{character}2"), format!("{character}")] {
                let url = format!("mysql://root:{password}@db.example/antre");
                if check("DATABASE_URL", &url).is_ok() {
                    let parsed = Url::parse(&url).unwrap();
                    assert_eq!(parsed.host_str(), Some("db.example"), "{url}");
                    assert_eq!(parsed.path(), "/antre", "{url}");
                }
            }
        }
        for encoded in ["%23", "%3F", "%2F", "%40", "%25", "%3A"] {
            check("AMQP_URL", &format!("amqp://root:to{encoded}p@mq.example/%2f")).unwrap();
        }
        check("DATABASE_URL", "mysql://localhost/antre?socket=/run/mysqld.sock").unwrap();
    }

    #[test]
    fn a_url_is_found_at_the_end_of_an_argument() {
        assert_eq!(within("--database-ur=mysql://a:b@c"), Some("mysql://a:b@c"));
        assert_eq!(within("mysql://a:b@c"), Some("mysql://a:b@c"));
        assert_eq!(within("--ä://"), Some("://"));
        assert_eq!(within("--lanes=hash:4"), None);
    }

    #[test]
    fn this_machine_is_recognised() {
        for host in ["localhost", "LOCALHOST:3306", "127.0.0.1", "127.1.2.3:3306", "[::1]:3306"] {
            assert!(is_this_machine(&format!("mysql://root:secret@{host}/antre")), "{host}");
        }
        for host in ["db", "mysql:3306", "10.0.0.1", "127.0.0.1.example", "localhost.example", "[fd00::1]"] {
            assert!(!is_this_machine(&format!("mysql://root:secret@{host}/antre")), "{host}");
        }
    }
}
