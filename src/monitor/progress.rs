//! Whether orders get their verdicts, as readiness asks it.

use std::sync::Arc;

use super::{activity::Activity, board::Board, standstill::Standstill};

/// What a process knows of the lanes: a worker of those that it serves, an API of all.
#[derive(Clone)]
pub struct Progress {
    activity: Arc<Activity>,
    board: Option<Arc<Board>>,
}

impl Progress {
    /// `board`: of an API.
    pub fn new(activity: Arc<Activity>, board: Option<Arc<Board>>) -> Self {
        Self { activity, board }
    }

    /// The lanes in which nothing is decided.
    pub fn standstill(&self) -> Standstill {
        let mut own = self.activity.standstill();
        let Some(board) = &self.board else { return own };
        let all = board.standstill();
        own.lanes.retain(|lane| all.lanes.iter().all(|one| one.product_id != lane.product_id));
        let is_complete = own.is_complete || all.is_complete;
        let mut lanes = [all.lanes, own.lanes].concat();
        lanes.sort_by_key(|lane| (std::cmp::Reverse(lane.undecided_ms), lane.product_id));
        Standstill { is_complete, lanes }
    }
}
