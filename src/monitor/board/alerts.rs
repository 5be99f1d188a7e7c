//! What a person should know now, with what to do about it.

use jiff::{SignedDuration, Timestamp};

use super::{
    super::report::Vital,
    view::{Alert, AlertKind, LaneView, Severity},
};
use crate::domain::ids::ProductId;

/// How many stalled lanes have an alert each; one more is about all others.
const MAX_LANES: usize = 20;

/// What alerts are about.
pub(super) struct Situation<'a> {
    pub(super) now: Timestamp,
    pub(super) database: &'a Vital,
    pub(super) broker: &'a Vital,
    /// Since when no worker is alive.
    pub(super) no_worker_since: Option<Timestamp>,
    /// With their names.
    pub(super) stalled: Vec<(ProductId, Option<&'a str>, LaneView)>,
    /// How many there are, and since when.
    pub(super) dead_letters: Option<(u64, Timestamp)>,
    pub(super) waiting: u64,
}

/// The worst first.
pub(super) fn alerts(mut situation: Situation<'_>) -> Vec<Alert> {
    let mut alerts = Vec::new();
    let mut add = |kind, severity, since, text, advice, product_id| {
        alerts.push(Alert { kind, severity, since, text, advice, product_id });
    };
    if let Vital::Unavailable { since, error } = situation.database {
        let text = format!("The database does not answer ({error})");
        let advice = "Check that the server runs, has disk space, and can be reached. Orders wait, and none is lost; \
                      antre goes on by itself.";
        add(AlertKind::DatabaseUnavailable, Severity::Critical, *since, text, advice, None);
    }
    if let Vital::Unavailable { since, error } = situation.broker {
        let text = format!("The broker does not answer ({error})");
        let advice = "Check that RabbitMQ runs, and its memory and disk alarms. New orders are refused with 503; antre goes \
                      on by itself.";
        add(AlertKind::BrokerUnavailable, Severity::Critical, *since, text, advice, None);
    }
    if let Some(since) = situation.no_worker_since {
        let text = match situation.waiting {
            0 => "No worker is alive".to_owned(),
            waiting => format!("No worker is alive, and {waiting} commands wait"),
        };
        let advice = "Start a worker (antre worker), and read the log of the one that ended. Orders wait in their lanes for an \
                      hour.";
        add(AlertKind::NoWorker, Severity::Critical, since, text, advice, None);
    }
    situation.stalled.sort_by_key(|(id, _, lane)| (std::cmp::Reverse(lane.undecided_ms), *id));
    let others = situation.stalled.split_off(situation.stalled.len().min(MAX_LANES));
    let ago = |ms: u64| {
        let ms = i64::try_from(ms).unwrap_or(i64::MAX);
        situation.now.checked_sub(SignedDuration::from_millis(ms)).unwrap_or(situation.now)
    };
    let advice = "Look for what keeps its rows locked, or why no worker takes its commands; the worker's log names the error. \
                  The lane goes on by itself once that is over.";
    for (id, name, lane) in situation.stalled {
        let name = name.map_or(String::new(), |name| format!(" ({name})"));
        let error = lane.error.map_or(String::new(), |error| format!(", try {}: {error}", lane.tries));
        let (waiting, seconds) = (lane.waiting, lane.oldest_ms / 1_000);
        let text =
            format!("Lane {id}{name} stands still: {waiting} waiting, the oldest for {seconds} s{error}");
        let since = ago(lane.undecided_ms);
        add(AlertKind::LaneStalled, Severity::Critical, since, text, advice, Some(id));
    }
    if let Some((_, _, lane)) = others.first() {
        let text = format!("{} more lanes stand still", others.len());
        add(AlertKind::LaneStalled, Severity::Critical, ago(lane.undecided_ms), text, advice, None);
    }
    if let Some((count @ 1.., since)) = situation.dead_letters {
        let text = match count {
            1 => "1 dead letter".to_owned(),
            count => format!("{count} dead letters"),
        };
        let advice = "antre dead list shows them; antre dead requeue decides them again, antre dead drop deletes them.";
        add(AlertKind::DeadLetters, Severity::Warning, since, text, advice, None);
    }
    alerts
}
