//! Settings: flags override the environment, which overrides `.env`.

mod effective;
pub mod retention;
pub mod tools;

use std::time::Duration;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum};

use self::{retention::Retention, tools::Tool};
use crate::{
    domain::{
        lane_set::{LaneMode, LaneSet},
        rules::{LatePayment, Rules},
    },
    http::{PublicUrl, TrustedProxies},
    rehearse::args::RehearseArgs,
    server_url,
    telemetry::LogSettings,
};

/// The whole command line. Each role uses the settings that it needs and ignores the others, so that one `.env` is enough for all.
#[derive(Clone, Debug, Parser)]
#[command(name = "antre", version, about, max_term_width = 100)]
pub struct Settings {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub backends: BackendSettings,
    #[command(flatten)]
    pub http: HttpSettings,
    #[command(flatten)]
    pub orders: OrderSettings,
    #[command(flatten)]
    pub log: LogSettings,
}

/// What to run.
#[derive(Clone, Debug, Subcommand)]
pub enum Command {
    /// A role.
    #[command(flatten)]
    Role(Role),
    /// A tool for the operator.
    #[command(flatten)]
    Tool(Tool),
    #[allow(missing_docs, reason = "its arguments say it, and a text here would replace theirs in --help")]
    Rehearse(Box<RehearseArgs>),
}

impl Settings {
    /// Flags and environment of this process.
    pub fn of_process() -> Result<Self, clap::Error> {
        Self::from_arg_matches(&Self::command_line().try_get_matches()?)
    }

    /// The command line as clap knows it. All settings are global, so that one `.env` is enough for all commands.
    /// The help of a command shows the settings that it reads.
    pub fn command_line() -> clap::Command {
        let mut command = <Self as CommandFactory>::command();
        command.build(); // global arguments reach the subcommands here
        for (name, settings) in Self::of_commands() {
            command = command.mut_subcommand(name, |one| hide_settings_except(settings, one));
        }
        command
    }

    /// Which settings each command reads, by the ids of their arguments.
    fn of_commands() -> impl Iterator<Item = (&'static str, &'static [&'static str])> {
        const REHEARSE: (&str, &[&str]) = ("rehearse", &[]);
        Role::SETTINGS.into_iter().chain(Tool::SETTINGS).chain([REHEARSE])
    }
}

fn hide_settings_except(settings: &[&str], command: clap::Command) -> clap::Command {
    let nested: Vec<_> = command.get_subcommands().map(|one| one.get_name().to_owned()).collect();
    let command = command.mut_args(|argument| {
        let is_hidden = argument.is_global_set() && !settings.contains(&argument.get_id().as_str());
        if is_hidden { argument.hide(true) } else { argument }
    });
    nested.into_iter().filter(|name| name != "help").fold(command, |command, name| {
        command.mut_subcommand(name, |nested| hide_settings_except(settings, nested))
    })
}

/// What a process does.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Subcommand)]
pub enum Role {
    /// Run the REST API and a worker in one process; the default
    #[default]
    Serve,
    /// Run the REST API alone; needs DATABASE_URL and AMQP_URL
    Api,
    /// Run a worker alone, as many as you like; needs DATABASE_URL and AMQP_URL
    Worker,
    /// Bring the tables of the database up to date, and exit
    Migrate {
        /// Change nothing: list the migrations and say whether this antre may run; exit with 1 if it may not
        #[arg(long)]
        status: bool,
    },
}

impl Role {
    /// Which settings each role reads, by the ids of their arguments; `serve` reads all.
    const SETTINGS: [(&str, &[&str]); 3] = [
        (
            "api",
            &[
                "database_url",
                "amqp_url",
                "queue_prefix",
                "lanes",
                "listen_addr",
                "order_timeout",
                "max_connections",
                "public_url",
                "trusted_proxies",
                "filter",
                "log_format",
                "slow_query",
            ],
        ),
        (
            "worker",
            &[
                "database_url",
                "amqp_url",
                "queue_prefix",
                "lanes",
                "listen_addr",
                "max_connections",
                "reservation_ttl",
                "max_hold",
                "late_payment",
                "retention",
                "events",
                "filter",
                "log_format",
                "slow_batch",
                "slow_query",
            ],
        ),
        ("migrate", &["database_url", "filter", "log_format"]),
    ];
}

/// Database and queue.
#[derive(Args, Clone, Debug)]
pub struct BackendSettings {
    /// The database, mysql://user:password@host/name or sqlite://file [default: sqlite://antre.db]
    #[arg(long, env, hide_env_values = true, value_name = "URL", global = true)]
    pub database_url: Option<String>,
    /// The broker, amqp://user:password@host/vhost; goes with a mysql:// database
    #[arg(long, env, hide_env_values = true, value_name = "URL", global = true)]
    pub amqp_url: Option<String>,
    /// What the names of all queues and exchanges begin with, so that installations can share a broker
    #[arg(long, env, value_name = "TEXT", default_value = "", hide_default_value = true, value_parser = queue_prefix, global = true)]
    pub queue_prefix: String,
    /// Which orders share a queue: those of a product (`product`), or those of one of N groups of products (`hash:N`)
    #[arg(long, env, value_name = "MODE", default_value = "product", value_parser = str::parse::<LaneMode>, global = true)]
    pub lanes: LaneMode,
}

#[derive(Args, Clone, Debug)]
pub struct HttpSettings {
    /// Where to listen [default: 127.0.0.1:3000]
    #[arg(long, env, value_name = "HOST:PORT", value_parser = listen_addr, global = true)]
    pub listen_addr: Option<String>,
    /// How long an order waits for its verdict before the answer is 202
    #[arg(long, env, value_name = "DURATION", default_value = "10s", value_parser = order_timeout, global = true)]
    pub order_timeout: Duration,
    /// How many connections there may be at once [default: 10000, or what the limit of open files allows]
    #[arg(long, env, value_name = "NUMBER", value_parser = clap::value_parser!(u32).range(1..=1_000_000), global = true)]
    pub max_connections: Option<u32>,
    /// The URL below which clients find the API, for `Location` and `Link`, for example `https://shop.example/antre`
    #[arg(long, env, value_name = "URL", default_value = "", hide_default_value = true, value_parser = str::parse::<PublicUrl>, global = true)]
    pub public_url: PublicUrl,
    /// The proxies whose `X-Forwarded-Prefix` counts: IP addresses and networks, separated by commas
    #[arg(long, env, value_name = "IP,…", default_value = "", hide_default_value = true, value_parser = str::parse::<TrustedProxies>, global = true)]
    pub trusted_proxies: TrustedProxies,
}

impl HttpSettings {
    pub const DEFAULT_LISTEN_ADDR: &str = "127.0.0.1:3000";

    pub fn listen_addr_or_default(&self) -> &str {
        self.listen_addr.as_deref().unwrap_or(Self::DEFAULT_LISTEN_ADDR)
    }
}

#[derive(Args, Clone, Debug)]
pub struct OrderSettings {
    /// How long a reservation lives unless it is paid
    #[arg(long, env, value_name = "DURATION", default_value = "15m", value_parser = reservation_ttl, global = true)]
    pub reservation_ttl: Duration,
    /// How long after its creation an order may be reserved, with all extensions [default: 24h, or RESERVATION_TTL if that is longer]
    #[arg(long, env, value_name = "DURATION", value_parser = reservation_ttl, global = true)]
    pub max_hold: Option<Duration>,
    /// Whether a payment whose reservation has expired gets the pieces, if all are still available
    #[arg(long, env, value_enum, value_name = "RULE", default_value = "accept", global = true)]
    pub late_payment: LatePaymentSetting,
    /// Workers delete final orders that were created longer ago than this, for example `90d` [default: off]
    #[arg(long, env, value_name = "AGE", default_value = "", hide_default_value = true, value_parser = str::parse::<Retention>, global = true)]
    pub retention: Retention,
    /// Whether workers publish events of orders for the shop's other services (exchange `antre.events`)
    #[arg(long, env, value_enum, value_name = "SWITCH", default_value = "on", global = true)]
    pub events: Switch,
}

impl OrderSettings {
    /// What a worker decides by.
    pub fn rules(&self) -> Rules {
        let late_payment = match self.late_payment {
            LatePaymentSetting::Accept => LatePayment::Accept,
            LatePaymentSetting::Refuse => LatePayment::Refuse,
        };
        Rules { reservation_ttl: self.reservation_ttl, max_hold: self.max_hold_or_default(), late_payment }
    }

    pub fn max_hold_or_default(&self) -> Duration {
        self.max_hold.unwrap_or(Rules::MAX_HOLD.max(self.reservation_ttl))
    }

    /// What clap cannot see, because it looks at one setting at a time.
    pub fn check(&self) -> Result<(), SettingsError> {
        let ttl = self.reservation_ttl;
        let Some(longest) = self.max_hold.filter(|longest| *longest <= ttl) else { return Ok(()) };
        Err(SettingsError(format!(
            "MAX_HOLD (--max-hold) is {longest:?} and RESERVATION_TTL {ttl:?}: no reservation could be extended. Make MAX_HOLD \
             the longer one"
        )))
    }
}

/// [`LatePayment`] on the command line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LatePaymentSetting {
    Accept,
    Refuse,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Switch {
    On,
    Off,
}

/// The database and queue to run on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Backends {
    /// All in one process: an SQLite file and lanes in memory.
    Embedded {
        /// `sqlite://…`
        database_url: String,
    },
    /// A MySQL server and a RabbitMQ broker, for any number of processes.
    Servers {
        /// `mysql://…`
        database_url: String,
        /// `amqp://…`
        amqp_url: String,
    },
}

/// A database, by the scheme of its URL.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Database {
    /// `sqlite://…`
    Sqlite(String),
    /// `mysql://…`
    MySql(String),
}

/// Settings that do not go together; the text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct SettingsError(pub String);

impl BackendSettings {
    /// The lanes of this process.
    pub fn lane_set(&self) -> LaneSet {
        LaneSet { prefix: self.queue_prefix.clone(), mode: self.lanes }
    }

    /// The default SQLite file.
    pub const DEFAULT_DATABASE_URL: &str = "sqlite://antre.db";

    /// The database and queue that the URLs name.
    pub fn backends(&self) -> Result<Backends, SettingsError> {
        let amqp_url = given(&self.amqp_url);
        if amqp_url.as_ref().is_some_and(|url| !url.starts_with("amqp://") && !url.starts_with("amqps://")) {
            return Err(wrong("AMQP_URL (--amqp-url) must begin with amqp:// or amqps://"));
        }
        if let Some(url) = &amqp_url {
            server_url::check("AMQP_URL (--amqp-url)", url).map_err(SettingsError)?;
        }
        match (self.database()?, amqp_url) {
            (Database::Sqlite(database_url), None) => Ok(Backends::Embedded { database_url }),
            (Database::MySql(database_url), Some(amqp_url)) => {
                Ok(Backends::Servers { database_url, amqp_url })
            }
            (Database::MySql(_), None) => Err(wrong(
                "AMQP_URL (--amqp-url) is missing: a mysql:// DATABASE_URL goes with a RabbitMQ broker",
            )),
            (Database::Sqlite(_), Some(_)) => Err(wrong(
                "AMQP_URL goes with a mysql:// database, and DATABASE_URL names an SQLite file: that is for one process, without a broker",
            )),
        }
    }

    /// Only the database, for commands without a queue.
    pub fn database(&self) -> Result<Database, SettingsError> {
        let url = match (given(&self.database_url), given(&self.amqp_url)) {
            (Some(url), _) => url,
            (None, None) => Self::DEFAULT_DATABASE_URL.to_owned(),
            (None, Some(_)) => {
                return Err(wrong(
                    "DATABASE_URL (--database-url) is missing: AMQP_URL goes with a mysql:// database",
                ));
            }
        };
        match url.split_once(':') {
            Some(("sqlite", _)) => Ok(Database::Sqlite(url)),
            Some(("mysql" | "mariadb", _)) => {
                server_url::check("DATABASE_URL (--database-url)", &url).map_err(SettingsError)?;
                Ok(Database::MySql(url))
            }
            _ => Err(wrong("DATABASE_URL (--database-url) must begin with mysql:// or sqlite://")),
        }
    }
}

/// An empty variable counts as not set: compose files and shells cannot always omit one.
fn given(url: &Option<String>) -> Option<String> {
    url.clone().filter(|url| !url.trim().is_empty())
}

fn wrong(what: &str) -> SettingsError {
    SettingsError(what.to_owned())
}

fn queue_prefix(text: &str) -> Result<String, String> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    if text.len() <= 64 && text.bytes().all(allowed) {
        Ok(text.to_owned())
    } else {
        Err("it may have up to 64 letters, digits, dots, dashes and underscores".to_owned())
    }
}

fn listen_addr(text: &str) -> Result<String, String> {
    match text.rsplit_once(':') {
        Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok() => Ok(text.to_owned()),
        _ => Err("it must be HOST:PORT, for example 127.0.0.1:3000".to_owned()),
    }
}

fn order_timeout(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_secs(300))
}

fn reservation_ttl(text: &str) -> Result<Duration, String> {
    duration(text, Duration::from_secs(365 * 24 * 3600))
}

fn duration(text: &str, most: Duration) -> Result<Duration, String> {
    match humantime::parse_duration(text) {
        Ok(duration) if duration >= Duration::from_millis(1) && duration <= most => Ok(duration),
        Ok(_) => Err(format!("it must be at least 1ms and at most {}", humantime::format_duration(most))),
        Err(error) => Err(format!("{error}; write it like 500ms, 10s or 15m")),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    /// The ids of the settings that the help of a command shows.
    fn shown(command: &clap::Command) -> BTreeSet<String> {
        let settings = command.get_arguments().filter(|argument| argument.is_global_set());
        settings
            .filter(|argument| !argument.is_hide_set())
            .map(|argument| argument.get_id().to_string())
            .collect()
    }

    /// With those below it, but for `help`.
    fn with_nested<'a>(command: &'a clap::Command, visit: &mut impl FnMut(&'a clap::Command)) {
        visit(command);
        let nested = command.get_subcommands().filter(|one| one.get_name() != "help");
        nested.for_each(|one| with_nested(one, visit));
    }

    #[test]
    fn the_help_of_each_command_shows_the_settings_that_it_reads_and_no_others() {
        let all = Settings::command_line();
        let every: BTreeSet<_> = shown(&all);
        assert!(every.len() > 12, "{every:?}");
        let tables: Vec<_> = Settings::of_commands().collect();
        for command in all.get_subcommands().filter(|one| one.get_name() != "help") {
            let name = command.get_name();
            let expected = match tables.iter().find(|(of, _)| *of == name) {
                Some((_, settings)) => settings.iter().map(|id| (*id).to_owned()).collect(),
                None if name == "serve" => every.clone(),
                None => panic!("{name}: which settings does it read?"),
            };
            with_nested(command, &mut |one| assert_eq!(shown(one), expected, "{name} {}", one.get_name()));
        }
        assert_eq!(tables.len() + 1, all.get_subcommands().filter(|one| one.get_name() != "help").count());
    }

    #[test]
    fn a_reservation_may_be_held_for_longer_than_it_lives() {
        let orders = |arguments: &[&str]| {
            let matches = Settings::command_line().get_matches_from([&["antre"], arguments].concat());
            Settings::from_arg_matches(&matches).unwrap().orders
        };
        let hours = |hours: u64| Duration::from_secs(hours * 3_600);
        for (arguments, max_hold) in [
            (&[][..], hours(24)),
            (&["--reservation-ttl", "48h"], hours(48)),
            (&["--reservation-ttl", "48h", "--max-hold", "50h"], hours(50)),
            (&["--max-hold", "1h"], hours(1)),
        ] {
            let orders = orders(arguments);
            assert_eq!(orders.rules().max_hold, max_hold, "{arguments:?}");
            assert_eq!(orders.check(), Ok(()), "{arguments:?}");
        }
        let refused = orders(&["--reservation-ttl", "1h", "--max-hold", "1h"]).check().unwrap_err();
        assert!(refused.to_string().contains("MAX_HOLD"), "{refused}");
    }

    #[test]
    fn a_worker_and_an_api_read_what_the_log_of_their_start_names() {
        let of = |role: &str| -> BTreeSet<_> {
            let (_, settings) = Role::SETTINGS.into_iter().find(|(name, _)| *name == role).unwrap();
            settings.iter().copied().collect()
        };
        let (api, worker) = (of("api"), of("worker"));
        let only_api = BTreeSet::from(["order_timeout", "public_url", "trusted_proxies"]);
        let only_worker = BTreeSet::from([
            "reservation_ttl",
            "max_hold",
            "late_payment",
            "retention",
            "events",
            "slow_batch",
        ]);
        assert_eq!(&api - &worker, only_api);
        assert_eq!(&worker - &api, only_worker);
        let every = shown(&Settings::command_line());
        let together: BTreeSet<_> = (&api | &worker).into_iter().map(str::to_owned).collect();
        assert_eq!(together, every);
    }
}
