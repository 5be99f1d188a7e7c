//! Parameters of statements: lists as JSON, so that a statement has the same text whatever the size of a batch.

use serde::Serialize;

/// A list of numbers and texts.
#[expect(clippy::expect_used, reason = "lists of numbers and texts always serialize")]
pub(super) fn json(list: &impl Serialize) -> String {
    serde_json::to_string(list).expect("a list of numbers and texts")
}
