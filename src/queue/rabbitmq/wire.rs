//! What travels through the broker: JSON, so that a person can read it in the broker's own pages and a worker in
//! another language is possible. `ARCHITECTURE.md` shows them all.

use std::{
    borrow::Cow,
    collections::{BTreeMap, HashMap},
    fmt,
    marker::PhantomData,
    str::FromStr,
    sync::Arc,
};

use jiff::Timestamp;
use lapin::BasicProperties;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, IgnoredAny, MapAccess, SeqAccess, Visitor},
};

use crate::{
    domain::time::from_millis,
    domain::{
        command::{ChangeOrder, Command, NewOrder, ReplyMode},
        event::Event,
        ids::{CommandId, IdempotencyKey, OrderId, ProductId},
        order::{Change, Order, OrderState, OrderStatus, Quantity},
        origin::{Origin, RequestId, TraceContext},
        rejection::{Rejection, RejectionReason},
        verdict::Verdict,
    },
    queue::{Outcome, Refusal},
};

/// The `type` property of a message to a lane.
pub(super) const ORDERS_V1: &str = "antre.orders.v1";

/// The `type` property of a message to an API.
pub(super) const VERDICTS_V1: &str = "antre.verdicts.v1";

/// The `type` property of a message that tells what became of orders.
pub(super) const EVENTS_V1: &str = "antre.events.v1";

/// The `type` property of a notification of a new product.
pub(super) const PRODUCT_V1: &str = "antre.product.v1";

/// Of a message without content that a worker sends through a lane to learn whether it is empty.
pub(super) const EMPTY_V1: &str = "antre.empty.v1";

/// The header of messages to lanes with the installation id of their database.
pub(super) const DATABASE_HEADER: &str = "antre-database";

/// The properties of every message of this kind.
pub(super) fn properties(kind: &str) -> BasicProperties {
    BasicProperties::default().with_content_type("application/json".into()).with_type(kind.into())
}

/// The `type` property.
pub(super) fn kind_of(properties: &BasicProperties) -> Option<&str> {
    properties.kind().as_ref().map(|kind| kind.as_str())
}

/// A message that is not what it must be; the text says why.
#[derive(Debug, thiserror::Error)]
#[error("not a message of antre: {0}")]
pub(super) struct Undecodable(String);

/// `antre.orders.v1`: commands of one lane, in the order of their arrival.
#[derive(Serialize, Deserialize)]
struct Orders<O> {
    orders: Vec<O>,
}

/// A new order, or a change of a stored one: then it names the `change` and the `order_id`.
#[derive(Serialize)]
struct CommandFields<'a> {
    id: CommandId,
    product_id: ProductId,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a IdempotencyKey>,
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<Change>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order_id: Option<OrderId>,
    /// Of a detached one, when it was created: earlier releases take that for detached.
    #[serde(with = "jiff::fmt::serde::timestamp::millisecond::required")]
    answer_by: Timestamp,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    detached: bool,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    request_id: Option<&'a RequestId>,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "as_text")]
    traceparent: Option<&'a TraceContext>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tracestate: Option<&'a str>,
}

fn as_text<T: fmt::Display, S: Serializer>(value: &Option<&T>, serializer: S) -> Result<S::Ok, S::Error> {
    match value {
        Some(value) => serializer.collect_str(value),
        None => serializer.serialize_none(),
    }
}

/// The same, as it arrives.
#[derive(Deserialize)]
struct ReceivedCommand {
    id: CommandId,
    product_id: ProductId,
    total: Option<Quantity>,
    idempotency_key: Option<IdempotencyKey>,
    change: Option<Change>,
    order_id: Option<OrderId>,
    #[serde(with = "jiff::fmt::serde::timestamp::millisecond::required")]
    answer_by: Timestamp,
    #[serde(default)]
    detached: bool,
    #[serde(default)]
    request_id: ForLogs<RequestId>,
    #[serde(default)]
    traceparent: ForLogs<TraceContext>,
    #[serde(default)]
    tracestate: ForLogs<String>,
}

/// A text that only logs and traces need. One that is not what it should be is left out: no order is lost over it.
struct ForLogs<T>(Option<T>);

impl<T> Default for ForLogs<T> {
    fn default() -> Self {
        Self(None)
    }
}

impl<'de, T: FromStr> Deserialize<'de> for ForLogs<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(ForLogsVisitor(PhantomData))
    }
}

struct ForLogsVisitor<T>(PhantomData<T>);

impl<'de, T: FromStr> Visitor<'de> for ForLogsVisitor<T> {
    type Value = ForLogs<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_str<E>(self, text: &str) -> Result<Self::Value, E> {
        Ok(ForLogs(text.parse().ok()))
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(ForLogs(None))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(ForLogs(None))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(ForLogs(None))
    }

    fn visit_u64<E>(self, _: u64) -> Result<Self::Value, E> {
        Ok(ForLogs(None))
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(ForLogs(None))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, list: A) -> Result<Self::Value, A::Error> {
        IgnoredAny.visit_seq(list).map(|_| ForLogs(None))
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<Self::Value, A::Error> {
        IgnoredAny.visit_map(map).map(|_| ForLogs(None))
    }
}

impl ReceivedCommand {
    /// An earlier release does not say `detached`: it sends a deadline that is over from birth.
    fn reply(&self) -> ReplyMode {
        match self.detached || self.answer_by <= self.id.as_order().created_at() {
            true => ReplyMode::Detached,
            false => ReplyMode::Until(self.answer_by),
        }
    }
}

impl<'a> From<&'a Command> for CommandFields<'a> {
    fn from(command: &'a Command) -> Self {
        let (total, idempotency_key, change, order_id) = match command {
            Command::Place(order) => (Some(order.total), order.key.as_ref(), None, None),
            Command::Change(change) => (None, None, Some(change.change), Some(change.order_id)),
        };
        let (id, product_id, detached) = (command.id(), command.product_id(), command.is_detached());
        let answer_by = match command.reply() {
            ReplyMode::Until(answer_by) => answer_by,
            ReplyMode::Detached => id.as_order().created_at(),
        };
        let Origin { request_id, trace } = command.origin();
        Self {
            id,
            product_id,
            total,
            idempotency_key,
            change,
            order_id,
            answer_by,
            detached,
            request_id: request_id.as_ref(),
            traceparent: trace.as_deref(),
            tracestate: trace.as_deref().and_then(TraceContext::state),
        }
    }
}

impl TryFrom<ReceivedCommand> for Command {
    type Error = Undecodable;

    fn try_from(given: ReceivedCommand) -> Result<Self, Undecodable> {
        let reply = given.reply();
        let ReceivedCommand { id, product_id, total, idempotency_key: key, change, order_id, .. } = given;
        let trace = given.traceparent.0.map(|trace| trace.with_state(given.tracestate.0.as_deref()));
        let origin = Origin { request_id: given.request_id.0, trace: trace.map(Arc::new) };
        match (total, change, order_id) {
            (Some(total), None, None) => {
                Ok(Self::Place(NewOrder { id: id.as_order(), product_id, total, reply, key, origin }))
            }
            (None, Some(change), Some(order_id)) => {
                Ok(Self::Change(ChangeOrder { id, order_id, product_id, change, reply, origin }))
            }
            _ => Err(Undecodable(format!("{id} must have a total, or a change and an order_id"))),
        }
    }
}

/// `antre.verdicts.v1`
#[derive(Serialize, Deserialize)]
struct Verdicts<V> {
    verdicts: Vec<V>,
}

#[derive(Serialize, Deserialize)]
struct VerdictFields {
    id: CommandId,
    verdict: Word,
    /// Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    available_stock: Option<u32>,
    /// With `already_placed`: which order. With `is_…`: the order as it is now; workers of earlier releases leave it out.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    order: Option<OrderFields>,
}

/// What a verdict is, in a word. A rejection is called by its reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Word {
    Reserved,
    Rejected(RejectionReason),
    AlreadyPlaced,
    /// The verdict on a change: `is_` and the status of the order.
    Current(OrderStatus),
    OrderNotFound,
    Undecidable,
    /// No verdict: the worker uses another database.
    OtherInstallation,
}

impl Word {
    fn as_str(self) -> Cow<'static, str> {
        Cow::Borrowed(match self {
            Self::Reserved => "reserved",
            Self::Rejected(reason) => reason.as_str(),
            Self::AlreadyPlaced => "already_placed",
            Self::Current(status) => return Cow::Owned(format!("is_{}", status.as_str())),
            Self::OrderNotFound => "order_not_found",
            Self::Undecidable => "undecidable",
            Self::OtherInstallation => "other_installation",
        })
    }
}

impl FromStr for Word {
    type Err = Undecodable;

    fn from_str(word: &str) -> Result<Self, Undecodable> {
        let status = || word.strip_prefix("is_").and_then(OrderStatus::from_word);
        Ok(match word {
            "reserved" => Self::Reserved,
            "already_placed" => Self::AlreadyPlaced,
            "order_not_found" => Self::OrderNotFound,
            "undecidable" => Self::Undecidable,
            "other_installation" => Self::OtherInstallation,
            _ => RejectionReason::from_word(word)
                .map(Self::Rejected)
                .or_else(|| status().map(Self::Current))
                .ok_or_else(|| Undecodable(format!("it has the verdict {word:?}")))?,
        })
    }
}

impl Serialize for Word {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&self.as_str())
    }
}

impl<'de> Deserialize<'de> for Word {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_str(WordVisitor)
    }
}

/// Takes the word from the message's buffer: there is one for each order.
struct WordVisitor;

impl Visitor<'_> for WordVisitor {
    type Value = Word;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the word of a verdict")
    }

    fn visit_str<E: de::Error>(self, word: &str) -> Result<Word, E> {
        word.parse().map_err(E::custom)
    }
}

/// A stored order, in verdicts and events.
#[derive(Clone, Copy, Serialize, Deserialize)]
struct OrderFields {
    order_id: OrderId,
    product_id: ProductId,
    total: Quantity,
    status: OrderStatus,
    /// Unix milliseconds; a rejected order has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
    /// Of a rejected order, if that is what its reason is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    available_stock: Option<u32>,
}

impl From<Order> for OrderFields {
    fn from(order: Order) -> Self {
        let expires_at = order.expires_at().map(Timestamp::as_millisecond);
        let available_stock = order.rejection().and_then(Rejection::available);
        let Order { id: order_id, product_id, total, .. } = order;
        Self { order_id, product_id, total, status: order.status(), expires_at, available_stock }
    }
}

impl From<OrderFields> for Order {
    fn from(one: OrderFields) -> Self {
        let state = match (one.expires_at, one.available_stock) {
            (Some(expires_at), _) => {
                OrderState::Accepted { status: one.status, expires_at: from_millis(expires_at) }
            }
            (None, Some(available)) => OrderState::Rejected(Rejection::InsufficientStock { available }),
            (None, None) => OrderState::Rejected(Rejection::KeyReused),
        };
        Self { id: one.order_id, product_id: one.product_id, total: one.total, state }
    }
}

/// `antre.events.v1`: orders that came to the same stage.
#[derive(Serialize)]
struct Events {
    events: Vec<OrderFields>,
}

/// `antre.product.v1`
#[derive(Serialize, Deserialize)]
struct Product {
    product_id: ProductId,
}

#[expect(clippy::expect_used, reason = "numbers, texts and ids always serialize")]
fn encode(message: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(message).expect("a message of numbers, texts and ids")
}

fn decode<'a, T: Deserialize<'a>>(
    bytes: &'a [u8],
    kind: Option<&str>,
    expected: &str,
) -> Result<T, Undecodable> {
    if kind != Some(expected) {
        return Err(Undecodable(format!("its type is {kind:?}, not {expected}")));
    }
    serde_json::from_slice(bytes).map_err(|error| Undecodable(error.to_string()))
}

pub(super) fn encode_commands<'a>(commands: impl IntoIterator<Item = &'a Command>) -> Vec<u8> {
    encode(&Orders { orders: commands.into_iter().map(CommandFields::from).collect() })
}

/// At least one command, in order.
pub(super) fn decode_commands(bytes: &[u8], kind: Option<&str>) -> Result<Vec<Command>, Undecodable> {
    let Orders { orders } = decode::<Orders<ReceivedCommand>>(bytes, kind, ORDERS_V1)?;
    if orders.is_empty() {
        return Err(Undecodable("it has no orders".to_owned()));
    }
    orders.into_iter().map(Command::try_from).collect()
}

pub(super) fn encode_verdicts(verdicts: Vec<(CommandId, Verdict)>) -> Vec<u8> {
    encode(&Verdicts { verdicts: verdicts.into_iter().map(VerdictFields::from).collect() })
}

impl From<(CommandId, Verdict)> for VerdictFields {
    fn from((id, verdict): (CommandId, Verdict)) -> Self {
        let plain = |verdict| Self { id, verdict, expires_at: None, available_stock: None, order: None };
        match verdict {
            Verdict::Reserved { expires_at } => {
                Self { expires_at: Some(expires_at.as_millisecond()), ..plain(Word::Reserved) }
            }
            Verdict::Rejected(rejection) => {
                let word = Word::Rejected(rejection.reason());
                Self { available_stock: rejection.available(), ..plain(word) }
            }
            Verdict::AlreadyPlaced(order) => Self { order: Some(order.into()), ..plain(Word::AlreadyPlaced) },
            Verdict::Current(order) => {
                Self { order: Some(order.into()), ..plain(Word::Current(order.status())) }
            }
            Verdict::OrderNotFound => plain(Word::OrderNotFound),
            Verdict::Undecidable => plain(Word::Undecidable),
        }
    }
}

impl TryFrom<VerdictFields> for (CommandId, Outcome) {
    type Error = Undecodable;

    fn try_from(one: VerdictFields) -> Result<Self, Undecodable> {
        let VerdictFields { id, verdict, expires_at, available_stock, order } = one;
        let order = order.map(Order::from);
        let verdict = match verdict {
            Word::Reserved => expires_at.map(|millis| Verdict::Reserved { expires_at: from_millis(millis) }),
            Word::Rejected(reason) => reason.with(available_stock).map(Verdict::Rejected),
            Word::AlreadyPlaced => order.map(Verdict::AlreadyPlaced),
            Word::Current(_) => order.map(Verdict::Current),
            Word::OrderNotFound => Some(Verdict::OrderNotFound),
            Word::Undecidable => Some(Verdict::Undecidable),
            Word::OtherInstallation => return Ok((id, Outcome::Refused(Refusal::OtherInstallation))),
        };
        let verdict = verdict.ok_or_else(|| Undecodable(format!("the verdict on {id} is not complete")))?;
        Ok((id, Outcome::Decided(verdict)))
    }
}

/// How many products the events of one message are of at most: their routing keys, some 4 kB, must fit into one frame.
const MAX_PRODUCTS_PER_MESSAGE: usize = 100;

/// The events of a batch as messages: `routing keys, payload`. What a message costs the broker depends little on what is
/// in it, so they are as few as can be while each is of one status, so that receivers can choose by it, and the order
/// within a product is kept.
pub(super) fn encode_events(events: &[Event]) -> Vec<(Vec<String>, Vec<u8>)> {
    // A product's events change their status again and again; what has the same number of changes before it goes together.
    let mut last = HashMap::<ProductId, (usize, &str)>::new();
    let mut stages = BTreeMap::<(usize, &str), BTreeMap<ProductId, Vec<OrderFields>>>::new();
    for Event { order } in events {
        let status = order.status().as_str();
        let stage = last.entry(order.product_id).or_insert((0, status));
        if stage.1 != status {
            *stage = (stage.0 + 1, status);
        }
        let products = stages.entry(*stage).or_default();
        products.entry(order.product_id).or_default().push((*order).into());
    }
    let mut messages = Vec::with_capacity(stages.len());
    for ((_, status), products) in stages {
        let products: Vec<_> = products.into_iter().collect();
        for products in products.chunks(MAX_PRODUCTS_PER_MESSAGE) {
            let keys = products.iter().map(|(id, _)| format!("order.{status}.{id}")).collect();
            let events = products.iter().flat_map(|(_, events)| events).copied().collect();
            messages.push((keys, encode(&Events { events })));
        }
    }
    messages
}

/// What a worker of another database replies.
pub(super) fn encode_refusals(commands: &[Command]) -> Vec<u8> {
    let refusal = |command: &Command| VerdictFields {
        id: command.id(),
        verdict: Word::OtherInstallation,
        expires_at: None,
        available_stock: None,
        order: None,
    };
    encode(&Verdicts { verdicts: commands.iter().map(refusal).collect() })
}

/// What a message of verdicts says.
#[derive(Debug, Default)]
pub(super) struct Outcomes {
    pub(super) outcomes: Vec<(CommandId, Outcome)>,
    /// Why verdicts are left out: each that is incomplete, or has a word that this release does not know.
    pub(super) skipped: Vec<Undecodable>,
}

/// Decodes each verdict alone: the others of the message are for clients that wait.
pub(super) fn decode_outcomes(bytes: &[u8], kind: Option<&str>) -> Result<Outcomes, Undecodable> {
    let mut decoded = Outcomes::default();
    let verdicts: Vec<_> = match decode::<Verdicts<VerdictFields>>(bytes, kind, VERDICTS_V1) {
        Ok(Verdicts { verdicts }) => verdicts.into_iter().map(Ok).collect(),
        // One of them at least is bad. This costs more, and is rare.
        Err(_) => {
            let Verdicts { verdicts } = decode::<Verdicts<serde_json::Value>>(bytes, kind, VERDICTS_V1)?;
            let one_by_one = verdicts.into_iter().map(serde_json::from_value::<VerdictFields>);
            one_by_one.map(|one| one.map_err(|error| Undecodable(error.to_string()))).collect()
        }
    };
    for verdict in verdicts {
        match verdict.and_then(TryFrom::try_from) {
            Ok(outcome) => decoded.outcomes.push(outcome),
            Err(error) => decoded.skipped.push(error),
        }
    }
    Ok(decoded)
}

pub(super) fn encode_product(product_id: ProductId) -> Vec<u8> {
    encode(&Product { product_id })
}

pub(super) fn decode_product(bytes: &[u8], kind: Option<&str>) -> Result<ProductId, Undecodable> {
    Ok(decode::<Product>(bytes, kind, PRODUCT_V1)?.product_id)
}

#[cfg(test)]
mod tests;
