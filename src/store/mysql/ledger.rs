//! The seller's ledger on MySQL.

use async_trait::async_trait;

use super::{MySqlStore, batch::MySqlTransaction};
use crate::{
    domain::{
        ids::{IdempotencyKey, ProductId},
        inventory::Stock,
        movement::{Adjustment, LedgerEntry, Movement, MovementReason, MovementSeq},
    },
    store::{
        error::StoreError,
        ledger::{
            self, LedgerRow, LedgerTransaction, ledger_columns, ledger_entry, page_of_movements, seq,
            seq_column,
        },
        page::Page,
        ports::{Adjusted, Ledger, Recount},
        rows::id_column,
        transaction::CommitError,
    },
};

const MOVEMENTS: &str = concat!(
    "SELECT ",
    ledger_columns!(),
    " FROM movements FORCE INDEX (movements_of_product)
     WHERE product_id = ? AND seq < ? ORDER BY seq DESC LIMIT ?"
);

const OF_KEY: &str = concat!(
    "SELECT ",
    ledger_columns!(),
    " FROM adjustment_keys STRAIGHT_JOIN movements USING (seq) WHERE idempotency_key = ?"
);

const INSERT_ADJUSTMENT: &str =
    "INSERT INTO movements (product_id, moved_at, kind, stock_change, order_count, stored_stock, reason)
     VALUES (?, ?, ?, ?, ?, ?, ?)";

const INSERT_KEY: &str = "INSERT INTO adjustment_keys (idempotency_key, seq) VALUES (?, ?)";

#[async_trait]
impl Ledger for MySqlStore {
    async fn recount_if(
        &self,
        id: ProductId,
        stock: Stock,
        expected: Option<Stock>,
    ) -> Result<Recount, StoreError> {
        ledger::recount(self, id, stock, expected).await
    }

    async fn adjust(&self, id: ProductId, adjustment: &Adjustment) -> Result<Adjusted, StoreError> {
        ledger::adjust(self, id, adjustment).await
    }

    async fn movements(
        &self,
        id: ProductId,
        after: Option<MovementSeq>,
        limit: u32,
    ) -> Result<Page<LedgerEntry, MovementSeq>, StoreError> {
        let _permit = self.list_permits.take().await?;
        let query = sqlx::query_as(MOVEMENTS)
            .bind(id_column(id))
            .bind(after.map_or(i64::MAX, seq_column))
            .bind(i64::from(limit) + 1);
        Ok(page_of_movements(self.lists.fetch_all(query).await?, limit))
    }
}

impl LedgerTransaction for MySqlTransaction {
    async fn adjustment_of_key(&mut self, key: &IdempotencyKey) -> Result<Option<LedgerEntry>, StoreError> {
        let rows: Vec<LedgerRow> = self.0.fetch_all(sqlx::query_as(OF_KEY).bind(key.as_str())).await?;
        rows.into_iter().next().map(ledger_entry).transpose()
    }

    async fn insert_adjustment(
        &mut self,
        movement: &Movement,
        key: Option<&IdempotencyKey>,
    ) -> Result<MovementSeq, CommitError> {
        let insert = sqlx::query(INSERT_ADJUSTMENT)
            .bind(id_column(movement.product_id))
            .bind(movement.at.as_millisecond())
            .bind(movement.kind.as_str())
            .bind(movement.change)
            .bind(movement.orders)
            .bind(movement.stored_stock)
            .bind(movement.reason.as_ref().map(MovementReason::as_str));
        let number = self.0.execute(insert).await?.last_insert_id();
        if let Some(key) = key {
            self.0.execute(sqlx::query(INSERT_KEY).bind(key.as_str()).bind(number)).await?;
        }
        Ok(seq(number.cast_signed())?)
    }
}
