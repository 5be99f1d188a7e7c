//! Traces for an OpenTelemetry collector: one order, one trace, from the HTTP request to the commit. `docs/tracing.md` shows the
//! spans.
//!
//! Only with the feature `otel`, and where `OTEL_EXPORTER_OTLP_ENDPOINT` names a collector. Without the feature all of this is
//! empty, and a command carries no trace.

mod collector;
#[cfg(not(feature = "otel"))]
mod off;
#[cfg(feature = "otel")]
mod otlp;

pub use collector::endpoint;
#[cfg(not(feature = "otel"))]
pub use off::{BatchSpan, CommandSpan, RequestSpan, is_on, start, stop};
#[cfg(feature = "otel")]
pub use otlp::{BatchSpan, CommandSpan, RequestSpan, is_on, start, stop};
