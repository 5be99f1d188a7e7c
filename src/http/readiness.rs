//! Whether the process can do its work, as `GET /health/ready` answers it.

use serde::Serialize;

/// What works.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Readiness {
    pub(super) database: Answer,
    pub(super) queue: Answer,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) worker: Option<Answer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Ok,
    Unavailable,
}

impl Readiness {
    /// Each part of the process, with its answer.
    pub(super) fn parts(self) -> impl Iterator<Item = (&'static str, Answer)> {
        let parts = [("database", Some(self.database)), ("queue", Some(self.queue)), ("worker", self.worker)];
        parts.into_iter().filter_map(|(part, answer)| Some((part, answer?)))
    }

    pub(super) fn is_ready(self) -> bool {
        ![Some(self.database), Some(self.queue), self.worker].contains(&Some(Answer::Unavailable))
    }
}

impl Answer {
    pub(super) fn of(is_well: bool) -> Self {
        if is_well { Self::Ok } else { Self::Unavailable }
    }
}
