//! Every metric: its name, labels and meaning. `docs/metrics.md` is this table, and a test holds that alert rules and dashboards
//! name nothing else.
//!
//! No label has values that come from outside: no ids, no error texts. So the number of series is known before a sale.

/// One metric.
#[derive(Debug, PartialEq, Eq)]
pub struct Definition {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    /// Which processes have it.
    pub of: Of,
    /// One sentence.
    pub help: &'static str,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Counter,
    Gauge,
    /// With these upper bounds.
    Histogram(Buckets),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Buckets {
    /// Of times that a client waits for, in seconds.
    Latency,
    /// Of times that may become long when something is wrong, in seconds.
    Wait,
    /// Of numbers of commands.
    Commands,
}

/// Which processes have a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Of {
    Api,
    Worker,
    Both,
    /// Both, where they use MySQL and RabbitMQ.
    Servers,
}

impl Kind {
    /// As Prometheus calls it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Counter => "counter",
            Self::Gauge => "gauge",
            Self::Histogram(_) => "histogram",
        }
    }
}

impl Of {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Api => "API",
            Self::Worker => "worker",
            Self::Both => "both",
            Self::Servers => "both, on servers",
        }
    }
}

impl Buckets {
    pub fn bounds(self) -> &'static [f64] {
        match self {
            Self::Latency => {
                &[0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0]
            }
            Self::Wait => {
                &[0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 120.0]
            }
            Self::Commands => &[1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0],
        }
    }
}

/// Defines the constants and [`ALL`] from one list.
macro_rules! metrics {
    ($($constant:ident = $name:literal, $kind:expr, [$($label:literal),*], $of:ident, $help:literal;)+) => {
        $(
            #[doc = $help]
            pub const $constant: Definition = Definition {
                name: $name,
                kind: $kind,
                labels: &[$($label),*],
                of: Of::$of,
                help: $help,
            };
        )+

        /// All of them, in the order of the page.
        pub const ALL: &[Definition] = &[$($constant),+];
    };
}

use Buckets::{Commands, Latency, Wait};
use Kind::{Counter, Gauge, Histogram};

metrics! {
    // What buyers get.
    ORDERS_ANSWERED = "antre_orders_answered_total", Counter, ["outcome", "reason"], Api,
        "Orders by the answer that their clients got.";
    CHANGES_ANSWERED = "antre_changes_answered_total", Counter, ["change", "outcome"], Api,
        "Payments, cancellations, extensions and returns by the answer that their clients got.";
    VERDICT_LATENCY = "antre_verdict_latency_seconds", Histogram(Latency), [], Api,
        "Time from submitting a command to its verdict, of commands whose clients waited for it.";
    COMMANDS_DETACHED = "antre_commands_detached_total", Counter, [], Api,
        "Commands whose clients were answered 202 because there was no verdict by their deadline.";
    PENDING_REPLIES = "antre_pending_replies", Gauge, [], Api,
        "Requests that wait for a verdict now.";
    PARKED_COMMANDS = "antre_parked_commands", Gauge, [], Api,
        "Commands of answered clients that could not be queued yet and are submitted again.";
    GATED_PRODUCTS = "antre_gated_products", Gauge, [], Api,
        "Products that the order gate knows as closed to orders.";
    GATE_REFUSALS = "antre_gate_refusals_total", Counter, ["reason"], Api,
        "Orders that the order gate refused without the queue.";
    GATE_READS = "antre_gate_reads_total", Counter, ["outcome"], Api,
        "Reads of the order gate.";

    // What waits.
    OLDEST_UNDECIDED = "antre_oldest_undecided_command_seconds", Gauge, [], Both,
        "Age of the oldest command without a verdict: held by this worker, or submitted by this API.";
    UNDECIDED_COMMANDS = "antre_undecided_commands", Gauge, [], Both,
        "Commands without a verdict: held by this worker, or submitted by this API.";
    STALLED_LANES = "antre_stalled_lanes", Gauge, [], Both,
        "Lanes of which commands were taken, and none was decided for five seconds.";

    // What workers decide.
    COMMANDS_TAKEN = "antre_commands_taken_total", Counter, [], Worker,
        "Commands that this worker took from their lanes.";
    COMMANDS_DECIDED = "antre_commands_decided_total", Counter, ["outcome", "reason"], Worker,
        "Commands by what was decided on them; repeated ones were decided before.";
    LANE_WAIT = "antre_lane_wait_seconds", Histogram(Wait), [], Worker,
        "Time from the creation of a command to the beginning of the batch that decides it.";
    BATCH_COMMANDS = "antre_batch_commands", Histogram(Commands), [], Worker,
        "Commands of a batch.";
    BATCH_DURATION = "antre_batch_duration_seconds", Histogram(Wait), [], Worker,
        "Time for a batch, from the first statement to the commit, with repetitions.";
    BATCH_PHASE_DURATION = "antre_batch_phase_duration_seconds", Histogram(Wait), ["phase"], Worker,
        "Time for a part of a transaction that was committed: lock and read, decide, write and commit.";
    BATCH_FAILURES = "antre_batch_failures_total", Counter, ["cause"], Worker,
        "Attempts to decide a batch that failed and are made again.";
    TRANSACTION_RETRIES = "antre_transaction_retries_total", Counter, ["cause"], Worker,
        "Transactions that ran again at once: others held the same rows, or an order was stored already.";
    COMMANDS_REQUEUED = "antre_commands_requeued_total", Counter, [], Worker,
        "Commands that this worker gave back to their lanes.";
    CONSUMERS_STARTED = "antre_consumers_started_total", Counter, [], Worker,
        "How often this worker began to consume: once at the start, and again after each loss of the queue.";
    DEAD_LETTERS_WRITTEN = "antre_dead_letters_written_total", Counter, [], Worker,
        "Commands that this worker put into the dead letters.";
    DEAD_LETTERS = "antre_dead_letters", Gauge, [], Servers,
        "Messages in the queue of dead letters.";
    LANES_SERVED = "antre_lanes_served", Gauge, [], Worker,
        "Lanes that this worker serves.";

    // Reservations that end.
    EXPIRY_BACKLOG = "antre_expiry_backlog", Gauge, [], Worker,
        "Reservations that were due and still reserved at the last complete sweep.";
    EXPIRY_LAG = "antre_expiry_lag_seconds", Gauge, [], Worker,
        "How late the reservation is that is overdue longest.";
    EXPIRIES_SUBMITTED = "antre_expiries_submitted_total", Counter, [], Worker,
        "Expiries that this worker queued.";
    EXPIRY_LAST_SWEEP = "antre_expiry_last_sweep_timestamp_seconds", Gauge, [], Worker,
        "When this worker last saw all reservations that are due.";

    // Whether the numbers are right.
    CONSERVATION_DIFFERENCE = "antre_conservation_difference_pieces", Gauge, [], Worker,
        "Pieces by which inventories differ from their orders and movements: in the last complete round, or in this one if it is more.";
    CONSERVATION_CHECKED = "antre_conservation_products_checked_total", Counter, [], Worker,
        "Products whose inventory was compared with its orders and movements.";
    CONSERVATION_FAILURES = "antre_conservation_failures_total", Counter, [], Worker,
        "Comparisons that were given up: no connection, or too many orders to read in time.";
    CONSERVATION_ROUNDS = "antre_conservation_rounds_total", Counter, [], Worker,
        "Complete rounds over all products.";

    // What antre depends on.
    READY = "antre_ready", Gauge, ["part"], Both,
        "Whether a part of this process is ready, as GET /health/ready says.";
    DATABASE_CONNECTIONS = "antre_database_connections", Gauge, ["pool", "state"], Both,
        "Open connections to the database.";
    DATABASE_CONNECTIONS_MAX = "antre_database_connections_max", Gauge, ["pool"], Both,
        "How many connections to the database there may be.";
    DATABASE_CONNECTION_WAITERS = "antre_database_connection_waiters", Gauge, ["pool"], Both,
        "Calls that wait for a connection to the database now.";
    BROKER_PUBLISHES = "antre_broker_publishes_total", Counter, ["message", "outcome"], Servers,
        "Messages by what became of them: confirmed, refused, returned, not sent, or unknown.";
    BROKER_DELIVERIES = "antre_broker_deliveries_total", Counter, ["redelivered"], Servers,
        "Messages of lanes that this process received.";
    BROKER_REJECTIONS = "antre_broker_rejections_total", Counter, ["cause"], Servers,
        "Messages that a worker rejected to the dead letters: unreadable, or of another database.";
    BROKER_CONNECTIONS_OPENED = "antre_broker_connections_opened_total", Counter, ["purpose", "outcome"], Servers,
        "Attempts to connect to the broker.";
    BROKER_PUBLISH_CONNECTIONS = "antre_broker_publish_connections", Gauge, ["state"], Servers,
        "Connections of the pool on which an API publishes.";
    BROKER_BLOCKED = "antre_broker_blocked", Gauge, [], Servers,
        "1 while the broker blocks publishers because it is short of memory or disk.";

    // Requests.
    HTTP_REQUESTS = "antre_http_requests_total", Counter, ["route", "method", "status"], Both,
        "Requests by route, method and class of the answer's status.";
    HTTP_REQUEST_DURATION = "antre_http_request_duration_seconds", Histogram(Latency), ["route"], Both,
        "Time from the head of a request to the head of its answer.";
    HTTP_ERRORS = "antre_http_errors_total", Counter, ["reason"], Both,
        "Answers with an error, by its reason.";
    HTTP_CONNECTIONS = "antre_http_connections", Gauge, [], Both,
        "Open connections of clients.";
    HTTP_CONNECTIONS_MAX = "antre_http_connections_max", Gauge, [], Both,
        "How many connections of clients there may be.";
    HTTP_CONNECTIONS_CLOSED = "antre_http_connections_closed_total", Counter, ["cause"], Both,
        "Connections that were closed because their clients took too long, or to make room for others.";
    HTTP_ACCEPT_FAILURES = "antre_http_accept_failures_total", Counter, [], Both,
        "Connections that could not be accepted.";

    // The process.
    TASK_PANICS = "antre_task_panics_total", Counter, ["task"], Both,
        "Panics of long-running tasks; each was started again.";
    LOG_MESSAGES = "antre_log_messages_total", Counter, ["level"], Both,
        "Lines of the log, of the levels warn and error.";
    LOG_MESSAGES_SUPPRESSED = "antre_log_messages_suppressed_total", Counter, [], Both,
        "Lines that were left out of the log because the same was said a moment ago.";
    BUILD_INFO = "antre_build_info", Gauge, ["version", "role"], Both,
        "1, with the version and the role of this process.";
    PROCESS_START_TIME = "process_start_time_seconds", Gauge, [], Both,
        "When the process started, in seconds since 1970.";
    PROCESS_CPU = "process_cpu_seconds_total", Counter, [], Both,
        "Processor time that the process used.";
    PROCESS_RESIDENT_MEMORY = "process_resident_memory_bytes", Gauge, [], Both,
        "Memory that the process holds.";
    PROCESS_OPEN_FILES = "process_open_fds", Gauge, [], Both,
        "Open files and connections.";
    PROCESS_MAX_FILES = "process_max_fds", Gauge, [], Both,
        "How many files and connections may be open.";
    PROCESS_THREADS = "process_threads", Gauge, [], Both,
        "Threads of the process.";
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_follow_the_conventions() {
        let names: BTreeSet<_> = ALL.iter().map(|metric| metric.name).collect();
        assert_eq!(names.len(), ALL.len(), "a name is there twice");
        for Definition { name, kind, labels, help, .. } in ALL {
            assert!(name.starts_with("antre_") || name.starts_with("process_"), "{name}");
            assert_eq!(name.ends_with("_total"), *kind == Counter, "{name}");
            assert!(help.ends_with('.') && !help.contains('\n'), "{name}: {help}");
            assert!(!labels.contains(&"le"), "{name}");
            let is_time = matches!(kind, Histogram(Latency | Wait));
            assert!(!is_time || name.ends_with("_seconds"), "{name}");
            if let Histogram(buckets) = kind {
                assert!(buckets.bounds().is_sorted(), "{name}");
            }
        }
    }
}
