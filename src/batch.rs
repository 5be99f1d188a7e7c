//! Decides a batch: orders in the order of their arrival meet the inventories of their products.
//!
//! Pure: what the store does around it is to lock the inventories before and to write the result after.

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::{
    inventory::{InsufficientStock, Inventory},
    order::{NewOrder, Rejection, Verdict},
    product::ProductId,
};

/// The inventories of a batch, by product.
pub type Inventories = BTreeMap<ProductId, Inventory>;

/// What became of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Decision {
    /// One for each order, at the same index.
    pub verdicts: Vec<Verdict>,
    /// The inventories afterwards.
    pub inventories: Inventories,
}

/// First come, first served: each order gets all its pieces if as many are available when its turn comes, and
/// none otherwise. Orders of different products never touch each other. A product without an inventory does not
/// exist.
pub fn decide(mut inventories: Inventories, orders: &[NewOrder], expires_at: Timestamp) -> Decision {
    let verdicts = orders
        .iter()
        .map(|order| {
            let Some(inventory) = inventories.get_mut(&order.product_id) else {
                return Verdict::Rejected(Rejection::ProductNotFound);
            };
            match inventory.reserve(order.total) {
                Ok(()) => Verdict::Reserved { expires_at },
                Err(InsufficientStock { available }) => {
                    Verdict::Rejected(Rejection::InsufficientStock { available })
                }
            }
        })
        .collect();
    Decision { verdicts, inventories }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::{
        inventory::Stock,
        order::{OrderId, Quantity, now},
    };

    fn product(number: u64) -> ProductId {
        ProductId::new(number).unwrap()
    }

    fn inventory(stock: u32) -> Inventory {
        let mut inventory = Inventory::EMPTY;
        inventory.recount(Stock::new(stock).unwrap()).unwrap();
        inventory
    }

    fn order(number: u64, total: u32) -> NewOrder {
        NewOrder {
            id: OrderId::mint(),
            product_id: product(number),
            total: Quantity::new(total).unwrap(),
            answer_by: now(),
        }
    }

    /// Products 1 to 4 exist, 5 does not.
    fn batches() -> impl Strategy<Value = (Inventories, Vec<NewOrder>)> {
        let stock = prop_oneof![4 => 0_u32..40, 1 => 0..=Stock::MAX];
        let total = prop_oneof![4 => 1_u32..12, 1 => 1..=Quantity::MAX];
        let inventories = vec(stock, 4).prop_map(|stocks| {
            (1..).map(product).zip(stocks.into_iter().map(inventory)).collect::<Inventories>()
        });
        let orders = vec((1_u64..=5, total).prop_map(|(number, total)| order(number, total)), 0..80);
        (inventories, orders)
    }

    proptest! {
        /// The whole rule, replayed order by order on plain signed numbers: an order is refused exactly when
        /// fewer pieces are left than it asks for, never filled in part, and nothing turns negative.
        #[test]
        fn first_come_first_served_all_or_nothing((inventories, orders) in batches()) {
            let expires_at = now();
            let decision = decide(inventories.clone(), &orders, expires_at);
            prop_assert_eq!(decision.verdicts.len(), orders.len());
            let mut left: BTreeMap<_, _> =
                inventories.iter().map(|(id, inventory)| (*id, i64::from(inventory.available()))).collect();
            for (order, verdict) in orders.iter().zip(&decision.verdicts) {
                let wanted = i64::from(order.total.get());
                match (left.get_mut(&order.product_id), verdict) {
                    (None, verdict) => prop_assert_eq!(*verdict, Verdict::Rejected(Rejection::ProductNotFound)),
                    (Some(left), Verdict::Reserved { expires_at: until }) => {
                        *left -= wanted;
                        prop_assert!(*left >= 0);
                        prop_assert_eq!(*until, expires_at);
                    }
                    (Some(left), Verdict::Rejected(Rejection::InsufficientStock { available })) => {
                        prop_assert!(*left < wanted);
                        prop_assert_eq!(i64::from(*available), *left);
                    }
                    (Some(_), other) => prop_assert!(false, "{:?}", other),
                }
            }
            prop_assert!(decision.inventories.keys().eq(inventories.keys()));
            for (id, after) in &decision.inventories {
                prop_assert_eq!(i64::from(after.available()), left[id]);
                prop_assert_eq!(after.stored(), inventories[id].stored());
            }
        }

        /// Lanes share a transaction but never a verdict: a product's verdicts do not depend on its company.
        #[test]
        fn lanes_do_not_touch_each_other((inventories, orders) in batches()) {
            let expires_at = now();
            let together = decide(inventories.clone(), &orders, expires_at).verdicts;
            for id in (1..=5).map(product) {
                let of_lane = |order: &NewOrder| order.product_id == id;
                let alone: Vec<_> = orders.iter().copied().filter(of_lane).collect();
                let expected = decide(inventories.clone(), &alone, expires_at).verdicts;
                let found: Vec<_> =
                    orders.iter().zip(&together).filter(|(order, _)| of_lane(order)).map(|(_, verdict)| *verdict).collect();
                prop_assert_eq!(found, expected);
            }
        }

        /// How arrivals are cut into batches changes no verdict.
        #[test]
        fn where_a_batch_ends_does_not_matter((inventories, orders) in batches(), cut in 0.0..1.0_f64) {
            let expires_at = now();
            let whole = decide(inventories.clone(), &orders, expires_at);
            let (first, second) = orders.split_at((orders.len() as f64 * cut) as usize);
            let first = decide(inventories, first, expires_at);
            let second = decide(first.inventories, second, expires_at);
            prop_assert_eq!([first.verdicts, second.verdicts].concat(), whole.verdicts);
            prop_assert_eq!(second.inventories, whole.inventories);
        }
    }
}
