//! `antre prune`: deletes orders that are final and old, while antre serves.

use std::{
    io::{self, IsTerminal},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use jiff::Timestamp;
use serde::Serialize;
use tokio::{
    signal::unix::{SignalKind, signal},
    time::sleep,
};

use super::{
    database,
    outcome::{Finding, ToolError},
    output::{self, count},
};
use crate::{
    domain::ids::OrderId,
    server_url::shown,
    settings::{Database, Settings, tools::Prune},
    store::{
        Deleted, StoreError,
        retention::{Mode, Pass},
    },
};

/// How often a step is tried again while the database does not answer, or others hold its rows.
const TRIES: u32 = 10;
/// How long it waits before it tries again.
const RETRY_DELAY: Duration = Duration::from_secs(1);

pub(super) async fn run(settings: &Settings, arguments: Prune) -> Result<Finding, ToolError> {
    let Prune { before, dry_run, output } = arguments;
    let database = settings.backends.database()?;
    let (Database::Sqlite(url) | Database::MySql(url)) = &database;
    let failed = |error: String| ToolError::Failed(format!("cannot prune {}: {error}", shown(url)));
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let store = database::open(&database).await.map_err(failed)?;
    let began = Instant::now();
    let mode = if dry_run { Mode::Count } else { Mode::Delete };
    let mut pass = Pass::begin(&*store, before, mode).await.map_err(|error| failed(error.to_string()))?;
    // Between two steps, or in one: the database rolls that back.
    let ended = tokio::select! {
        ended = go_through(&mut pass) => Some(ended),
        _ = terminate.recv() => None,
        _ = interrupt.recv() => None,
    };
    let report = Report {
        database: shown(url),
        created_before: pass.end().created_at(),
        dry_run,
        deleted: pass.deleted().into(),
        seconds: began.elapsed().as_secs_f64(),
        stopped: ended.is_none(),
    };
    store.close().await;
    if let Some(Err(error)) = ended {
        let so_far = count(report.deleted.orders, "order", "orders");
        return Err(failed(format!("{error}. {so_far} deleted so far; run it again to go on")));
    }
    if output.json {
        output::json(&report)?;
    } else {
        output::line(report.sentence())?;
    }
    Ok(if report.stopped { Finding::Some } else { Finding::None })
}

/// To the end of the pass.
async fn go_through(pass: &mut Pass<'_>) -> Result<(), StoreError> {
    let mut progress = Progress::default();
    let mut tries = 1;
    loop {
        let rest = match pass.step().await {
            Ok(None) => return Ok(()),
            Ok(Some(rest)) => {
                tries = 1;
                rest
            }
            Err(error) if error.is_transient() && tries < TRIES => {
                tries += 1;
                RETRY_DELAY
            }
            Err(error) => return Err(error),
        };
        progress.show(pass);
        sleep(rest).await;
    }
}

/// A bar on a terminal, by the time in which the orders were created: counting them would be a pass of its own.
#[derive(Default)]
struct Progress {
    /// The bar, and the first order.
    bar: Option<(ProgressBar, OrderId)>,
}

impl Progress {
    fn show(&mut self, pass: &Pass<'_>) {
        let Some(place) = pass.place() else { return };
        if !io::stderr().is_terminal() {
            return;
        }
        let millis = |id: OrderId| id.created_at().as_millisecond();
        let (bar, first) = self.bar.get_or_insert_with(|| (bar(millis(pass.end()) - millis(place)), place));
        bar.set_position(u64::try_from(millis(place) - millis(*first)).unwrap_or(0));
        let orders = count(pass.deleted().orders, "order", "orders");
        bar.set_message(format!("{orders}, now at {}", day(place.created_at())));
    }
}

/// What follows comes to where the bar was.
impl Drop for Progress {
    fn drop(&mut self) {
        if let Some((bar, _)) = &self.bar {
            bar.finish_and_clear();
        }
    }
}

fn bar(length_ms: i64) -> ProgressBar {
    let length = u64::try_from(length_ms).unwrap_or(0);
    let bar = ProgressBar::with_draw_target(Some(length), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {percent}% {elapsed} {wide_msg}") {
        bar.set_style(style.progress_chars("━╸ "));
    }
    bar
}

fn day(time: Timestamp) -> String {
    time.strftime("%Y-%m-%d").to_string()
}

/// What was done.
#[derive(Debug, Serialize)]
struct Report {
    database: String,
    /// Orders that were created before this time are old enough.
    created_before: Timestamp,
    dry_run: bool,
    #[serde(flatten)]
    deleted: Rows,
    seconds: f64,
    /// A signal ended it: there may be more.
    stopped: bool,
}

/// Rows that were deleted, or that a dry run would delete.
#[derive(Debug, Serialize)]
struct Rows {
    orders: u64,
    idempotency_keys: u64,
    aliases: u64,
}

impl From<Deleted> for Rows {
    fn from(Deleted { orders, idempotency_keys, aliases }: Deleted) -> Self {
        Self { orders, idempotency_keys, aliases }
    }
}

impl Report {
    fn sentence(&self) -> String {
        let Rows { orders, idempotency_keys, aliases } = self.deleted;
        let orders = count(orders, "final order", "final orders");
        let what = match self.dry_run {
            true => format!("{orders} would be deleted, with their keys and aliases: they were"),
            false => format!(
                "deleted {orders}, {} and {}, of orders that were",
                count(idempotency_keys, "idempotency key", "idempotency keys"),
                count(aliases, "alias", "aliases"),
            ),
        };
        let stopped = if self.stopped { " Stopped by a signal: run it again to go on." } else { "" };
        format!(
            "{}: {what} created before {}. {:.1} s.{stopped}",
            self.database, self.created_before, self.seconds
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sentence_says_what_was_done() {
        let report = |dry_run, stopped| Report {
            database: "sqlite://antre.db".to_owned(),
            created_before: Timestamp::UNIX_EPOCH,
            dry_run,
            deleted: Rows { orders: 1_234, idempotency_keys: 1, aliases: 0 },
            seconds: 1.25,
            stopped,
        };
        assert_eq!(
            report(false, true).sentence(),
            "sqlite://antre.db: deleted 1,234 final orders, 1 idempotency key and 0 aliases, of orders that were created before \
             1970-01-01T00:00:00Z. 1.2 s. Stopped by a signal: run it again to go on."
        );
        assert!(report(true, false).sentence().contains("1,234 final orders would be deleted"));
    }
}
