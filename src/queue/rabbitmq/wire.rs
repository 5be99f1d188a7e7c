//! What travels through the broker: JSON, so that a person can read it in the broker's own pages and a worker in
//! another language is possible. `ARCHITECTURE.md` shows them all.

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
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
        lines::Lines,
        names::{Buyer, PaymentReference},
        order::{Change, ChangeKind, Order, OrderState, OrderStatus, Payment, Quantity},
        origin::{Origin, RequestId, TraceContext},
        rejection::{Rejection, RejectionDetails, RejectionReason},
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

/// A new order, or a change of a stored one: then it names the `change` and the `order_id`. `product_id` is the product of the
/// lane. An order of one line has a `total`, one of several the `lines`: an earlier release can decode it no more, rather than
/// taking it for its first line.
#[derive(Serialize)]
struct CommandFields<'a> {
    id: CommandId,
    product_id: ProductId,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<Quantity>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lines: Option<&'a Lines>,
    #[serde(skip_serializing_if = "Option::is_none")]
    buyer: Option<&'a Buyer>,
    /// Of a change: the products of the other lines of its order.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    other_products: &'a [ProductId],
    #[serde(skip_serializing_if = "Option::is_none")]
    idempotency_key: Option<&'a IdempotencyKey>,
    #[serde(skip_serializing_if = "Option::is_none")]
    change: Option<ChangeKind>,
    #[serde(skip_serializing_if = "Option::is_none")]
    order_id: Option<OrderId>,
    /// Of a payment.
    #[serde(skip_serializing_if = "Option::is_none")]
    payment_reference: Option<&'a PaymentReference>,
    /// Of a return.
    #[serde(skip_serializing_if = "Option::is_none")]
    restock: Option<bool>,
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
    lines: Option<Lines>,
    buyer: Option<Buyer>,
    #[serde(default)]
    other_products: Box<[ProductId]>,
    idempotency_key: Option<IdempotencyKey>,
    change: Option<ChangeKind>,
    order_id: Option<OrderId>,
    payment_reference: Option<PaymentReference>,
    #[serde(default)]
    restock: bool,
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
        let (id, detached) = (command.id(), command.is_detached());
        let answer_by = match command.reply() {
            ReplyMode::Until(answer_by) => answer_by,
            ReplyMode::Detached => id.as_order().created_at(),
        };
        let Origin { request_id, trace } = command.origin();
        let fields = Self {
            id,
            product_id: command.product_id(),
            total: None,
            lines: None,
            buyer: None,
            other_products: &[],
            idempotency_key: None,
            change: None,
            order_id: None,
            payment_reference: None,
            restock: None,
            answer_by,
            detached,
            request_id: request_id.as_ref(),
            traceparent: trace.as_deref(),
            tracestate: trace.as_deref().and_then(TraceContext::state),
        };
        match command {
            Command::Place(NewOrder { lines, buyer, key, .. }) => {
                let total = lines.only().map(|line| line.total);
                let (lines, buyer) = (total.is_none().then_some(lines), buyer.as_ref());
                Self { total, lines, buyer, idempotency_key: key.as_ref(), ..fields }
            }
            Command::Change(ChangeOrder { change, order_id, other_products, .. }) => {
                let fields =
                    Self { change: Some(change.kind()), order_id: Some(*order_id), other_products, ..fields };
                match change {
                    Change::Pay { reference } => Self { payment_reference: reference.as_ref(), ..fields },
                    Change::Return { restock } => Self { restock: Some(*restock), ..fields },
                    Change::Cancel | Change::Expire | Change::Extend => fields,
                }
            }
        }
    }
}

impl TryFrom<ReceivedCommand> for Command {
    type Error = Undecodable;

    fn try_from(given: ReceivedCommand) -> Result<Self, Undecodable> {
        let reply = given.reply();
        let ReceivedCommand { id, product_id, total, lines, buyer, other_products, .. } = given;
        let trace = given.traceparent.0.map(|trace| trace.with_state(given.tracestate.0.as_deref()));
        let origin = Origin { request_id: given.request_id.0, trace: trace.map(Arc::new) };
        let lines = total.map(|total| Lines::one(product_id, total)).xor(lines);
        match (lines, given.change, given.order_id) {
            (Some(lines), None, None) if lines.first().product_id == product_id => {
                let (id, key) = (id.as_order(), given.idempotency_key);
                Ok(Self::Place(NewOrder { id, lines, buyer, reply, key, origin }))
            }
            (None, Some(change), Some(order_id)) => Ok(Self::Change(ChangeOrder {
                id,
                order_id,
                product_id,
                other_products,
                change: match change {
                    ChangeKind::Pay => Change::Pay { reference: given.payment_reference },
                    ChangeKind::Cancel => Change::Cancel,
                    ChangeKind::Expire => Change::Expire,
                    ChangeKind::Extend => Change::Extend,
                    ChangeKind::Return => Change::Return { restock: given.restock },
                },
                reply,
                origin,
            })),
            _ => Err(Undecodable(format!(
                "{id} must have a total, or lines that begin with its product_id, or a change and an order_id"
            ))),
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
    /// Of a rejection. Flattened by hand: serde would copy every verdict into a map.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    product_id: Option<ProductId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    available_stock: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    opens_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    limit: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    held: Option<u32>,
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

/// A stored order, in verdicts and events. One of one line has a `product_id` and a `total`, one of several its `lines`.
#[derive(Clone, Serialize, Deserialize)]
struct OrderFields {
    order_id: OrderId,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    product_id: Option<ProductId>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    total: Option<Quantity>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    lines: Option<Lines>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    buyer: Option<Buyer>,
    status: OrderStatus,
    /// Unix milliseconds; a rejected order has none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    expires_at: Option<i64>,
    /// Unix milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    paid_at: Option<i64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    payment_reference: Option<PaymentReference>,
    /// Of a rejected order.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    rejection: Option<Box<RejectionFields>>,
    /// Of a rejected order, as earlier releases send it: they know two reasons, and only one of them has it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    available_stock: Option<u32>,
}

/// Why an order was rejected.
#[derive(Clone, Serialize, Deserialize)]
struct RejectionFields {
    reason: Box<str>,
    #[serde(flatten)]
    details: RejectionDetails,
}

impl From<Order> for OrderFields {
    fn from(order: Order) -> Self {
        let (status, expires_at) = (order.status(), order.expires_at().map(Timestamp::as_millisecond));
        let rejection = order.rejection().map(|rejection| {
            Box::new(RejectionFields {
                reason: rejection.reason().as_str().into(),
                details: rejection.details(),
            })
        });
        let available_stock = rejection.as_ref().and_then(|rejection| rejection.details.available_stock);
        let Order { id: order_id, lines, buyer, payment, .. } = order;
        let only = lines.as_ref().and_then(Lines::only);
        let Payment { reference: payment_reference, paid_at } = payment.unwrap_or_default();
        Self {
            order_id,
            product_id: only.map(|line| line.product_id),
            total: only.map(|line| line.total),
            lines: lines.filter(|_| only.is_none()),
            buyer,
            status,
            expires_at,
            paid_at: paid_at.map(Timestamp::as_millisecond),
            payment_reference,
            rejection,
            available_stock,
        }
    }
}

impl TryFrom<OrderFields> for Order {
    type Error = Undecodable;

    fn try_from(one: OrderFields) -> Result<Self, Undecodable> {
        let lines = match (one.product_id, one.total) {
            (Some(product_id), Some(total)) => Some(Lines::one(product_id, total)),
            _ => one.lines,
        };
        let state = match (one.expires_at, one.rejection) {
            (Some(expires_at), _) => {
                OrderState::Accepted { status: one.status, expires_at: from_millis(expires_at) }
            }
            (None, Some(rejection)) => {
                let reason = RejectionReason::from_word(&rejection.reason);
                let rejection = reason.and_then(|reason| reason.with(rejection.details));
                let incomplete =
                    || Undecodable(format!("the order {} was rejected, but not for what", one.order_id));
                OrderState::Rejected(rejection.ok_or_else(incomplete)?)
            }
            (None, None) => {
                let product_id = lines.as_ref().map(|lines| lines.first().product_id);
                let details = RejectionDetails {
                    product_id,
                    available_stock: one.available_stock,
                    ..Default::default()
                };
                let too_few = RejectionReason::InsufficientStock.with(details);
                OrderState::Rejected(too_few.unwrap_or(Rejection::KeyReused))
            }
        };
        let payment = Payment { reference: one.payment_reference, paid_at: one.paid_at.map(from_millis) };
        let payment = (payment != Payment::default()).then_some(payment);
        Ok(Self { id: one.order_id, lines, buyer: one.buyer, payment, state })
    }
}

/// `antre.events.v1`: events of one topic.
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

impl VerdictFields {
    /// Without anything but a word.
    fn plain(id: CommandId, verdict: Word) -> Self {
        Self {
            id,
            verdict,
            expires_at: None,
            product_id: None,
            available_stock: None,
            opens_at: None,
            limit: None,
            held: None,
            order: None,
        }
    }

    fn details(&self) -> RejectionDetails {
        let Self { product_id, available_stock, limit, held, .. } = *self;
        RejectionDetails {
            product_id,
            available_stock,
            opens_at: self.opens_at.map(from_millis),
            limit,
            held,
        }
    }
}

impl From<(CommandId, Verdict)> for VerdictFields {
    fn from((id, verdict): (CommandId, Verdict)) -> Self {
        let plain = |verdict| Self::plain(id, verdict);
        match verdict {
            Verdict::Reserved { expires_at } => {
                Self { expires_at: Some(expires_at.as_millisecond()), ..plain(Word::Reserved) }
            }
            Verdict::Rejected(rejection) => {
                let RejectionDetails { product_id, available_stock, opens_at, limit, held } =
                    rejection.details();
                let opens_at = opens_at.map(Timestamp::as_millisecond);
                let word = Word::Rejected(rejection.reason());
                Self { product_id, available_stock, opens_at, limit, held, ..plain(word) }
            }
            Verdict::AlreadyPlaced(order) => Self { order: Some(order.into()), ..plain(Word::AlreadyPlaced) },
            Verdict::Current(order) => {
                let word = Word::Current(order.status());
                Self { order: Some(order.into()), ..plain(word) }
            }
            Verdict::OrderNotFound => plain(Word::OrderNotFound),
            Verdict::Undecidable => plain(Word::Undecidable),
        }
    }
}

impl TryFrom<VerdictFields> for (CommandId, Outcome) {
    type Error = Undecodable;

    fn try_from(mut one: VerdictFields) -> Result<Self, Undecodable> {
        let order = one.order.take().map(Order::try_from).transpose()?;
        let VerdictFields { id, verdict, expires_at, .. } = one;
        let verdict = match verdict {
            Word::Reserved => expires_at.map(|millis| Verdict::Reserved { expires_at: from_millis(millis) }),
            Word::Rejected(reason) => reason.with(one.details()).map(Verdict::Rejected),
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
/// in it, so they are as few as can be while each is of one topic, so that receivers can choose by it, and the order
/// within a product is kept. An order of several lines is with the product of the first, and has the keys of all.
pub(super) fn encode_events(events: &[Event]) -> Vec<(Vec<String>, Vec<u8>)> {
    // A product's events change their topic again and again; what has the same number of changes before it goes together.
    let mut last = HashMap::<ProductId, (usize, Topic)>::new();
    let mut stages = BTreeMap::<(usize, Topic), BTreeMap<ProductId, Vec<&Order>>>::new();
    for event in events {
        let Some(lane) = event.order.lane() else { continue };
        let topic = event.topic();
        let stage = last.entry(lane).or_insert((0, topic));
        if stage.1 != topic {
            *stage = (stage.0 + 1, topic);
        }
        stages.entry(*stage).or_default().entry(lane).or_default().push(&event.order);
    }
    let mut messages = Vec::with_capacity(stages.len());
    for ((_, topic), products) in stages {
        let mut message = EventMessage::new(topic);
        for (product_id, orders) in products {
            let others = orders.iter().filter_map(|order| order.lines.as_ref()).flat_map(Lines::others);
            let mut keys: BTreeSet<_> = others.map(|line| line.product_id).collect();
            keys.insert(product_id);
            if message.products.union(&keys).count() > MAX_PRODUCTS_PER_MESSAGE && !message.events.is_empty()
            {
                messages.push(message.encode());
                message = EventMessage::new(topic);
            }
            message.products.extend(keys);
            message.events.extend(orders.into_iter().cloned().map(OrderFields::from));
        }
        messages.push(message.encode());
    }
    messages
}

/// The words with which a routing key begins.
type Topic = [&'static str; 2];

/// Events of one topic.
struct EventMessage {
    topic: Topic,
    products: BTreeSet<ProductId>,
    events: Vec<OrderFields>,
}

impl EventMessage {
    fn new(topic: Topic) -> Self {
        Self { topic, products: BTreeSet::new(), events: Vec::new() }
    }

    fn encode(self) -> (Vec<String>, Vec<u8>) {
        let [subject, what] = self.topic;
        let keys = self.products.iter().map(|id| format!("{subject}.{what}.{id}")).collect();
        (keys, encode(&Events { events: self.events }))
    }
}

/// What a worker of another database replies.
pub(super) fn encode_refusals(commands: &[Command]) -> Vec<u8> {
    let refusal = |command: &Command| VerdictFields::plain(command.id(), Word::OtherInstallation);
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
