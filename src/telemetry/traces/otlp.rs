//! Spans, sent to a collector by OTLP over HTTP. The standard variables `OTEL_…` say where, which, and as what.

use std::{
    env, fmt,
    sync::{Arc, OnceLock},
    time::{Duration, SystemTime},
};

use opentelemetry::{
    Context, KeyValue,
    trace::{
        Link, Span, SpanContext, SpanId, SpanKind, Status, TraceContextExt, TraceFlags, TraceId, TraceState,
        Tracer, TracerProvider,
    },
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig};
use opentelemetry_sdk::{
    Resource,
    error::{OTelSdkError, OTelSdkResult},
    trace::{SdkTracer, SdkTracerProvider, Span as SdkSpan, SpanData, SpanExporter as Exporter},
};
use tokio::runtime::Handle;

use super::collector::endpoint;
use crate::{
    domain::{
        command::Command,
        origin::{Origin, TraceContext},
        verdict::Verdict,
    },
    telemetry::limiter::LogLimiter,
};

/// How long the end of a process waits until its last spans are sent.
const LAST_SPANS: Duration = Duration::from_secs(1);
/// How many orders the span of a batch names: what collectors take.
const MAX_LINKS: usize = 128;

static RECORDER: OnceLock<Recorder> = OnceLock::new();

struct Recorder {
    provider: SdkTracerProvider,
    tracer: SdkTracer,
}

/// Records traces from now on, if the environment names a collector. Called on the runtime that sends them. The error says what
/// is wrong with the variables.
pub fn start(role: &'static str) -> Result<(), String> {
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|given| given.eq_ignore_ascii_case(value));
    let Some((variable, url)) = endpoint() else { return Ok(()) };
    if is("OTEL_SDK_DISABLED", "true") || is("OTEL_TRACES_EXPORTER", "none") {
        return Ok(());
    }
    if !url.starts_with("http://") {
        return Err(format!(
            "{variable} must begin with http://: antre sends traces to a collector on this machine or in its network, without \
             encryption"
        ));
    }
    for name in ["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"] {
        if env::var(name).is_ok_and(|protocol| !["", "http/protobuf"].contains(&protocol.as_str())) {
            return Err(format!("{name} must be http/protobuf: antre has no other protocol for traces"));
        }
    }
    let exporter = SpanExporter::builder().with_http().with_protocol(Protocol::HttpBinary).build();
    let exporter = exporter.map_err(|error| format!("cannot send traces ({variable}): {error}"))?;
    let exporter = OnRuntime {
        exporter: Arc::new(exporter),
        runtime: Handle::current(),
        failures: LogLimiter::default(),
    };
    let resource = Resource::builder().with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("antre.role", role),
    ]);
    let is_named = env::var("OTEL_SERVICE_NAME").is_ok()
        || env::var("OTEL_RESOURCE_ATTRIBUTES").is_ok_and(|all| all.contains("service.name="));
    let resource = if is_named { resource } else { resource.with_service_name("antre") };
    let provider =
        SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build()).build();
    let tracer = provider.tracer("antre");
    let _ = RECORDER.set(Recorder { provider, tracer }); // a process starts once
    Ok(())
}

/// Sends the last spans. Blocks for a second at most; the runtime must still run.
pub fn stop() {
    if let Some(Recorder { provider, .. }) = RECORDER.get()
        && let Err(error) = provider.shutdown_with_timeout(LAST_SPANS)
    {
        tracing::warn!(%error, "the last spans are not sent");
    }
}

/// Whether traces are recorded.
pub fn is_on() -> bool {
    RECORDER.get().is_some()
}

/// The HTTP client needs the runtime, and spans are exported on a thread of the SDK.
struct OnRuntime {
    exporter: Arc<SpanExporter>,
    runtime: Handle,
    failures: LogLimiter,
}

impl fmt::Debug for OnRuntime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.exporter.fmt(f)
    }
}

impl Exporter for OnRuntime {
    async fn export(&self, spans: Vec<SpanData>) -> OTelSdkResult {
        let (exporter, count) = (self.exporter.clone(), spans.len());
        let exporting = self.runtime.spawn(async move { exporter.export(spans).await });
        let result =
            exporting.await.unwrap_or_else(|error| Err(OTelSdkError::InternalFailure(error.to_string())));
        if let Err(error) = &result
            && let Some(suppressed) = self.failures.due()
        {
            tracing::warn!(%error, spans = count, suppressed, "spans are lost: the collector does not take them");
        }
        result
    }

    fn shutdown_with_timeout(&self, timeout: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(timeout)
    }

    fn set_resource(&mut self, resource: &Resource) {
        if let Some(exporter) = Arc::get_mut(&mut self.exporter) {
            exporter.set_resource(resource);
        }
    }
}

/// The parent of spans, as another process or the client said.
fn remote(context: &TraceContext) -> SpanContext {
    SpanContext::new(
        TraceId::from(context.trace_id),
        SpanId::from(context.span_id),
        TraceFlags::new(context.flags),
        true,
        context.state().and_then(|state| state.parse::<TraceState>().ok()).unwrap_or_default(),
    )
}

/// What the next process needs to know.
fn to_send(context: &SpanContext) -> TraceContext {
    let trace_id = u128::from_be_bytes(context.trace_id().to_bytes());
    let span_id = u64::from_be_bytes(context.span_id().to_bytes());
    TraceContext::new(trace_id, span_id, context.trace_flags().to_u8())
        .with_state(Some(&context.trace_state().header()))
}

/// `None`: a new trace.
fn parent(context: Option<&TraceContext>) -> Context {
    let root = Context::new();
    match context {
        Some(context) => root.with_remote_span_context(remote(context)),
        None => root,
    }
}

fn attributes(command: &Command) -> Vec<KeyValue> {
    let mut attributes = vec![
        KeyValue::new("antre.order_id", command.order_id().to_string()),
        KeyValue::new("antre.product_id", command.product_id().get().cast_signed()),
    ];
    if let Some(request_id) = &command.origin().request_id {
        attributes.push(KeyValue::new("antre.request_id", request_id.to_string()));
    }
    attributes
}

/// A request to the API.
pub struct RequestSpan(Option<SdkSpan>);

impl RequestSpan {
    /// Requests of the JSON API have one, health and pages do not. `parent`: what the client said.
    pub fn begin(method: &str, path: &str, parent: impl FnOnce() -> Option<TraceContext>) -> Self {
        let Some(Recorder { tracer, .. }) = RECORDER.get().filter(|_| path.starts_with("/api/")) else {
            return Self(None);
        };
        let (method, route) = (known(method), route(path));
        let attributes = [
            KeyValue::new("http.request.method", method),
            KeyValue::new("http.route", route.clone()),
            KeyValue::new("url.path", path.to_owned()),
        ];
        let span = tracer
            .span_builder(format!("{method} {route}"))
            .with_kind(SpanKind::Server)
            .with_attributes(attributes);
        Self(Some(span.start_with_context(tracer, &self::parent(parent().as_ref()))))
    }

    /// The place of what follows from it.
    pub fn context(&self) -> Option<TraceContext> {
        self.0.as_ref().map(|span| to_send(span.span_context()))
    }

    pub fn end(self, status: u16, request_id: &str) {
        let Some(mut span) = self.0 else { return };
        span.set_attribute(KeyValue::new("http.response.status_code", i64::from(status)));
        span.set_attribute(KeyValue::new("antre.request_id", request_id.to_owned()));
        if status >= 500 {
            span.set_status(Status::error(""));
        }
    }
}

/// A client may send any word.
fn known(method: &str) -> &'static str {
    const METHODS: [&str; 7] = ["GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS"];
    METHODS.into_iter().find(|known| *known == method).unwrap_or("_OTHER")
}

/// The path with {id} for each id: a collector groups by it. Nobody can make it grow without bound, because no path of the API
/// is longer or has other words.
fn route(path: &str) -> String {
    const WORDS: [&str; 6] = ["api", "products", "inventory", "orders", "payment", "cancellation"];
    let is_word = |segment: &&str| segment.is_empty() || WORDS.contains(segment);
    let segments: Vec<_> =
        path.split('/').map(|segment| if is_word(&segment) { segment } else { "{id}" }).take(5).collect();
    segments.join("/")
}

/// A command on its way through the lane and back, as the API sees it.
pub struct CommandSpan(Option<SdkSpan>);

impl CommandSpan {
    /// What the worker records of the command follows from this span.
    pub fn begin(command: &mut Command) -> Self {
        let Some(Recorder { tracer, .. }) = RECORDER.get() else { return Self(None) };
        let span = tracer
            .span_builder(format!("{} order", command.what()))
            .with_kind(SpanKind::Producer)
            .with_attributes(attributes(command));
        let span = span.start_with_context(tracer, &parent(command.origin().trace.as_deref()));
        let context = to_send(span.span_context());
        command.origin_mut().trace = is_recorded(&context).then(|| Arc::new(context));
        Self(Some(span))
    }

    pub fn end(self, outcome: &'static str) {
        if let Some(mut span) = self.0 {
            span.set_attribute(KeyValue::new("antre.outcome", outcome));
        }
    }
}

/// An attempt to decide a batch. It is a trace of its own, because it has as many causes as it has commands, and is linked to
/// theirs.
pub struct BatchSpan(Option<(SdkSpan, SystemTime)>);

impl BatchSpan {
    /// There is none for a batch without a recorded command.
    pub fn begin<'a>(origins: impl IntoIterator<Item = &'a Origin>) -> Self {
        let Some(Recorder { tracer, .. }) = RECORDER.get() else { return Self(None) };
        let recorded = origins
            .into_iter()
            .filter_map(|origin| origin.trace.as_deref())
            .filter(|trace| is_recorded(trace));
        let links: Vec<_> = recorded.take(MAX_LINKS).map(|trace| Link::with_context(remote(trace))).collect();
        if links.is_empty() {
            return Self(None);
        }
        let began = SystemTime::now();
        let span = tracer
            .span_builder("decide batch")
            .with_kind(SpanKind::Consumer)
            .with_start_time(began)
            .with_links(links)
            .start_with_context(tracer, &Context::new());
        Self(Some((span, began)))
    }

    /// The batch is committed. Each recorded command gets a span in its own trace: its lane, the command, and the verdict.
    pub fn decided<'a>(self, decided: impl IntoIterator<Item = (&'a str, &'a Command, &'a Verdict)>) {
        let (Some((mut span, began)), Some(Recorder { tracer, .. })) = (self.0, RECORDER.get()) else {
            return;
        };
        let committed = SystemTime::now();
        let mut commands = 0;
        for (lane, command, verdict) in decided {
            commands += 1;
            let Some(trace) = command.origin().trace.as_deref().filter(|trace| is_recorded(trace)) else {
                continue;
            };
            let mut attributes = attributes(command);
            attributes.push(KeyValue::new("antre.lane", lane.to_owned()));
            attributes.push(KeyValue::new("antre.verdict", verdict.as_str()));
            tracer
                .span_builder(format!("decide {}", command.what()))
                .with_kind(SpanKind::Consumer)
                .with_start_time(began)
                .with_attributes(attributes)
                .with_links(vec![Link::with_context(span.span_context().clone())])
                .start_with_context(tracer, &parent(Some(trace)))
                .end_with_timestamp(committed);
        }
        span.set_attribute(KeyValue::new("messaging.batch.message_count", commands));
        span.end_with_timestamp(committed);
    }

    pub fn failed(self, error: &dyn fmt::Display) {
        if let Some((mut span, _)) = self.0 {
            span.set_status(Status::error(error.to_string()));
        }
    }
}

fn is_recorded(trace: &TraceContext) -> bool {
    TraceFlags::new(trace.flags).is_sampled()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_route_has_no_ids() {
        for (path, expected) in [
            ("/api/orders", "/api/orders"),
            ("/api/orders/0193ab5e-0000-7000-8000-000000000000/payment", "/api/orders/{id}/payment"),
            ("/api/products/17/inventory", "/api/products/{id}/inventory"),
            ("/api/a/b/c/d/e/f", "/api/{id}/{id}/{id}"),
        ] {
            assert_eq!(route(path), expected);
        }
    }

    #[test]
    fn a_context_comes_back_as_it_was_sent() {
        let sent: TraceContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
        let sent = sent.with_state(Some("rojo=1,congo=2"));
        assert_eq!(to_send(&remote(&sent)), sent);
    }
}
