//! Compares inventories with their orders, all the time and slowly: a few products a second, one product after the other, round
//! after round. It has one connection of its own, rests much longer than it reads, and gives up what takes long.

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

/// Compares inventories with orders.
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

    /// The pieces by which these products, which follow each other, differ from their orders.
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
                    "an inventory does not agree with its orders: antre audit says how, and what to do"
                );
            }
            pieces += difference;
        }
        Ok(pieces)
    }
}
