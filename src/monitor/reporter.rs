//! Tells once a second what this process did, and takes in what the others tell.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use futures_util::StreamExt;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use super::{
    activity::Activity,
    board::Board,
    progress::Progress,
    report::{ProcessIdentity, Report},
    standstill::{StandstillLog, elapsed_ms},
    vitals::Vitals,
};
use crate::{
    backoff::backoff,
    domain::ids::ProductId,
    queue::{Depths, Reports},
    telemetry::LogLimiter,
};

const TELL_EVERY: Duration = Duration::from_secs(1);
/// How often the broker is asked how much waits.
const ASK_EVERY: Duration = Duration::from_secs(5);
/// How many lanes are asked for at a time.
const MAX_ASKED: usize = 50;
/// Delays before listening again.
const RETRY_DELAYS: [Duration; 2] = [Duration::from_millis(200), Duration::from_secs(5)];
/// How long the last report may take.
const FAREWELL: Duration = Duration::from_millis(500);

/// What a process tells, and to whom.
pub struct Reporter {
    pub identity: ProcessIdentity,
    pub activity: Arc<Activity>,
    pub vitals: Vitals,
    pub reports: Arc<dyn Reports>,
    pub depths: Arc<dyn Depths>,
    /// Of an API.
    pub board: Option<Arc<Board>>,
    sequence: AtomicU64,
    /// Plus one; 0: unknown.
    dead_letters: AtomicU64,
}

impl Reporter {
    pub fn new(
        identity: ProcessIdentity,
        activity: Arc<Activity>,
        vitals: Vitals,
        reports: Arc<dyn Reports>,
        depths: Arc<dyn Depths>,
        board: Option<Arc<Board>>,
    ) -> Self {
        let (sequence, dead_letters) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { identity, activity, vitals, reports, depths, board, sequence, dead_letters }
    }

    /// How many dead letters the broker holds; `None`: not known.
    pub fn dead_letters(&self) -> Option<u64> {
        self.dead_letters.load(Relaxed).checked_sub(1)
    }

    /// Tells, for ever.
    pub async fn tell_forever(&self) {
        let (mut ticks, mut log) = (interval(TELL_EVERY), StandstillLog::default());
        let progress = Progress::new(self.activity.clone(), self.board.clone());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (failures, mut fails_since) = (LogLimiter::every(Duration::from_secs(60)), None::<Instant>);
        loop {
            ticks.tick().await;
            let report = self.report(false);
            let bytes = report.encode();
            // Directly, so that an API without a broker shows itself.
            if let Some(board) = &self.board {
                board.receive(report);
                board.tick();
            }
            log.update(&progress.standstill());
            match self.reports.tell(bytes).await {
                Ok(()) => {
                    if let Some(since) = fails_since.take() {
                        let elapsed_ms = elapsed_ms(since.elapsed());
                        tracing::debug!(elapsed_ms, "other processes are told again what this one does");
                    }
                }
                Err(error) => {
                    fails_since.get_or_insert_with(Instant::now);
                    if let Some(suppressed) = failures.due() {
                        tracing::warn!(%error, suppressed, "cannot tell other processes what this one does; pages and antre lanes do not show it");
                    }
                }
            }
        }
    }

    /// Asks the broker how much waits, for ever.
    pub async fn ask_forever(&self) {
        let mut asks = interval(ASK_EVERY);
        asks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            asks.tick().await;
            let count = self.depths.dead_letters().await.ok();
            self.dead_letters.store(count.map_or(0, |count| count.saturating_add(1)), Relaxed);
            for product_id in self.activity.abandoned().into_iter().take(MAX_ASKED) {
                self.ask_whether_anything_waits(product_id).await;
            }
        }
    }

    /// Clients were answered 202, and no verdict is known since: the report that told it may be lost, or nobody submits any
    /// more. What the broker says counts, unless a worker has taken the commands.
    async fn ask_whether_anything_waits(&self, product_id: ProductId) {
        let Some(board) = &self.board else { return };
        let is_empty = self.depths.depth(product_id).await.is_ok_and(|depth| depth.messages == 0);
        if is_empty && !board.is_held(product_id) {
            self.activity.nothing_waits(product_id);
        }
    }

    /// Takes in what all processes tell, for ever. Loses what is told while there is no connection.
    pub async fn listen_forever(&self) {
        let Some(board) = &self.board else { return };
        let [min_delay, max_delay] = RETRY_DELAYS;
        let mut delays = backoff(min_delay, max_delay);
        loop {
            if let Ok(mut reports) = self.reports.listen().await {
                delays = backoff(min_delay, max_delay);
                while let Some(bytes) = reports.next().await {
                    match Report::decode(&bytes) {
                        Ok(report) => self.receive(board, report),
                        Err(error) => tracing::debug!(%error, "a report cannot be read"),
                    }
                }
            }
            // That the broker is away is in the log and on the board already.
            sleep(delays.next().unwrap_or(max_delay)).await;
        }
    }

    /// Says that this process ends.
    pub async fn farewell(&self) {
        let told = self.reports.tell(self.report(true).encode());
        let _ = timeout(FAREWELL, told).await; // others notice its silence, too
    }

    fn receive(&self, board: &Board, report: Report) {
        if report.process.id != self.identity.id {
            for product in report.products.iter().filter(|product| product.decided_until_ms > 0) {
                self.activity.decided_until(product.product_id, product.decided_until_ms);
            }
        }
        board.receive(report);
    }

    fn report(&self, is_last: bool) -> Report {
        let (products, lanes) = self.activity.take_report();
        Report {
            process: self.identity.clone(),
            sequence: self.sequence.fetch_add(1, Relaxed) + 1,
            is_last,
            database: self.vitals.database(),
            broker: self.vitals.broker(),
            lanes_served: self.activity.lanes_served(),
            dead_letters: self.dead_letters(),
            products,
            lanes,
        }
    }
}
