//! Ids, and idempotency keys.

use std::{fmt, str::FromStr, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::domain::time::from_millis;

/// The id of an order: a UUIDv7 (RFC 9562), so ids sort by creation time.
///
/// The last two bytes are a checksum over the others (the RFC leaves their content to the generator). It tells an id that
/// antre generated from any other UUID without a list of ids: see [`OrderId::has_valid_checksum`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OrderId(Uuid);

/// How far the clock of another API may be ahead of this process's.
const MAX_CLOCK_DIFFERENCE: SignedDuration = SignedDuration::from_secs(10);

impl OrderId {
    /// The id with these first 14 bytes: the last two become its checksum.
    pub fn with_checksum(uuid: Uuid) -> Self {
        let mut bytes = uuid.into_bytes();
        let checksum = Self::checksum(&bytes);
        bytes[14..].copy_from_slice(&checksum);
        Self(Uuid::from_bytes(bytes))
    }

    /// Whether antre generated it. Another UUID passes by accident once in 65,536 times.
    pub fn has_valid_checksum(self) -> bool {
        self.0.get_version_num() == 7 && self.0.as_bytes()[14..] == Self::checksum(self.0.as_bytes())
    }

    /// When the id was generated, in whole milliseconds. The epoch, if the id is not a UUIDv7.
    pub fn created_at(self) -> Timestamp {
        let Some(since_1970) = self.0.get_timestamp() else { return Timestamp::UNIX_EPOCH };
        let (seconds, nanos) = since_1970.to_unix();
        from_millis(
            i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000) + i64::from(nanos / 1_000_000),
        )
    }

    /// The least of all ids that are generated at `time` or later. Its checksum is wrong, so no order has it.
    pub fn first_at(time: Timestamp) -> Self {
        let millis = time.as_millisecond().clamp(0, (1 << 48) - 1).cast_unsigned();
        // Version 7, and the variant of RFC 9562.
        Self(Uuid::from_u128((u128::from(millis) << 80) | (0x7 << 76) | (0b10 << 62)))
    }

    /// Whether it was generated later than `now`, by more than clocks differ: no process of antre did that.
    pub fn is_from_the_future(self, now: Timestamp) -> bool {
        self.created_at() > now + MAX_CLOCK_DIFFERENCE
    }

    /// An id that sorts before all that are generated from this time on. It is no order's.
    pub fn before(time: Timestamp) -> Self {
        let millis = u64::try_from(time.as_millisecond()).unwrap_or_default();
        Self(uuid::Builder::from_unix_timestamp_millis(millis, &[0; 10]).into_uuid())
    }

    pub fn uuid(self) -> Uuid {
        self.0
    }

    /// FNV-1a over the first 14 bytes, folded to 16 bits. Part of the format: ids outlive a release.
    fn checksum(bytes: &[u8; 16]) -> [u8; 2] {
        let hash = bytes[..14]
            .iter()
            .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
        let [a, b, c, d] = hash.to_be_bytes();
        [a ^ c, b ^ d]
    }
}

impl From<Uuid> for OrderId {
    fn from(uuid: Uuid) -> Self {
        Self(uuid)
    }
}

impl fmt::Display for OrderId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for OrderId {
    type Err = uuid::Error;

    /// Only the hyphenated form: an id has one spelling in URLs.
    fn from_str(text: &str) -> Result<Self, uuid::Error> {
        uuid::fmt::Hyphenated::from_str(text).map(|uuid| Self(uuid.into_uuid()))
    }
}

/// A client's own name for an order, so that it can repeat a request without ordering twice: 1 to
/// [`IdempotencyKey::MAX_LENGTH`] visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// In characters.
    pub const MAX_LENGTH: usize = 255;
    /// What a key looks like, for error messages.
    pub const EXPECTED: &str = "1 to 255 visible ASCII characters, with or without double quotes around them";

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for IdempotencyKey {
    type Error = String;

    fn try_from(key: String) -> Result<Self, String> {
        if (1..=Self::MAX_LENGTH).contains(&key.len()) && key.bytes().all(|byte| byte.is_ascii_graphic()) {
            Ok(Self(key.into()))
        } else {
            Err(format!("an idempotency key is {}", Self::EXPECTED))
        }
    }
}

/// The id of one command: for a new order the order's own id, for a change a new UUID with each request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CommandId(Uuid);

impl CommandId {
    /// The id of the order, if the command places one.
    pub fn as_order(self) -> OrderId {
        self.0.into()
    }
}

impl From<OrderId> for CommandId {
    fn from(id: OrderId) -> Self {
        Self(id.uuid())
    }
}

impl fmt::Display for CommandId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A product's number, from 1 to [`ProductId::MAX`]. The database assigns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u64")]
pub struct ProductId(u64);

impl ProductId {
    /// 2^53 − 1: the largest integer that every JSON client reads exactly (RFC 8259, section 6).
    pub const MAX: u64 = (1 << 53) - 1;
    /// What a product id looks like, for error messages.
    pub const EXPECTED: &str = "an integer from 1 to 9007199254740991";

    /// `None` when the number is out of range.
    pub const fn new(number: u64) -> Option<Self> {
        if number >= 1 && number <= Self::MAX { Some(Self(number)) } else { None }
    }

    pub const fn get(self) -> u64 {
        self.0
    }
}

impl fmt::Display for ProductId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The text or number is not a product id; the message says what one looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("a product id is {}", ProductId::EXPECTED)]
pub struct InvalidProductId;

impl TryFrom<u64> for ProductId {
    type Error = InvalidProductId;

    fn try_from(number: u64) -> Result<Self, InvalidProductId> {
        Self::new(number).ok_or(InvalidProductId)
    }
}

impl FromStr for ProductId {
    type Err = InvalidProductId;

    /// Decimal digits only: no sign, no blanks, no zeros in front. An id has one spelling in URLs.
    fn from_str(text: &str) -> Result<Self, InvalidProductId> {
        if text.starts_with('0') || !text.bytes().all(|byte| byte.is_ascii_digit()) {
            return Err(InvalidProductId);
        }
        text.parse().ok().and_then(Self::new).ok_or(InvalidProductId)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::{Clock, SystemClock};

    #[test]
    fn the_first_id_of_a_time_parts_earlier_ids_from_later_ones() {
        let id = |ms: i64| OrderId::first_at(from_millis(ms));
        let generated = OrderId::with_checksum(Uuid::now_v7());
        let ms = generated.created_at().as_millisecond();
        assert_eq!(id(ms).created_at(), generated.created_at());
        assert!(id(ms) < generated && generated < id(ms + 1));
        assert!(!id(ms).has_valid_checksum());
        assert_eq!(id(-1), id(0));
    }

    #[test]
    fn a_minted_id_is_a_uuid_v7_that_ascends_and_is_recognised() {
        let mut last = SystemClock.order_id();
        for _ in 0..10_000 {
            let id = SystemClock.order_id();
            assert!(id > last, "{id} after {last}");
            assert!(id.has_valid_checksum());
            last = id;
        }
        let age = SystemClock.now().as_millisecond() - last.created_at().as_millisecond();
        assert!((0..10_000).contains(&age), "{age} ms");
        let strangers = (0..1000).filter(|_| OrderId(Uuid::now_v7()).has_valid_checksum()).count();
        assert!(strangers <= 3, "{strangers} of 1,000 strangers recognised");
        assert!(!OrderId(Uuid::nil()).has_valid_checksum());
    }

    #[test]
    fn an_id_is_from_the_future_when_no_clock_can_be_so_far_ahead() {
        let now = SystemClock.now();
        let is_from_the_future = |ahead_ms: i64| {
            let mut bytes = SystemClock.order_id().uuid().into_bytes();
            bytes[..6].copy_from_slice(&(now.as_millisecond() + ahead_ms).to_be_bytes()[2..]);
            OrderId(Uuid::from_bytes(bytes)).is_from_the_future(now)
        };
        assert_eq!([-1_000, 0, 10_000].map(is_from_the_future), [false; 3]);
        assert_eq!([10_001, 15_000, 3_600_000].map(is_from_the_future), [true; 3]);
        assert!(!OrderId(Uuid::max()).is_from_the_future(now), "it is no UUIDv7: as old as time");
    }

    #[test]
    fn an_id_has_one_spelling() {
        let id = SystemClock.order_id();
        assert_eq!(id.to_string().parse::<OrderId>().unwrap(), id);
        for bad in
            ["", "17", "urn:uuid:0193ab5e-0000-7000-8000-000000000000", &id.uuid().simple().to_string()]
        {
            assert!(bad.parse::<OrderId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_product_id_is_digits_in_range() {
        assert_eq!("17".parse(), Ok(ProductId(17)));
        assert_eq!("9007199254740991".parse(), Ok(ProductId(ProductId::MAX)));
        for bad in [
            "",
            "0",
            "017",
            "-1",
            "+1",
            " 1",
            "1.0",
            "1e3",
            "abc",
            "9007199254740992",
            "99999999999999999999",
        ] {
            assert_eq!(bad.parse::<ProductId>(), Err(InvalidProductId), "{bad:?}");
        }
    }
}
