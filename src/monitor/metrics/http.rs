//! What the HTTP server measures. Series appear with their first request, so that a page of all routes, methods and statuses
//! stays short.

use std::{sync::OnceLock, time::Duration};

use prometheus::{Error, Histogram, HistogramVec, IntCounter, IntCounterVec, IntGauge};

use super::{
    instruments::{Counters, Label, Maker},
    table,
};

/// What is behind no route.
const NO_ROUTE: &str = "other";

const METHODS: [&str; 6] = ["GET", "POST", "PUT", "HEAD", "OPTIONS", "other"];
const STATUSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];

#[derive(Debug)]
pub struct HttpMetrics {
    requests: IntCounterVec,
    duration: HistogramVec,
    errors: IntCounterVec,
    connections: IntGauge,
    connections_max: IntGauge,
    closed: Counters<Closed>,
    accept_failures: IntCounter,
}

/// Why the server closed a connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closed {
    /// Its client took too long.
    Slow,
    /// To make room for others.
    Room,
}

/// The instruments of one route.
#[derive(Debug)]
pub struct RouteMetrics {
    route: &'static str,
    duration: Histogram,
    requests: [[OnceLock<IntCounter>; STATUSES.len()]; METHODS.len()],
}

impl HttpMetrics {
    pub(super) fn new(maker: &Maker) -> Result<Self, Error> {
        Ok(Self {
            requests: maker.counter_family(&table::HTTP_REQUESTS)?,
            duration: maker.histogram_family(&table::HTTP_REQUEST_DURATION)?,
            errors: maker.counter_family(&table::HTTP_ERRORS)?,
            connections: maker.gauge(&table::HTTP_CONNECTIONS)?,
            connections_max: maker.gauge(&table::HTTP_CONNECTIONS_MAX)?,
            closed: maker.counters(&table::HTTP_CONNECTIONS_CLOSED)?,
            accept_failures: maker.counter(&table::HTTP_ACCEPT_FAILURES)?,
        })
    }

    /// The instruments of a route; without one, those of what is behind no route.
    pub fn route(&self, route: Option<&'static str>) -> RouteMetrics {
        let route = route.unwrap_or(NO_ROUTE);
        RouteMetrics {
            route,
            duration: self.duration.with_label_values(&[route]),
            requests: Default::default(),
        }
    }

    /// A request was answered, after this time. `error`: the reason of an error.
    pub fn answered(
        &self,
        route: &RouteMetrics,
        method: &str,
        status: u16,
        elapsed: Duration,
        error: Option<&'static str>,
    ) {
        route.duration.observe(elapsed.as_secs_f64());
        let method = METHODS.iter().position(|known| *known == method).unwrap_or(METHODS.len() - 1);
        let status = usize::from((status / 100).clamp(1, 5) - 1);
        let counter = || self.requests.with_label_values(&[route.route, METHODS[method], STATUSES[status]]);
        route.requests[method][status].get_or_init(counter).inc();
        if let Some(reason) = error {
            self.errors.with_label_values(&[reason]).inc();
        }
    }

    pub fn set_connections(&self, count: usize) {
        self.connections.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub fn set_max_connections(&self, count: usize) {
        self.connections_max.set(i64::try_from(count).unwrap_or(i64::MAX));
    }

    pub fn closed(&self, cause: Closed, count: usize) {
        self.closed.add(cause, count as u64);
    }

    pub fn accept_failed(&self) {
        self.accept_failures.inc();
    }
}

impl Label for Closed {
    fn all() -> Vec<(Self, Vec<&'static str>)> {
        vec![(Self::Slow, vec!["slow"]), (Self::Room, vec!["room"])]
    }
}
