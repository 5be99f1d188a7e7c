//! The metrics of one process, as Prometheus reads them at `/metrics`.
//!
//! [`table`] says what there is. Each part of the process gets the instruments that it uses: [`ApiMetrics`], [`WorkerMetrics`],
//! [`HttpMetrics`]. What somebody else counts already is read when Prometheus asks: see [`Metrics::pull`].

mod api;
mod http;
mod instruments;
mod process;
pub mod table;
mod worker;

use std::{
    fmt,
    sync::Arc,
    time::{SystemTime, UNIX_EPOCH},
};

use prometheus::{IntGaugeVec, Registry, TEXT_FORMAT, TextEncoder};

use self::{instruments::Maker, table::Definition};

pub use api::{ApiMetrics, ChangeAnswer, OrderAnswer};
pub use http::{Closed, HttpMetrics, RouteMetrics};
pub use instruments::{Parts, Sample};
pub use worker::{ConservationMetrics, ExpiryMetrics, WorkerMetrics};

/// The content type of [`Metrics::render`].
pub const CONTENT_TYPE: &str = TEXT_FORMAT;

/// The metrics of one process.
pub struct Metrics {
    registry: Registry,
    parts: Parts,
    pub api: Arc<ApiMetrics>,
    pub http: Arc<HttpMetrics>,
    pub worker: Arc<WorkerMetrics>,
    ready: IntGaugeVec,
}

/// A metric that cannot be made: two have one name, or a name is not allowed. A mistake in [`table`].
#[derive(Debug, thiserror::Error)]
#[error("a metric is defined wrongly: {0}")]
pub struct MetricsError(#[from] prometheus::Error);

impl Metrics {
    /// Those that a process with these parts has.
    pub fn new(parts: Parts, role: &'static str) -> Result<Self, MetricsError> {
        let registry = Registry::new();
        let maker = Maker { registry: &registry, parts };
        let metrics = Self {
            api: Arc::new(ApiMetrics::new(&maker)?),
            http: Arc::new(HttpMetrics::new(&maker)?),
            worker: Arc::new(WorkerMetrics::new(&maker)?),
            ready: maker.gauge_family(&table::READY)?,
            registry,
            parts,
        };
        metrics.pull_process(role)?;
        Ok(metrics)
    }

    /// For tests, and for parts that nobody watches.
    #[cfg(test)]
    pub fn unwatched() -> Self {
        let parts = Parts { has_api: true, has_worker: true, is_on_servers: true };
        Self::new(parts, "test").unwrap()
    }

    /// Reads a metric from somewhere else whenever it is asked for. `read` must not block.
    pub fn pull(
        &self,
        definition: &'static Definition,
        read: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
    ) -> Result<(), MetricsError> {
        Ok(Maker { registry: &self.registry, parts: self.parts }.pulled(definition, read)?)
    }

    /// Whether a part of the process is ready now.
    pub fn set_ready(&self, part: &'static str, is_ready: bool) {
        self.ready.with_label_values(&[part]).set(is_ready.into());
    }

    /// All of them as text.
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(32 * 1024);
        if let Err(error) = TextEncoder::new().encode_utf8(&self.registry.gather(), &mut text) {
            tracing::error!(%error, "the metrics cannot be written");
        }
        text
    }

    fn pull_process(&self, role: &'static str) -> Result<(), MetricsError> {
        let started = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let optional = |value: Option<f64>| value.map_or_else(Vec::new, Sample::of);
        self.pull(&table::BUILD_INFO, move || {
            vec![Sample { labels: vec![env!("CARGO_PKG_VERSION"), role], value: 1.0 }]
        })?;
        self.pull(&table::PROCESS_START_TIME, move || Sample::of(started))?;
        self.pull(&table::PROCESS_CPU, move || optional(process::cpu_seconds()))?;
        self.pull(&table::PROCESS_RESIDENT_MEMORY, move || optional(process::resident_bytes()))?;
        self.pull(&table::PROCESS_OPEN_FILES, move || optional(process::open_files()))?;
        self.pull(&table::PROCESS_MAX_FILES, move || optional(process::max_files()))?;
        self.pull(&table::PROCESS_THREADS, move || optional(process::threads()))
    }
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").field("parts", &self.parts).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_has_the_metrics_of_its_parts_and_each_at_most_once() {
        let names = |has_api, has_worker, is_on_servers| {
            let metrics = Metrics::new(Parts { has_api, has_worker, is_on_servers }, "test").unwrap();
            metrics.set_ready("database", true);
            let text = metrics.render();
            let types = text.lines().filter_map(|line| line.strip_prefix("# TYPE "));
            let names = types.map(|line| line.split(' ').next().unwrap_or_default().to_owned());
            names.collect::<Vec<_>>()
        };
        let (api, worker, both) =
            (names(true, false, true), names(false, true, true), names(true, true, true));
        assert!(api.iter().all(|name| both.contains(name)) && worker.iter().all(|name| both.contains(name)));
        let own = |all: &[String], name: &str| all.iter().any(|one| one == name);
        assert!(own(&api, "antre_orders_answered_total") && !own(&worker, "antre_orders_answered_total"));
        assert!(own(&worker, "antre_batch_commands") && !own(&api, "antre_batch_commands"));
        let known: Vec<_> = table::ALL.iter().map(|metric| metric.name).collect();
        for name in &both {
            assert!(known.contains(&name.as_str()), "{name} is not in the table");
            assert_eq!(both.iter().filter(|one| *one == name).count(), 1, "{name}");
        }
    }

    #[test]
    fn a_pulled_metric_has_its_labels_and_is_left_out_without_a_value() {
        let metrics = Metrics::unwatched();
        let sample = |labels: &[&'static str], value| Sample { labels: labels.to_vec(), value };
        metrics.pull(&table::DATABASE_CONNECTIONS, move || vec![sample(&["reads", "idle"], 2.0)]).unwrap();
        metrics.pull(&table::DEAD_LETTERS, Vec::new).unwrap();
        let text = metrics.render();
        assert!(text.contains("antre_database_connections{pool=\"reads\",state=\"idle\"} 2\n"), "{text}");
        assert!(!text.contains("antre_dead_letters "), "{text}");
        assert!(metrics.pull(&table::DEAD_LETTERS, Vec::new).is_err(), "it is there already");
    }
}
