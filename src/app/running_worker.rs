//! Starts a worker and what runs beside it, and stops them.

use std::sync::Arc;

use tokio::{
    task::JoinHandle,
    time::{Instant, timeout_at},
};
use tokio_util::{sync::CancellationToken, task::AbortOnDropHandle};

use super::{monitoring::Monitoring, watching::Watching};
use crate::{
    clock::Clock,
    monitor::{
        metrics::MetricsError,
        observed::{
            ObservedDecider, ObservedQueue,
            conservation::{Conservation, OpenAudit},
        },
    },
    queue::Queue,
    settings::Settings,
    store::{
        Store,
        audit::{Audit, mysql::MySqlAudit, sqlite::SqliteAudit},
    },
    supervise::supervise,
    worker::{Worker, expiry::Expiry, health::WorkerHealth, pruning::Pruning},
};

/// The worker of a process, with the tasks beside it.
pub(super) struct RunningWorker {
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// Tasks that may be aborted at any time.
    helpers: Vec<AbortOnDropHandle<()>>,
    pub(super) health: Arc<WorkerHealth>,
}

impl RunningWorker {
    pub(super) fn start(
        settings: &Settings,
        store: &Arc<dyn Store>,
        queue: Arc<dyn Queue>,
        watching: &Watching,
        monitoring: &Monitoring,
        open_audit: OpenAudit,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, MetricsError> {
        let Watching { metrics } = watching;
        let stop = CancellationToken::new();
        watching.expiry(clock.clone())?;
        let expiry = Expiry {
            queue: queue.clone(),
            store: store.clone(),
            clock: clock.clone(),
            metrics: metrics.worker.expiry.clone(),
        };
        let conservation = Conservation {
            catalog: store.clone(),
            open: open_audit,
            metrics: metrics.worker.conservation.clone(),
        };
        let worker = Worker {
            queue: Arc::new(ObservedQueue { queue, metrics: metrics.worker.clone() }),
            store: store.clone(),
            decider: Arc::new(ObservedDecider {
                decider: store.clone(),
                metrics: metrics.worker.clone(),
                activity: monitoring.activity.clone(),
                clock,
            }),
            activity: monitoring.activity.clone(),
            rules: settings.orders.rules(),
            stop: stop.clone(),
            health: Arc::default(),
        };
        let health = worker.health.clone();
        let task = tokio::spawn(async move { supervise("worker", || worker.run()).await });
        let mut helpers = vec![
            tokio::spawn(async move { supervise("expiry", || expiry.run()).await }),
            tokio::spawn(async move { supervise("conservation", || conservation.run()).await }),
        ];
        helpers.extend(settings.orders.retention.0.map(|retention| {
            let pruning = Pruning { store: store.clone(), retention };
            tokio::spawn(async move { supervise("pruning", || pruning.run()).await })
        }));
        let helpers = helpers.into_iter().map(AbortOnDropHandle::new).collect();
        Ok(Self { stop, task, helpers, health })
    }

    /// No reservation expires any more, no order is deleted, and no inventory is compared.
    pub(super) fn abort_helpers(&self) {
        self.helpers.iter().for_each(|task| task.abort());
    }

    /// Lets it finish its batch.
    pub(super) async fn stop(self, deadline: Instant) {
        self.abort_helpers();
        self.stop.cancel();
        let _ = timeout_at(deadline, self.task).await;
    }
}

/// Opens a connection of its own for the comparison of inventories with orders.
pub(super) fn sqlite_audit(url: String) -> OpenAudit {
    Arc::new(move || {
        let url = url.clone();
        Box::pin(async move { Ok(Box::new(SqliteAudit::open(&url).await?) as Box<dyn Audit>) })
    })
}

pub(super) fn mysql_audit(url: String) -> OpenAudit {
    Arc::new(move || {
        let url = url.clone();
        Box::pin(async move { Ok(Box::new(MySqlAudit::open(&url).await?) as Box<dyn Audit>) })
    })
}
