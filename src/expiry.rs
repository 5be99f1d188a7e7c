//! Lets reservations expire. Every worker looks for those whose time is over, and puts their expiry in line: the lane
//! decides, so that an expiry and a payment that meet end in exactly one of the two. No leader and no lock: what two
//! workers find is decided once, and the second one finds it done.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::{Instant, sleep};

use crate::{
    command::{Change, ChangeOrder, CommandId, ReplyMode},
    order::{Order, OrderId, from_millis, now},
    queue::{Inbox, Outcome, Queue, Refusal, Submitter},
    store::{Store, StoreError, in_time},
};

/// How often it looks.
const SWEEP: Duration = Duration::from_millis(500);
/// How many reservations one sweep puts in line at most.
const MAX_SWEEP: usize = 1_000;
/// How many of its expiries are undecided at most: half of what a lane takes, so that buyers still get in line.
const MAX_UNANSWERED: usize = 5_000;
/// How long it waits for the verdict on an expiry before it asks again.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long it waits after a failure: of the store before it looks again, of an expiry before it asks for that again.
const PAUSE: Duration = Duration::from_secs(2);

/// Looks for reservations whose time is over.
pub struct Expiry {
    /// Where commands stand in line.
    pub queue: Arc<dyn Queue>,
    /// Where reservations are on record.
    pub store: Arc<dyn Store>,
}

impl Expiry {
    /// Runs for ever. It may be aborted at any time: what it put in line is decided all the same.
    pub async fn run(self) {
        loop {
            let unanswered = Arc::new(Unanswered::default());
            match self.queue.submitter(unanswered.clone()).await {
                Ok(submitter) => self.sweep_for_ever(&*submitter, &unanswered).await,
                Err(error) => tracing::warn!(%error, "reservations cannot expire yet"),
            }
            sleep(PAUSE).await;
        }
    }

    async fn sweep_for_ever(&self, submitter: &dyn Submitter, unanswered: &Unanswered) {
        loop {
            match self.sweep(submitter, unanswered).await {
                Ok(Found::More) => {}
                Ok(Found::All) => sleep(SWEEP).await,
                Err(error) => {
                    tracing::warn!(%error, "could not look for reservations whose time is over");
                    sleep(PAUSE).await;
                }
            }
        }
    }

    /// Puts in line what is due and not in line yet. Waits for no verdict: a lane that is slow, or that takes nothing, holds
    /// up nobody else's expiry.
    async fn sweep(&self, submitter: &dyn Submitter, unanswered: &Unanswered) -> Result<Found, StoreError> {
        // Before the store is asked, which may still find what is decided meanwhile.
        let asked = unanswered.orders();
        let limit = MAX_SWEEP + asked.len();
        let due = in_time(self.store.due(now(), u32::try_from(limit).unwrap_or(u32::MAX))).await?;
        let is_full = due.len() == limit;
        let room = MAX_UNANSWERED.saturating_sub(asked.len()).min(MAX_SWEEP);
        let new: Vec<_> = due.into_iter().filter(|order| !asked.contains(&order.id)).take(room).collect();
        unanswered.ask(submitter, &new);
        Ok(if is_full && !new.is_empty() { Found::More } else { Found::All })
    }
}

/// What a sweep found.
#[derive(Debug, PartialEq, Eq)]
enum Found {
    /// As much as it may take, and some of it was put in line: there is probably more.
    More,
    /// All that is due, or all that can be done about it now.
    All,
}

/// The expiries that have no verdict yet. The store finds their reservations again and again, and they are not to be put
/// in line each time.
#[derive(Default)]
struct Unanswered(Mutex<HashMap<CommandId, Asked>>);

struct Asked {
    order_id: OrderId,
    /// When it is taken for lost.
    again_at: Instant,
    refusal: Option<Refusal>,
}

impl Unanswered {
    /// The orders whose expiry is not to be asked for now.
    fn orders(&self) -> HashSet<OrderId> {
        let now = Instant::now();
        let mut commands = self.commands();
        let lost: Vec<_> = commands.extract_if(|_, asked| asked.again_at <= now).collect();
        if !lost.is_empty() {
            let refusal = lost.iter().find_map(|(_, asked)| asked.refusal);
            tracing::warn!(reservations = lost.len(), ?refusal, "no verdict on expiries, asking again");
        }
        commands.values().map(|asked| asked.order_id).collect()
    }

    fn ask(&self, submitter: &dyn Submitter, due: &[Order]) {
        let reply = ReplyMode::Until(from_millis(now().as_millisecond() + PATIENCE.as_millis() as i64));
        let expiries: Vec<_> = due
            .iter()
            .map(|order| ChangeOrder {
                id: CommandId::mint(),
                order_id: order.id,
                product_id: order.product_id,
                change: Change::Expire,
                reply,
            })
            .collect();
        let again_at = Instant::now() + PATIENCE;
        let asked = |expiry: &ChangeOrder| Asked { order_id: expiry.order_id, again_at, refusal: None };
        // Before they are submitted: the answer may be there at once.
        self.commands().extend(expiries.iter().map(|expiry| (expiry.id, asked(expiry))));
        expiries.into_iter().for_each(|expiry| submitter.submit(expiry.into()));
    }

    fn commands(&self) -> MutexGuard<'_, HashMap<CommandId, Asked>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inbox for Unanswered {
    fn deliver(&self, outcomes: Vec<(CommandId, Outcome)>) {
        let mut commands = self.commands();
        for (id, outcome) in outcomes {
            match outcome {
                Outcome::Decided(_) => {
                    commands.remove(&id);
                }
                Outcome::Refused(refusal) => {
                    if let Some(asked) = commands.get_mut(&id) {
                        (asked.again_at, asked.refusal) = (Instant::now() + PAUSE, Some(refusal));
                    }
                }
                Outcome::InLine => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use tokio::time;

    use super::*;
    use crate::{
        command::Command,
        inventory::Stock,
        order::{NewOrder, OrderStatus, Quantity, Verdict},
        product::ProductId,
        queue::{Ping, QueueError, in_process::InProcessQueue},
        store::sqlite::SqliteStore,
    };

    /// Lanes from which nobody takes, and one that takes nothing.
    #[derive(Default)]
    struct Lanes {
        submitted: Mutex<Vec<ChangeOrder>>,
        unanswered: Arc<Unanswered>,
        refuses: Option<ProductId>,
    }

    #[async_trait]
    impl Submitter for Lanes {
        fn submit(&self, command: Command) {
            let Command::Change(change) = command else { panic!("{command:?}") };
            self.submitted.lock().unwrap().push(change);
            if self.refuses == Some(change.product_id) {
                self.unanswered.deliver(vec![(change.id, Outcome::Refused(Refusal::LaneFull))]);
            }
        }

        fn submit_surely(&self, command: Command) {
            self.submit(command);
        }

        async fn flush(&self) {}

        async fn open_lane(&self, _: ProductId) -> Result<(), QueueError> {
            Ok(())
        }

        fn may_hold(&self, _: OrderId) -> bool {
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
        _directory: tempfile::TempDir,
        expiry: Expiry,
        lanes: Lanes,
        products: [ProductId; 2],
    }

    impl World {
        async fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let url = format!("sqlite://{}", directory.path().join("antre.db").display());
            let store = Arc::new(SqliteStore::open(&url).await.unwrap());
            let mut products = Vec::new();
            for _ in 0..2 {
                let product =
                    store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
                store.recount(product.id, Stock::new(100_000).unwrap()).await.unwrap().unwrap().unwrap();
                products.push(product.id);
            }
            let expiry = Expiry { queue: Arc::new(InProcessQueue::new(1)), store };
            Self {
                _directory: directory,
                expiry,
                lanes: Lanes::default(),
                products: products.try_into().unwrap(),
            }
        }

        /// Reservations that are overdue at once.
        async fn reserve(&self, product_id: ProductId, count: usize) {
            let order = || {
                let (id, total) = (OrderId::mint(), Quantity::new(1).unwrap());
                Command::from(NewOrder { id, product_id, total, reply: ReplyMode::Until(now()), key: None })
            };
            let orders: Vec<_> = (0..count).map(|_| order()).collect();
            self.expiry.store.decide(&orders, Duration::ZERO).await.unwrap();
        }

        /// What a sweep found, and the products of the expiries that it put in line.
        async fn sweep(&self) -> (Found, Vec<ProductId>) {
            let found = self.expiry.sweep(&self.lanes, &self.lanes.unanswered).await.unwrap();
            let submitted = self.lanes.submitted.lock().unwrap().split_off(0);
            (found, submitted.into_iter().map(|change| change.product_id).collect())
        }

        /// The lane of this product decides what is in line for it.
        async fn serve(&self, product_id: ProductId) {
            let due = self.expiry.store.due(now(), 100_000).await.unwrap();
            let expired = due.iter().filter(|order| order.product_id == product_id);
            let commands: Vec<_> = self
                .lanes
                .unanswered
                .commands()
                .iter()
                .filter_map(|(id, asked)| {
                    let order = expired.clone().find(|order| order.id == asked.order_id)?;
                    let change = Change::Expire;
                    Some(ChangeOrder {
                        id: *id,
                        order_id: order.id,
                        product_id,
                        change,
                        reply: ReplyMode::Until(now()),
                    })
                })
                .map(Command::from)
                .collect();
            self.expiry.store.decide(&commands, Duration::ZERO).await.unwrap();
            let verdict = Outcome::Decided(Verdict::Status(OrderStatus::Expired));
            self.lanes.unanswered.deliver(commands.iter().map(|command| (command.id(), verdict)).collect());
        }
    }

    /// Lets time pass; only so, because the store's threads do not know of a clock that stands still.
    async fn pass(duration: Duration) {
        time::pause();
        time::advance(duration).await;
        time::resume();
    }

    #[tokio::test]
    async fn a_slow_lane_does_not_hold_up_the_others() {
        let world = World::new().await;
        let [slow, fast] = world.products;
        world.reserve(slow, 2).await;
        world.reserve(fast, 1).await;
        assert_eq!(world.sweep().await, (Found::All, vec![slow, slow, fast]));
        assert_eq!(world.sweep().await, (Found::All, vec![]), "they are in line");
        for _ in 0..3 {
            world.serve(fast).await;
            world.reserve(fast, 1).await;
            assert_eq!(world.sweep().await, (Found::All, vec![fast]));
        }
        pass(PATIENCE).await;
        assert_eq!(world.sweep().await, (Found::All, vec![slow, slow, fast]), "they may be lost");
        world.serve(slow).await;
        world.serve(fast).await;
        pass(PATIENCE).await;
        assert_eq!(world.sweep().await, (Found::All, vec![]));
    }

    #[tokio::test]
    async fn a_lane_that_refuses_does_not_hold_up_the_others() {
        let mut world = World::new().await;
        let [full, other] = world.products;
        world.lanes.refuses = Some(full);
        world.reserve(full, 2).await;
        assert_eq!(world.sweep().await, (Found::All, vec![full, full]));
        world.reserve(other, 1).await;
        assert_eq!(world.sweep().await, (Found::All, vec![other]));
        pass(PAUSE).await;
        world.lanes.refuses = None;
        assert_eq!(world.sweep().await, (Found::All, vec![full, full]));
        pass(PAUSE).await;
        assert_eq!(world.sweep().await, (Found::All, vec![]), "they are in line now");
    }

    #[tokio::test]
    async fn it_goes_on_at_once_while_there_is_more_but_not_without_end() {
        let world = World::new().await;
        let [slow, other] = world.products;
        for _ in 0..=MAX_UNANSWERED / MAX_SWEEP {
            world.reserve(slow, MAX_SWEEP).await;
        }
        for _ in 0..MAX_UNANSWERED / MAX_SWEEP {
            let (found, submitted) = world.sweep().await;
            assert_eq!((found, submitted.len()), (Found::More, MAX_SWEEP));
        }
        assert_eq!(world.sweep().await, (Found::All, vec![]), "too many are in line");
        world.serve(slow).await;
        world.reserve(other, 1).await;
        let (found, submitted) = world.sweep().await;
        assert_eq!((found, submitted.len()), (Found::More, MAX_SWEEP));
        assert_eq!(world.sweep().await, (Found::All, vec![other]));
    }
}
