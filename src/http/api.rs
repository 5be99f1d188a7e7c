//! What every handler can reach.

use std::{ops::Deref, sync::Arc};

use axum::extract::FromRef;

use super::{dashboard::viewers::Dashboard, health::Probes, metrics::Exposition};
use crate::{
    monitor::metrics::Metrics,
    service::{catalog::CatalogService, ordering::OrderService},
};

/// The state of the API's handlers. Every request clones it several times, so it is one [`Arc`].
#[derive(Clone)]
pub struct Api(Arc<Services>);

pub struct Services {
    pub catalog: CatalogService,
    pub orders: OrderService,
    pub probes: Probes,
    pub metrics: Arc<Metrics>,
    pub dashboard: Dashboard,
}

impl Api {
    pub fn new(
        catalog: CatalogService,
        orders: OrderService,
        probes: Probes,
        metrics: Arc<Metrics>,
        dashboard: Dashboard,
    ) -> Self {
        Self(Arc::new(Services { catalog, orders, probes, metrics, dashboard }))
    }
}

impl Deref for Api {
    type Target = Services;

    fn deref(&self) -> &Services {
        &self.0
    }
}

impl FromRef<Api> for Probes {
    fn from_ref(api: &Api) -> Self {
        api.probes.clone()
    }
}

impl FromRef<Api> for Exposition {
    fn from_ref(api: &Api) -> Self {
        Self { metrics: api.metrics.clone(), probes: api.probes.clone() }
    }
}
