//! Whether the process runs, and whether it can do its work.

use std::{sync::Arc, time::Duration};

use axum::{extract::State, http::StatusCode, response::Response};
use serde::Serialize;
use tokio::{
    sync::Mutex,
    time::{Instant, timeout},
};

use super::envelope::{ApiError, success};
use crate::{queue::Ping, store::Store, worker::WorkerHealth};

/// How long the database and the broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);
/// How long an answer is kept, so that a storm of questions is few statements.
const KEPT: Duration = Duration::from_secs(1);

/// What a process needs to do its work.
#[derive(Clone)]
pub struct Probes(Arc<Probing>);

struct Probing {
    store: Arc<dyn Store>,
    queue: Arc<dyn Ping>,
    /// Its worker, if it has one.
    worker: Option<Arc<WorkerHealth>>,
    /// Held while it asks: who comes meanwhile gets the same answer.
    last: Mutex<Option<(Instant, Readiness)>>,
}

impl Probes {
    /// Of this database, this queue, and the process's worker if it has one.
    pub fn new(store: Arc<dyn Store>, queue: Arc<dyn Ping>, worker: Option<Arc<WorkerHealth>>) -> Self {
        Self(Arc::new(Probing { store, queue, worker, last: Mutex::default() }))
    }

    async fn readiness(&self) -> Readiness {
        let Probing { store, queue, worker, last } = &*self.0;
        let mut last = last.lock().await;
        if let Some((asked_at, readiness)) = *last
            && asked_at.elapsed() < KEPT
        {
            return readiness;
        }
        let (database, queue) = tokio::join!(ask(store.ping()), ask(queue.ping()));
        let worker = worker.as_ref().map(|worker| Answer::of(worker.is_well()));
        let readiness = Readiness { database, queue, worker };
        *last = Some((Instant::now(), readiness));
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

/// Who answers, and whether the worker consumes and decides.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Readiness {
    database: Answer,
    queue: Answer,
    #[serde(skip_serializing_if = "Option::is_none")]
    worker: Option<Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ok,
    Unavailable,
}

impl Answer {
    fn of(is_well: bool) -> Self {
        if is_well { Self::Ok } else { Self::Unavailable }
    }
}

/// `GET /health/ready`
pub(super) async fn ready(State(probes): State<Probes>) -> Result<Response, ApiError> {
    let readiness @ Readiness { database, queue, worker } = probes.readiness().await;
    if [Some(database), Some(queue), worker].contains(&Some(Answer::Unavailable)) {
        return Err(ApiError::not_ready(readiness));
    }
    Ok(success(StatusCode::OK, readiness))
}

async fn ask<E>(answer: impl Future<Output = Result<(), E>>) -> Answer {
    Answer::of(matches!(timeout(PATIENCE, answer).await, Ok(Ok(()))))
}
