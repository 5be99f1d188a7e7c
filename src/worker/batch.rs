//! What the parts of a worker know of a batch.

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use crate::{
    domain::{command::Command, decide::BatchResult, ids::ProductId, verdict::Verdict},
    queue::{Address, Delivery, Reply},
    store::{Store, StoreError},
};

/// How many commands one transaction decides at most. There is no minimum: a lone order never waits for others.
pub(super) const MAX_BATCH: usize = 1_000;

/// Decides batches, each in one transaction.
#[derive(Clone)]
pub(super) struct BatchDecider {
    pub(super) store: Arc<dyn Store>,
    pub(super) reservation_ttl: Duration,
}

impl BatchDecider {
    pub(super) async fn decide(&self, deliveries: &[Delivery]) -> Result<BatchResult, StoreError> {
        self.store.decide(&commands_of(deliveries), self.reservation_ttl).await
    }
}

pub(super) fn commands_of(deliveries: &[Delivery]) -> Vec<Command> {
    deliveries.iter().flat_map(|delivery| &delivery.commands).cloned().collect()
}

pub(super) fn products_of(deliveries: &[Delivery]) -> BTreeSet<ProductId> {
    deliveries.iter().flat_map(|delivery| &delivery.commands).map(Command::product_id).collect()
}

/// One reply for each API, whatever the number of its deliveries.
pub(super) fn replies_of(deliveries: &[Delivery], verdicts: &[Verdict]) -> Vec<Reply> {
    let mut replies: Vec<Reply> = Vec::new();
    let mut rest = verdicts.iter().copied();
    for delivery in deliveries {
        let decided = delivery.commands.iter().map(Command::id).zip(rest.by_ref());
        match replies.iter_mut().find(|reply| reply.to == delivery.reply_to) {
            Some(reply) => reply.verdicts.extend(decided),
            None => {
                replies.push(Reply { to: Address::clone(&delivery.reply_to), verdicts: decided.collect() })
            }
        }
    }
    replies
}
