//! Logs.

use std::io::{self, IsTerminal};

use tracing_subscriber::{EnvFilter, fmt, prelude::*};

use crate::settings::{LogFormat, LogSettings};

/// Sends logs to stderr from now on. The error says what is wrong with the filter.
pub fn init(settings: &LogSettings) -> Result<(), String> {
    let filter = EnvFilter::builder()
        .parse(&settings.filter)
        .map_err(|error| format!("RUST_LOG (--log) is not a log filter: {error}"))?;
    let lines = fmt::layer().with_writer(io::stderr).with_ansi(io::stderr().is_terminal());
    let lines = match settings.log_format {
        LogFormat::Text => lines.with_target(false).boxed(),
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
    };
    tracing_subscriber::registry()
        .with(lines.with_filter(filter))
        .try_init()
        .map_err(|error| format!("cannot start logging: {error}"))
}
