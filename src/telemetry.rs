//! Logs.

mod counting;
mod escaping;
mod limiter;
pub mod slow;
pub mod traces;

use std::{
    collections::HashSet,
    fmt::Display,
    io::{self, IsTerminal},
    sync::{LazyLock, Mutex, PoisonError},
    time::Duration,
};

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use counting::Counting;
use escaping::EscapingStderr;
pub use limiter::LogLimiter;

pub use counting::{message_counts, suppressed_messages};

/// Targets that are off unless the filter names them. lapin logs each message that the broker returns, with its payload byte by
/// byte, and each channel that it closes; `queue::rabbitmq` logs in one line what matters.
const QUIET_TARGETS: [&str; 2] = ["lapin::returned_messages", "lapin::channel"];

#[derive(Args, Clone, Debug)]
pub struct LogSettings {
    /// What to log: a level, or `target=level` separated by commas
    #[arg(long = "log", env = "RUST_LOG", value_name = "FILTER", default_value = "info", global = true)]
    pub filter: String,
    /// How log lines look
    #[arg(long, env, value_enum, default_value = "text", global = true)]
    pub log_format: LogFormat,
    /// The log names a batch that takes longer to decide
    #[arg(long, env, value_name = "DURATION", default_value = "500ms", value_parser = threshold, global = true)]
    pub slow_batch: Duration,
    /// The log names a statement of the database that takes longer
    #[arg(long, env, value_name = "DURATION", default_value = "250ms", value_parser = threshold, global = true)]
    pub slow_query: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

/// Logs to stderr from now on. The error says what is wrong with the filter.
pub fn init(settings: &LogSettings) -> Result<(), String> {
    slow::BATCHES.set_threshold(settings.slow_batch);
    slow::QUERIES.set_threshold(settings.slow_query);
    let filter = EnvFilter::builder()
        .parse(&settings.filter)
        .map_err(|error| format!("RUST_LOG (--log) is not a log filter: {error}"))?;
    let quiet = QUIET_TARGETS.into_iter().filter(|target| !settings.filter.contains(target));
    let filter = quiet
        .filter_map(|target| format!("{target}=off").parse().ok())
        .fold(filter, EnvFilter::add_directive);
    let lines = fmt::layer().with_ansi(io::stderr().is_terminal());
    let lines = match settings.log_format {
        LogFormat::Text => lines.with_writer(EscapingStderr).with_target(false).boxed(),
        LogFormat::Json => lines.with_writer(io::stderr).json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.and_then(Counting).with_filter(filter))
        .try_init()
        .map_err(|error| format!("cannot start logging: {error}"))
}

fn threshold(text: &str) -> Result<Duration, String> {
    humantime::parse_duration(text).map_err(|error| format!("{error}; write it like 500ms or 10s"))
}

/// A duration as a field of the log: milliseconds with three decimals.
pub fn ms(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1_000.0
}

/// A list as a field of the log: the first few, and how many more there are.
pub fn listed(all: impl IntoIterator<Item = impl Display>) -> String {
    const SHOWN: usize = 10;
    let mut all = all.into_iter();
    let mut text = all.by_ref().take(SHOWN).map(|one| one.to_string()).collect::<Vec<_>>().join(", ");
    let more = all.count();
    if more > 0 {
        text += &format!(" and {more} more");
    }
    text
}

/// How many different texts [`is_first_report`] remembers.
const MAX_REMEMBERED: usize = 1_000;

/// Whether this text is new, for messages that are logged once.
pub fn is_first_report(text: &str) -> bool {
    static SEEN: LazyLock<Mutex<HashSet<String>>> = LazyLock::new(Mutex::default);
    let mut seen = SEEN.lock().unwrap_or_else(PoisonError::into_inner);
    if seen.contains(text) {
        return false;
    }
    if seen.len() == MAX_REMEMBERED {
        seen.clear();
    }
    seen.insert(text.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn durations_are_milliseconds_and_lists_have_an_end() {
        assert_eq!(ms(Duration::from_micros(1_234_567)), 1_234.567);
        assert_eq!(listed([1, 2]), "1, 2");
        assert_eq!(listed([7; 10]), "7, 7, 7, 7, 7, 7, 7, 7, 7, 7");
        assert_eq!(listed([7; 13]), "7, 7, 7, 7, 7, 7, 7, 7, 7, 7 and 3 more");
    }

    #[test]
    fn a_message_is_reported_once() {
        assert!(is_first_report("a test reports"));
        assert!(!is_first_report("a test reports"));
        assert!(is_first_report("a test reports something else"));
    }
}
