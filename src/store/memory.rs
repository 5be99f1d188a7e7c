//! The ports in memory: no file, no server, and a clock that is handed in. Plain enough to be right at a glance, so that it can
//! be the model of a simulation; and it makes unit tests fast.
//!
//! One lock covers everything, and no method waits while it holds it: each call is a transaction.

mod catalog;
mod ledger;

use std::{
    collections::{BTreeMap, HashMap, HashSet},
    ops::Bound::{Excluded, Unbounded},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use async_trait::async_trait;
use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use super::{
    error::StoreError,
    page::{Direction, Due, OrderPage, Page},
    ports::{Decider, Deleted, GivenUp, Health, Installation, Orders, Retention, Store},
};
use crate::clock::Clock;
use crate::domain::{
    command::Command,
    decide::{
        self, ArchivedProducts, BatchResult, Decision, Snapshot, SpecialTerms, StoredOrders, Times, Writes,
    },
    holdings::{self, Holdings},
    ids::{IdempotencyKey, OrderId, ProductId},
    inventory::{Inventories, Inventory},
    lane_set::LaneSet,
    movement::{LedgerEntry, MovementSeq},
    order::{Order, OrderStatus},
    product::Product,
    rules::Rules,
    sku::Sku,
    time::from_millis,
};

/// The store in memory.
pub struct MemoryStore {
    data: Arc<Mutex<Data>>,
    clock: Arc<dyn Clock>,
    is_closed: AtomicBool,
}

/// What the tables of the other adapters have.
#[derive(Default)]
struct Data {
    installation_id: Uuid,
    products: BTreeMap<ProductId, (Product, Inventory)>,
    terms: SpecialTerms,
    holdings: Holdings,
    orders: BTreeMap<OrderId, Order>,
    keys: HashMap<IdempotencyKey, OrderId>,
    /// Other ids of stored orders.
    aliases: HashMap<OrderId, OrderId>,
    /// In the order of their seq.
    movements: Vec<LedgerEntry>,
    adjustment_keys: HashMap<IdempotencyKey, MovementSeq>,
    /// When each was used last.
    lane_sets: HashMap<LaneSet, Timestamp>,
}

impl MemoryStore {
    /// An empty database. All times that it decides by come from `clock`.
    pub fn new(installation_id: Uuid, clock: Arc<dyn Clock>) -> Self {
        let data = Data { installation_id, ..Data::default() };
        Self { data: Arc::new(Mutex::new(data)), clock, is_closed: AtomicBool::new(false) }
    }

    /// The same database, as another process opens it: also after this one has closed it.
    pub fn open_again(&self) -> Self {
        let (data, clock) = (self.data.clone(), self.clock.clone());
        Self { data, clock, is_closed: AtomicBool::new(false) }
    }

    fn data(&self) -> Result<MutexGuard<'_, Data>, StoreError> {
        if self.is_closed.load(Ordering::Acquire) {
            return Err(StoreError::Unavailable("the store is closed".to_owned()));
        }
        Ok(self.data.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn now(&self) -> Timestamp {
        self.clock.now()
    }
}

#[async_trait]
impl Orders for MemoryStore {
    async fn orders_by_id(&self, ids: &[OrderId]) -> Result<HashMap<OrderId, Order>, StoreError> {
        let data = self.data()?;
        let find = |id: &OrderId| data.orders.get(data.aliases.get(id).unwrap_or(id)).cloned();
        Ok(ids.iter().filter_map(|id| Some((*id, find(id)?))).collect())
    }

    async fn orders_by_key(
        &self,
        keys: &[IdempotencyKey],
    ) -> Result<HashMap<IdempotencyKey, Order>, StoreError> {
        let data = self.data()?;
        let find = |key: &IdempotencyKey| data.orders.get(data.keys.get(key)?).cloned();
        Ok(keys.iter().filter_map(|key| Some((key.clone(), find(key)?))).collect())
    }

    /// Examines all orders: memory is quick.
    async fn orders(&self, page: OrderPage) -> Result<Page<Order, OrderId>, StoreError> {
        let data = self.data()?;
        let matching = data.orders.values().filter(|order| page.has(order)).cloned();
        let (count, mut rows) = (one_more_than(page.limit), Vec::new());
        match page.direction {
            Direction::OldestFirst => rows.extend(matching.take(count)),
            Direction::NewestFirst => rows.extend(matching.rev().take(count)),
        }
        Ok(Page::cut(rows, page.limit, None, |order| order.id))
    }

    async fn give_up(&self, id: OrderId) -> Result<GivenUp, StoreError> {
        let mut data = self.data()?;
        let stored = data.aliases.get(&id).unwrap_or(&id);
        if let Some(order) = data.orders.get(stored) {
            return Ok(GivenUp::Stored(order.clone()));
        }
        data.orders.insert(id, Order::given_up(id));
        Ok(GivenUp::Done(Order::given_up(id)))
    }

    async fn due(&self, after: Option<Due>, limit: u32) -> Result<Page<Order, Due>, StoreError> {
        let (now, data) = (self.now(), self.data()?);
        let due = |order: &Order| {
            let expires_at = order.expires_at().filter(|at| *at <= now)?.as_millisecond();
            (order.status() == OrderStatus::Reserved).then_some(Due { expires_at, id: order.id })
        };
        let mut places: Vec<_> = data.orders.values().filter_map(due).collect();
        places.retain(|place| after.is_none_or(|after| *place > after));
        places.sort_unstable();
        places.truncate(one_more_than(limit));
        let Page { rows, next } = Page::cut(places, limit, None, |place| *place);
        Ok(Page { rows: rows.iter().map(|place| data.orders[&place.id].clone()).collect(), next })
    }
}

/// How many rows say whether a page is the last one.
fn one_more_than(limit: u32) -> usize {
    (limit as usize).saturating_add(1)
}

#[async_trait]
impl Decider for MemoryStore {
    async fn decide(&self, commands: &[Command], rules: Rules) -> Result<BatchResult, StoreError> {
        let mut data = self.data()?;
        let now = self.now().as_millisecond();
        let ttl_ms = i64::try_from(rules.reservation_ttl.as_millis()).unwrap_or(i64::MAX);
        let expires_at = from_millis(now.saturating_add(ttl_ms));
        let times = Times { decided_at: from_millis(now), expires_at };
        let ((inventories, archived), stored) = (data.inventories_of(commands), data.stored(commands));
        let terms = data.terms.clone();
        let holders = holdings::holders(&terms, commands).into_iter();
        let holdings =
            holders.filter_map(|holder| Some((holder.clone(), *data.holdings.get(&holder)?))).collect();
        let Decision { result, inventories, writes, .. } = decide::decide(
            Snapshot { inventories, archived, terms, holdings, stored: Some(stored), times, rules },
            commands,
        );
        data.write(inventories, writes)?;
        Ok(result)
    }

    /// All of them: no lock is held between calls.
    async fn unlocked(&self, ids: &[ProductId]) -> Result<Vec<ProductId>, StoreError> {
        Ok(ids.to_vec())
    }
}

impl Data {
    fn product_of_sku(&self, sku: Option<&Sku>) -> Option<&Product> {
        let mut products = self.products.values().map(|(product, _)| product);
        products.find(|product| sku.is_some() && product.sku.as_ref() == sku)
    }

    fn inventories_of(&self, commands: &[Command]) -> (Inventories, ArchivedProducts) {
        let (mut inventories, mut archived) = (Inventories::new(), ArchivedProducts::new());
        for (product, inventory) in
            commands.iter().flat_map(Command::products).filter_map(|id| self.products.get(&id))
        {
            inventories.insert(product.id, *inventory);
            archived.extend(product.archived_at.map(|at| (product.id, at)));
        }
        (inventories, archived)
    }

    /// The stored orders that these commands are about, by id and by key. An order is deleted with its keys, so that no key is
    /// left of one.
    fn stored(&self, commands: &[Command]) -> StoredOrders {
        let mut stored = StoredOrders::default();
        for command in commands {
            let (id, key) = match command {
                Command::Place(order) => (order.id, order.key.as_ref()),
                Command::Change(change) => (change.order_id, None),
            };
            stored.orders.extend(self.orders.get(&id).map(|order| (id, order.clone())));
            if let Some((key, id)) = key.and_then(|key| self.keys.get_key_value(key)) {
                stored.keys.insert(key.clone(), *id);
                stored.orders.insert(*id, self.orders[id].clone());
            }
        }
        stored
    }

    fn write(&mut self, inventories: Inventories, writes: Writes) -> Result<(), StoreError> {
        let Writes { orders, changed, completed, aliases, holdings, movements, .. } = writes;
        holdings::apply(&mut self.holdings, holdings);
        for (id, after) in inventories {
            if let Some((_, inventory)) = self.products.get_mut(&id) {
                *inventory = after;
            }
        }
        for (order, key) in orders.into_iter().chain(completed) {
            self.keys.extend(key.map(|key| (key, order.id)));
            self.orders.insert(order.id, order);
        }
        self.orders.extend(changed);
        for (id, order_id) in aliases {
            self.aliases.entry(id).or_insert(order_id);
        }
        movements.into_iter().try_for_each(|movement| self.record(movement).map(drop))
    }
}

#[async_trait]
impl Retention for MemoryStore {
    async fn now(&self) -> Result<Timestamp, StoreError> {
        Ok(self.clock.now())
    }

    async fn final_orders(
        &self,
        after: Option<OrderId>,
        end: OrderId,
        limit: u32,
    ) -> Result<Page<OrderId, OrderId>, StoreError> {
        let data = self.data()?;
        let behind = data.orders.range((after.map_or(Unbounded, Excluded), Unbounded));
        let examined: Vec<_> =
            behind.map(|(_, order)| order).take_while(|order| order.id < end).take(limit as usize).collect();
        let next = examined.last().map(|order| order.id).filter(|_| examined.len() == limit as usize);
        let rows = examined.iter().filter(|order| order.status().is_final()).map(|order| order.id).collect();
        Ok(Page { rows, next })
    }

    async fn delete_orders(&self, ids: &[OrderId]) -> Result<Deleted, StoreError> {
        let mut data = self.data()?;
        let mut gone = HashSet::new();
        let mut orders = Vec::new();
        for id in ids {
            if data.orders.get(id).is_some_and(|order| order.status().is_final()) {
                orders.extend(data.orders.remove(id));
                gone.insert(*id);
            }
        }
        let limited = |id| data.terms.get(&id).is_some_and(|terms| terms.max_per_buyer.is_some());
        let less = holdings::taken_away(holdings::held_by(&orders, limited));
        holdings::apply(&mut data.holdings, less);
        let links = (data.keys.len(), data.aliases.len());
        data.keys.retain(|_, order| !gone.contains(order));
        data.aliases.retain(|_, order| !gone.contains(order));
        Ok(Deleted {
            orders: gone.len() as u64,
            idempotency_keys: (links.0 - data.keys.len()) as u64,
            aliases: (links.1 - data.aliases.len()) as u64,
        })
    }
}

/// How long a lane set counts as used.
const IN_USE: SignedDuration = SignedDuration::from_hours(2);

#[async_trait]
impl Installation for MemoryStore {
    async fn installation_id(&self) -> Result<Uuid, StoreError> {
        Ok(self.data()?.installation_id)
    }

    async fn use_lanes(&self, lanes: &LaneSet) -> Result<(), StoreError> {
        self.data()?.lane_sets.insert(lanes.clone(), self.now());
        Ok(())
    }

    async fn lanes_in_use(&self) -> Result<Vec<LaneSet>, StoreError> {
        let (now, data) = (self.now(), self.data()?);
        let used = data.lane_sets.iter().filter(|(_, at)| now.duration_since(**at) < IN_USE);
        let mut used: Vec<_> = used.map(|(lanes, _)| lanes.clone()).collect();
        used.sort_by_key(|lanes| (lanes.prefix.clone(), lanes.mode.to_string()));
        Ok(used)
    }
}

#[async_trait]
impl Health for MemoryStore {
    async fn ping(&self) -> Result<(), StoreError> {
        self.data().map(drop)
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn close(&self) {
        self.is_closed.store(true, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::atomic::AtomicI64, time::Duration};

    use super::*;
    use crate::clock::SystemClock;
    use crate::domain::inventory::Stock;
    use crate::domain::{
        command::{NewOrder, ReplyMode},
        ids::CommandId,
        lane_set::LaneMode,
        lines::Lines,
        order::Quantity,
        origin::Origin,
        product::ProductName,
        terms::{SalePeriod, Terms},
    };
    use crate::store::{Catalog, Ledger};

    /// A clock that the test sets.
    struct TestClock(AtomicI64);

    impl Clock for TestClock {
        fn now(&self) -> Timestamp {
            from_millis(self.0.load(Ordering::Relaxed))
        }

        fn order_id(&self) -> OrderId {
            SystemClock.order_id()
        }

        fn command_id(&self) -> CommandId {
            SystemClock.command_id()
        }
    }

    fn store() -> (MemoryStore, Arc<TestClock>) {
        let clock = Arc::new(TestClock(AtomicI64::new(1_734_000_000_000)));
        (MemoryStore::new(Uuid::nil(), clock.clone()), clock)
    }

    #[tokio::test]
    async fn reservations_are_due_by_the_clock_that_was_handed_in_the_longest_overdue_first() {
        let (store, clock) = store();
        let name = ProductName::stored("Kaos Polos".to_owned()).unwrap();
        let product_id = store.create_product(name).await.unwrap().id;
        store.recount(product_id, Stock::new(10).unwrap()).await.unwrap().done().unwrap();
        let mut ids = Vec::new();
        for (number, seconds) in [(1_u128, 30), (2, 10), (3, 20), (4, 10), (5, 40)] {
            let id = Uuid::from_u128(number).into();
            let (total, reply) = (Quantity::new(1).unwrap(), ReplyMode::Detached);
            let lines = Lines::one(product_id, total);
            let order = NewOrder { id, lines, buyer: None, reply, key: None, origin: Origin::default() };
            store.decide(&[order.into()], Rules::of_ttl(Duration::from_secs(seconds))).await.unwrap();
            ids.push(id);
        }
        assert_eq!(store.due(None, 10).await.unwrap(), Page::empty());
        clock.0.fetch_add(30_000, Ordering::Relaxed);
        let (mut found, mut place) = (Vec::new(), None);
        loop {
            let page = store.due(place, 1).await.unwrap();
            found.extend(page.rows.iter().map(|order| order.id));
            place = page.next;
            if place.is_none() {
                break;
            }
        }
        assert_eq!(found, [ids[1], ids[3], ids[2], ids[0]], "two of the same time are on two pages");
    }

    /// The clock of the process, two years later, takes no part.
    #[tokio::test]
    async fn a_sale_opens_by_the_clock_that_was_handed_in() {
        let (store, clock) = store();
        let name = ProductName::stored("Kaos Polos".to_owned()).unwrap();
        let id = store.create_product(name).await.unwrap().id;
        store.recount(id, Stock::new(10).unwrap()).await.unwrap().done().unwrap();
        let opens_at = store.now() + SignedDuration::from_secs(5);
        let period = SalePeriod::new(Some(opens_at), Some(opens_at + SignedDuration::from_secs(5))).unwrap();
        assert!(store.set_terms(id, Terms { period, ..Terms::default() }).await.unwrap());
        let mut verdicts = Vec::new();
        for number in 0..4_u128 {
            let order = NewOrder {
                id: Uuid::from_u128(number).into(),
                lines: Lines::one(id, Quantity::new(1).unwrap()),
                buyer: None,
                reply: ReplyMode::Detached,
                key: None,
                origin: Origin::default(),
            };
            let result = store.decide(&[order.into()], Rules::of_ttl(Duration::from_secs(60))).await.unwrap();
            verdicts.push(result.verdicts[0].as_str());
            clock.0.fetch_add(4_000, Ordering::Relaxed);
        }
        assert_eq!(verdicts, ["sale_not_open", "sale_not_open", "reserved", "sale_closed"]);
    }

    #[tokio::test]
    async fn lanes_are_in_use_for_two_hours() {
        let (store, clock) = store();
        let lanes = |prefix: &str| LaneSet { prefix: prefix.to_owned(), mode: LaneMode::Product };
        store.use_lanes(&lanes("b.")).await.unwrap();
        clock.0.fetch_add(3_600_000, Ordering::Relaxed);
        store.use_lanes(&lanes("a.")).await.unwrap();
        assert_eq!(store.lanes_in_use().await.unwrap(), [lanes("a."), lanes("b.")]);
        clock.0.fetch_add(3_600_000, Ordering::Relaxed);
        assert_eq!(store.lanes_in_use().await.unwrap(), [lanes("a.")]);
    }

    #[tokio::test]
    async fn a_closed_store_answers_no_more_and_its_data_is_still_there() {
        let (store, _) = store();
        let name = ProductName::stored("Kaos Polos".to_owned()).unwrap();
        let product = store.create_product(name).await.unwrap();
        store.close().await;
        assert!(store.ping().await.unwrap_err().is_transient());
        assert!(store.product(product.id).await.unwrap_err().is_transient());
        assert_eq!(store.open_again().product(product.id).await.unwrap(), Some(product));
    }
}
