//! Times, in whole milliseconds.

use jiff::Timestamp;

/// A time from Unix milliseconds. What no calendar can hold (it takes a broken message to get one) becomes the
/// nearest time that it can.
pub(crate) fn from_millis(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(if millis < 0 { Timestamp::MIN } else { Timestamp::MAX })
}
