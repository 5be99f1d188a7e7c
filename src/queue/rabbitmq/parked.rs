//! Detached commands that may not be refused: their clients have the answer 202, which says that there will be a verdict.
//! A command that cannot be queued is parked here and submitted again, until it is an hour old.

use std::{
    mem,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use tokio::{
    sync::{Notify, watch},
    time::{Instant, sleep},
};

use super::{lane_buffer::Entry, topology::MAX_AGE};
use crate::{
    domain::command::Command,
    telemetry::{LogLimiter, listed},
};

/// How many commands one API keeps, parked or in a lane's buffer.
const MAX_PARKABLE: usize = 65_536;
/// How long a command is parked before it is submitted again.
const DELAY: Duration = Duration::from_millis(500);

pub(super) struct Parked {
    /// Commands that are parked, in a lane's buffer or in flight.
    parkable: watch::Sender<usize>,
    parked: Mutex<Vec<Entry>>,
    has_parked: Notify,
    lost: LogLimiter,
}

impl Parked {
    pub(super) fn new() -> Self {
        Self {
            parkable: watch::Sender::new(0),
            parked: Mutex::default(),
            has_parked: Notify::new(),
            lost: LogLimiter::default(),
        }
    }

    /// An entry that is never refused. `None` when there are [too many](MAX_PARKABLE).
    pub(super) fn admit(&self, command: Command) -> Option<Entry> {
        let is_admitted = self.parkable.send_if_modified(|count| {
            let has_room = *count < MAX_PARKABLE;
            *count += usize::from(has_room);
            has_room
        });
        if is_admitted {
            return Some(Entry { command, parkable_since: Some(Instant::now()) });
        }
        if let Some(suppressed) = self.lost.due() {
            tracing::error!(
                order_id = %command.order_id(),
                product_id = command.product_id().get(),
                request_id = command.origin().request_id.as_ref().map(tracing::field::display),
                suppressed,
                "{MAX_PARKABLE} commands wait for the queue; this one may never get a verdict"
            );
        }
        None
    }

    /// So many admitted commands are queued.
    pub(super) fn release(&self, count: usize) {
        if count > 0 {
            self.parkable.send_modify(|all| *all = all.saturating_sub(count));
        }
    }

    /// Commands cannot be queued now.
    pub(super) fn park(&self, entries: Vec<Entry>) {
        if !entries.is_empty() {
            self.parked.lock().unwrap_or_else(PoisonError::into_inner).extend(entries);
            self.has_parked.notify_one();
        }
    }

    /// How many commands are parked now.
    pub(super) fn count(&self) -> usize {
        self.parked.lock().unwrap_or_else(PoisonError::into_inner).len()
    }

    /// Waits for commands that must be submitted again. Cancel safe.
    pub(super) async fn unpark(&self) -> Vec<Entry> {
        loop {
            self.has_parked.notified().await;
            sleep(DELAY).await;
            let parked = mem::take(&mut *self.parked.lock().unwrap_or_else(PoisonError::into_inner));
            let (young, old): (Vec<_>, Vec<_>) = parked
                .into_iter()
                .partition(|entry| entry.parkable_since.is_none_or(|at| at.elapsed() < MAX_AGE));
            if !old.is_empty() {
                self.release(old.len());
                let orders = listed(old.iter().map(|entry| entry.command.order_id()));
                tracing::error!(
                    commands = old.len(),
                    orders,
                    "could not be queued for an hour; they get no verdict"
                );
            }
            if !young.is_empty() {
                return young;
            }
        }
    }

    /// Waits until all admitted commands are queued.
    pub(super) async fn drain(&self) {
        let _ = self.parkable.subscribe().wait_for(|count| *count == 0).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::time::advance;

    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::domain::{
        command::{NewOrder, ReplyMode},
        ids::ProductId,
        lines::Lines,
        order::Quantity,
        origin::Origin,
    };

    fn command() -> Command {
        let (product_id, total) = (ProductId::new(1).unwrap(), Quantity::new(1).unwrap());
        let id = SystemClock.order_id();
        NewOrder {
            id,
            lines: Lines::one(product_id, total),
            buyer: None,
            reply: ReplyMode::Detached,
            key: None,
            origin: Origin::default(),
        }
        .into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_parked_command_is_submitted_again_until_it_is_queued() {
        let parked = Parked::new();
        let entry = parked.admit(command()).unwrap();
        let id = entry.command.id();
        for _ in 0..3 {
            parked.park(vec![entry.clone()]);
            let (began, again) = (Instant::now(), parked.unpark().await);
            assert_eq!(began.elapsed(), DELAY);
            assert_eq!(again.iter().map(|entry| entry.command.id()).collect::<Vec<_>>(), [id]);
            assert_eq!(parked.drain().now_or_never(), None);
        }
        parked.release(1);
        assert_eq!(parked.drain().now_or_never(), Some(()));
    }

    #[tokio::test(start_paused = true)]
    async fn a_command_is_given_up_after_an_hour() {
        let parked = Parked::new();
        parked.park(vec![parked.admit(command()).unwrap()]);
        advance(MAX_AGE).await;
        assert!(tokio::time::timeout(DELAY * 2, parked.unpark()).await.is_err());
        assert_eq!(parked.drain().now_or_never(), Some(()));
    }

    #[test]
    fn the_number_of_parkable_commands_is_bounded() {
        let parked = Parked::new();
        let (first, admitted) = (command(), |command: &Command| parked.admit(command.clone()).is_some());
        assert!((0..MAX_PARKABLE).all(|_| admitted(&first)));
        assert!(!admitted(&first));
        parked.release(1);
        assert!(admitted(&first) && !admitted(&first));
    }
}
