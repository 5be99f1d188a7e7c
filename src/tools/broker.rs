//! How tools use a broker.

use uuid::Uuid;

use crate::{queue::rabbitmq::RabbitMqSettings, settings::BackendSettings};

/// Of a tool that decides nothing and submits no orders of its own: it is of no database, and dead letters keep the id of theirs.
pub(super) fn settings(backends: &BackendSettings, url: &str) -> RabbitMqSettings {
    RabbitMqSettings {
        url: url.to_owned(),
        lanes: backends.lane_set(),
        database: Uuid::nil(),
        lane_capacity: RabbitMqSettings::LANE_CAPACITY,
        events: false,
        consumer_timeout: RabbitMqSettings::CONSUMER_TIMEOUT,
    }
}
