//! Whether the process runs, and whether what it needs answers.

use std::{future::Future, time::Duration};

use axum::{extract::State, http::StatusCode, response::Response};
use serde::Serialize;
use tokio::time::timeout;

use super::{
    Api,
    envelope::{ApiError, success},
};

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
pub(super) async fn ready(State(api): State<Api>) -> Result<Response, ApiError> {
    let (database, queue) = tokio::join!(ask(api.store.ping()), ask(api.placement.ping()));
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
