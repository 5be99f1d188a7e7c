//! `GET /metrics`, for Prometheus.

use std::sync::Arc;

use axum::{
    extract::{FromRef, State},
    http::header,
    response::{IntoResponse, Response},
};

use super::{health::Probes, readiness::Answer};
use crate::monitor::metrics::{CONTENT_TYPE, Metrics};

/// What a process shows of its metrics.
#[derive(Clone, Debug)]
pub(super) struct Exposition {
    pub(super) metrics: Arc<Metrics>,
    pub(super) probes: Probes,
}

impl FromRef<Exposition> for Probes {
    fn from_ref(exposition: &Exposition) -> Self {
        exposition.probes.clone()
    }
}

/// `GET /metrics`
pub(super) async fn show(State(Exposition { metrics, probes }): State<Exposition>) -> Response {
    // Asked for this answer, so that it is true even when nobody else asks.
    let readiness = probes.readiness().await;
    for (part, answer) in readiness.parts() {
        metrics.set_ready(part, answer == Answer::Ok);
    }
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], metrics.render()).into_response()
}
