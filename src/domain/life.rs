//! An order's life: [`Order::change`] is the one place that knows the arrows from status to status, and what each does to the
//! pieces of the order.

use std::time::Duration;

use jiff::Timestamp;

use crate::domain::{
    ids::ProductId,
    inventory::{BooksDoNotBalance, Inventories, Inventory},
    order::{Change, Order, OrderState, OrderStatus, Payment, Quantity},
    rules::LatePayment,
};

/// What a change depends on besides the order and its pieces.
#[derive(Clone, Copy, Debug)]
pub struct Circumstances {
    /// When it is decided.
    pub at: Timestamp,
    /// When a reservation of the order ends that begins now.
    pub hold_ends_at: Timestamp,
    /// How long after its creation the order may be reserved.
    pub max_hold: Duration,
    pub late_payment: LatePayment,
}

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Changed {
    /// The order is another one now.
    Done,
    /// Nothing changed: the order has a status that the change does not touch, an expiry came before its time, or the pieces of
    /// a returned order do not fit into the stock.
    Nothing,
    /// A payment came too late, and gets no pieces, now or later. `is_first`: no other payment of the order did before.
    TooLate { is_first: bool },
}

/// Why an order cannot be changed: somebody changed the database by hand, or it is a bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotChange {
    #[error(transparent)]
    Books(#[from] BooksDoNotBalance),
    #[error("product {0} has no inventory, though it has orders")]
    NoInventory(ProductId),
    #[error("it is {}, but has no lines", .0.as_str())]
    LinesNotKnown(OrderStatus),
}

impl Order {
    /// Changes the order and moves the pieces of all its lines, or nothing.
    pub fn change(
        &mut self,
        change: &Change,
        inventories: &mut Inventories,
        circumstances: &Circumstances,
    ) -> Result<Changed, CannotChange> {
        let OrderState::Accepted { status, expires_at } = self.state else { return Ok(Changed::Nothing) };
        let Circumstances { at, late_payment, .. } = *circumstances;
        match (change, status) {
            (Change::Pay { reference }, OrderStatus::Reserved) => {
                self.move_pieces(inventories, Inventory::pay)??;
                self.payment = Some(Payment { reference: reference.clone(), paid_at: Some(at) });
            }
            (Change::Pay { reference }, OrderStatus::Expired) => {
                // Once refused, always refused: its client may have the answer, and the shop may have paid the money back.
                let is_first = self.payment.is_none();
                let gets_pieces = is_first
                    && late_payment == LatePayment::Accept
                    && self.move_pieces(inventories, Inventory::sell)?.is_ok();
                if is_first {
                    self.payment = Some(Payment { reference: reference.clone(), paid_at: Some(at) });
                }
                if !gets_pieces {
                    return Ok(Changed::TooLate { is_first });
                }
            }
            (Change::Cancel, OrderStatus::Reserved) => {
                self.move_pieces(inventories, Inventory::release)??
            }
            (Change::Expire, OrderStatus::Reserved) if expires_at <= at => {
                self.move_pieces(inventories, Inventory::release)??;
            }
            (Change::Extend, OrderStatus::Reserved) => {
                let extended = self.extended(expires_at, circumstances);
                self.state = OrderState::Accepted { status, expires_at: extended };
                return Ok(if extended > expires_at { Changed::Done } else { Changed::Nothing });
            }
            (Change::Return { restock }, OrderStatus::Paid) => {
                if *restock && self.move_pieces(inventories, Inventory::put_back)?.is_err() {
                    return Ok(Changed::Nothing);
                }
            }
            _ => return Ok(Changed::Nothing),
        }
        self.state = OrderState::Accepted { status: change.kind().leads_to(), expires_at };
        Ok(Changed::Done)
    }

    /// When the reservation ends once it is extended: not before it would have, nor longer after the creation than is allowed.
    fn extended(&self, expires_at: Timestamp, circumstances: &Circumstances) -> Timestamp {
        let longest = self.id.created_at().saturating_add(circumstances.max_hold).unwrap_or(Timestamp::MAX);
        circumstances.hold_ends_at.min(longest).max(expires_at)
    }

    /// Moves the pieces of all lines, or of none.
    fn move_pieces<E>(
        &self,
        inventories: &mut Inventories,
        one: impl Fn(&mut Inventory, Quantity) -> Result<(), E>,
    ) -> Result<Result<(), E>, CannotChange> {
        let lines = self.lines.as_ref().ok_or(CannotChange::LinesNotKnown(self.status()))?;
        // First all lines are tried: a line that cannot be moved must not leave the order moved in part.
        let mut moved = Vec::with_capacity(lines.as_slice().len());
        for line in lines.as_slice() {
            let inventory = inventories.get(&line.product_id);
            let mut inventory = *inventory.ok_or(CannotChange::NoInventory(line.product_id))?;
            if let Err(error) = one(&mut inventory, line.total) {
                return Ok(Err(error));
            }
            moved.push((line.product_id, inventory));
        }
        inventories.extend(moved);
        Ok(Ok(()))
    }
}
