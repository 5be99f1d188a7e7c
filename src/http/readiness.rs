//! Whether the process can do its work, as `GET /health/ready` answers it.

use serde::Serialize;

use crate::monitor::standstill::WaitingLane;

/// What works.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Readiness {
    pub(super) database: Answer,
    pub(super) queue: Answer,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) worker: Option<Answer>,
    /// Whether orders get verdicts: no worker decides anything though commands wait.
    #[serde(skip)]
    pub(super) stands_still: bool,
    /// The lanes that stand still, the longest first; if something is unavailable, also those that wait for a moment.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) lanes: Vec<WaitingLane>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Ok,
    Unavailable,
}

impl Readiness {
    /// Each part of the process, with its answer.
    pub(super) fn parts(&self) -> impl Iterator<Item = (&'static str, Answer)> + use<> {
        let parts = [("database", Some(self.database)), ("queue", Some(self.queue)), ("worker", self.worker)];
        parts.into_iter().filter_map(|(part, answer)| Some((part, answer?)))
    }

    pub(super) fn is_ready(&self) -> bool {
        !self.stands_still
            && ![Some(self.database), Some(self.queue), self.worker].contains(&Some(Answer::Unavailable))
    }
}

impl Answer {
    pub(super) fn of(is_well: bool) -> Self {
        if is_well { Self::Ok } else { Self::Unavailable }
    }
}
