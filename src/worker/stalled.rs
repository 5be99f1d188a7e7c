//! Products that cannot be decided while others can: somebody keeps a row of theirs locked. Their commands wait here, in
//! their order, and are tried again beside the work with growing delays. What arrives for such a product queues behind.
//!
//! A delivery may have commands of several products. It is let go of once all of them are decided; their verdicts do not
//! wait for each other.

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

use super::{MAX_BATCH, commands_of};
use crate::{
    domain::ids::ProductId,
    queue::Delivery,
    store::{Decided, Store, StoreError},
};

const FIRST_DELAY: Duration = Duration::from_millis(100);
const MAX_DELAY: Duration = Duration::from_secs(5);
/// How many are tried at the same time: most connections are for those that can be decided.
const AT_ONCE: usize = 2;
/// Deliveries are given back after this time. They come again at once, and the broker counts from zero: its patience with a
/// consumer that does not acknowledge is 60 s.
const HOLD: Duration = Duration::from_secs(25);

/// Stalled products.
#[derive(Default)]
pub(super) struct Stalled {
    products: HashMap<ProductId, Lane>,
    /// Deliveries some of whose commands are decided apart from the others, by tag.
    torn: HashMap<u64, Torn>,
    tries: JoinSet<Try>,
    turns: Option<Arc<Semaphore>>,
}

struct Lane {
    /// What waits, in order; without what is being tried.
    waiting: Vec<Delivery>,
    is_tried: bool,
    /// Since when the oldest of it is held.
    held_since: Instant,
    stalled_at: Instant,
    failures: u32,
    retry: Retry,
}

/// How a product is tried again.
#[derive(Clone)]
struct Retry {
    store: Arc<dyn Store>,
    reservation_ttl: Duration,
}

struct Torn {
    delivery: Delivery,
    undecided: usize,
}

/// What is to be done about stalled commands.
pub(super) enum Progress {
    /// These are decided.
    Decided(Vec<Delivery>, Decided),
    /// These were held for long enough.
    Requeue(Vec<Delivery>),
}

/// What became of a try.
struct Try {
    product_id: ProductId,
    parts: Vec<Delivery>,
    result: Result<Decided, StoreError>,
}

impl Stalled {
    /// Keeps back what is for stalled products; returns the rest.
    pub(super) fn pass(&mut self, deliveries: Vec<Delivery>) -> Vec<Delivery> {
        if self.products.is_empty() {
            return deliveries;
        }
        let stalled: BTreeSet<_> = self.products.keys().copied().collect();
        let (kept, rest) = self.split(deliveries, &stalled);
        for part in kept {
            let Some(product_id) = part.commands.first().map(|one| one.product_id()) else { continue };
            let Some(lane) = self.products.get_mut(&product_id) else { continue };
            if lane.waiting.is_empty() && !lane.is_tried {
                lane.held_since = Instant::now();
            }
            lane.waiting.push(part);
        }
        for product_id in stalled {
            self.try_again(product_id);
        }
        rest
    }

    /// Stalls these products; returns what is for others.
    pub(super) fn stall(
        &mut self,
        parts: Vec<Delivery>,
        products: &BTreeSet<ProductId>,
        error: &StoreError,
        store: &Arc<dyn Store>,
        reservation_ttl: Duration,
    ) -> Vec<Delivery> {
        for product_id in products {
            tracing::warn!(%product_id, %error, "a product is stalled: its commands wait, others go on");
            let (now, retry) = (Instant::now(), Retry { store: store.clone(), reservation_ttl });
            let lane = Lane {
                waiting: Vec::new(),
                is_tried: false,
                held_since: now,
                stalled_at: now,
                failures: 0,
                retry,
            };
            self.products.entry(*product_id).or_insert(lane);
        }
        self.pass(parts)
    }

    /// Takes deliveries apart: the commands of these products, each product's in parts of its own, and the others.
    pub(super) fn split(
        &mut self,
        deliveries: Vec<Delivery>,
        products: &BTreeSet<ProductId>,
    ) -> (Vec<Delivery>, Vec<Delivery>) {
        let (mut of_these, mut of_others) = (Vec::new(), Vec::new());
        for delivery in deliveries {
            let of_one = products_of(std::slice::from_ref(&delivery));
            if of_one.is_disjoint(products) {
                of_others.push(delivery);
                continue;
            }
            if of_one.len() == 1 {
                of_these.push(delivery);
                continue;
            }
            let undecided = delivery.commands.len();
            self.torn.entry(delivery.tag).or_insert_with(|| Torn { delivery: delivery.clone(), undecided });
            let part = |commands| Delivery { commands, ..delivery.clone() };
            let mut others = Vec::new();
            let mut each: Vec<(ProductId, Vec<_>)> = Vec::new();
            for command in delivery.commands.iter().cloned() {
                let product_id = command.product_id();
                if !products.contains(&product_id) {
                    others.push(command);
                } else if let Some((_, commands)) = each.iter_mut().find(|(id, _)| *id == product_id) {
                    commands.push(command);
                } else {
                    each.push((product_id, vec![command]));
                }
            }
            of_these.extend(each.into_iter().map(|(_, commands)| part(commands)));
            if !others.is_empty() {
                of_others.push(part(others));
            }
        }
        (of_these, of_others)
    }

    /// These parts are decided: returns the deliveries of which nothing is left.
    pub(super) fn finish(&mut self, parts: Vec<Delivery>) -> Vec<Delivery> {
        if self.torn.is_empty() {
            return parts;
        }
        let mut done = Vec::with_capacity(parts.len());
        for part in parts {
            let Some(torn) = self.torn.get_mut(&part.tag) else {
                done.push(part);
                continue;
            };
            torn.undecided = torn.undecided.saturating_sub(part.commands.len());
            if torn.undecided == 0 {
                done.extend(self.torn.remove(&part.tag).map(|torn| torn.delivery));
            }
        }
        done
    }

    /// Waits until something of a stalled product is decided, or held for too long. Cancel safe.
    pub(super) async fn progress(&mut self) -> Progress {
        loop {
            let Some(tried) = self.tries.join_next().await else { return pending().await };
            let Try { product_id, parts, result } = match tried {
                Ok(tried) => tried,
                // Its commands are lost to this worker. They come back when the consumer ends, so it must.
                Err(error) => std::panic::resume_unwind(error.into_panic()),
            };
            let Some(lane) = self.products.get_mut(&product_id) else { continue };
            lane.is_tried = false;
            match result {
                Ok(decided) => {
                    (lane.failures, lane.held_since) = (0, Instant::now());
                    if lane.waiting.is_empty() {
                        let after = lane.stalled_at.elapsed();
                        tracing::info!(%product_id, ?after, "a product goes on");
                        self.products.remove(&product_id);
                    }
                    self.try_again(product_id);
                    return Progress::Decided(parts, decided);
                }
                Err(_) => {
                    lane.failures += 1;
                    lane.waiting.splice(..0, parts);
                    if lane.held_since.elapsed() >= HOLD {
                        let held = mem::take(&mut lane.waiting);
                        return Progress::Requeue(self.whole(held));
                    }
                    self.try_again(product_id);
                }
            }
        }
    }

    /// The deliveries of these parts. What is decided of a torn one already gets the stored verdicts when it comes back.
    fn whole(&mut self, parts: Vec<Delivery>) -> Vec<Delivery> {
        let mut deliveries: Vec<Delivery> = Vec::with_capacity(parts.len());
        for part in parts {
            if deliveries.last().is_some_and(|last| last.tag == part.tag) {
                continue;
            }
            deliveries.push(self.torn.remove(&part.tag).map_or(part, |torn| torn.delivery));
        }
        deliveries
    }

    /// Forgets products of which nothing came back: somebody else serves them now.
    pub(super) fn forget_idle(&mut self) {
        self.products.retain(|_, lane| {
            lane.is_tried || !lane.waiting.is_empty() || lane.held_since.elapsed() < 2 * HOLD
        });
    }

    fn try_again(&mut self, product_id: ProductId) {
        let Some(lane) = self.products.get_mut(&product_id) else { return };
        if lane.is_tried || lane.waiting.is_empty() {
            return;
        }
        lane.is_tried = true;
        let mut count = 0;
        let mut fits = |part: &Delivery| {
            count += part.commands.len();
            count <= MAX_BATCH
        };
        let fitting = lane.waiting.iter().take_while(|part| fits(part)).count().max(1);
        let rest = lane.waiting.split_off(fitting.min(lane.waiting.len()));
        let parts = mem::replace(&mut lane.waiting, rest);
        let delay = match lane.failures {
            0 => Duration::ZERO,
            failures => FIRST_DELAY.saturating_mul(2_u32.saturating_pow(failures - 1)).min(MAX_DELAY),
        };
        let Retry { store, reservation_ttl } = lane.retry.clone();
        let turns = self.turns.get_or_insert_with(|| Arc::new(Semaphore::new(AT_ONCE))).clone();
        self.tries.spawn(async move {
            sleep(delay).await;
            let _turn = turns.acquire().await;
            let result = store.decide(&commands_of(&parts), reservation_ttl).await;
            Try { product_id, parts, result }
        });
    }
}

/// The products of these commands.
pub(super) fn products_of(parts: &[Delivery]) -> BTreeSet<ProductId> {
    parts.iter().flat_map(|part| &part.commands).map(|command| command.product_id()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        domain::{
            command::{Command, NewOrder, ReplyMode},
            ids::OrderId,
            order::Quantity,
        },
        store::sqlite::SqliteStore,
    };

    struct Shop {
        _directory: tempfile::TempDir,
        store: Arc<dyn Store>,
        stalled: Stalled,
        last_tag: u64,
    }

    impl Shop {
        async fn open() -> (Self, [ProductId; 2]) {
            let directory = tempfile::tempdir().unwrap();
            let url = format!("sqlite://{}", directory.path().join("antre.db").display());
            let store: Arc<dyn Store> = Arc::new(SqliteStore::open(&url).await.unwrap());
            let create = async || store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await;
            let products = [create().await.unwrap().id, create().await.unwrap().id];
            (Self { _directory: directory, store, stalled: Stalled::default(), last_tag: 0 }, products)
        }

        fn delivery(&mut self, products: &[ProductId]) -> Delivery {
            let order = |product_id| {
                let (id, total) = (OrderId::generate(), Quantity::new(1).unwrap());
                Command::from(NewOrder { id, product_id, total, reply: ReplyMode::Detached, key: None })
            };
            self.last_tag += 1;
            let commands = products.iter().copied().map(order).collect();
            Delivery { commands, reply_to: "an API".into(), tag: self.last_tag }
        }

        fn stall(&mut self, parts: Vec<Delivery>, product_id: ProductId) -> Vec<Delivery> {
            let (store, error) = (self.store.clone(), StoreError::Locked("by a test".to_owned()));
            self.stalled.stall(parts, &BTreeSet::from([product_id]), &error, &store, Duration::ZERO)
        }

        /// What is decided next, and which deliveries are let go of with that.
        async fn decided(&mut self) -> (Vec<Command>, Vec<Delivery>) {
            let Progress::Decided(parts, decided) = self.stalled.progress().await else {
                panic!("it was not held for long");
            };
            let commands = commands_of(&parts);
            assert_eq!(decided.verdicts.len(), commands.len());
            (commands, self.stalled.finish(parts))
        }
    }

    fn tags(deliveries: &[Delivery]) -> Vec<u64> {
        deliveries.iter().map(|delivery| delivery.tag).collect()
    }

    #[tokio::test]
    async fn a_delivery_is_let_go_of_once_all_of_it_is_decided() {
        let (mut shop, [locked, free]) = Shop::open().await;
        let [torn, whole] = [shop.delivery(&[locked, free, locked]), shop.delivery(&[free])];
        let rest = shop.stall(vec![torn.clone(), whole.clone()], locked);
        assert_eq!(commands_of(&rest), [torn.commands[1].clone(), whole.commands[0].clone()]);
        assert_eq!(tags(&shop.stalled.finish(rest)), [whole.tag]);
        let (decided, done) = shop.decided().await;
        assert_eq!(decided, [torn.commands[0].clone(), torn.commands[2].clone()]);
        assert_eq!(done.iter().map(|one| &one.commands).collect::<Vec<_>>(), [&torn.commands]);
    }

    #[tokio::test]
    async fn what_arrives_for_a_stalled_product_queues_behind_until_it_goes_on() {
        let (mut shop, [locked, free]) = Shop::open().await;
        let [first, second, other] =
            [shop.delivery(&[locked]), shop.delivery(&[locked]), shop.delivery(&[free])];
        assert!(shop.stall(vec![first.clone()], locked).is_empty());
        assert_eq!(tags(&shop.stalled.pass(vec![second.clone(), other.clone()])), [other.tag]);
        assert_eq!(shop.decided().await, (first.commands.clone(), vec![first]));
        assert_eq!(shop.decided().await, (second.commands.clone(), vec![second]));
        let next = shop.delivery(&[locked]);
        assert_eq!(tags(&shop.stalled.pass(vec![next.clone()])), [next.tag], "nothing is stalled any more");
    }
}
