//! Which lanes the processes of a database use.

use sqlx::{MySql, mysql::MySqlArguments, query::Query};

use super::rows::TextColumn;
use crate::domain::lane_set::LaneSet;

pub(super) fn put(lanes: &LaneSet) -> Query<'_, MySql, MySqlArguments> {
    sqlx::query(
        "INSERT INTO lane_sets (queue_prefix, lanes, used_at) VALUES (?, ?, UTC_TIMESTAMP(3))
         ON DUPLICATE KEY UPDATE used_at = UTC_TIMESTAMP(3)",
    )
    .bind(&lanes.prefix)
    .bind(lanes.mode.to_string())
}

pub(super) const IN_USE: &str = "SELECT queue_prefix, lanes FROM lane_sets
    WHERE used_at > UTC_TIMESTAMP(3) - INTERVAL 2 HOUR ORDER BY queue_prefix, lanes LIMIT 100";

/// `None`: a row of a later release perhaps.
pub(super) fn lane_set((TextColumn(prefix), TextColumn(mode)): (TextColumn, TextColumn)) -> Option<LaneSet> {
    Some(LaneSet { prefix, mode: mode.parse().ok()? })
}
