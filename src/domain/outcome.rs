//! What a batch did, product by product: what operators see of it.

use std::collections::BTreeMap;

use crate::domain::{
    ids::ProductId,
    inventory::Inventory,
    order::ChangeKind,
    rejection::{Rejection, RejectionReason},
};

/// The outcomes of a batch: one for each product that a command of it names.
pub type ProductOutcomes = BTreeMap<ProductId, ProductOutcome>;

/// What a batch did to one product. Counts are numbers of commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProductOutcome {
    /// After the batch. `None`: the product does not exist, or its row is invalid.
    pub inventory: Option<Inventory>,
    /// New reservations.
    pub reserved: u32,
    /// By reason, in the order of [`RejectionReason::ALL`].
    rejected: [u32; RejectionReason::ALL.len()],
    pub paid: u32,
    pub cancelled: u32,
    pub expired: u32,
    pub extended: u32,
    pub returned: u32,
    /// Payments that came too late, and get no pieces.
    pub too_late: u32,
    /// Commands that changed nothing: what they ask for was decided before, or is about an order that is not stored.
    pub repeated: u32,
    /// Commands that invalid data in the database keeps from being decided.
    pub undecidable: u32,
}

/// What one command did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    Reserved,
    Rejected(Rejection),
    Changed(ChangeKind),
    PaymentTooLate,
    Repeated,
    Undecidable,
}

impl ProductOutcome {
    pub fn count(&mut self, effect: Effect) {
        let counter = match effect {
            Effect::Reserved => &mut self.reserved,
            Effect::Rejected(rejection) => &mut self.rejected[index(rejection.reason())],
            Effect::Changed(ChangeKind::Pay) => &mut self.paid,
            Effect::Changed(ChangeKind::Cancel) => &mut self.cancelled,
            Effect::Changed(ChangeKind::Expire) => &mut self.expired,
            Effect::Changed(ChangeKind::Extend) => &mut self.extended,
            Effect::Changed(ChangeKind::Return) => &mut self.returned,
            Effect::PaymentTooLate => &mut self.too_late,
            Effect::Repeated => &mut self.repeated,
            Effect::Undecidable => &mut self.undecidable,
        };
        *counter += 1;
    }

    /// New orders that were rejected for this reason.
    pub fn rejected(&self, reason: RejectionReason) -> u32 {
        self.rejected[index(reason)]
    }

    /// New orders that were rejected, whatever the reason.
    pub fn all_rejected(&self) -> u32 {
        self.rejected.iter().sum()
    }

    /// All commands of the product.
    pub fn commands(&self) -> u32 {
        let Self { reserved, paid, cancelled, expired, extended, returned, .. } = *self;
        let changed = paid + cancelled + expired + extended + returned;
        reserved + self.all_rejected() + changed + self.too_late + self.repeated + self.undecidable
    }

    /// The outcome of this batch and of the one behind it, as if they were one.
    pub fn followed_by(self, next: Self) -> Self {
        let mut rejected = self.rejected;
        rejected.iter_mut().zip(next.rejected).for_each(|(count, more)| *count += more);
        Self {
            inventory: next.inventory,
            reserved: self.reserved + next.reserved,
            rejected,
            paid: self.paid + next.paid,
            cancelled: self.cancelled + next.cancelled,
            expired: self.expired + next.expired,
            extended: self.extended + next.extended,
            returned: self.returned + next.returned,
            too_late: self.too_late + next.too_late,
            repeated: self.repeated + next.repeated,
            undecidable: self.undecidable + next.undecidable,
        }
    }
}

fn index(reason: RejectionReason) -> usize {
    RejectionReason::ALL.iter().position(|one| *one == reason).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_effect_has_one_counter() {
        let effects = [
            Effect::Reserved,
            Effect::Rejected(Rejection::InsufficientStock {
                product_id: ProductId::new(1).unwrap(),
                available: 3,
            }),
            Effect::Rejected(Rejection::KeyReused),
            Effect::Rejected(Rejection::KeyReused),
            Effect::Changed(ChangeKind::Pay),
            Effect::Changed(ChangeKind::Cancel),
            Effect::Changed(ChangeKind::Expire),
            Effect::Changed(ChangeKind::Extend),
            Effect::Changed(ChangeKind::Return),
            Effect::PaymentTooLate,
            Effect::Repeated,
            Effect::Undecidable,
        ];
        let mut outcome = ProductOutcome::default();
        effects.into_iter().for_each(|effect| outcome.count(effect));
        for reason in RejectionReason::ALL {
            let count = match reason {
                RejectionReason::InsufficientStock => 1,
                RejectionReason::KeyReused => 2,
                _ => 0,
            };
            assert_eq!(outcome.rejected(reason), count, "{reason:?}");
        }
        assert_eq!(outcome.commands(), 12);
        assert_eq!((outcome.paid, outcome.cancelled, outcome.expired), (1, 1, 1));
        assert_eq!((outcome.extended, outcome.returned, outcome.too_late), (1, 1, 1));
        assert_eq!(outcome.followed_by(outcome).commands(), 24);
    }
}
