//! Requests that wait for the outcomes of their commands.

use std::{
    collections::HashMap,
    mem,
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll},
};

use tokio::sync::oneshot;

use crate::{
    domain::ids::CommandId,
    monitor::metrics::ApiMetrics,
    queue::{Outcome, ReplySink},
};

/// How many commands of one process may wait for their replies.
const MAX_PENDING: usize = 65_536;

/// The commands of this process that have no reply yet.
pub(super) struct PendingReplies {
    state: Mutex<State>,
    metrics: Arc<ApiMetrics>,
}

#[derive(Default)]
struct State {
    senders: HashMap<CommandId, oneshot::Sender<Outcome>>,
    is_closing: bool,
}

impl PendingReplies {
    pub(super) fn new(metrics: Arc<ApiMetrics>) -> Self {
        Self { state: Mutex::default(), metrics }
    }

    /// `None`: the maximum number of commands waits.
    pub(super) fn register(self: &Arc<Self>, id: CommandId) -> Option<PendingReply> {
        let mut state = self.state();
        if state.senders.len() >= MAX_PENDING {
            return None;
        }
        let (sender, outcome) = oneshot::channel();
        state.senders.insert(id, sender);
        self.metrics.set_pending_replies(state.senders.len());
        drop(state);
        Some(PendingReply { replies: self.clone(), id, outcome, is_removed: false })
    }

    /// The process stops: all pending replies resolve to `None`.
    pub(super) fn close(&self) {
        let mut state = self.state();
        state.is_closing = true;
        let senders = mem::take(&mut state.senders);
        self.metrics.set_pending_replies(0);
        drop(state);
        drop(senders);
    }

    /// Whether [`PendingReplies::close`] was called.
    pub(super) fn is_closing(&self) -> bool {
        self.state().is_closing
    }

    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.state().senders.len()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReplySink for PendingReplies {
    fn deliver(&self, outcomes: Vec<(CommandId, Outcome)>) {
        let waiting: Vec<_> = {
            let mut state = self.state();
            let sender = |(id, outcome)| Some((state.senders.remove(&id)?, outcome));
            let waiting = outcomes.into_iter().filter_map(sender).collect();
            self.metrics.set_pending_replies(state.senders.len());
            waiting
        };
        for (sender, outcome) in waiting {
            let _ = sender.send(outcome); // the client may have left
        }
    }
}

/// Resolves to the outcome, or to `None` once the process stops. Dropping it leaves nothing behind.
pub(super) struct PendingReply {
    replies: Arc<PendingReplies>,
    id: CommandId,
    outcome: oneshot::Receiver<Outcome>,
    is_removed: bool,
}

impl Future for PendingReply {
    type Output = Option<Outcome>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Outcome>> {
        let outcome = Pin::new(&mut self.outcome).poll(context).map(Result::ok);
        self.is_removed = outcome.is_ready();
        outcome
    }
}

impl Drop for PendingReply {
    fn drop(&mut self) {
        if !self.is_removed {
            let mut state = self.replies.state();
            state.senders.remove(&self.id);
            self.replies.metrics.set_pending_replies(state.senders.len());
        }
    }
}
