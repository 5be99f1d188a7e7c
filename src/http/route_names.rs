//! The route of a request, for its metrics. The router knows it too, but tells only its handlers.

use std::sync::Arc;

use crate::monitor::metrics::{HttpMetrics, RouteMetrics};

/// The routes of a site with their metrics.
#[derive(Debug)]
pub(super) struct RouteNames {
    routes: Vec<(&'static str, RouteMetrics)>,
    /// Of requests for what is behind no route.
    other: RouteMetrics,
    pub(super) metrics: Arc<HttpMetrics>,
}

impl RouteNames {
    pub(super) fn new(paths: impl Iterator<Item = &'static str>, metrics: Arc<HttpMetrics>) -> Self {
        Self {
            routes: paths.map(|path| (path, metrics.route(Some(path)))).collect(),
            other: metrics.route(None),
            metrics,
        }
    }

    /// The metrics of the route behind a path.
    pub(super) fn of(&self, path: &str) -> &RouteMetrics {
        let route = self.routes.iter().find(|(pattern, _)| matches(pattern, path));
        route.map_or(&self.other, |(_, metrics)| metrics)
    }
}

/// Whether a path is of this pattern, in which `{name}` stands for one segment that is not empty.
fn matches(pattern: &str, path: &str) -> bool {
    let (mut wanted, mut given) = (pattern.split('/'), path.split('/'));
    loop {
        match (wanted.next(), given.next()) {
            (None, None) => return true,
            (Some(name), Some(segment)) if name.starts_with('{') && !segment.is_empty() => {}
            (Some(wanted), Some(given)) if wanted == given => {}
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_stands_for_one_segment() {
        for (pattern, path) in [
            ("/", "/"),
            ("/api/orders", "/api/orders"),
            ("/api/orders/{orderId}", "/api/orders/7"),
            ("/api/orders/{orderId}/payment", "/api/orders/%2F/payment"),
        ] {
            assert!(matches(pattern, path), "{pattern} {path}");
        }
        for (pattern, path) in [
            ("/", ""),
            ("/", "//"),
            ("/api/orders", "/api/orders/"),
            ("/api/orders", "/api"),
            ("/api/orders/{orderId}", "/api/orders/"),
            ("/api/orders/{orderId}", "/api/orders/7/payment"),
            ("/api/orders/{orderId}/payment", "/api/orders/7/cancellation"),
        ] {
            assert!(!matches(pattern, path), "{pattern} {path}");
        }
    }
}
