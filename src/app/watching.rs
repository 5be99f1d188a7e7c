//! Connects the metrics of a process with the parts that they are read from.

use std::{sync::Arc, time::Duration};

use crate::{
    clock::Clock,
    monitor::{
        STALLED_AFTER,
        activity::Activity,
        metrics::{Metrics, MetricsError, Parts, Sample, table},
        report::LaneReport,
        reporter::Reporter,
    },
    queue::rabbitmq::RabbitMqQueue,
    service::dispatcher::Dispatcher,
    store::PoolUse,
    supervise, telemetry,
};

/// What watches a process.
#[derive(Clone)]
pub(super) struct Watching {
    pub(super) metrics: Arc<Metrics>,
}

impl Watching {
    pub(super) fn new(parts: Parts, role: &'static str) -> Result<Self, MetricsError> {
        let metrics = Arc::new(Metrics::new(parts, role)?);
        metrics.pull(&table::TASK_PANICS, || {
            let panics = supervise::panics().into_iter();
            panics.map(|(task, panics)| sample([task], panics as f64)).collect()
        })?;
        metrics.pull(&table::LOG_MESSAGES, || {
            telemetry::message_counts().map(|(level, count)| sample([level], count as f64)).to_vec()
        })?;
        metrics
            .pull(&table::LOG_MESSAGES_SUPPRESSED, || Sample::of(telemetry::suppressed_messages() as f64))?;
        Ok(Self { metrics })
    }

    /// The connections of a store.
    pub(super) fn pools<const N: usize>(
        &self,
        pools: impl Fn() -> [PoolUse; N] + Clone + Send + Sync + 'static,
    ) -> Result<(), MetricsError> {
        let read = pools.clone();
        self.metrics.pull(&table::DATABASE_CONNECTIONS, move || {
            let states =
                |pool: PoolUse| [("in_use", pool.in_use), ("idle", pool.idle)].map(|state| (pool, state));
            let states = read().into_iter().flat_map(states);
            states.map(|(pool, (state, count))| sample([pool.name, state], count as f64)).collect()
        })?;
        let read = pools.clone();
        self.metrics.pull(&table::DATABASE_CONNECTIONS_MAX, move || {
            read().into_iter().map(|pool| sample([pool.name], pool.max as f64)).collect()
        })?;
        self.metrics.pull(&table::DATABASE_CONNECTION_WAITERS, move || {
            let waiting = pools().into_iter().filter_map(|pool| Some((pool.name, pool.waiting?)));
            waiting.map(|(pool, waiting)| sample([pool], waiting as f64)).collect()
        })
    }

    /// What passes between this process and the broker.
    pub(super) fn broker(&self, queue: &RabbitMqQueue) -> Result<(), MetricsError> {
        let traffic = queue.traffic();
        self.metrics.pull(&table::BROKER_PUBLISHES, move || {
            let publishes = traffic.publishes().into_iter();
            publishes.map(|(labels, count)| sample(labels, count as f64)).collect()
        })?;
        let traffic = queue.traffic();
        self.metrics.pull(&table::BROKER_DELIVERIES, move || {
            let [first, again] = traffic.deliveries();
            vec![sample(["false"], first as f64), sample(["true"], again as f64)]
        })?;
        let traffic = queue.traffic();
        self.metrics.pull(&table::BROKER_REJECTIONS, move || {
            traffic.rejections().into_iter().map(|(cause, count)| sample([cause], count as f64)).collect()
        })?;
        let traffic = queue.traffic();
        self.metrics.pull(&table::BROKER_CONNECTIONS_OPENED, move || {
            let outcome = |is_open| if is_open { "opened" } else { "failed" };
            let attempts = traffic.connections().into_iter();
            attempts
                .map(|(purpose, is_open, count)| sample([purpose, outcome(is_open)], count as f64))
                .collect()
        })?;
        let traffic = queue.traffic();
        self.metrics.pull(&table::BROKER_BLOCKED, move || Sample::of(f64::from(traffic.is_blocked())))?;
        let queue = queue.clone();
        self.metrics.pull(&table::BROKER_PUBLISH_CONNECTIONS, move || {
            let (in_use, idle) = queue.publish_connections();
            vec![sample(["in_use"], in_use as f64), sample(["idle"], idle as f64)]
        })
    }

    /// The commands that this process knows to be undecided, and the lanes that its worker serves.
    pub(super) fn undecided(&self, activity: &Arc<Activity>) -> Result<(), MetricsError> {
        let of = |read: fn(&[LaneReport]) -> f64| {
            let activity = activity.clone();
            move || Sample::of(read(&activity.lanes()))
        };
        self.metrics.pull(
            &table::OLDEST_UNDECIDED,
            of(|lanes| lanes.iter().map(|lane| lane.oldest_ms).max().unwrap_or(0) as f64 / 1_000.0),
        )?;
        self.metrics.pull(
            &table::UNDECIDED_COMMANDS,
            // What a worker holds is a part of what the API of the same process waits for.
            of(|lanes| lanes.iter().map(|lane| lane.held.max(lane.unanswered)).sum::<u64>() as f64),
        )?;
        self.metrics.pull(
            &table::STALLED_LANES,
            of(|lanes| lanes.iter().filter(|lane| is_stalled(lane)).count() as f64),
        )?;
        let activity = activity.clone();
        self.metrics.pull(&table::LANES_SERVED, move || Sample::of(f64::from(activity.lanes_served())))
    }

    /// The dead letters, while the broker says how many there are.
    pub(super) fn dead_letters(&self, reporter: &Arc<Reporter>) -> Result<(), MetricsError> {
        let reporter = reporter.clone();
        self.metrics.pull(&table::DEAD_LETTERS, move || {
            reporter.dead_letters().map_or_else(Vec::new, |count| Sample::of(count as f64))
        })
    }

    /// The commands of an API that are parked.
    pub(super) fn parked(&self, dispatcher: &Arc<Dispatcher>) -> Result<(), MetricsError> {
        let dispatcher = dispatcher.clone();
        self.metrics.pull(&table::PARKED_COMMANDS, move || Sample::of(dispatcher.parked() as f64))
    }

    /// How late reservations expire.
    pub(super) fn expiry(&self, clock: Arc<dyn Clock>) -> Result<(), MetricsError> {
        let expiry = self.metrics.worker.expiry.clone();
        self.metrics.pull(&table::EXPIRY_LAG, move || Sample::of(expiry.lag_seconds(clock.now())))
    }
}

fn is_stalled(lane: &LaneReport) -> bool {
    Duration::from_millis(lane.undecided_ms) >= STALLED_AFTER
}

fn sample<const N: usize>(labels: [&'static str; N], value: f64) -> Sample {
    Sample { labels: labels.to_vec(), value }
}
