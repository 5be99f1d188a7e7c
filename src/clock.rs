//! The time and new ids, handed to those that need them. A process uses the [`SystemClock`]; a test or a simulation brings its
//! own. Times that decide come from the database instead.

use jiff::Timestamp;
use uuid::Uuid;

use crate::domain::{
    ids::{CommandId, OrderId},
    time::from_millis,
};

pub trait Clock: Send + Sync {
    /// The time now, in whole milliseconds, which is what databases, messages and ids keep.
    fn now(&self) -> Timestamp;

    /// A new id. Ids of one process ascend strictly.
    fn order_id(&self) -> OrderId;

    /// A new id.
    fn command_id(&self) -> CommandId;
}

/// The system's clock and random source.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        from_millis(Timestamp::now().as_millisecond())
    }

    fn order_id(&self) -> OrderId {
        OrderId::with_checksum(Uuid::now_v7())
    }

    fn command_id(&self) -> CommandId {
        OrderId::from(Uuid::now_v7()).into()
    }
}
