//! What the parts of a worker know of a batch.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    domain::{command::Command, decide::BatchResult, ids::ProductId, rules::Rules, verdict::Verdict},
    queue::{Address, Delivery, Reply},
    store::{Decider, StoreError},
    telemetry::{listed, ms, slow, traces::BatchSpan},
};

/// How many commands one transaction decides at most. There is no minimum: a lone order never waits for others.
pub(super) const MAX_BATCH: usize = 1_000;

/// Decides batches, each in one transaction.
#[derive(Clone)]
pub(super) struct BatchDecider {
    pub(super) decider: Arc<dyn Decider>,
    pub(super) rules: Rules,
}

impl BatchDecider {
    pub(super) async fn decide(&self, deliveries: &[Delivery]) -> Result<BatchResult, StoreError> {
        let (commands, began) = (commands_of(deliveries), Instant::now());
        let span = BatchSpan::begin(commands.iter().map(Command::origin));
        let result = self.decider.decide(&commands, self.rules).await;
        log_slow(deliveries, began.elapsed(), result.as_ref().err());
        match &result {
            Ok(BatchResult { verdicts, .. }) => {
                let lanes = deliveries.iter().flat_map(|one| one.commands.iter().map(|_| &*one.lane));
                let decided = lanes.zip(&commands).zip(verdicts);
                span.decided(decided.map(|((lane, command), verdict)| (lane, command, verdict)));
            }
            Err(error) => span.failed(error),
        }
        result
    }
}

/// After an attempt to decide a batch.
fn log_slow(batch: &[Delivery], elapsed: Duration, error: Option<&StoreError>) {
    if let Some(suppressed) = slow::BATCHES.due(elapsed) {
        let commands: usize = batch.iter().map(|delivery| delivery.commands.len()).sum();
        tracing::warn!(
            products = listed(products_of(batch)),
            commands,
            elapsed_ms = ms(elapsed),
            error = error.map(tracing::field::display),
            suppressed,
            "a slow batch"
        );
    }
}

pub(super) fn commands_of(deliveries: &[Delivery]) -> Vec<Command> {
    deliveries.iter().flat_map(|delivery| &delivery.commands).cloned().collect()
}

pub(super) fn products_of(deliveries: &[Delivery]) -> BTreeSet<ProductId> {
    deliveries.iter().flat_map(|delivery| &delivery.commands).flat_map(Command::products).collect()
}

/// One reply for each API, whatever the number of its deliveries.
pub(super) fn replies_of(deliveries: &[Delivery], verdicts: &[Verdict]) -> Vec<Reply> {
    let mut replies: Vec<Reply> = Vec::new();
    let mut rest = verdicts.iter().cloned();
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
