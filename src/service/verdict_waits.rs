//! Clients that wait for the verdict on an order that they have placed before, at this API or at another one.
//!
//! No message tells an API of such a verdict, so it looks into the database again and again. All clients look at the same
//! moments, the ticks of one clock: [`batch_loader`](super::batch_loader) makes one statement of up to a thousand looks, and
//! 5,000 clients are some 150 statements a second. A client that waits costs a timer.

use std::time::Duration;

use tokio::{
    sync::Semaphore,
    time::{Instant, sleep_until},
};
use tokio_util::sync::CancellationToken;

use super::answers::{LookupError, OrderLookup};
use crate::store::StoreError;

/// How many clients of one process may wait.
const MAX_WAITING: usize = 16_384;
/// Clients look at whole multiples of this.
const TICK: Duration = Duration::from_millis(25);
/// The pause before a client's second look. Each pause is twice as long as the one before.
const FIRST_PAUSE: Duration = TICK;
/// The longest pause between two looks.
const LONGEST_PAUSE: Duration = Duration::from_millis(250);

type Looked = Result<Option<OrderLookup>, StoreError>;

/// The clients of one process that wait.
pub(super) struct VerdictWaits {
    permits: Semaphore,
    /// Ticks are counted from here.
    began: Instant,
}

impl Default for VerdictWaits {
    fn default() -> Self {
        Self { permits: Semaphore::new(MAX_WAITING), began: Instant::now() }
    }
}

impl VerdictWaits {
    /// Looks until the order is not pending any more, or until `wait` is over: what was seen last. Ends at once when the process
    /// is asked to stop, because another one can answer the client then. Dropping it leaves nothing behind.
    pub(super) async fn until_decided<L>(
        &self,
        wait: Duration,
        stop: &CancellationToken,
        look: impl Fn() -> L,
    ) -> Result<Option<OrderLookup>, LookupError>
    where
        L: Future<Output = Looked>,
    {
        let deadline = Instant::now() + wait;
        let first = look().await?;
        if wait.is_zero() || !is_pending(first.as_ref()) {
            return Ok(first);
        }
        let Ok(_permit) = self.permits.try_acquire() else { return Err(LookupError::TooManyWait) };
        let looked = stop.run_until_cancelled(self.look_again(deadline, look)).await;
        Ok(looked.transpose()?.unwrap_or(first))
    }

    async fn look_again<L: Future<Output = Looked>>(
        &self,
        deadline: Instant,
        look: impl Fn() -> L,
    ) -> Looked {
        let mut pause = FIRST_PAUSE;
        loop {
            let next = self.tick_after(pause).min(deadline);
            sleep_until(next).await;
            let looked = look().await?;
            if next >= deadline || !is_pending(looked.as_ref()) {
                return Ok(looked);
            }
            pause = (2 * pause).min(LONGEST_PAUSE);
        }
    }

    /// The first tick after this pause.
    fn tick_after(&self, pause: Duration) -> Instant {
        let ticks = (self.began.elapsed() + pause).as_nanos().div_ceil(TICK.as_nanos());
        self.began + TICK * u32::try_from(ticks).unwrap_or(u32::MAX)
    }
}

fn is_pending(looked: Option<&OrderLookup>) -> bool {
    matches!(looked, Some(OrderLookup::Pending(_)))
}

#[cfg(test)]
mod tests {
    use std::{
        cell::Cell,
        collections::{BTreeSet, HashMap},
        sync::{
            Arc, Mutex,
            atomic::{AtomicBool, AtomicUsize, Ordering},
        },
    };

    use async_trait::async_trait;
    use futures_util::future::join_all;
    use tokio::time::sleep;

    use super::*;
    use crate::{
        domain::{
            ids::{IdempotencyKey, OrderId},
            order::Order,
        },
        service::batch_loader::BatchLoader,
        store::{Due, GivenUp, OrderPage, Orders, Page},
    };

    fn id() -> OrderId {
        uuid::Uuid::now_v7().into()
    }

    fn pending(id: OrderId) -> Looked {
        Ok(Some(OrderLookup::Pending(id)))
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_looks_less_and_less_often_and_once_more_at_the_end() {
        let (waits, began, id) = (VerdictWaits::default(), Instant::now(), id());
        let looks = Mutex::new(Vec::new());
        let look = || async {
            looks.lock().unwrap().push(began.elapsed().as_millis());
            pending(id)
        };
        let stop = CancellationToken::new();
        let answer = waits.until_decided(Duration::from_millis(990), &stop, look).await.unwrap();
        assert_eq!(answer, Some(OrderLookup::Pending(id)));
        assert_eq!(*looks.lock().unwrap(), [0, 25, 75, 175, 375, 625, 875, 990]);
        looks.lock().unwrap().clear();
        waits.until_decided(Duration::ZERO, &stop, look).await.unwrap();
        assert_eq!(looks.lock().unwrap().len(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_decided_or_unknown_is_answered_at_once() {
        let (waits, began, stop) = (VerdictWaits::default(), Instant::now(), CancellationToken::new());
        let long = Duration::from_secs(60);
        assert_eq!(waits.until_decided(long, &stop, || async { Ok(None) }).await.unwrap(), None);
        let away = || async { Err(StoreError::Unavailable("by a test".to_owned())) };
        assert!(matches!(waits.until_decided(long, &stop, away).await, Err(LookupError::Store(_))));
        assert!(began.elapsed().is_zero());
        // The same in the middle of the wait.
        let looks = Cell::new(0);
        let look = || async {
            looks.set(looks.get() + 1);
            if looks.get() < 3 { pending(id()) } else { Ok(None) }
        };
        assert_eq!(waits.until_decided(long, &stop, look).await.unwrap(), None);
        assert_eq!(began.elapsed(), Duration::from_millis(75));
    }

    /// Clients that came at different times look at the same ones.
    #[tokio::test(start_paused = true)]
    async fn thousands_of_clients_look_at_few_moments() {
        const CLIENTS: u64 = 5_000;
        let (waits, began) = (VerdictWaits::default(), Instant::now());
        let (moments, looks) = (Mutex::new(BTreeSet::new()), AtomicUsize::new(0));
        let (is_decided, stop) = (AtomicBool::new(false), CancellationToken::new());
        let look = || async {
            looks.fetch_add(1, Ordering::Relaxed);
            moments.lock().unwrap().insert(began.elapsed());
            if is_decided.load(Ordering::Relaxed) { Ok(None) } else { pending(id()) }
        };
        let clients = (0..CLIENTS).map(async |number| {
            sleep(Duration::from_millis(number % 1_000)).await;
            waits.until_decided(Duration::from_secs(60), &stop, look).await.unwrap()
        });
        let deciding = async {
            sleep(Duration::from_secs(10)).await;
            is_decided.store(true, Ordering::Relaxed);
            sleep(LONGEST_PAUSE).await;
        };
        let (answers, ()) = tokio::join!(join_all(clients), deciding);
        assert!(answers.iter().all(Option::is_none));
        assert_eq!(began.elapsed(), Duration::from_secs(10) + LONGEST_PAUSE, "within one pause");
        // Besides the first looks, at which each client comes.
        let ticks = moments.lock().unwrap().iter().filter(|at| at.as_millis() >= 1_000).count();
        assert!(ticks <= 371, "{ticks}");
        assert!(looks.into_inner() <= CLIENTS as usize * 45);
    }

    /// A database without orders that counts the statements.
    #[derive(Default)]
    struct CountedReads(AtomicUsize);

    #[async_trait]
    impl Orders for CountedReads {
        async fn orders_by_id(&self, _: &[OrderId]) -> Result<HashMap<OrderId, Order>, StoreError> {
            self.0.fetch_add(1, Ordering::Relaxed);
            sleep(Duration::from_millis(2)).await;
            Ok(HashMap::new())
        }

        async fn orders_by_key(
            &self,
            _: &[IdempotencyKey],
        ) -> Result<HashMap<IdempotencyKey, Order>, StoreError> {
            unreachable!("only ids are read")
        }

        async fn orders(&self, _: OrderPage) -> Result<Page<Order, OrderId>, StoreError> {
            unreachable!("only ids are read")
        }

        async fn give_up(&self, _: OrderId) -> Result<GivenUp, StoreError> {
            unreachable!("only ids are read")
        }

        async fn due(&self, _: Option<Due>, _: u32) -> Result<Page<Order, Due>, StoreError> {
            unreachable!("only ids are read")
        }
    }

    #[tokio::test(start_paused = true)]
    async fn thousands_of_clients_are_few_statements() {
        const CLIENTS: u64 = 5_000;
        const SECONDS: u64 = 10;
        let (waits, reads) = (VerdictWaits::default(), Arc::new(CountedReads::default()));
        let loader = Arc::new(BatchLoader::<OrderId>::new(reads.clone()));
        let (looks, stop) = (AtomicUsize::new(0), CancellationToken::new());
        let look = || async {
            looks.fetch_add(1, Ordering::Relaxed);
            let id = id();
            Ok(loader.load(id).await?.map_or(Some(OrderLookup::Pending(id)), |_| None))
        };
        let clients = (0..CLIENTS).map(async |number| {
            sleep(Duration::from_millis(number % 1_000)).await;
            waits.until_decided(Duration::from_secs(SECONDS), &stop, look).await.unwrap()
        });
        join_all(clients).await;
        let (looks, statements) = (looks.into_inner() as u64, reads.0.load(Ordering::Relaxed) as u64);
        assert!(looks > CLIENTS * 4 * (SECONDS - 1), "{looks}");
        assert!(100 * statements < looks, "{statements} statements for {looks} looks");
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_ends_every_wait_even_one_whose_look_hangs() {
        let (waits, stop) = (Arc::new(VerdictWaits::default()), CancellationToken::new());
        let (began, id) = (Instant::now(), id());
        let looks = Cell::new(0);
        let hanging = || async {
            looks.set(looks.get() + 1);
            if looks.get() > 1 {
                std::future::pending::<()>().await;
            }
            pending(id)
        };
        let stopping = async {
            sleep(Duration::from_secs(5)).await;
            stop.cancel();
        };
        let long = Duration::from_secs(60);
        let quick = || async { pending(id) };
        let (hung, waited, ()) = tokio::join!(
            waits.until_decided(long, &stop, hanging),
            waits.until_decided(long, &stop, quick),
            stopping
        );
        for answer in [hung, waited] {
            assert_eq!(answer.unwrap(), Some(OrderLookup::Pending(id)));
        }
        waits.until_decided(long, &stop, quick).await.unwrap();
        assert_eq!(began.elapsed(), Duration::from_secs(5), "nor does one begin that comes later");
    }

    #[tokio::test(start_paused = true)]
    async fn so_many_may_wait_and_one_that_leaves_makes_room() {
        let waits = VerdictWaits { permits: Semaphore::new(1), ..VerdictWaits::default() };
        let stop = CancellationToken::new();
        let wait = || waits.until_decided(Duration::from_secs(60), &stop, || async { pending(id()) });
        {
            let mut first = Box::pin(wait());
            assert!(tokio::time::timeout(Duration::from_secs(1), &mut first).await.is_err());
            assert!(matches!(wait().await, Err(LookupError::TooManyWait)));
        }
        assert!(tokio::time::timeout(Duration::from_secs(1), wait()).await.is_err(), "it waits");
    }
}
