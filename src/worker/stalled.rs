//! Products that cannot be decided while others can: another session keeps a row of theirs locked. Their commands wait here, in
//! their order, and are tried again in the background with growing delays. Commands that arrive for such a product queue
//! behind them.

use std::{
    collections::{BTreeSet, HashMap},
    future::pending,
    mem,
    sync::Arc,
    time::Duration,
};

use tokio::{
    sync::Semaphore,
    task::JoinSet,
    time::{Instant, sleep},
};

use super::{
    batch::{BatchDecider, MAX_BATCH},
    split_deliveries::SplitDeliveries,
};
use crate::{
    domain::{command::Command, decide::BatchResult, ids::ProductId},
    queue::Delivery,
    store::StoreError,
    telemetry::ms,
};

const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(5);
/// How many products are tried at the same time: most connections are for those that can be decided.
const MAX_ATTEMPTS: usize = 2;
/// Deliveries are requeued after this time. They are delivered again at once, and the broker counts from zero: it closes a
/// consumer that does not acknowledge for 60 s.
const MAX_HOLD: Duration = Duration::from_secs(25);

/// Stalled products.
pub(super) struct Stalled {
    decider: BatchDecider,
    products: HashMap<ProductId, StalledProduct>,
    split: SplitDeliveries,
    attempts: JoinSet<Attempt>,
    permits: Arc<Semaphore>,
}

struct StalledProduct {
    /// In order; without the deliveries of an attempt.
    waiting: Vec<Delivery>,
    is_attempting: bool,
    /// Since when the oldest delivery is held.
    held_since: Instant,
    stalled_at: Instant,
    failures: u32,
}

/// What a worker must do about stalled commands.
pub(super) enum Progress {
    /// Complete them.
    Decided(Vec<Delivery>, BatchResult),
    /// They were held for too long.
    Requeue(Vec<Delivery>),
}

/// An attempt to decide a product, and its result.
struct Attempt {
    product_id: ProductId,
    deliveries: Vec<Delivery>,
    result: Result<BatchResult, StoreError>,
}

impl Stalled {
    pub(super) fn new(decider: BatchDecider) -> Self {
        Self {
            decider,
            products: HashMap::new(),
            split: SplitDeliveries::default(),
            attempts: JoinSet::new(),
            permits: Arc::new(Semaphore::new(MAX_ATTEMPTS)),
        }
    }

    /// Holds back the commands of stalled products; returns the others.
    pub(super) fn hold_back(&mut self, deliveries: Vec<Delivery>) -> Vec<Delivery> {
        if self.products.is_empty() {
            return deliveries;
        }
        let stalled: BTreeSet<_> = self.products.keys().copied().collect();
        let (held, others) = self.split.split(deliveries, &stalled);
        for delivery in held {
            let mut products = delivery.commands.first().into_iter().flat_map(Command::products);
            let product_id = products.find(|id| stalled.contains(id));
            drop(products);
            let Some(product_id) = product_id else { continue };
            let Some(product) = self.products.get_mut(&product_id) else { continue };
            if product.waiting.is_empty() && !product.is_attempting {
                product.held_since = Instant::now();
            }
            product.waiting.push(delivery);
        }
        for product_id in stalled {
            self.schedule_attempt(product_id);
        }
        others
    }

    /// Stalls these products; returns the commands of others.
    pub(super) fn stall(
        &mut self,
        deliveries: Vec<Delivery>,
        products: &BTreeSet<ProductId>,
        error: &StoreError,
    ) -> Vec<Delivery> {
        for product_id in products {
            tracing::warn!(product_id = product_id.get(), %error, "a product is stalled: its commands wait, others go on");
            let now = Instant::now();
            let product = StalledProduct {
                waiting: Vec::new(),
                is_attempting: false,
                held_since: now,
                stalled_at: now,
                failures: 0,
            };
            self.products.entry(*product_id).or_insert(product);
        }
        self.hold_back(deliveries)
    }

    /// See [`SplitDeliveries::split`].
    pub(super) fn split(
        &mut self,
        deliveries: Vec<Delivery>,
        products: &BTreeSet<ProductId>,
    ) -> (Vec<Delivery>, Vec<Delivery>) {
        self.split.split(deliveries, products)
    }

    /// See [`SplitDeliveries::finish`].
    pub(super) fn finish(&mut self, decided: Vec<Delivery>) -> Vec<Delivery> {
        self.split.finish(decided)
    }

    /// Waits until commands of a stalled product are decided, or were held for too long. Cancel safe.
    pub(super) async fn progress(&mut self) -> Progress {
        loop {
            let Some(attempt) = self.attempts.join_next().await else { return pending().await };
            let Attempt { product_id, deliveries, result } = match attempt {
                Ok(attempt) => attempt,
                // Its commands are lost to this worker. They are delivered again when the consumer ends, so it must end.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            };
            let Some(product) = self.products.get_mut(&product_id) else { continue };
            product.is_attempting = false;
            match result {
                Ok(result) => {
                    (product.failures, product.held_since) = (0, Instant::now());
                    if product.waiting.is_empty() {
                        let elapsed_ms = ms(product.stalled_at.elapsed());
                        tracing::info!(
                            product_id = product_id.get(),
                            elapsed_ms,
                            "a product is not stalled any more"
                        );
                        self.products.remove(&product_id);
                    }
                    self.schedule_attempt(product_id);
                    return Progress::Decided(deliveries, result);
                }
                Err(_) => {
                    product.failures += 1;
                    product.waiting.splice(..0, deliveries);
                    if product.held_since.elapsed() >= MAX_HOLD {
                        let held = mem::take(&mut product.waiting);
                        return Progress::Requeue(self.split.rejoin(held));
                    }
                    self.schedule_attempt(product_id);
                }
            }
        }
    }

    /// Forgets products whose requeued deliveries did not come back: another worker serves them now.
    pub(super) fn forget_idle(&mut self) {
        self.products.retain(|_, product| {
            product.is_attempting
                || !product.waiting.is_empty()
                || product.held_since.elapsed() < 2 * MAX_HOLD
        });
    }

    fn schedule_attempt(&mut self, product_id: ProductId) {
        let Some(product) = self.products.get_mut(&product_id) else { return };
        if product.is_attempting || product.waiting.is_empty() {
            return;
        }
        product.is_attempting = true;
        let mut count = 0;
        let mut fits = |delivery: &Delivery| {
            count += delivery.commands.len();
            count <= MAX_BATCH
        };
        let fitting = product.waiting.iter().take_while(|delivery| fits(delivery)).count().max(1);
        let rest = product.waiting.split_off(fitting.min(product.waiting.len()));
        let deliveries = mem::replace(&mut product.waiting, rest);
        let delay = match product.failures {
            0 => Duration::ZERO,
            failures => FIRST_DELAY.saturating_mul(2_u32.saturating_pow(failures - 1)).min(MAX_DELAY),
        };
        let (decider, permits) = (self.decider.clone(), self.permits.clone());
        self.attempts.spawn(async move {
            sleep(delay).await;
            let _permit = permits.acquire().await;
            let result = decider.decide(&deliveries).await;
            Attempt { product_id, deliveries, result }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::{super::batch::commands_of, *};
    use crate::{
        clock::{Clock, SystemClock},
        domain::{
            command::{NewOrder, ReplyMode},
            lines::Lines,
            order::Quantity,
            origin::Origin,
            rules::Rules,
        },
        store::{Store, memory::MemoryStore},
    };

    struct Shop {
        stalled: Stalled,
        last_tag: u64,
    }

    impl Shop {
        async fn open() -> (Self, [ProductId; 2]) {
            let store: Arc<dyn Store> = Arc::new(MemoryStore::new(uuid::Uuid::nil(), Arc::new(SystemClock)));
            let create = async || store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await;
            let products = [create().await.unwrap().id, create().await.unwrap().id];
            let stalled = Stalled::new(BatchDecider { decider: store, rules: Rules::of_ttl(Duration::ZERO) });
            (Self { stalled, last_tag: 0 }, products)
        }

        fn delivery(&mut self, products: &[ProductId]) -> Delivery {
            let order = |product_id| {
                let (id, total) = (SystemClock.order_id(), Quantity::new(1).unwrap());
                Command::from(NewOrder {
                    id,
                    lines: Lines::one(product_id, total),
                    buyer: None,
                    reply: ReplyMode::Detached,
                    key: None,
                    origin: Origin::default(),
                })
            };
            self.last_tag += 1;
            let commands = products.iter().copied().map(order).collect();
            Delivery { commands, lane: "a lane".into(), reply_to: "an API".into(), tag: self.last_tag }
        }

        fn stall(&mut self, deliveries: Vec<Delivery>, product_id: ProductId) -> Vec<Delivery> {
            let error = StoreError::Locked("by a test".to_owned());
            self.stalled.stall(deliveries, &BTreeSet::from([product_id]), &error)
        }

        /// What is decided next, and which deliveries are decided entirely with that.
        async fn decided(&mut self) -> (Vec<Command>, Vec<Delivery>) {
            let Progress::Decided(deliveries, result) = self.stalled.progress().await else {
                panic!("it was not held for long");
            };
            let commands = commands_of(&deliveries);
            assert_eq!(result.verdicts.len(), commands.len());
            (commands, self.stalled.finish(deliveries))
        }
    }

    fn tags(deliveries: &[Delivery]) -> Vec<u64> {
        deliveries.iter().map(|delivery| delivery.tag).collect()
    }

    #[tokio::test]
    async fn a_delivery_is_acknowledged_once_all_of_its_commands_are_decided() {
        let (mut shop, [locked, free]) = Shop::open().await;
        let [mixed, whole] = [shop.delivery(&[locked, free, locked]), shop.delivery(&[free])];
        let rest = shop.stall(vec![mixed.clone(), whole.clone()], locked);
        assert_eq!(commands_of(&rest), [mixed.commands[1].clone(), whole.commands[0].clone()]);
        assert_eq!(tags(&shop.stalled.finish(rest)), [whole.tag]);
        let (decided, done) = shop.decided().await;
        assert_eq!(decided, [mixed.commands[0].clone(), mixed.commands[2].clone()]);
        assert_eq!(done.iter().map(|one| &one.commands).collect::<Vec<_>>(), [&mixed.commands]);
    }

    #[tokio::test]
    async fn commands_that_arrive_for_a_stalled_product_queue_behind_it() {
        let (mut shop, [locked, free]) = Shop::open().await;
        let [first, second, other] =
            [shop.delivery(&[locked]), shop.delivery(&[locked]), shop.delivery(&[free])];
        assert!(shop.stall(vec![first.clone()], locked).is_empty());
        assert_eq!(tags(&shop.stalled.hold_back(vec![second.clone(), other.clone()])), [other.tag]);
        assert_eq!(shop.decided().await, (first.commands.clone(), vec![first]));
        assert_eq!(shop.decided().await, (second.commands.clone(), vec![second]));
        let next = shop.delivery(&[locked]);
        assert_eq!(
            tags(&shop.stalled.hold_back(vec![next.clone()])),
            [next.tag],
            "nothing is stalled any more"
        );
    }
}
