//! The seller's ledger in memory.

use async_trait::async_trait;

use super::{Data, MemoryStore, one_more_than};
use crate::{
    domain::{
        ids::{IdempotencyKey, ProductId},
        inventory::Stock,
        movement::{Adjustment, LedgerEntry, Movement, MovementSeq},
    },
    store::{
        error::StoreError,
        page::Page,
        ports::{Adjusted, Ledger, Recount},
    },
};

impl Data {
    /// Adds a movement behind all others.
    pub(super) fn record(&mut self, movement: Movement) -> Result<LedgerEntry, StoreError> {
        let seq = MovementSeq::new(self.movements.len() as u64 + 1);
        let seq = seq.ok_or_else(|| StoreError::Refused("there is no seq left for a movement".to_owned()))?;
        let entry = LedgerEntry { seq, movement };
        self.movements.push(entry.clone());
        Ok(entry)
    }

    fn adjustment_of_key(&self, key: Option<&IdempotencyKey>) -> Option<&LedgerEntry> {
        let seq = self.adjustment_keys.get(key?)?;
        self.movements.iter().find(|entry| entry.seq == *seq)
    }
}

#[async_trait]
impl Ledger for MemoryStore {
    async fn recount_if(
        &self,
        id: ProductId,
        stock: Stock,
        expected: Option<Stock>,
    ) -> Result<Recount, StoreError> {
        let (now, mut data) = (self.now(), self.data()?);
        let Some((product, inventory)) = data.products.get_mut(&id) else {
            return Ok(Recount::NoSuchProduct);
        };
        if product.archived_at.is_some() {
            return Ok(Recount::Archived);
        }
        let before = *inventory;
        let stored = before.stored();
        if expected.is_some_and(|expected| expected.get() != stored) {
            return Ok(Recount::StockChanged { stored });
        }
        if let Err(below) = inventory.recount(stock) {
            return Ok(Recount::BelowReserved(below));
        }
        let (product, after) = (product.clone(), *inventory);
        if let Some(movement) = Movement::recount(id, now, before, after) {
            data.record(movement)?;
        }
        Ok(Recount::Done(product, after))
    }

    async fn adjust(&self, id: ProductId, adjustment: &Adjustment) -> Result<Adjusted, StoreError> {
        let (now, mut data) = (self.now(), self.data()?);
        let Some((product, before)) = data.products.get(&id) else { return Ok(Adjusted::NoSuchProduct) };
        let mut after = *before;
        if let Some(known) = data.adjustment_of_key(adjustment.key.as_ref()) {
            let is_same = known.movement.is_of(id, adjustment);
            return Ok(if is_same { Adjusted::Before(known.clone()) } else { Adjusted::KeyReused });
        }
        if product.archived_at.is_some() {
            return Ok(Adjusted::Archived);
        }
        if let Err(invalid) = after.adjust(adjustment.change) {
            return Ok(Adjusted::Invalid(invalid));
        }
        let entry = data.record(Movement::adjustment(id, now, adjustment, after))?;
        data.products.entry(id).and_modify(|(_, inventory)| *inventory = after);
        data.adjustment_keys.extend(adjustment.key.clone().map(|key| (key, entry.seq)));
        Ok(Adjusted::Done(entry, after))
    }

    async fn movements(
        &self,
        id: ProductId,
        after: Option<MovementSeq>,
        limit: u32,
    ) -> Result<Page<LedgerEntry, MovementSeq>, StoreError> {
        let data = self.data()?;
        let rows = data.movements.iter().rev().filter(|entry| entry.movement.product_id == id);
        let rows = rows.filter(|entry| after.is_none_or(|after| entry.seq < after));
        let rows = rows.take(one_more_than(limit)).cloned().collect();
        Ok(Page::cut(rows, limit, None, |entry| entry.seq))
    }
}
