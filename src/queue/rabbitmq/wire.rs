//! What travels through the broker: JSON, so that a person can read it in the broker's own pages and a worker in
//! another language is possible. `ARCHITECTURE.md` shows them all.

mod commands;
mod for_logs;
mod order_fields;
mod undecodable;

use std::{
    borrow::Cow,
    collections::{BTreeMap, BTreeSet, HashMap},
    fmt,
    str::FromStr,
};

use jiff::Timestamp;
use lapin::BasicProperties;
use serde::{
    Deserialize, Deserializer, Serialize, Serializer,
    de::{self, Visitor},
};

pub(super) use self::undecodable::Undecodable;
use self::{
    commands::{CommandFields, ReceivedCommand},
    order_fields::OrderFields,
};
use crate::{
    domain::time::from_millis,
    domain::{
        command::Command,
        event::Event,
        ids::{CommandId, ProductId},
        lines::Lines,
        order::{Order, OrderStatus},
        rejection::{RejectionDetails, RejectionReason},
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

/// `antre.orders.v1`: commands of one lane, in the order of their arrival.
#[derive(Serialize, Deserialize)]
struct Orders<O> {
    orders: Vec<O>,
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
