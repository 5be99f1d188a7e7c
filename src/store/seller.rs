//! What the seller changes of a product besides its stock, the same in every database: under the lock of its inventory.

use super::{
    error::StoreError,
    json::json,
    ports::{Archival, Catalog},
    terms,
    transaction::{Begin, Changes, CommitError, Transaction, list},
};
use crate::domain::{ids::ProductId, product::Product, terms::Terms, time::from_millis};

/// How often a change that meets a locked row, or a key that is just being stored, is tried before the seller gets the error.
const RUNS: u32 = 3;

/// Runs it again when another transaction was in its way. Of these errors, none leaves open whether it is committed.
pub(super) async fn again_if_locked<T, F>(run_once: impl Fn() -> F) -> Result<T, StoreError>
where
    F: Future<Output = Result<T, CommitError>>,
{
    use StoreError::{Contended, Locked};
    let mut run = 1;
    loop {
        match run_once().await {
            Err(CommitError::Duplicate | CommitError::Store(Locked(_) | Contended(_))) if run < RUNS => {
                run += 1
            }
            result => return Ok(result?),
        }
    }
}

/// Sets a product's terms of sale: see [`Catalog::set_terms`].
pub(super) async fn set_terms<B: Begin>(store: &B, id: ProductId, terms: Terms) -> Result<bool, StoreError> {
    again_if_locked(|| set_terms_once(store, id, terms)).await
}

/// Archives a product: see [`Catalog::archive`].
pub(super) async fn archive<S: Catalog + Begin>(store: &S, id: ProductId) -> Result<Archival, StoreError> {
    let Some(product) = store.product(id).await? else { return Ok(Archival::NoSuchProduct) };
    again_if_locked(|| archive_once(store, product.clone())).await
}

async fn archive_once<B: Begin>(store: &B, product: Product) -> Result<Archival, CommitError> {
    let mut transaction = store.begin().await?;
    let locked = transaction.lock_inventories(json(&[product.id])).await?;
    if let Some(cause) = locked.unreadable.into_values().next() {
        return Err(StoreError::Corrupt(cause).into());
    }
    let Some(inventory) = locked.inventories.get(&product.id) else { return Ok(Archival::NoSuchProduct) };
    if let Some(at) = locked.archived.get(&product.id) {
        return Ok(Archival::Done(Product { archived_at: Some(*at), ..product }));
    }
    if inventory.reserved() > 0 {
        return Ok(Archival::HasReservations(inventory.reserved()));
    }
    let archived = list(&[(product.id, locked.now)]);
    transaction.commit(Changes { archived, ..Changes::default() }).await?;
    Ok(Archival::Done(Product { archived_at: Some(from_millis(locked.now)), ..product }))
}

async fn set_terms_once<B: Begin>(store: &B, id: ProductId, terms: Terms) -> Result<bool, CommitError> {
    let mut transaction = store.begin().await?;
    let locked = transaction.lock_inventories(json(&[id])).await?;
    // Invalid terms are replaced as well.
    if !locked.inventories.contains_key(&id) && !locked.unreadable.contains_key(&id) {
        return Ok(false);
    }
    let (selling, opens_at, closes_at, max_per_order, max_per_buyer, hold_seconds) = terms::columns(&terms);
    let selling = u8::from(selling);
    let row = (id, selling, opens_at, closes_at, max_per_order, max_per_buyer, hold_seconds);
    let limit_before = locked.terms.get(&id).and_then(|terms| terms.max_per_buyer);
    let is_limited = terms.max_per_buyer.is_some();
    // A limit that was there before was followed by the holdings from then on; one that was invalid most likely not.
    let is_followed = limit_before.is_some() == is_limited && locked.unreadable.is_empty();
    let (forgotten, counted) = (!is_followed, !is_followed && is_limited);
    let changes = Changes {
        terms: list(&[row]),
        holdings_forgotten: forgotten.then(|| json(&[id])),
        holdings_counted: counted.then(|| json(&[id])),
        ..Changes::default()
    };
    transaction.commit(changes).await?;
    Ok(true)
}
