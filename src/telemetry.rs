//! Logs.

mod escaping;

use std::{
    collections::HashSet,
    io::{self, IsTerminal},
    sync::{LazyLock, Mutex, PoisonError},
    time::{Duration, Instant},
};

use clap::{Args, ValueEnum};
use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use escaping::EscapingStderr;

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
        .with(lines.with_filter(filter))
        .try_init()
        .map_err(|error| format!("cannot start logging: {error}"))
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

/// Limits the rate of a log message: the first one is due, then one every five seconds.
#[derive(Debug)]
pub struct LogLimiter {
    interval: Duration,
    last: Mutex<Option<Last>>,
}

impl Default for LogLimiter {
    fn default() -> Self {
        Self::every(Duration::from_secs(5))
    }
}

#[derive(Debug)]
struct Last {
    at: Instant,
    suppressed: u64,
}

impl LogLimiter {
    /// One message per `interval` is due.
    pub const fn every(interval: Duration) -> Self {
        Self { interval, last: Mutex::new(None) }
    }

    /// `Some` if a message is due, with the number of suppressed ones since the last.
    pub fn due(&self) -> Option<u64> {
        self.due_at(Instant::now())
    }

    fn due_at(&self, now: Instant) -> Option<u64> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        match last.as_mut() {
            Some(last) if now.duration_since(last.at) < self.interval => {
                last.suppressed += 1;
                None
            }
            _ => {
                let suppressed = last.replace(Last { at: now, suppressed: 0 });
                Some(suppressed.map_or(0, |last| last.suppressed))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_reported_once() {
        assert!(is_first_report("a test reports"));
        assert!(!is_first_report("a test reports"));
        assert!(is_first_report("a test reports something else"));
    }

    #[test]
    fn of_many_messages_the_first_is_due_and_one_every_five_seconds() {
        let (limiter, begin) = (LogLimiter::default(), Instant::now());
        let at = |ms| limiter.due_at(begin + Duration::from_millis(ms));
        assert_eq!(at(0), Some(0));
        assert_eq!((at(1), at(4_999)), (None, None));
        assert_eq!(at(5_000), Some(2));
        assert_eq!(at(60_000), Some(0));
    }
}
