//! `antre check`: whether this antre can run with these settings, and whether the servers keep what they confirm.

use std::{collections::BTreeMap, time::Duration};

use serde::Serialize;

use super::{
    outcome::{Finding, ToolError},
    output,
};
use crate::{
    domain::lane_set::LaneMode,
    queue::rabbitmq::inspection::{self, BrokerInspection},
    server_url::{self, shown},
    settings::{Backends, Database, Settings, tools::Output},
    store::{
        OpenError, Schema, Usability,
        inspection::{MySqlInspection, SqliteInspection, inspect_mysql, inspect_sqlite},
        mysql::MySqlStore,
        sqlite::SqliteStore,
    },
};

/// How far the clocks of a process and of its database may be apart.
const MAX_CLOCK_DIFFERENCE: u64 = 2_000;
/// What one process may open on MySQL at once, all roles together.
const CONNECTIONS_PER_PROCESS: u64 = 19;

pub(super) async fn run(settings: &Settings, Output { json }: Output) -> Result<Finding, ToolError> {
    let mut checks = Checks::default();
    checks.settings(settings);
    match settings.backends.database() {
        Err(error) => checks.fail("settings", error.to_string(), "set it, and run antre check again"),
        Ok(Database::Sqlite(url)) => checks.sqlite(&url).await,
        Ok(Database::MySql(url)) => checks.mysql(&url).await,
    }
    match settings.backends.backends() {
        Ok(Backends::Embedded { .. }) => checks.ok("broker", "none: the lanes are in the process".to_owned()),
        Ok(Backends::Servers { amqp_url, .. }) => {
            checks.broker(&amqp_url, &settings.backends.queue_prefix).await;
        }
        Err(error) if settings.backends.database().is_ok() => {
            checks.fail("settings", error.to_string(), "set it, and run antre check again");
        }
        Err(_) => {}
    }
    if json {
        output::json(&checks.0)?;
    } else {
        checks.0.iter().try_for_each(|check| output::line(check.line()))?;
    }
    let has_failed = checks.0.iter().any(|check| check.grade == Grade::Fail);
    Ok(if has_failed { Finding::Some } else { Finding::None })
}

/// How well it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Grade {
    Ok,
    /// It runs, and something is not as it should be.
    Warn,
    /// It does not run, or loses what it confirmed.
    Fail,
}

/// One line of the answer.
#[derive(Debug, Serialize)]
struct Check {
    grade: Grade,
    subject: &'static str,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    what_to_do: Option<String>,
}

impl Check {
    fn line(&self) -> String {
        let grade = match self.grade {
            Grade::Ok => "ok",
            Grade::Warn => "warn",
            Grade::Fail => "fail",
        };
        let line = format!("{grade:<5} {:<16} {}", self.subject, self.message.replace('\n', " "));
        match &self.what_to_do {
            Some(what_to_do) => format!("{line}. To do: {what_to_do}"),
            None => line,
        }
    }
}

#[derive(Default)]
struct Checks(Vec<Check>);

impl Checks {
    fn ok(&mut self, subject: &'static str, message: String) {
        self.0.push(Check { grade: Grade::Ok, subject, message, what_to_do: None });
    }

    fn warn(&mut self, subject: &'static str, message: String, what_to_do: impl Into<String>) {
        self.0.push(Check { grade: Grade::Warn, subject, message, what_to_do: Some(what_to_do.into()) });
    }

    fn fail(&mut self, subject: &'static str, message: String, what_to_do: impl Into<String>) {
        self.0.push(Check { grade: Grade::Fail, subject, message, what_to_do: Some(what_to_do.into()) });
    }

    /// What clap cannot see, because it looks at one setting at a time.
    fn settings(&mut self, settings: &Settings) {
        let (ttl, wait) = (settings.orders.reservation_ttl, settings.http.order_timeout);
        if ttl <= wait {
            self.warn(
                "settings",
                format!("RESERVATION_TTL is {ttl:?} and ORDER_TIMEOUT {wait:?}: an order may expire before its answer"),
                "make RESERVATION_TTL the longer one, by minutes",
            );
        } else {
            self.ok("settings", format!("RESERVATION_TTL {ttl:?}, ORDER_TIMEOUT {wait:?}"));
        }
        if let Err(error) = settings.orders.check() {
            self.fail("settings", error.to_string(), "leave MAX_HOLD out, or make it the longer one");
        }
        if let LaneMode::Hash(lanes) = settings.backends.lanes {
            self.ok("settings", format!("LANES hash:{lanes}, which all processes must share"));
        }
    }

    async fn sqlite(&mut self, url: &str) {
        match inspect_sqlite(url).await {
            Err(error) => self.unreachable(url, &error),
            Ok(inspection) => {
                self.sqlite_file(&inspection);
                if inspection.existing.is_some() {
                    self.schema(url, SqliteStore::schema(url).await);
                }
            }
        }
    }

    fn sqlite_file(&mut self, SqliteInspection { file, existing, has_directory }: &SqliteInspection) {
        let name = file.display();
        let Some(existing) = existing else {
            return match has_directory {
                true => self.ok("database", format!("{name} does not exist yet: the first start creates it")),
                false => self.fail(
                    "database",
                    format!("the directory of {name} does not exist"),
                    "create it, or set DATABASE_URL",
                ),
            };
        };
        match &existing.not_writable {
            None => self.ok("database", format!("{name} can be written, SQLite {}", existing.version)),
            Some(why) => self.fail(
                "database",
                format!("{name} cannot be written: {why}"),
                "let the user that runs antre write the file and its directory",
            ),
        }
        if existing.mode & 0o077 != 0 {
            let message = format!("others than its owner may open {name} (mode {:o})", existing.mode);
            self.warn("database", message, format!("chmod 600 {name}"));
        }
    }

    async fn mysql(&mut self, url: &str) {
        let schema = MySqlStore::schema(url).await;
        let has_tables = schema.as_ref().is_ok_and(|schema| schema.usability() == Usability::Now);
        match inspect_mysql(url, has_tables).await {
            Err(error) => self.unreachable(url, &error),
            Ok(inspection) => {
                self.ok("database", format!("{} answers", shown(url)));
                self.mysql_server(&inspection);
                self.schema(url, schema);
                self.mysql_rights(&inspection, has_tables);
            }
        }
    }

    fn mysql_server(&mut self, MySqlInspection { variables, clock_ahead, .. }: &MySqlInspection) {
        let value = |name: &str| variables.get(name).map_or("", String::as_str);
        let version = value("version");
        match mysql_version(version) {
            Some(version) if version >= (8, 4) => self.ok("mysql version", value("version").to_owned()),
            _ => self.fail(
                "mysql version",
                format!("{version} ({}) is not MySQL 8.4 or later", value("version_comment")),
                "use MySQL 8.4 or later: antre is tested with nothing else",
            ),
        }
        self.durability(variables);
        if value("read_only") == "ON" || value("super_read_only") == "ON" {
            self.fail(
                "mysql read_only",
                "the server takes no writes".to_owned(),
                "let DATABASE_URL name the primary, or SET GLOBAL super_read_only = OFF, read_only = OFF",
            );
        }
        if let Ok(most) = value("max_connections").parse::<u64>() {
            let processes = most / CONNECTIONS_PER_PROCESS;
            let message = format!("max_connections {most}, enough for {processes} processes of antre");
            match processes {
                0..4 => {
                    self.warn("mysql connections", message, "raise max_connections before adding processes")
                }
                _ => self.ok("mysql connections", message),
            }
        }
        let apart = clock_ahead.unsigned_abs();
        let message = format!("the database's clock and this machine's are {apart} ms apart");
        match apart > MAX_CLOCK_DIFFERENCE {
            true => {
                self.warn("clock", message, "synchronize both with NTP: order ids carry this machine's time")
            }
            false => self.ok("clock", message),
        }
    }

    /// What the server confirms must survive its crash.
    fn durability(&mut self, variables: &BTreeMap<String, String>) {
        let value = |name: &str| variables.get(name).map_or("", String::as_str);
        let binlog = value("log_bin") == "ON";
        for (name, good, matters, loss) in [
            (
                "innodb_flush_log_at_trx_commit",
                &["1"] as &[&str],
                true,
                "a crash loses up to a second of committed orders",
            ),
            ("sync_binlog", &["1"], binlog, "a crash loses committed orders on replicas and in backups"),
            (
                "innodb_doublewrite",
                &["ON", "DETECT_AND_RECOVER"],
                true,
                "a crash can leave torn pages that cannot be repaired",
            ),
        ] {
            let found = value(name);
            if good.contains(&found) {
                self.ok("mysql durability", format!("{name} = {found}"));
            } else if matters {
                let what_to_do =
                    format!("SET PERSIST {name} = {}, or in my.cnf, and restart where it must be", good[0]);
                self.fail("mysql durability", format!("{name} = {found}: {loss}"), what_to_do);
            }
        }
        if value("innodb_flush_method").contains("nosync") {
            self.fail(
                "mysql durability",
                "innodb_flush_method does not write to the disk".to_owned(),
                "set innodb_flush_method = O_DIRECT in my.cnf",
            );
        }
    }

    fn mysql_rights(&mut self, MySqlInspection { missing_rights, .. }: &MySqlInspection, has_tables: bool) {
        match missing_rights.is_empty() {
            false => self.fail(
                "mysql rights",
                format!("its user lacks {}", missing_rights.join(", ")),
                "GRANT SELECT, INSERT, UPDATE, DELETE on this database to it",
            ),
            true if has_tables => {
                self.ok("mysql rights", "SELECT, INSERT, UPDATE and DELETE on all tables".to_owned())
            }
            true => {}
        }
    }

    fn schema(&mut self, url: &str, schema: Result<Schema, OpenError>) {
        match schema.map(|schema| schema.usability()) {
            Ok(Usability::Now) => self.ok("tables", "up to date".to_owned()),
            Ok(Usability::AfterMigration) => self.warn(
                "tables",
                "missing or not up to date".to_owned(),
                "run antre migrate; the other roles do it at their start, if their user may change tables",
            ),
            Ok(Usability::Never(why)) => self.fail("tables", why, "see antre migrate --status"),
            Err(error) => self.unreachable(url, &error),
        }
    }

    fn unreachable(&mut self, url: &str, error: &OpenError) {
        self.fail(
            "database",
            format!("cannot open {}: {error}", shown(url)),
            "check that it runs and can be reached from here, and DATABASE_URL (--database-url)",
        );
    }

    async fn broker(&mut self, url: &str, queue_prefix: &str) {
        if url.starts_with("amqp://") && !server_url::is_this_machine(url) {
            let message =
                format!("{} is on another machine, and the connection is not encrypted", shown(url));
            self.warn("broker", message, "use amqps://, unless the network between is private");
        }
        match inspection::inspect(url, queue_prefix).await {
            Ok(inspection) => {
                self.ok("broker", format!("{} answers", shown(url)));
                self.broker_facts(&inspection);
            }
            Err(error) => self.fail(
                "broker",
                format!("cannot open {}: {error}", shown(url)),
                "check that it runs and can be reached from here, and AMQP_URL (--amqp-url) with user, password and vhost",
            ),
        }
    }

    fn broker_facts(&mut self, BrokerInspection { version, round_trip, dead_letters }: &BrokerInspection) {
        match version {
            None => self.warn(
                "broker version",
                "not read: the connection is encrypted".to_owned(),
                "see that it is RabbitMQ 4.0 or later (rabbitmqctl version)",
            ),
            Some(version) if major(version).is_some_and(|major| major >= 4) => {
                self.ok("broker version", format!("RabbitMQ {version}"));
            }
            Some(version) => self.fail(
                "broker version",
                format!("RabbitMQ {version} is not 4.0 or later"),
                "upgrade it: older ones ignore the priorities that spread lanes over workers",
            ),
        }
        match round_trip {
            Ok(took) => self.ok("broker rights", format!("a message was queued and taken in {}", ms(*took))),
            Err(why) => self.fail(
                "broker rights",
                why.clone(),
                "let its user configure, write and read everything with this QUEUE_PREFIX, and the default exchange; and \
                 see whether the broker has an alarm (rabbitmq-diagnostics alarms)",
            ),
        }
        match dead_letters {
            Some(0) | None => self.ok("dead letters", "none".to_owned()),
            Some(count) => self.warn(
                "dead letters",
                output::count((*count).into(), "message", "messages"),
                "look at them with antre dead list: they could not be decided, or waited for an hour",
            ),
        }
    }
}

fn ms(duration: Duration) -> String {
    format!("{:.1} ms", duration.as_secs_f64() * 1_000.0)
}

/// Major and minor version of MySQL. `None`: it is another server.
fn mysql_version(text: &str) -> Option<(u32, u32)> {
    if text.to_ascii_lowercase().contains("mariadb") {
        return None;
    }
    let mut numbers = text.split(['.', '-']).map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}

fn major(version: &str) -> Option<u32> {
    version.split('.').next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failures(variables: &[(&str, &str)]) -> Vec<String> {
        let good = [
            ("innodb_flush_log_at_trx_commit", "1"),
            ("sync_binlog", "1"),
            ("log_bin", "ON"),
            ("innodb_doublewrite", "ON"),
            ("innodb_flush_method", "O_DIRECT"),
        ];
        let variables =
            good.iter().chain(variables).map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let mut checks = Checks::default();
        checks.durability(&variables.collect());
        checks.0.into_iter().filter(|check| check.grade == Grade::Fail).map(|check| check.message).collect()
    }

    #[test]
    fn settings_that_lose_data_fail() {
        assert_eq!(failures(&[]), Vec::<String>::new());
        for (name, value) in [
            ("innodb_flush_log_at_trx_commit", "2"),
            ("innodb_flush_log_at_trx_commit", "0"),
            ("sync_binlog", "0"),
            ("innodb_doublewrite", "OFF"),
            ("innodb_flush_method", "nosync"),
        ] {
            let found = failures(&[(name, value)]);
            assert!(found.len() == 1 && found[0].starts_with(name), "{name} {value}: {found:?}");
        }
        assert_eq!(failures(&[("sync_binlog", "0"), ("log_bin", "OFF")]), Vec::<String>::new());
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert_eq!(mysql_version("8.4.3"), Some((8, 4)));
        assert_eq!(mysql_version("9.7.1-0ubuntu1"), Some((9, 7)));
        assert_eq!(mysql_version("10.4.0-log"), Some((10, 4)));
        assert_eq!(mysql_version("11.4.2-MariaDB"), None);
        assert_eq!((major("4.3.6"), major("3.13.7"), major("x")), (Some(4), Some(3), None));
    }
}
