//! What cannot be decoded.

/// A message that is not what it must be; the text says why.
#[derive(Debug, thiserror::Error)]
#[error("not a message of antre: {0}")]
pub(in crate::queue::rabbitmq) struct Undecodable(pub(super) String);
