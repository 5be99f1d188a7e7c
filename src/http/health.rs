//! Whether the process runs, and whether what it needs answers.

use std::{future::Future, sync::Arc, time::Duration};

use axum::{extract::State, http::StatusCode, response::Response};
use serde::Serialize;
use tokio::time::timeout;

use super::envelope::{ApiError, success};
use crate::{queue::Ping, store::Store};

/// What a process needs to do its work.
#[derive(Clone)]
pub struct Probes {
    /// Its database.
    pub store: Arc<dyn Store>,
    /// Its broker.
    pub queue: Arc<dyn Ping>,
}

/// How long the database and the broker may take to answer.
const PATIENCE: Duration = Duration::from_secs(2);

#[derive(Serialize)]
struct Live {
    live: bool,
}

/// `GET /health/live`
pub(super) async fn live() -> Response {
    success(StatusCode::OK, Live { live: true })
}

/// Who answers.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Readiness {
    database: Answer,
    queue: Answer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    Ok,
    Unavailable,
}

/// `GET /health/ready`
pub(super) async fn ready(State(probes): State<Probes>) -> Result<Response, ApiError> {
    let (database, queue) = tokio::join!(ask(probes.store.ping()), ask(probes.queue.ping()));
    let readiness = Readiness { database, queue };
    if [database, queue].contains(&Answer::Unavailable) {
        return Err(ApiError::not_ready(readiness));
    }
    Ok(success(StatusCode::OK, readiness))
}

async fn ask<E>(answer: impl Future<Output = Result<(), E>>) -> Answer {
    match timeout(PATIENCE, answer).await {
        Ok(Ok(())) => Answer::Ok,
        Ok(Err(_)) | Err(_) => Answer::Unavailable,
    }
}
