//! Compares inventories with their orders and movements, all the time and slowly: a few products a second, one product after the
//! other, round after round. It has one connection of its own, rests much longer than it reads, and gives up what takes long.

use std::{sync::Arc, time::Duration};

use futures_util::future::BoxFuture;
use tokio::time::{Instant, sleep, timeout};

use crate::{
    domain::ids::ProductId,
    monitor::metrics::ConservationMetrics,
    store::{Catalog, OpenError, StoreError, audit::Audit},
    telemetry::{LogLimiter, is_first_report},
};

/// How many products are compared in one step.
const PRODUCTS_PER_STEP: usize = 5;
/// The time between two steps, if the first one takes hardly any.
const PAUSE: Duration = Duration::from_secs(1);
/// A step that takes longer is followed by a rest of this many times its length: it uses at most 2 % of a connection.
const REST: u32 = 49;
/// How long a step may take. A product with more orders than can be read in this time is left to `antre audit`.
const STEP_LIMIT: Duration = Duration::from_secs(5);
/// The pause after a failure.
const FAILURE_PAUSE: Duration = Duration::from_secs(10);

/// Opens a connection for an audit.
pub type OpenAudit = Arc<dyn Fn() -> BoxFuture<'static, Result<Box<dyn Audit>, OpenError>> + Send + Sync>;

/// Compares inventories with orders and movements.
pub struct Conservation {
    pub catalog: Arc<dyn Catalog>,
    pub open: OpenAudit,
    pub metrics: Arc<ConservationMetrics>,
}

/// Why a step was given up.
#[derive(Debug, thiserror::Error)]
enum StepError {
    #[error("{0}")]
    Open(#[from] OpenError),
    #[error("{0}")]
    Store(#[from] StoreError),
    #[error("not done within {STEP_LIMIT:?}")]
    Late,
}

impl Conservation {
    /// Runs for ever. It may be aborted at any time: it only reads.
    pub async fn run(&self) {
        loop {
            match self.catalog.product_ids().await {
                Ok(products) if products.is_empty() => sleep(PAUSE).await,
                Ok(products) => self.round(&products).await,
                Err(_) => sleep(FAILURE_PAUSE).await,
            }
        }
    }

    /// Compares all of these products once, in steps.
    async fn round(&self, products: &[ProductId]) {
        let (mut audit, mut found) = (None, 0);
        let failures = LogLimiter::every(Duration::from_secs(60));
        for step in products.chunks(PRODUCTS_PER_STEP) {
            let began = Instant::now();
            match self.step(&mut audit, step).await {
                Ok(pieces) => {
                    found += pieces;
                    self.metrics.compared(step.len(), found);
                    sleep((began.elapsed() * REST).max(PAUSE)).await;
                }
                Err(error) => {
                    audit = None; // an answer may still be on its way on that connection
                    self.metrics.failed();
                    if let Some(suppressed) = failures.due() {
                        tracing::debug!(%error, suppressed, "could not compare inventories with orders");
                    }
                    sleep(FAILURE_PAUSE).await;
                }
            }
        }
        self.metrics.round_ends(found);
    }

    /// The pieces by which these products, which follow each other, differ from their orders and movements.
    async fn step(
        &self,
        audit: &mut Option<Box<dyn Audit>>,
        products: &[ProductId],
    ) -> Result<u64, StepError> {
        let Some(first) = products.first() else { return Ok(0) };
        let comparing = async {
            let audit = match audit {
                Some(audit) => audit,
                None => audit.insert((self.open)().await?),
            };
            let before = i64::try_from(first.get()).unwrap_or(i64::MAX) - 1;
            let limit = u32::try_from(products.len()).unwrap_or(u32::MAX);
            Ok(audit.books(Some(before), limit).await?)
        };
        let page = timeout(STEP_LIMIT, comparing).await.unwrap_or(Err(StepError::Late))?;
        let mut pieces = 0;
        for book in &page.books {
            let difference = book.difference();
            if difference > 0 && is_first_report(&format!("{book:?}")) {
                tracing::error!(
                    product_id = book.product_id,
                    pieces = difference,
                    "an inventory does not agree with its orders or movements: antre audit says how, and what to do"
                );
            }
            pieces += difference;
        }
        Ok(pieces)
    }
}

#[cfg(test)]
mod tests {
    use std::{
        collections::VecDeque,
        future::pending,
        sync::{
            Mutex,
            atomic::{AtomicUsize, Ordering},
        },
    };

    use async_trait::async_trait;
    use uuid::Uuid;

    use super::*;
    use crate::{
        clock::SystemClock,
        monitor::metrics::Metrics,
        store::{
            audit::{Book, BookPage, Links, MovementSums, StockColumns},
            memory::MemoryStore,
        },
    };

    /// What each step answers; `None`: nothing, ever.
    type Answers = Arc<Mutex<VecDeque<Option<Result<Vec<Book>, StoreError>>>>>;

    /// Behind which product each page began, and how many it was to have.
    type Pages = Arc<Mutex<Vec<(Option<i64>, u32)>>>;

    struct Fake {
        answers: Answers,
        asked: Pages,
    }

    #[async_trait]
    impl Audit for Fake {
        async fn books(&mut self, after: Option<i64>, limit: u32) -> Result<BookPage, StoreError> {
            self.asked.lock().unwrap().push((after, limit));
            let answer = self.answers.lock().unwrap().pop_front();
            match answer {
                Some(Some(books)) => Ok(BookPage { books: books?, next: None }),
                Some(None) => pending().await,
                None => Ok(BookPage { books: Vec::new(), next: None }),
            }
        }

        async fn keys(&mut self, _: Option<&str>, _: u32) -> Result<Links<String>, StoreError> {
            Err(StoreError::Refused("no test asks for it".to_owned()))
        }

        async fn aliases(&mut self, _: Option<Uuid>, _: u32) -> Result<Links<Uuid>, StoreError> {
            Err(StoreError::Refused("no test asks for it".to_owned()))
        }
    }

    fn book(product_id: i64, reserved: i64) -> Book {
        let inventory = Some(StockColumns { stored: reserved, available: 0, reserved });
        let movements = MovementSums { count: 1, pieces: reserved };
        Book { product_id, is_product: true, inventory, movements, ..Book::default() }
    }

    #[tokio::test(start_paused = true)]
    async fn a_round_goes_on_behind_what_takes_too_long_and_adds_up_what_differs() {
        let store = Arc::new(MemoryStore::new(Uuid::nil(), Arc::new(SystemClock)));
        for _ in 0..3 * PRODUCTS_PER_STEP {
            store.create_product("Kaos Polos".to_owned().try_into().unwrap()).await.unwrap();
        }
        let products = store.product_ids().await.unwrap();
        let answers: Answers = Arc::new(Mutex::new(
            [Some(Ok(vec![book(1, 2), book(2, 0)])), None, Some(Ok(vec![book(11, 1)]))].into(),
        ));
        let (asked, opened) = (Arc::<Mutex<Vec<_>>>::default(), Arc::new(AtomicUsize::new(0)));
        let open: OpenAudit = {
            let (asked, opened) = (asked.clone(), opened.clone());
            Arc::new(move || {
                opened.fetch_add(1, Ordering::Relaxed);
                let audit = Fake { answers: answers.clone(), asked: asked.clone() };
                Box::pin(async move { Ok(Box::new(audit) as Box<dyn Audit>) })
            })
        };
        let metrics = Metrics::unwatched();
        let conservation =
            Conservation { catalog: store, open, metrics: metrics.worker.conservation.clone() };
        let began = Instant::now();
        conservation.round(&products).await;
        assert_eq!(began.elapsed(), PAUSE + STEP_LIMIT + FAILURE_PAUSE + PAUSE);
        assert_eq!(*asked.lock().unwrap(), [(Some(0), 5), (Some(5), 5), (Some(10), 5)]);
        assert_eq!(opened.load(Ordering::Relaxed), 2, "a silent connection is not used again");
        let text = metrics.render();
        for line in [
            "antre_conservation_difference_pieces 3",
            "antre_conservation_failures_total 1",
            "antre_conservation_products_checked_total 10",
            "antre_conservation_rounds_total 1",
        ] {
            assert!(text.lines().any(|one| one == line), "{line}\n{text}");
        }
        conservation.round(&products).await;
        assert!(metrics.render().contains("antre_conservation_difference_pieces 0"));
    }
}
