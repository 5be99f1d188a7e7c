//! Which collector the environment names.

use std::env;

/// The first one that is set counts.
const VARIABLES: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// The name of the variable, and its URL.
pub fn endpoint() -> Option<(&'static str, String)> {
    VARIABLES.into_iter().find_map(|name| {
        let url = env::var(name).ok().filter(|url| !url.trim().is_empty())?;
        Some((name, url))
    })
}
