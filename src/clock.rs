//! The system's clock and random source: nothing else reads them. The times that decide come from the database.

use jiff::{SignedDuration, Timestamp};
use uuid::Uuid;

use crate::domain::{
    ids::{CommandId, OrderId},
    time::from_millis,
};

/// The time now, in whole milliseconds, which is what databases, messages and ids keep.
pub fn now() -> Timestamp {
    from_millis(Timestamp::now().as_millisecond())
}

/// How far the clock of another API may be ahead of this process's.
const MAX_CLOCK_DIFFERENCE: SignedDuration = SignedDuration::from_secs(10);

impl OrderId {
    /// A new id. Ids of one process ascend strictly.
    pub fn generate() -> Self {
        Self::with_checksum(Uuid::now_v7())
    }

    /// Whether it was made later than now, by more than clocks differ: no process of ours made it.
    pub fn is_from_the_future(self) -> bool {
        self.created_at() > now() + MAX_CLOCK_DIFFERENCE
    }
}

impl CommandId {
    /// A new id.
    pub fn generate() -> Self {
        OrderId::from(Uuid::now_v7()).into()
    }
}
