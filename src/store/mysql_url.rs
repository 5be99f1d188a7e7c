//! A `mysql://` URL as options of a connection: to another machine it is encrypted, and the server has to show who it is.

use std::{fs, str::FromStr};

use sqlx::{
    ConnectOptions,
    mysql::{MySqlConnectOptions, MySqlSslMode},
};

use super::open_error::OpenError;
use crate::server_url;

/// What the URL says. Where it says nothing of encryption, `PREFERRED` is right for this machine only: anybody who stands in
/// between, or in the server's place, can say that they do not encrypt, and gets the password.
pub(super) fn connect_options(url: &str) -> Result<MySqlConnectOptions, OpenError> {
    server_url::check("DATABASE_URL", url).map_err(OpenError::Url)?;
    let options = MySqlConnectOptions::from_str(url)?.disable_statement_logging();
    let ca = server_url::parameter(url, &["ssl-ca", "sslca"]);
    if let Some(file) = &ca {
        // Else the connection fails with an error that does not say which file is missing.
        fs::File::open(file)
            .map_err(|error| OpenError::Url(format!("ssl-ca of DATABASE_URL names {file}: {error}")))?;
    }
    let stays_here = options.get_socket().is_some() || server_url::is_this_machine(url);
    let says = server_url::parameter(url, &["ssl-mode", "sslmode"]).is_some();
    if says || (stays_here && ca.is_none()) {
        return Ok(options);
    }
    Ok(options.ssl_mode(MySqlSslMode::VerifyIdentity))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mode(url: &str) -> MySqlSslMode {
        connect_options(url).unwrap().get_ssl_mode()
    }

    #[test]
    fn other_machines_must_show_who_they_are_unless_the_url_says_otherwise() {
        use MySqlSslMode::{Disabled, Preferred, Required, VerifyCa, VerifyIdentity};
        for host in ["db.example", "10.0.0.1:3307", "mysql", "[fd00::1]"] {
            let url = format!("mysql://shop:secret@{host}/antre");
            assert!(matches!(mode(&url), VerifyIdentity), "{url}");
            assert!(matches!(mode(&format!("{url}?ssl-ca=/dev/null")), VerifyIdentity), "{url}");
            assert!(matches!(mode(&format!("{url}?ssl-mode=REQUIRED")), Required), "{url}");
            assert!(matches!(mode(&format!("{url}?sslmode=disabled")), Disabled), "{url}");
            assert!(matches!(mode(&format!("{url}?ssl-ca=/dev/null&ssl-mode=VERIFY_CA")), VerifyCa));
        }
        for host in ["localhost", "127.0.0.1:3306", "[::1]"] {
            let url = format!("mysql://shop:secret@{host}/antre");
            assert!(matches!(mode(&url), Preferred), "{url}");
            assert!(matches!(mode(&format!("{url}?ssl-ca=/dev/null")), VerifyIdentity), "{url}");
        }
        assert!(matches!(mode("mysql://shop:secret@db/antre?socket=/run/mysqld/mysqld.sock"), Preferred));
    }

    #[test]
    fn a_ca_that_is_not_there_is_named() {
        let complaint = connect_options("mysql://shop:secret@db/antre?ssl-ca=/nowhere/ca.pem").unwrap_err();
        assert!(complaint.to_string().contains("/nowhere/ca.pem"), "{complaint}");
    }

    #[test]
    fn a_url_that_is_none_is_complained_of_without_its_password() {
        for url in ["mysql://shop:sec#ret@db/antre", "mysql://shop:sec/ret@db/antre", "mysql://shop:1?ret@db"]
        {
            let complaint = connect_options(url).unwrap_err().to_string();
            assert!(complaint.contains("percent-encoded") && !complaint.contains("ret"), "{complaint}");
        }
    }
}
