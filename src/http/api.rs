//! What every handler can reach.

use std::sync::Arc;

use axum::extract::FromRef;

use super::health::Probes;
use crate::service::{catalog::CatalogService, ordering::OrderService};

/// The state of the API's handlers.
#[derive(Clone)]
pub struct Api {
    pub catalog: Arc<CatalogService>,
    pub orders: Arc<OrderService>,
    pub probes: Probes,
}

impl FromRef<Api> for Probes {
    fn from_ref(api: &Api) -> Self {
        api.probes.clone()
    }
}
