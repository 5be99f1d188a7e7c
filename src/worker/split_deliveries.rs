//! Deliveries whose commands are decided in several batches, because only some of their products can be decided now. A
//! delivery is acknowledged once all of its commands are decided; their verdicts do not wait for each other.

use std::collections::{BTreeSet, HashMap};

use super::batch::products_of;
use crate::{domain::ids::ProductId, queue::Delivery};

/// The split deliveries, by tag.
#[derive(Default)]
pub(super) struct SplitDeliveries(HashMap<u64, SplitDelivery>);

struct SplitDelivery {
    whole: Delivery,
    /// How many of its commands are not decided yet.
    undecided: usize,
}

impl SplitDeliveries {
    /// Splits deliveries into the commands of these products, each product's in separate deliveries, and the others.
    pub(super) fn split(
        &mut self,
        deliveries: Vec<Delivery>,
        products: &BTreeSet<ProductId>,
    ) -> (Vec<Delivery>, Vec<Delivery>) {
        let (mut of_these, mut of_others) = (Vec::new(), Vec::new());
        for delivery in deliveries {
            let contained = products_of(std::slice::from_ref(&delivery));
            if contained.is_disjoint(products) {
                of_others.push(delivery);
                continue;
            }
            if contained.len() == 1 {
                of_these.push(delivery);
                continue;
            }
            let undecided = delivery.commands.len();
            let whole = || SplitDelivery { whole: delivery.clone(), undecided };
            self.0.entry(delivery.tag).or_insert_with(whole);
            let part = |commands| Delivery { commands, ..delivery.clone() };
            let mut others = Vec::new();
            let mut each: Vec<(ProductId, Vec<_>)> = Vec::new();
            for command in delivery.commands.iter().cloned() {
                // One product of the command is enough: an order of several products is decided as a whole.
                let Some(product_id) = command.products().find(|id| products.contains(id)) else {
                    others.push(command);
                    continue;
                };
                if let Some((_, commands)) = each.iter_mut().find(|(id, _)| *id == product_id) {
                    commands.push(command);
                } else {
                    each.push((product_id, vec![command]));
                }
            }
            of_these.extend(each.into_iter().map(|(_, commands)| part(commands)));
            if !others.is_empty() {
                of_others.push(part(others));
            }
        }
        (of_these, of_others)
    }

    /// These are decided: returns the deliveries that are decided entirely with that.
    pub(super) fn finish(&mut self, decided: Vec<Delivery>) -> Vec<Delivery> {
        if self.0.is_empty() {
            return decided;
        }
        let mut finished = Vec::with_capacity(decided.len());
        for delivery in decided {
            let Some(split) = self.0.get_mut(&delivery.tag) else {
                finished.push(delivery);
                continue;
            };
            split.undecided = split.undecided.saturating_sub(delivery.commands.len());
            if split.undecided == 0 {
                finished.extend(self.0.remove(&delivery.tag).map(|split| split.whole));
            }
        }
        finished
    }

    /// The whole deliveries of these, to be delivered again. What is decided of one already gets the stored verdicts then.
    pub(super) fn rejoin(&mut self, parts: Vec<Delivery>) -> Vec<Delivery> {
        let mut deliveries: Vec<Delivery> = Vec::with_capacity(parts.len());
        for part in parts {
            if deliveries.last().is_some_and(|last| last.tag == part.tag) {
                continue;
            }
            deliveries.push(self.0.remove(&part.tag).map_or(part, |split| split.whole));
        }
        deliveries
    }
}
