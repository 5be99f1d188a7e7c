//! Commands whose clients were told that there will be a verdict: they are never refused. What cannot be queued is parked
//! here and submitted again, until it is an hour old.

use std::{
    mem,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};

use super::topology::MAX_AGE;
use crate::{domain::command::Command, telemetry::Sparse};

/// How many there may be.
const MAX_PROMISED: usize = 65_536;
/// How long one is parked before it is submitted again.
const PAUSE: Duration = Duration::from_millis(500);

/// A command on its way into its lane.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) command: Command,
    /// Since when it may not be refused any more.
    pub(super) promised_at: Option<Instant>,
}

impl Entry {
    /// Its client waits, and hears when it is refused.
    pub(super) fn new(command: Command) -> Self {
        Self { command, promised_at: None }
    }

    pub(super) fn is_promised(&self) -> bool {
        self.promised_at.is_some()
    }
}

pub(super) struct Promised {
    /// Those that are parked or in a lane's buffer.
    count: watch::Sender<usize>,
    parked: Mutex<Vec<Entry>>,
    has_parked: Notify,
    lost: Sparse,
}

impl Promised {
    pub(super) fn new() -> Self {
        Self {
            count: watch::Sender::new(0),
            parked: Mutex::default(),
            has_parked: Notify::new(),
            lost: Sparse::default(),
        }
    }

    /// `None`: there are too many.
    pub(super) fn admit(&self, command: Command) -> Option<Entry> {
        let is_admitted = self.count.send_if_modified(|count| {
            let has_room = *count < MAX_PROMISED;
            *count += usize::from(has_room);
            has_room
        });
        if is_admitted {
            return Some(Entry { command, promised_at: Some(Instant::now()) });
        }
        if let Some(left_out) = self.lost.due() {
            tracing::error!(
                left_out,
                "{MAX_PROMISED} commands wait for the queue; this one may never get a verdict"
            );
        }
        None
    }

    /// So many of them are queued.
    pub(super) fn kept(&self, count: usize) {
        if count > 0 {
            self.count.send_modify(|all| *all = all.saturating_sub(count));
        }
    }

    /// They cannot be queued now.
    pub(super) fn park(&self, entries: Vec<Entry>) {
        if !entries.is_empty() {
            self.parked.lock().unwrap_or_else(PoisonError::into_inner).extend(entries);
            self.has_parked.notify_one();
        }
    }

    /// Those whose time has come to be submitted again. Cancel safe.
    pub(super) async fn unpark(&self) -> Vec<Entry> {
        loop {
            self.has_parked.notified().await;
            sleep(PAUSE).await;
            let parked = mem::take(&mut *self.parked.lock().unwrap_or_else(PoisonError::into_inner));
            let (young, old): (Vec<_>, Vec<_>) = parked
                .into_iter()
                .partition(|entry| entry.promised_at.is_none_or(|at| at.elapsed() < MAX_AGE));
            if !old.is_empty() {
                self.kept(old.len());
                tracing::error!(commands = old.len(), "could not be queued for an hour; they get no verdict");
            }
            if !young.is_empty() {
                return young;
            }
        }
    }

    /// Waits until all of them are queued.
    pub(super) async fn flush(&self) {
        let _ = self.count.subscribe().wait_for(|count| *count == 0).await;
    }
}
