//! Whether the process runs, and whether it can do its work.

use std::{fmt, sync::Arc, time::Duration};

use axum::{extract::State, http::StatusCode, response::Response};
use serde::Serialize;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::{
    envelope::{ApiError, success},
    readiness::{Answer, Readiness},
};
use crate::{
    monitor::{progress::Progress, standstill::WaitingLane},
    queue::Ping,
    store::Health,
    worker::health::WorkerHealth,
};

/// How long the database and the broker may take to answer.
const CHECK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a result is reused, so that many requests are few statements.
const CACHED_FOR: Duration = Duration::from_secs(1);
/// How many lanes an answer names.
const MAX_LANES: usize = 20;

/// What a process needs to do its work.
#[derive(Clone)]
pub struct Probes(Arc<Inner>);

struct Inner {
    store: Arc<dyn Health>,
    queue: Arc<dyn Ping>,
    worker: Option<Arc<WorkerHealth>>,
    progress: Progress,
    /// Locked during a check: requests that arrive then get the same result.
    cached: Mutex<Option<(Instant, Readiness)>>,
}

impl fmt::Debug for Probes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Probes").finish_non_exhaustive()
    }
}

impl Probes {
    /// `worker`: of this process, if it has one.
    pub fn new(
        store: Arc<dyn Health>,
        queue: Arc<dyn Ping>,
        worker: Option<Arc<WorkerHealth>>,
        progress: Progress,
    ) -> Self {
        Self(Arc::new(Inner { store, queue, worker, progress, cached: Mutex::default() }))
    }

    pub(super) async fn readiness(&self) -> Readiness {
        let Inner { store, queue, worker, progress, cached } = &*self.0;
        let mut cached = cached.lock().await;
        if let Some((checked_at, readiness)) = &*cached
            && checked_at.elapsed() < CACHED_FOR
        {
            return readiness.clone();
        }
        let (database, queue) = tokio::join!(check(store.ping()), check(queue.ping()));
        let standstill = progress.standstill();
        let stands_still = standstill.is_complete;
        let worker = worker.as_ref().map(|worker| Answer::of(worker.is_consuming() && !stands_still));
        let mut readiness = Readiness { database, queue, worker, stands_still, lanes: standstill.lanes };
        if readiness.is_ready() {
            readiness.lanes.retain(WaitingLane::is_stalled);
        }
        readiness.lanes.truncate(MAX_LANES);
        *cached = Some((Instant::now(), readiness.clone()));
        readiness
    }
}

#[derive(Serialize)]
struct Live {
    live: bool,
}

/// `GET /health/live`
pub(super) async fn live() -> Response {
    success(StatusCode::OK, Live { live: true })
}

/// `GET /health/ready`
pub(super) async fn ready(State(probes): State<Probes>) -> Result<Response, ApiError> {
    let readiness = probes.readiness().await;
    if !readiness.is_ready() {
        return Err(ApiError::not_ready(readiness));
    }
    Ok(success(StatusCode::OK, readiness))
}

async fn check<E>(answer: impl Future<Output = Result<(), E>>) -> Answer {
    Answer::of(matches!(timeout(CHECK_TIMEOUT, answer).await, Ok(Ok(()))))
}
