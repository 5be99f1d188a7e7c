//! Deletes old orders by itself, where `RETENTION` says so: every worker, an hour after its last pass. Two that meet delete each
//! order once, and one that finds rows locked leaves the rest to the other.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::store::{
    Deleted, Store, StoreError,
    retention::{Mode, Pass},
};

/// How long it rests between two passes.
const BETWEEN_PASSES: Duration = Duration::from_secs(3600);
/// How long it lets the rest of the process start first.
const FIRST_DELAY: Duration = Duration::from_secs(5);

/// Deletes final orders that are older than `retention`.
pub struct Pruning {
    pub store: Arc<dyn Store>,
    pub retention: Duration,
}

impl Pruning {
    /// Runs for ever. It may be aborted at any time.
    pub async fn run(&self) {
        sleep(FIRST_DELAY).await;
        loop {
            match self.pass().await {
                Ok(Deleted { orders: 0, .. }) => {}
                Ok(Deleted { orders, idempotency_keys, aliases }) => {
                    tracing::info!(orders, idempotency_keys, aliases, "deleted orders older than RETENTION");
                }
                Err(StoreError::Locked(error) | StoreError::Contended(error)) => {
                    tracing::debug!(%error, "another process deletes old orders, or holds them");
                }
                Err(error) => tracing::warn!(%error, "could not delete orders older than RETENTION"),
            }
            sleep(BETWEEN_PASSES).await;
        }
    }

    async fn pass(&self) -> Result<Deleted, StoreError> {
        let mut pass = Pass::begin(&*self.store, self.retention, Mode::Delete).await?;
        while let Some(rest) = pass.step().await? {
            sleep(rest).await;
        }
        Ok(pass.deleted())
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::{
        clock::{Clock, SystemClock},
        domain::{
            command::{NewOrder, ReplyMode},
            ids::OrderId,
            lines::Lines,
            order::Quantity,
            origin::Origin,
            rules::Rules,
        },
        store::{Catalog, Decider, Orders, memory::MemoryStore},
    };

    #[tokio::test(start_paused = true)]
    async fn it_prunes_soon_after_its_start_and_then_every_hour() {
        let store = Arc::new(MemoryStore::new(Uuid::nil(), Arc::new(SystemClock)));
        let product = store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
        // Rejected, as there are no pieces, and stored, as nobody waits.
        let reject = async |id: OrderId| {
            let (total, reply) = (Quantity::new(1).unwrap(), ReplyMode::Detached);
            let order = NewOrder {
                id,
                lines: Lines::one(product.id, total),
                buyer: None,
                reply,
                key: None,
                origin: Origin::default(),
            };
            store.decide(&[order.into()], Rules::of_ttl(Duration::ZERO)).await.unwrap();
            assert!(store.order(id).await.unwrap().is_some());
            id
        };
        let old = |number: u128| OrderId::from(Uuid::from_u128((1_600_000_000_000 << 80) + number));
        let (first, recent) = (reject(old(1)).await, reject(SystemClock.order_id()).await);
        let pruning = Pruning { store: store.clone(), retention: Duration::from_secs(90 * 24 * 3600) };
        let watch = async {
            sleep(FIRST_DELAY + Duration::from_secs(1)).await;
            assert_eq!(store.order(first).await.unwrap(), None);
            let second = reject(old(2)).await;
            sleep(BETWEEN_PASSES).await;
            assert_eq!(store.order(second).await.unwrap(), None);
            assert!(store.order(recent).await.unwrap().is_some());
        };
        tokio::select! {
            () = pruning.run() => panic!("it runs for ever"),
            () = watch => {}
        }
    }
}
