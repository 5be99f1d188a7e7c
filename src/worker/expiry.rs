//! Lets reservations expire. Every worker looks for those that are due, and queues their expiry: the lane decides, so that an
//! expiry and a payment that meet end in exactly one of the two. No leader and no lock: what two workers find is decided
//! once, and the second expiry finds the order expired.
//!
//! For a reservation that cannot expire, and a lane that does not answer, expiries are submitted again with growing delays. The
//! sweep goes on behind them: however many there are, all others expire.

use std::{sync::Arc, time::Duration};

use tokio::time::sleep;

use crate::{
    clock::Clock,
    domain::order::Order,
    monitor::metrics::ExpiryMetrics,
    queue::{NothingArchived, Queue, Submitter},
    store::{Due, Store, StoreError},
    telemetry::{LogLimiter, is_first_report},
    worker::expiry::requests::ExpiryRequests,
};

mod requests;

/// How often it looks for due reservations.
const SWEEP: Duration = Duration::from_millis(500);

/// How many reservations one statement reads.
const PAGE: u32 = 1_000;

/// How many pages one sweep reads at most.
const MAX_PAGES: usize = 10;

/// How many expiries one sweep submits at most.
const MAX_SWEEP: usize = 1_000;

/// How long it waits after a failure of the store or the queue before it looks again.
const FAILURE_DELAY: Duration = Duration::from_secs(2);

/// Looks for reservations that are due.
pub struct Expiry {
    pub queue: Arc<dyn Queue>,
    pub store: Arc<dyn Store>,
    pub clock: Arc<dyn Clock>,
    pub metrics: Arc<ExpiryMetrics>,
}

impl Expiry {
    /// Runs for ever. It may be aborted at any time: the expiries that it queued are decided all the same.
    pub async fn run(&self) {
        let failures = LogLimiter::default();
        loop {
            let requests = Arc::new(ExpiryRequests::default());
            match self.queue.submitter(requests.clone(), Arc::new(NothingArchived)).await {
                Ok(submitter) => self.sweep_for_ever(&*submitter, &requests).await,
                Err(error) => {
                    if let Some(suppressed) = failures.due() {
                        tracing::warn!(%error, suppressed, "reservations cannot expire yet");
                    }
                }
            }
            sleep(FAILURE_DELAY).await;
        }
    }

    async fn sweep_for_ever(&self, submitter: &dyn Submitter, requests: &ExpiryRequests) {
        let failures = LogLimiter::default();
        let mut place = None;
        loop {
            match self.sweep(submitter, requests, &mut place).await {
                Ok(Found::More) => {}
                Ok(Found::All) => sleep(SWEEP).await,
                Err(error) => {
                    if let Some(suppressed) = failures.due() {
                        tracing::warn!(%error, suppressed, "could not look for reservations that are due");
                    }
                    sleep(FAILURE_DELAY).await;
                }
            }
        }
    }

    /// Submits the expiries that are due and not queued yet, beginning behind `place`, or with the longest overdue when that is
    /// `None`. Waits for no verdict: a lane that is slow or refuses holds up no other lane's expiries.
    async fn sweep(
        &self,
        submitter: &dyn Submitter,
        requests: &ExpiryRequests,
        place: &mut Option<Due>,
    ) -> Result<Found, StoreError> {
        let silent = requests.time_out();
        if !silent.is_empty() {
            let existing = self.store.states(&silent).await?;
            for product_id in silent.into_iter().filter(|id| !existing.contains_key(id)) {
                requests.suspend(product_id);
                if is_first_report(&format!("reservations of product {product_id}, which does not exist")) {
                    tracing::error!(
                        product_id = product_id.get(),
                        "reservations of a product that does not exist cannot expire: put the product and its inventory back, or delete its orders"
                    );
                }
            }
        }
        let mut count = 0;
        for _ in 0..MAX_PAGES {
            // Before the read, which may still find reservations whose expiry is decided in between.
            let queued = requests.queued_orders();
            let page = self.store.due(*place, PAGE).await?;
            if place.is_none() {
                self.metrics.sweep_begins(page.rows.first().and_then(Order::expires_at));
            }
            let due = page.rows.iter().filter(|order| !queued.contains(&order.id));
            let submitted = requests.submit(submitter, &*self.clock, due, MAX_SWEEP - count);
            self.metrics.found(page.rows.len(), submitted);
            count += submitted;
            *place = page.next;
            if place.is_none() {
                self.metrics.sweep_ends(self.clock.now());
            }
            if place.is_none() || count == MAX_SWEEP {
                break;
            }
        }
        Ok(if place.is_some() && count > 0 { Found::More } else { Found::All })
    }
}

/// What a sweep found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// There is more behind `place`: go on at once.
    More,
    /// All that is due, or all that can be submitted now.
    All,
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use async_trait::async_trait;
    use jiff::Timestamp;
    use tokio::time;

    use super::{
        requests::{MAX_DELAY, MAX_OF_PRODUCT, MAX_QUEUED, MIN_DELAY, PROBE_SIZE, VERDICT_TIMEOUT},
        *,
    };
    use crate::{
        clock::{Clock, SystemClock},
        domain::{
            command::{ChangeOrder, Command, NewOrder, ReplyMode},
            ids::{OrderId, ProductId},
            inventory::Stock,
            lines::Lines,
            order::{Change, Quantity},
            origin::Origin,
            rules::Rules,
            verdict::Verdict,
        },
        monitor::metrics::Metrics,
        queue::{Outcome, Ping, QueueError, Refusal, ReplySink, memory::MemoryQueue},
        store::{Catalog, Ledger, memory::MemoryStore},
    };

    /// Lanes without a worker, and one that refuses.
    #[derive(Default)]
    struct Lanes {
        submitted: Mutex<Vec<ChangeOrder>>,
        requests: Arc<ExpiryRequests>,
        refuses: Option<ProductId>,
    }

    #[async_trait]
    impl Submitter for Lanes {
        fn submit(&self, command: Command) {
            let Command::Change(change) = command else { panic!("{command:?}") };
            self.submitted.lock().unwrap().push(change.clone());
            if self.refuses == Some(change.product_id) {
                self.requests.deliver(vec![(change.id, Outcome::Refused(Refusal::LaneFull))]);
            }
        }

        fn submit_or_park(&self, command: Command) {
            self.submit(command);
        }

        fn parked(&self) -> usize {
            0
        }

        async fn drain(&self) {}

        async fn open_lane(&self, _: ProductId) -> Result<(), QueueError> {
            Ok(())
        }

        fn may_be_pending(&self, _: OrderId, _: Timestamp) -> bool {
            false
        }
    }

    #[async_trait]
    impl Ping for Lanes {
        async fn ping(&self) -> Result<(), QueueError> {
            Ok(())
        }
    }

    struct World {
        expiry: Expiry,
        lanes: Lanes,
        products: [ProductId; 2],
        place: Option<Due>,
    }

    impl World {
        async fn new() -> Self {
            let store = Arc::new(MemoryStore::new(uuid::Uuid::nil(), Arc::new(SystemClock)));
            let mut products = Vec::new();
            for _ in 0..2 {
                let product =
                    store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
                store.recount(product.id, Stock::new(100_000).unwrap()).await.unwrap().done().unwrap();
                products.push(product.id);
            }
            let expiry = Expiry {
                queue: Arc::new(MemoryQueue::new(1, SystemClock.now())),
                store,
                clock: Arc::new(SystemClock),
                metrics: Metrics::unwatched().worker.expiry.clone(),
            };
            Self { expiry, lanes: Lanes::default(), products: products.try_into().unwrap(), place: None }
        }

        /// Reservations that are overdue at once.
        async fn reserve(&self, product_id: ProductId, count: usize) {
            let order = || {
                let (id, total) = (SystemClock.order_id(), Quantity::new(1).unwrap());
                Command::from(NewOrder {
                    id,
                    lines: Lines::one(product_id, total),
                    buyer: None,
                    reply: ReplyMode::Until(SystemClock.now()),
                    key: None,
                    origin: Origin::default(),
                })
            };
            let orders: Vec<_> = (0..count).map(|_| order()).collect();
            self.expiry.store.decide(&orders, Rules::of_ttl(Duration::ZERO)).await.unwrap();
        }

        /// The products of the expiries that a sweep submitted.
        async fn sweep(&mut self) -> Vec<ProductId> {
            self.sweep_and_see().await.1
        }

        async fn sweep_and_see(&mut self) -> (Found, Vec<ProductId>) {
            let found = self.expiry.sweep(&self.lanes, &self.lanes.requests, &mut self.place).await.unwrap();
            let submitted = self.lanes.submitted.lock().unwrap().split_off(0);
            (found, submitted.into_iter().map(|change| change.product_id).collect())
        }

        /// The lane of this product decides its queued expiries.
        async fn serve(&self, product_id: ProductId) {
            let due = self.expiry.store.due(None, 100_000).await.unwrap().rows;
            let expired = due.iter().filter(|order| order.lane() == Some(product_id));
            let commands: Vec<_> = self
                .lanes
                .requests
                .queued()
                .into_iter()
                .filter_map(|(id, order_id)| {
                    let order = expired.clone().find(|order| order.id == order_id)?;
                    let (change, reply) = (Change::Expire, ReplyMode::Until(SystemClock.now()));
                    Some(ChangeOrder {
                        id,
                        order_id: order.id,
                        product_id,
                        other_products: [].into(),
                        change,
                        reply,
                        origin: Origin::default(),
                    })
                })
                .map(Command::from)
                .collect();
            let result = self.expiry.store.decide(&commands, Rules::of_ttl(Duration::ZERO)).await.unwrap();
            let outcomes = result.verdicts.into_iter().map(Outcome::Decided);
            self.lanes.requests.deliver(commands.iter().map(Command::id).zip(outcomes).collect());
        }

        /// No queued expiry can be decided.
        fn give_no_verdict(&self) {
            let queued = self.lanes.requests.queued();
            let outcome = Outcome::Decided(Verdict::Undecidable);
            self.lanes.requests.deliver(queued.into_iter().map(|(id, _)| (id, outcome.clone())).collect());
        }
    }

    /// Lets time pass. The clock is not paused in between, because the store's threads need it.
    async fn pass(duration: Duration) {
        time::pause();
        time::advance(duration).await;
        time::resume();
    }

    #[tokio::test]
    async fn a_slow_lane_does_not_hold_up_the_others() {
        let mut world = World::new().await;
        let [slow, fast] = world.products;
        world.reserve(slow, 2 * PROBE_SIZE).await;
        world.reserve(fast, 1).await;
        assert_eq!(world.sweep().await.len(), 2 * PROBE_SIZE + 1);
        assert_eq!(world.sweep().await, [], "they are queued");
        for _ in 0..3 {
            world.serve(fast).await;
            world.reserve(fast, 1).await;
            assert_eq!(world.sweep().await, [fast]);
        }
        world.serve(fast).await;
        pass(VERDICT_TIMEOUT).await;
        assert_eq!(world.sweep().await, [], "they may be lost, and so may what follows at once");
        pass(MIN_DELAY).await;
        assert_eq!(world.sweep().await, [slow; PROBE_SIZE], "some of them");
        world.serve(slow).await;
        assert_eq!(world.sweep().await, [slow; PROBE_SIZE], "it answers");
        world.serve(slow).await;
        assert_eq!(world.sweep().await, []);
    }

    #[tokio::test]
    async fn a_lane_that_refuses_does_not_hold_up_the_others() {
        let mut world = World::new().await;
        let [full, other] = world.products;
        world.lanes.refuses = Some(full);
        world.reserve(full, 2).await;
        assert_eq!(world.sweep().await, [full, full]);
        world.reserve(other, 1).await;
        assert_eq!(world.sweep().await, [other]);
        pass(MIN_DELAY).await;
        world.lanes.refuses = None;
        assert_eq!(world.sweep().await, [full, full]);
        assert_eq!(world.sweep().await, [], "they are queued now");
    }

    /// However many reservations of one product cannot expire, those of others do.
    #[tokio::test]
    async fn the_sweep_goes_on_behind_reservations_that_cannot_expire() {
        let mut world = World::new().await;
        let [broken, other] = world.products;
        for _ in 0..6 {
            world.reserve(broken, 1_000).await;
        }
        world.reserve(other, 3).await;
        assert_eq!(world.sweep().await, vec![broken; MAX_OF_PRODUCT], "as many as one sweep takes");
        assert_eq!(world.sweep().await, [other; 3], "the lane of the other one has no more");
        world.serve(other).await;
        // None of them can be decided: each is submitted again after a growing delay.
        for _ in 0..6 {
            world.give_no_verdict();
            while world.sweep_and_see().await.0 == Found::More {}
        }
        world.give_no_verdict();
        world.reserve(other, 2).await;
        assert_eq!(world.sweep().await, [other; 2]);
        pass(MAX_DELAY).await;
        assert!(world.sweep().await.contains(&broken), "they are not forgotten");
    }

    #[tokio::test]
    async fn the_delays_of_a_reservation_that_cannot_expire_grow() {
        let mut world = World::new().await;
        let [product, _] = world.products;
        world.reserve(product, 1).await;
        for delay in [2, 4, 8, 16, 32] {
            assert_eq!(world.sweep().await, [product]);
            world.give_no_verdict();
            pass(Duration::from_secs(delay) - Duration::from_millis(500)).await;
            assert_eq!(world.sweep().await, [], "{delay}");
            pass(Duration::from_millis(500)).await;
        }
        assert_eq!(world.sweep().await, [product]);
        world.serve(product).await;
        world.reserve(product, 1).await;
        assert_eq!(world.sweep().await, [product], "the next one has no delay");
    }

    #[tokio::test]
    async fn one_product_leaves_room_for_others() {
        let mut world = World::new().await;
        let [many, few] = world.products;
        for _ in 0..2 * MAX_OF_PRODUCT / 1_000 {
            world.reserve(many, 1_000).await;
        }
        world.reserve(few, 1).await;
        let mut submitted = Vec::new();
        for _ in 0..4 {
            submitted.extend(world.sweep().await);
        }
        assert_eq!(submitted.iter().filter(|id| **id == many).count(), MAX_OF_PRODUCT);
        assert!(submitted.contains(&few));
        assert!(submitted.len() < MAX_QUEUED);
    }
}
