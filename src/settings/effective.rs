//! One line in the log with the settings of the role, defaults included and passwords not: it tells how a process ran.

use std::time::Duration;

use super::{BackendSettings, LatePaymentSetting, Role, Settings, Switch};
use crate::{
    server_url::shown,
    telemetry::{LogFormat, traces},
};

impl Role {
    /// As the command line has it.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Serve => "serve",
            Self::Api => "api",
            Self::Worker => "worker",
            Self::Migrate { .. } => "migrate",
        }
    }
}

impl Settings {
    /// `max_connections`: what the setting comes to, with the limit of open files.
    pub fn log_effective(&self, role: Role, max_connections: usize) {
        let (is_api, is_worker) = (role != Role::Worker, role != Role::Api);
        let database_url = self.backends.database_url.as_deref().filter(|url| !url.trim().is_empty());
        let amqp_url = self.backends.amqp_url.as_deref().filter(|url| !url.trim().is_empty());
        let listen_addr = match is_api {
            true => Some(self.http.listen_addr_or_default()),
            false => self.http.listen_addr.as_deref(),
        };
        tracing::info!(
            role = role.as_str(),
            version = env!("CARGO_PKG_VERSION"),
            pid = std::process::id(),
            database_url = shown(database_url.unwrap_or(BackendSettings::DEFAULT_DATABASE_URL)),
            amqp_url = amqp_url.map(shown),
            queue_prefix = self.backends.queue_prefix,
            lanes = %self.backends.lanes,
            listen_addr,
            max_connections = listen_addr.map(|_| max_connections),
            order_timeout_ms = is_api.then(|| whole_ms(self.http.order_timeout)),
            public_url = is_api.then(|| self.http.public_url.to_string()),
            trusted_proxies = is_api.then(|| self.http.trusted_proxies.to_string()),
            reservation_ttl_ms = is_worker.then(|| whole_ms(self.orders.reservation_ttl)),
            max_hold_ms = is_worker.then(|| whole_ms(self.orders.max_hold_or_default())),
            late_payment = is_worker.then_some(match self.orders.late_payment {
                LatePaymentSetting::Accept => "accept",
                LatePaymentSetting::Refuse => "refuse",
            }),
            events = is_worker.then_some(self.orders.events == Switch::On),
            retention = is_worker.then(|| self.orders.retention.to_string()),
            filter = self.log.filter,
            log_format = match self.log.log_format {
                LogFormat::Text => "text",
                LogFormat::Json => "json",
            },
            slow_batch_ms = is_worker.then(|| whole_ms(self.log.slow_batch)),
            otlp_endpoint = traces::is_on().then(traces::endpoint).flatten().map(|(_, url)| shown(&url)),
            slow_query_ms = whole_ms(self.log.slow_query),
            "starts with these settings"
        );
    }
}

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::{
        io,
        sync::{Arc, Mutex},
    };

    use clap::FromArgMatches;
    use serde_json::Value;
    use tracing_subscriber::fmt;

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    fn line(role: Role, arguments: &[&str]) -> Value {
        let matches = Settings::command_line().get_matches_from([&["antre"], arguments].concat());
        let settings = Settings::from_arg_matches(&matches).unwrap();
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = fmt().json().flatten_event(true).with_writer(move || writer.clone()).finish();
        tracing::subscriber::with_default(subscriber, || settings.log_effective(role, 7));
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text.lines().count(), 1, "{text}");
        serde_json::from_str(&text).unwrap()
    }

    const URLS: [&str; 4] = [
        "--database-url",
        "mysql://shop:top-secret@db.example/antre?ssl-mode=REQUIRED",
        "--amqp-url",
        "amqps://shop:top-secret@mq.example/%2f",
    ];

    /// A new setting must be in the line as well.
    #[test]
    fn every_setting_is_in_the_line_of_a_process_with_both_roles() {
        let line = line(Role::Serve, &URLS);
        for argument in Settings::command_line().get_arguments().filter(|argument| argument.is_global_set()) {
            let name = argument.get_id().as_str();
            let ms = format!("{name}_ms");
            let value = line.get(name).or_else(|| line.get(&ms));
            assert!(value.is_some(), "{name} is not in {line}");
        }
    }

    #[test]
    fn no_password_is_in_the_line() {
        let line = line(Role::Serve, &URLS);
        assert_eq!(line["database_url"], "mysql://db.example/antre");
        assert_eq!(line["amqp_url"], "amqps://mq.example/%2f");
        assert!(!line.to_string().contains("secret"), "{line}");
    }

    #[test]
    fn a_role_names_its_own_settings_and_numbers_are_numbers() {
        let worker = line(Role::Worker, &URLS);
        assert_eq!((&worker["role"], &worker["reservation_ttl_ms"]), (&"worker".into(), &900_000.into()));
        assert_eq!((worker.get("order_timeout_ms"), worker.get("listen_addr")), (None, None));
        let api = line(Role::Api, &URLS);
        assert_eq!((&api["order_timeout_ms"], &api["max_connections"]), (&10_000.into(), &7.into()));
        assert_eq!((api.get("events"), &api["listen_addr"]), (None, &"127.0.0.1:3000".into()));
        let embedded = line(Role::Serve, &[]);
        assert_eq!(
            (&embedded["database_url"], embedded.get("amqp_url")),
            (&"sqlite://antre.db".into(), None)
        );
    }
}
