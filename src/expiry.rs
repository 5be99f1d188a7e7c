//! Lets reservations expire. Every worker looks for those whose time is over, and puts their expiry in line: the lane
//! decides, so that an expiry and a payment that meet end in exactly one of the two. No leader and no lock: what two
//! workers find is decided once, and the second one finds it done.

use std::{
    collections::HashSet,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    sync::Notify,
    time::{sleep, timeout},
};

use crate::{
    command::{Change, ChangeOrder, CommandId},
    inventory::StockNews,
    order::{Order, from_millis, now},
    queue::{Inbox, Outcome, Queue, Refusal, Submitter},
    store::Store,
};

/// How often it looks.
const SWEEP: Duration = Duration::from_millis(500);
/// How many reservations one sweep puts in line at most.
const MAX_SWEEP: u32 = 1_000;
/// How long it waits for the lanes' answers before it looks again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it waits after a failure.
const PAUSE: Duration = Duration::from_secs(2);

/// Looks for reservations whose time is over.
pub struct Expiry {
    /// Where commands stand in line.
    pub queue: Arc<dyn Queue>,
    /// Where reservations are on record.
    pub store: Arc<dyn Store>,
}

impl Expiry {
    /// Runs for ever. It may be aborted at any time: what it put in line is decided all the same.
    pub async fn run(self) {
        loop {
            let unanswered = Arc::new(Unanswered::default());
            match self.queue.submitter(unanswered.clone()).await {
                Ok(submitter) => self.sweep_for_ever(&*submitter, &unanswered).await,
                Err(error) => tracing::warn!(%error, "reservations cannot expire yet"),
            }
            sleep(PAUSE).await;
        }
    }

    async fn sweep_for_ever(&self, submitter: &dyn Submitter, unanswered: &Unanswered) {
        loop {
            let due = match self.store.due(now(), MAX_SWEEP).await {
                Ok(due) => due,
                Err(error) => {
                    tracing::warn!(%error, "could not look for reservations whose time is over");
                    sleep(PAUSE).await;
                    continue;
                }
            };
            let more = due.len() == MAX_SWEEP as usize;
            unanswered.ask(submitter, &due);
            // While the answers are out the same reservations would be found again.
            if timeout(PATIENCE, unanswered.all_answered()).await.is_err() {
                tracing::warn!(reservations = due.len(), "no verdict yet on reservations whose time is over");
            } else if let Some(refusal) = unanswered.refused() {
                tracing::warn!(?refusal, "expiries did not get in line");
                sleep(PAUSE).await;
            } else if more {
                continue;
            }
            sleep(SWEEP).await;
        }
    }
}

/// The expiries of the last sweep that wait for their verdict.
#[derive(Default)]
struct Unanswered {
    commands: Mutex<HashSet<CommandId>>,
    refused: Mutex<Option<Refusal>>,
    none: Notify,
}

impl Unanswered {
    fn ask(&self, submitter: &dyn Submitter, due: &[Order]) {
        let patience_ms = PATIENCE.as_millis() as i64;
        let answer_by = from_millis(now().as_millisecond() + patience_ms);
        let expiries: Vec<_> = due
            .iter()
            .map(|order| ChangeOrder {
                id: CommandId::mint(),
                order_id: order.id,
                product_id: order.product_id,
                change: Change::Expire,
                answer_by,
            })
            .collect();
        *self.commands() = expiries.iter().map(|expiry| expiry.id).collect();
        expiries.into_iter().for_each(|expiry| submitter.submit(expiry.into()));
    }

    async fn all_answered(&self) {
        loop {
            let none = self.none.notified();
            if self.commands().is_empty() {
                return;
            }
            none.await;
        }
    }

    /// What was refused since the last time, if anything was.
    fn refused(&self) -> Option<Refusal> {
        mem::take(&mut *self.refused.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn commands(&self) -> MutexGuard<'_, HashSet<CommandId>> {
        self.commands.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox for Unanswered {
    fn deliver(&self, outcomes: Vec<(CommandId, Outcome)>) {
        let mut commands = self.commands();
        for (id, outcome) in outcomes {
            commands.remove(&id);
            if let Outcome::Refused(refusal) = outcome {
                *self.refused.lock().unwrap_or_else(PoisonError::into_inner) = Some(refusal);
            }
        }
        if commands.is_empty() {
            self.none.notify_waiters();
        }
    }

    fn hear(&self, _: StockNews) {}
}
