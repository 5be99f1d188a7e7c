//! The words of an order, which everything else uses.

use std::{fmt, str::FromStr, sync::Arc};

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::{
    command::{Change, ReplyMode},
    inventory::{BooksDoNotBalance, Inventory},
    product::ProductId,
};

/// The time now, in whole milliseconds, which is what databases, messages and ids keep.
pub fn now() -> Timestamp {
    from_millis(Timestamp::now().as_millisecond())
}

/// A time from Unix milliseconds. What no calendar can hold (it takes a broken message to get one) becomes the
/// nearest time that it can.
pub(crate) fn from_millis(millis: i64) -> Timestamp {
    Timestamp::from_millisecond(millis).unwrap_or(if millis < 0 { Timestamp::MIN } else { Timestamp::MAX })
}

/// How far the clock of another API may be ahead of this process's.
const MAX_CLOCK_DIFFERENCE: SignedDuration = SignedDuration::from_secs(10);

/// An order's name from birth: a UUIDv7 (RFC 9562), so ids sort by creation time.
///
/// The last two bytes are a checksum over the others (the RFC leaves what stands there to the maker). It tells
/// an id that antre gave out from any other UUID, without keeping a list: see [`OrderId::was_given_out`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct OrderId(Uuid);

impl OrderId {
    /// A new id. Ids of one process ascend strictly.
    pub fn mint() -> Self {
        let mut bytes = Uuid::now_v7().into_bytes();
        let checksum = Self::checksum(&bytes);
        bytes[14..].copy_from_slice(&checksum);
        Self(Uuid::from_bytes(bytes))
    }

    /// Whether [`OrderId::mint`] made it. Another UUID passes by accident once in 65,536 times.
    pub fn was_given_out(self) -> bool {
        self.0.get_version_num() == 7 && self.0.as_bytes()[14..] == Self::checksum(self.0.as_bytes())
    }

    /// Whether it was made later than now, by more than clocks differ: no process of ours made it.
    pub fn is_from_the_future(self) -> bool {
        self.created_at() > now() + MAX_CLOCK_DIFFERENCE
    }

    /// When it was made, in whole milliseconds. An id that is no UUIDv7 is as old as time.
    pub fn created_at(self) -> Timestamp {
        let Some(since_1970) = self.0.get_timestamp() else { return Timestamp::UNIX_EPOCH };
        let (seconds, nanos) = since_1970.to_unix();
        from_millis(
            i64::try_from(seconds).unwrap_or(i64::MAX).saturating_mul(1000) + i64::from(nanos / 1_000_000),
        )
    }

    /// The UUID.
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

/// How many pieces an order asks for: 1 to [`Quantity::MAX`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "u32")]
pub struct Quantity(u32);

impl Quantity {
    /// 2^31 − 1, so that every client's and database's 32-bit integer holds it.
    pub const MAX: u32 = i32::MAX as u32;
    /// What a quantity looks like, for error messages.
    pub const EXPECTED: &str = "an integer from 1 to 2147483647";

    /// `None` when the number is out of range.
    pub const fn new(pieces: u32) -> Option<Self> {
        if pieces >= 1 && pieces <= Self::MAX { Some(Self(pieces)) } else { None }
    }

    /// The number of pieces.
    pub const fn get(self) -> u32 {
        self.0
    }
}

impl TryFrom<u32> for Quantity {
    type Error = String;

    fn try_from(pieces: u32) -> Result<Self, String> {
        Self::new(pieces).ok_or_else(|| format!("a quantity is {}", Self::EXPECTED))
    }
}

/// What a client calls its order, so that it can ask again without ordering twice: 1 to
/// [`IdempotencyKey::MAX_LENGTH`] visible ASCII characters.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub struct IdempotencyKey(Arc<str>);

impl IdempotencyKey {
    /// The most characters.
    pub const MAX_LENGTH: usize = 255;
    /// What a key looks like, for error messages.
    pub const EXPECTED: &str = "1 to 255 visible ASCII characters, with or without double quotes around them";

    /// The key.
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

/// An order on its way to its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewOrder {
    /// Its name, which also says when it was created.
    pub id: OrderId,
    /// What is ordered.
    pub product_id: ProductId,
    /// How many pieces.
    pub total: Quantity,
    /// Whether the client waits for the verdict.
    pub reply: ReplyMode,
    /// What the client calls it.
    pub key: Option<IdempotencyKey>,
}

/// What the lane decided on one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Its pieces are reserved, committed in the database, until this time.
    Reserved {
        /// When the reservation ends unless it is paid.
        expires_at: Timestamp,
    },
    /// Nothing was reserved.
    Rejected(Rejection),
    /// Nothing was reserved, because an order of this idempotency key, product and total is on record: this one.
    AlreadyPlaced(Order),
    /// The answer to a change: how far the order has come now, by this change or by an earlier one.
    Status(OrderStatus),
    /// The answer to a change of an order that is not on record.
    OrderNotFound,
    /// It cannot be decided, because what stands in the database cannot be. The worker's log says why.
    Undecidable,
}

/// Why nothing was reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// Fewer pieces were available than the order asks for. Never a partial fill.
    InsufficientStock {
        /// Pieces that were available when it was decided.
        available: u32,
    },
    /// There is no such product.
    ProductNotFound,
    /// The idempotency key belongs to an order of another product or total.
    KeyReused,
}

impl Rejection {
    /// The stable word for it, in answers and in messages.
    pub const fn reason(self) -> &'static str {
        match self {
            Self::InsufficientStock { .. } => "insufficient_stock",
            Self::ProductNotFound => "product_not_found",
            Self::KeyReused => "idempotency_key_reused",
        }
    }

    /// How many pieces were available, when there were too few.
    pub fn available(self) -> Option<u32> {
        match self {
            Self::InsufficientStock { available } => Some(available),
            Self::ProductNotFound | Self::KeyReused => None,
        }
    }
}

/// How far an order has come. `pending`, the stage before its verdict, is not on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OrderStatus {
    /// Its pieces are set aside for the buyer.
    Reserved,
    /// Paid; the pieces left the stock.
    Paid,
    /// The buyer gave it up; its pieces are available again.
    Cancelled,
    /// Not paid in time; its pieces are available again.
    Expired,
    /// Nothing was ever reserved.
    Rejected,
}

impl OrderStatus {
    /// All of them, in the order of a life.
    pub const ALL: [Self; 5] = [Self::Reserved, Self::Paid, Self::Cancelled, Self::Expired, Self::Rejected];

    /// The word for it, in answers and in the database.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Reserved => "reserved",
            Self::Paid => "paid",
            Self::Cancelled => "cancelled",
            Self::Expired => "expired",
            Self::Rejected => "rejected",
        }
    }

    /// The status of that word.
    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|status| status.as_str() == word)
    }
}

/// An order on record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Order {
    /// Its name, which also says when it was created.
    pub id: OrderId,
    /// What was ordered.
    pub product_id: ProductId,
    /// How many pieces.
    pub total: Quantity,
    /// How far it has come, with what belongs to that stage.
    pub state: OrderState,
}

/// How far an order on record has come, with what belongs to that stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OrderState {
    /// Its pieces were reserved once.
    Accepted {
        /// What became of it since; never [`OrderStatus::Rejected`].
        status: OrderStatus,
        /// When the reservation ends, or would have ended.
        expires_at: Timestamp,
    },
    /// Rejected after its buyer had stopped waiting.
    Rejected(Rejection),
}

impl Order {
    /// How far it has come.
    pub fn status(&self) -> OrderStatus {
        match self.state {
            OrderState::Accepted { status, .. } => status,
            OrderState::Rejected(_) => OrderStatus::Rejected,
        }
    }

    /// When its reservation ends, if it was ever reserved.
    pub fn expires_at(&self) -> Option<Timestamp> {
        match self.state {
            OrderState::Accepted { expires_at, .. } => Some(expires_at),
            OrderState::Rejected(_) => None,
        }
    }

    /// Why it was rejected, if it was.
    pub fn rejection(&self) -> Option<Rejection> {
        match self.state {
            OrderState::Accepted { .. } => None,
            OrderState::Rejected(rejection) => Some(rejection),
        }
    }

    /// Whether it is of this product and total: what an idempotency key stands for.
    pub fn is_for(&self, product_id: ProductId, total: Quantity) -> bool {
        (self.product_id, self.total) == (product_id, total)
    }

    /// The same order at another stage. One that was rejected stays so.
    pub fn with_status(self, status: OrderStatus) -> Self {
        let state = match self.state {
            OrderState::Accepted { expires_at, .. } => OrderState::Accepted { status, expires_at },
            rejected => rejected,
        };
        Self { state, ..self }
    }

    /// Takes a reservation further, and its pieces with it. All other stages are final: nothing happens, as with an
    /// expiry before its time. Whether anything changed is what it returns.
    pub fn change(
        &mut self,
        change: Change,
        inventory: &mut Inventory,
        at: Timestamp,
    ) -> Result<bool, BooksDoNotBalance> {
        let OrderState::Accepted { status: OrderStatus::Reserved, expires_at } = self.state else {
            return Ok(false);
        };
        match change {
            Change::Pay => inventory.pay(self.total)?,
            Change::Expire if expires_at > at => return Ok(false),
            Change::Cancel | Change::Expire => inventory.release(self.total)?,
        }
        *self = self.with_status(change.leads_to());
        Ok(true)
    }

    /// The verdict that put it on record: what a redelivered order is answered with.
    pub fn verdict(&self) -> Verdict {
        match self.state {
            OrderState::Accepted { expires_at, .. } => Verdict::Reserved { expires_at },
            OrderState::Rejected(rejection) => Verdict::Rejected(rejection),
        }
    }
}

/// The order as it goes on record with this verdict; `None` when it does not.
///
/// A reservation always does. A rejection does only when nobody waits for it; any other is sent and forgotten, so that a
/// sold-out storm writes nothing.
pub fn on_record(order: &NewOrder, verdict: Verdict) -> Option<Order> {
    let state = match verdict {
        Verdict::Reserved { expires_at } => {
            OrderState::Accepted { status: OrderStatus::Reserved, expires_at }
        }
        Verdict::Rejected(rejection @ (Rejection::InsufficientStock { .. } | Rejection::KeyReused))
            if order.reply == ReplyMode::Detached =>
        {
            OrderState::Rejected(rejection)
        }
        _ => return None,
    };
    Some(Order { id: order.id, product_id: order.product_id, total: order.total, state })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_minted_id_is_a_uuid_v7_that_ascends_and_is_recognised() {
        let mut last = OrderId::mint();
        for _ in 0..10_000 {
            let id = OrderId::mint();
            assert!(id > last, "{id} after {last}");
            assert!(id.was_given_out());
            last = id;
        }
        let age = now().as_millisecond() - last.created_at().as_millisecond();
        assert!((0..10_000).contains(&age), "{age} ms");
        let strangers = (0..1000).filter(|_| OrderId(Uuid::now_v7()).was_given_out()).count();
        assert!(strangers <= 3, "{strangers} of 1,000 strangers recognised");
        assert!(!OrderId(Uuid::nil()).was_given_out());
    }

    #[test]
    fn an_id_that_nobody_can_have_made_yet_is_from_the_future() {
        let of = |ahead_ms: i64| {
            let mut bytes = OrderId::mint().uuid().into_bytes();
            bytes[..6].copy_from_slice(&(now().as_millisecond() + ahead_ms).to_be_bytes()[2..]);
            OrderId(Uuid::from_bytes(bytes))
        };
        assert!(![of(-1_000), of(0), of(5_000)].into_iter().any(OrderId::is_from_the_future));
        assert!(
            [of(15_000), of(3_600_000), OrderId(Uuid::max())]
                .into_iter()
                .all(|id| { id.is_from_the_future() || id.created_at() == Timestamp::UNIX_EPOCH })
        );
    }

    #[test]
    fn an_id_has_one_spelling() {
        let id = OrderId::mint();
        assert_eq!(id.to_string().parse::<OrderId>().unwrap(), id);
        for bad in
            ["", "17", "urn:uuid:0193ab5e-0000-7000-8000-000000000000", &id.uuid().simple().to_string()]
        {
            assert!(bad.parse::<OrderId>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_rejection_is_stored_exactly_when_nobody_waits_for_it() {
        let rejected = Verdict::Rejected(Rejection::InsufficientStock { available: 3 });
        let reserved = Verdict::Reserved { expires_at: now() };
        let (product_id, total) = (ProductId::new(1).unwrap(), Quantity::new(4).unwrap());
        let order = |reply| NewOrder { id: OrderId::mint(), product_id, total, reply, key: None };
        // No clock plays a part: a deadline that is long over changes nothing.
        for answer_by in [from_millis(0), now(), Timestamp::MAX] {
            let waited_for = order(ReplyMode::Until(answer_by));
            assert_eq!(on_record(&waited_for, rejected), None);
            assert_eq!(on_record(&waited_for, reserved).unwrap().verdict(), reserved);
        }
        let detached = order(ReplyMode::Detached);
        for verdict in [rejected, reserved] {
            assert_eq!(on_record(&detached, verdict).unwrap().verdict(), verdict);
        }
        let not_found = Verdict::Rejected(Rejection::ProductNotFound);
        assert_eq!(on_record(&detached, not_found), None, "it has no product to be stored with");
    }
}
