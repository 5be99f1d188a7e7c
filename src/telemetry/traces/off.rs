//! No traces: this antre is built without them.

use super::collector::endpoint;
use crate::domain::{
    command::Command,
    origin::{Origin, TraceContext},
    verdict::Verdict,
};

/// Says so in the log where a collector is named.
pub fn start(_role: &'static str) -> Result<(), String> {
    if let Some((variable, _)) = endpoint() {
        tracing::info!(variable, "records no traces: this antre is built without them (cargo feature otel)");
    }
    Ok(())
}

pub fn stop() {}

pub const fn is_on() -> bool {
    false
}

pub struct RequestSpan;

impl RequestSpan {
    pub fn begin(_method: &str, _path: &str, _parent: impl FnOnce() -> Option<TraceContext>) -> Self {
        Self
    }

    pub fn context(&self) -> Option<TraceContext> {
        None
    }

    pub fn end(self, _status: u16, _request_id: &str) {}
}

pub struct CommandSpan;

impl CommandSpan {
    pub fn begin(_command: &mut Command) -> Self {
        Self
    }

    pub fn end(self, _outcome: &'static str) {}
}

pub struct BatchSpan;

impl BatchSpan {
    pub fn begin<'a>(_origins: impl IntoIterator<Item = &'a Origin>) -> Self {
        Self
    }

    pub fn decided<'a>(self, _decided: impl IntoIterator<Item = (&'a str, &'a Command, &'a Verdict)>) {}

    pub fn failed(self, _error: &dyn std::fmt::Display) {}
}
