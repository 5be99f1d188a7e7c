//! What an API learns of its commands. Queued, decided and refused commands are delivered to its reply sink; commands that
//! must not be refused are [parked](super::parked) instead.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::oneshot;

use super::{lane_buffer::Entry, parked::Parked};
use crate::{
    domain::ids::CommandId,
    queue::{Outcome, Refusal, ReplySink},
    telemetry::LogLimiter,
};

pub(super) struct Outcomes {
    reply_sink: Arc<dyn ReplySink>,
    pub(super) parked: Parked,
    /// Lane publishers that wait for the verdict on the last command of a message.
    last_of_message: Mutex<HashMap<CommandId, oneshot::Sender<()>>>,
    foreign: LogLimiter,
}

impl Outcomes {
    pub(super) fn new(reply_sink: Arc<dyn ReplySink>) -> Self {
        Self {
            reply_sink,
            parked: Parked::new(),
            last_of_message: Mutex::default(),
            foreign: LogLimiter::every(Duration::from_secs(60)),
        }
    }

    /// Commands were not queued.
    pub(super) fn refuse(&self, entries: Vec<Entry>, refusal: Refusal) {
        let (parkable, refused): (Vec<_>, Vec<_>) = entries.into_iter().partition(Entry::is_parkable);
        self.parked.park(parkable);
        if !refused.is_empty() {
            let outcome = |entry: &Entry| (entry.command.id(), Outcome::Refused(refusal));
            self.reply_sink.deliver(refused.iter().map(outcome).collect());
        }
    }

    /// Commands are queued. Clients of detached ones wait for nothing more.
    pub(super) fn confirm(&self, entries: &[Entry]) {
        let detached = entries.iter().map(|entry| &entry.command).filter(|command| command.is_detached());
        let queued: Vec<_> = detached.map(|command| (command.id(), Outcome::Queued)).collect();
        if !queued.is_empty() {
            self.reply_sink.deliver(queued);
            self.parked.release(entries.iter().filter(|entry| entry.is_parkable()).count());
        }
    }

    /// Verdicts and refusals have arrived from workers.
    pub(super) fn deliver(&self, outcomes: Vec<(CommandId, Outcome)>) {
        {
            let mut last_of_message = self.last_of_message();
            for decided in outcomes.iter().filter_map(|(id, _)| last_of_message.remove(id)) {
                let _ = decided.send(()); // the lane publisher may have stopped waiting just now
            }
        }
        let is_foreign =
            |(_, outcome): &(_, Outcome)| *outcome == Outcome::Refused(Refusal::OtherInstallation);
        if outcomes.iter().any(is_foreign)
            && let Some(suppressed) = self.foreign.due()
        {
            tracing::error!(
                suppressed,
                "a worker of another database took orders of this one and refused them: two installations share this \
                 QUEUE_PREFIX. Give each its own; the orders are among the dead letters"
            );
        }
        self.reply_sink.deliver(outcomes);
    }

    /// Resolves when the verdict on the last command of a message arrives.
    pub(super) fn decided(&self, last: CommandId) -> oneshot::Receiver<()> {
        let (decided, is_decided) = oneshot::channel();
        self.last_of_message().insert(last, decided);
        is_decided
    }

    /// Nothing waits for that verdict any more.
    pub(super) fn forget(&self, last: CommandId) {
        self.last_of_message().remove(&last);
    }

    fn last_of_message(&self) -> MutexGuard<'_, HashMap<CommandId, oneshot::Sender<()>>> {
        self.last_of_message.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::domain::{
        command::{Command, NewOrder, ReplyMode},
        ids::ProductId,
        lines::Lines,
        order::Quantity,
        origin::Origin,
        time::from_millis,
        verdict::Verdict,
    };

    #[derive(Default)]
    struct Sink(Mutex<Vec<(CommandId, Outcome)>>);

    impl ReplySink for Sink {
        fn deliver(&self, outcomes: Vec<(CommandId, Outcome)>) {
            self.0.lock().unwrap().extend(outcomes);
        }
    }

    impl Sink {
        fn take(&self) -> Vec<(CommandId, Outcome)> {
            std::mem::take(&mut self.0.lock().unwrap())
        }
    }

    fn command(reply: ReplyMode) -> Command {
        let (product_id, total) = (ProductId::new(1).unwrap(), Quantity::new(1).unwrap());
        NewOrder {
            id: SystemClock.order_id(),
            lines: Lines::one(product_id, total),
            buyer: None,
            reply,
            key: None,
            origin: Origin::default(),
        }
        .into()
    }

    #[test]
    fn commands_that_may_not_be_refused_are_parked() {
        let sink = Arc::new(Sink::default());
        let outcomes = Outcomes::new(sink.clone());
        let waiting = Entry::new(command(ReplyMode::Until(from_millis(4_102_444_800_000))));
        let detached = Entry::new(command(ReplyMode::Detached));
        let parkable = outcomes.parked.admit(command(ReplyMode::Detached)).unwrap();
        outcomes.refuse(vec![waiting.clone(), parkable.clone(), detached.clone()], Refusal::LaneFull);
        let refused =
            [&waiting, &detached].map(|one| (one.command.id(), Outcome::Refused(Refusal::LaneFull)));
        assert_eq!(sink.take(), refused);
        assert_eq!(outcomes.parked.drain().now_or_never(), None);

        outcomes.confirm(&[waiting, parkable.clone(), detached.clone()]);
        let queued = [&parkable, &detached].map(|one| (one.command.id(), Outcome::Queued));
        assert_eq!(sink.take(), queued);
        assert_eq!(outcomes.parked.drain().now_or_never(), Some(()));
    }

    #[test]
    fn the_verdict_on_the_last_command_of_a_message_wakes_its_lane() {
        let sink = Arc::new(Sink::default());
        let outcomes = Outcomes::new(sink.clone());
        let [first, last] = [SystemClock.order_id(), SystemClock.order_id()].map(CommandId::from);
        let mut is_decided = outcomes.decided(last);
        let delivered = |id| vec![(id, Outcome::Decided(Verdict::OrderNotFound))];
        outcomes.deliver(delivered(first));
        assert_eq!((&mut is_decided).now_or_never(), None);
        outcomes.deliver(delivered(last));
        assert_eq!(is_decided.now_or_never(), Some(Ok(())));
        assert_eq!(sink.take(), [delivered(first), delivered(last)].concat());
    }
}
