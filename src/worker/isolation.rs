//! Finds out which products of a batch cannot be decided, so that they are [`stalled`](super::stalled) and the others go on.

use std::collections::{BTreeSet, VecDeque};

use super::{
    batch::{BatchDecider, products_of},
    stalled::Stalled,
};
use crate::{
    domain::{decide::BatchResult, ids::ProductId},
    queue::Delivery,
    store::StoreError,
};

/// How many products are tried separately, and cannot be decided, before all others of their batch are stalled as well: each
/// may cost a second.
const MAX_SEPARATE_FAILURES: usize = 3;

/// The isolation of one batch that fails.
pub(super) struct Isolation {
    decider: BatchDecider,
    /// The batch without what is decided or stalled.
    rest: Vec<Delivery>,
    /// Products to decide separately.
    untried: VecDeque<ProductId>,
    failures: usize,
}

impl Isolation {
    /// Stalls products whose inventory rows are locked. If there are none, each product is to be decided separately.
    pub(super) async fn begin(
        decider: BatchDecider,
        stalled: &mut Stalled,
        batch: Vec<Delivery>,
        error: &StoreError,
    ) -> Self {
        let products = products_of(&batch);
        let listed: Vec<_> = products.iter().copied().collect();
        let (rest, untried) = match decider.decider.unlocked(&listed).await {
            Err(_) => (batch, VecDeque::new()), // the database is away, not a product
            Ok(unlocked) => {
                let unlocked: BTreeSet<_> = unlocked.into_iter().collect();
                let locked: BTreeSet<_> = products.difference(&unlocked).copied().collect();
                // Not the inventories: some other row of a product.
                if locked.is_empty() {
                    (batch, products.into_iter().collect())
                } else {
                    (stalled.stall(batch, &locked, error), VecDeque::new())
                }
            }
        };
        Self { decider, rest, untried, failures: 0 }
    }

    /// Decides products separately: the deliveries and result of the next one that can be. Stalls the others.
    pub(super) async fn decide_next(
        &mut self,
        stalled: &mut Stalled,
        error: &StoreError,
    ) -> Option<(Vec<Delivery>, BatchResult)> {
        while let Some(product_id) = self.untried.pop_front() {
            let only = BTreeSet::from([product_id]);
            let rest = std::mem::take(&mut self.rest);
            if self.failures >= MAX_SEPARATE_FAILURES {
                self.rest = stalled.stall(rest, &only, error);
                continue;
            }
            let (separate, rest) = stalled.split(rest, &only);
            self.rest = rest;
            match self.decider.decide(&separate).await {
                Ok(result) => return Some((separate, result)),
                Err(error) => {
                    self.failures += 1;
                    self.rest.extend(stalled.stall(separate, &only, &error));
                }
            }
        }
        None
    }

    /// What is still to be decided, in one batch.
    pub(super) fn into_rest(self) -> Vec<Delivery> {
        self.rest
    }
}
