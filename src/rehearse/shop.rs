//! The target as a shop: the calls of the contract that a rehearsal needs, and what their answers mean.

use std::time::Duration;

use bytes::Bytes;
use hyper::{
    Method,
    header::{HeaderMap, HeaderName, HeaderValue, LOCATION, RETRY_AFTER},
};
use jiff::Timestamp;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use serde_json::json;
use tokio::time::Instant;

use super::load::{
    client::{Answer, Call, CallError, Client, ClientError},
    target::Target,
};

/// How long each call that prepares the sale, or reads the inventory, may take.
const PATIENCE: Duration = Duration::from_secs(20);
/// How much of an answer is repeated in a message, in characters.
const EXCERPT: usize = 160;

/// What to do about a certificate.
const UNTRUSTED: &str =
    "This machine does not trust its certificate: name that of its issuer in SSL_CERT_FILE";

/// See the module.
pub struct Shop {
    client: Client,
}

/// A product's stock, in pieces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub struct Inventory {
    /// In the warehouse: `available_stock` + `reserved_stock`.
    pub stored_stock: i64,
    /// May still be ordered.
    pub available_stock: i64,
    /// Ordered and not yet paid.
    pub reserved_stock: i64,
}

/// An order, as an answer shows it.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
pub struct SeenOrder {
    /// A UUID.
    pub id: String,
    /// `pending`, `reserved`, `paid`, `cancelled`, `expired`, `rejected`.
    pub status: String,
    /// Why it was rejected.
    pub reason: Option<String>,
    /// When the reservation ends.
    pub expires_at: Option<Timestamp>,
    product_id: Option<u64>,
    total: Option<u64>,
}

/// What a buyer sends, and may send again.
#[derive(Clone, Debug)]
pub enum Request {
    /// Orders one piece of the product. The same key never orders twice.
    Order {
        /// The product's id.
        product: u64,
        /// The idempotency key.
        key: String,
    },
    /// Pays the order of this id.
    Pay(String),
    /// Cancels the order of this id.
    Cancel(String),
}

impl Request {
    fn call(&self) -> Call {
        match self {
            Self::Order { product, key } => {
                let mut call = Call::new(Method::POST, "/api/orders")
                    .json(format!(r#"{{"product_id":{product},"total":1}}"#));
                if let Ok(key) = HeaderValue::from_str(key) {
                    call.headers.insert(HeaderName::from_static("idempotency-key"), key);
                }
                call
            }
            Self::Pay(id) => Call::new(Method::POST, format!("/api/orders/{id}/payment")),
            Self::Cancel(id) => Call::new(Method::POST, format!("/api/orders/{id}/cancellation")),
        }
    }
}

/// What the answer to an order, a payment, a cancellation or a question for an order means.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Reply {
    /// 200, 201 or 202. The wait is what a 202 asks for.
    Order(SeenOrder, Option<Duration>),
    /// The answer is no: the reason, one word of the contract.
    Refused(String),
    /// 503, or 429 of a gateway: not taken; try again after that.
    NotTaken(Duration),
    /// An answer that must not be, or none.
    Fault(Fault),
}

/// An error that a buyer meets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fault {
    /// Faults of one kind are counted together.
    pub kind: String,
    /// What exactly happened this time.
    pub example: String,
    /// Whether the server may have acted all the same.
    pub may_have_acted: bool,
    /// Whether a client that has an idempotency key tries again.
    pub is_worth_a_retry: bool,
}

/// Why there is no rehearsal. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum ShopError {
    /// The host has no address.
    #[error(
        "the host {host} of --target {target} cannot be resolved ({source}): is the name right, and the network there?"
    )]
    Resolve {
        /// As given.
        target: String,
        /// Its host.
        host: String,
        /// What the resolver says.
        source: std::io::Error,
    },
    /// Nothing listens there.
    #[error(
        "--target {target} cannot be reached ({source}): is antre running there? `antre` starts one on http://localhost:3000"
    )]
    Connect {
        /// As given.
        target: String,
        /// What the system says.
        source: std::io::Error,
    },
    /// This machine has no root certificates.
    #[error(
        "https:// needs the root certificates of this machine, and they cannot be read ({0}): install ca-certificates, or name \
         a file in SSL_CERT_FILE"
    )]
    Certificates(String),
    /// No answer to a call before or after the sale.
    #[error("{target} does not answer {call}: {source}. {advice}")]
    Silent {
        /// As given.
        target: String,
        /// Method and path.
        call: String,
        /// What happened.
        source: CallError,
        /// What to do.
        advice: &'static str,
    },
    /// Somebody else answers.
    #[error(
        "{target} is not an antre: it answers {call} with {answer}. --target is the URL before /api, with the path prefix of a \
         gateway if there is one"
    )]
    NotAntre {
        /// As given.
        target: String,
        /// Method and path.
        call: String,
        /// Status and beginning of the body.
        answer: String,
    },
    /// It answers an error.
    #[error("{target} refuses {call}: {answer}. {advice}")]
    Refused {
        /// As given.
        target: String,
        /// Method and path.
        call: String,
        /// Status and reason.
        answer: String,
        /// What to do.
        advice: &'static str,
    },
}

#[derive(Deserialize)]
struct Envelope<T> {
    code: u16,
    data: T,
}

#[derive(Deserialize)]
struct Problem {
    reason: String,
    #[serde(default)]
    message: String,
}

#[derive(Deserialize)]
struct NewProduct {
    id: u64,
}

impl Shop {
    /// Connects, and asks for the products to see that an antre answers. Changes nothing.
    pub async fn find(target: Target, connections: usize) -> Result<Self, ShopError> {
        let client =
            Client::new(target.clone(), connections).await.map_err(|error| not_found(&target, error))?;
        let shop = Self { client };
        let call = Call::new(Method::GET, "/api/products?limit=1");
        let answer = shop.ask(&call, "Is the scheme right (http or https), and is it busy? Its log and GET /health/ready may say more").await?;
        match envelope::<Vec<serde_json::Value>>(&answer) {
            Ok(_) if answer.status == 200 => Ok(shop),
            Err(_) if problem(&answer).is_some() => Err(shop.refused(
                &call,
                &answer,
                "Is its database there? GET /health/ready says what is missing",
            )),
            _ => Err(shop.not_antre(&call, &answer)),
        }
    }

    /// See [`Client::broken_when_idle`].
    pub fn closed_when_idle(&self) -> u64 {
        self.client.broken_when_idle()
    }

    /// Creates the product that is sold. Returns its id.
    pub async fn create_product(&self, name: &str) -> Result<u64, ShopError> {
        let call = Call::new(Method::POST, "/api/products").json(json!({"name": name}).to_string());
        let answer = self.ask(&call, "No product is sold; one may have been created").await?;
        match envelope::<NewProduct>(&answer) {
            Ok(product) if answer.status == 201 => Ok(product.id),
            _ if problem(&answer).is_some() => {
                Err(self.refused(&call, &answer, "No product was created, and nothing was sold"))
            }
            _ => Err(self.not_antre(&call, &answer)),
        }
    }

    /// Sets the product's stock, in pieces, and checks what the answer says.
    pub async fn set_stock(&self, product: u64, stock: u64) -> Result<(), ShopError> {
        let call = Call::new(Method::PUT, inventory_path(product)).json(json!({"stock": stock}).to_string());
        let answer = self.ask(&call, "The product exists; nothing was sold").await?;
        let expected = i64::try_from(stock).ok();
        match envelope::<Inventory>(&answer) {
            Ok(inventory) if answer.status == 200 && Some(inventory.available_stock) == expected => Ok(()),
            _ => Err(self.refused(&call, &answer, "The stock was not set, and nothing was sold")),
        }
    }

    /// What the inventory says now.
    pub async fn inventory(&self, product: u64) -> Result<Inventory, ShopError> {
        let call = Call::new(Method::GET, inventory_path(product));
        let advice =
            "The buyers are done, but without the inventory nobody can say whether the books balance";
        let answer = self.ask(&call, advice).await?;
        match envelope::<Inventory>(&answer) {
            Ok(inventory) if answer.status == 200 => Ok(inventory),
            _ => Err(self.refused(&call, &answer, advice)),
        }
    }

    /// Sends a buyer's request.
    pub async fn send(&self, request: &Request, deadline: Instant) -> Reply {
        let reply = meaning(self.client.send(&request.call(), deadline).await);
        match (reply, request) {
            (Reply::Order(order, _), Request::Order { product, .. })
                if order.product_id.is_some_and(|id| id != *product)
                    || order.total.is_some_and(|total| total != 1) =>
            {
                Reply::Fault(Fault::broken(format!("another order than was placed: {order:?}")))
            }
            (reply, _) => reply,
        }
    }

    /// The order as it is now.
    pub async fn look(&self, id: &str, deadline: Instant) -> Reply {
        let call = Call::new(Method::GET, format!("/api/orders/{id}"));
        meaning(self.client.send(&call, deadline).await)
    }

    async fn ask(&self, call: &Call, advice: &'static str) -> Result<Answer, ShopError> {
        self.client.send(call, Instant::now() + PATIENCE).await.map_err(|source| {
            let is_untrusted =
                matches!(source, CallError::Connect(_)) && source.to_string().contains("certificate");
            let advice = if is_untrusted { UNTRUSTED } else { advice };
            ShopError::Silent { target: self.client.target().to_string(), call: name(call), source, advice }
        })
    }

    fn refused(&self, call: &Call, answer: &Answer, advice: &'static str) -> ShopError {
        let answer = shown(answer);
        ShopError::Refused { target: self.client.target().to_string(), call: name(call), answer, advice }
    }

    fn not_antre(&self, call: &Call, answer: &Answer) -> ShopError {
        let answer = shown(answer);
        ShopError::NotAntre { target: self.client.target().to_string(), call: name(call), answer }
    }
}

fn not_found(target: &Target, error: ClientError) -> ShopError {
    match error {
        ClientError::Resolve(source) => {
            ShopError::Resolve { target: target.to_string(), host: target.host().to_owned(), source }
        }
        ClientError::Connect(source) => ShopError::Connect { target: target.to_string(), source },
        ClientError::Certificates(error) => ShopError::Certificates(error),
    }
}

fn inventory_path(product: u64) -> String {
    format!("/api/products/{product}/inventory")
}

fn name(call: &Call) -> String {
    format!("{} {}", call.method, call.path)
}

impl Fault {
    fn broken(example: String) -> Self {
        Self { kind: "broken answer".to_owned(), example, may_have_acted: true, is_worth_a_retry: false }
    }

    /// The contract has no such answer to this call.
    pub fn unexpected(order: &SeenOrder) -> Self {
        Self::broken(format!("the order {} is {}", order.id, order.status))
    }
}

impl From<CallError> for Fault {
    fn from(error: CallError) -> Self {
        let example = error.to_string();
        let (kind, may_have_acted, is_worth_a_retry) = match error {
            CallError::NoConnection => ("never sent: all connections were busy", false, false),
            CallError::Connect(_) => ("cannot connect", false, true),
            CallError::Broken(_) => ("connection broke", true, true),
            CallError::Late => ("no answer in time", true, false),
            CallError::Unreadable(_) => ("broken answer", true, false),
        };
        Self { kind: kind.to_owned(), example, may_have_acted, is_worth_a_retry }
    }
}

fn meaning(result: Result<Answer, CallError>) -> Reply {
    let answer = match result {
        Ok(answer) => answer,
        Err(error) => return Reply::Fault(error.into()),
    };
    match answer.status {
        200..=202 => match envelope::<SeenOrder>(&answer) {
            Ok(order) => Reply::Order(order, retry_after(&answer.headers)),
            Err(error) => Reply::Fault(Fault::broken(format!("{error}: {}", shown(&answer)))),
        },
        503 | 429 => Reply::NotTaken(retry_after(&answer.headers).unwrap_or(Duration::from_secs(1))),
        status => match problem(&answer) {
            // A request that the rehearsal never makes, or makes rightly: the answer is wrong.
            Some(problem) if is_a_verdict(status, &problem.reason) => Reply::Refused(problem.reason),
            Some(problem) => Reply::Fault(Fault {
                kind: format!("{status} {}", excerpt(&problem.reason)),
                example: shown(&answer),
                may_have_acted: status >= 500,
                is_worth_a_retry: false,
            }),
            None => Reply::Fault(Fault {
                kind: format!("{status}, not an answer of antre"),
                example: shown(&answer),
                may_have_acted: true,
                is_worth_a_retry: false,
            }),
        },
    }
}

/// Whether the lane decided so: 400 for an order, 409 for a change. Not 400 for requests that are malformed.
fn is_a_verdict(status: u16, reason: &str) -> bool {
    match status {
        400 => !reason.starts_with("invalid") && !reason.starts_with("duplicate"),
        409 => true,
        _ => false,
    }
}

fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let seconds: u64 = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds))
}

fn envelope<T: DeserializeOwned>(answer: &Answer) -> Result<T, String> {
    let envelope: Envelope<T> = serde_json::from_slice(&answer.body).map_err(|error| error.to_string())?;
    if envelope.code != answer.status {
        return Err(format!("the body says code {}", envelope.code));
    }
    Ok(envelope.data)
}

fn problem(answer: &Answer) -> Option<Problem> {
    envelope(answer).ok()
}

/// An answer in a message: its reason if it has one, else its status and how its body begins.
fn shown(answer: &Answer) -> String {
    let request = answer.headers.get("x-request-id").and_then(|id| id.to_str().ok());
    let request = request.map(|id| format!(" (x-request-id {})", excerpt(id))).unwrap_or_default();
    let status = answer.status;
    if let Some(Problem { reason, message }) = problem(answer) {
        return format!("{status} {}: {}{request}", excerpt(&reason), excerpt(&message));
    }
    if let Some(to) = answer.headers.get(LOCATION).and_then(|to| to.to_str().ok()) {
        return format!("{status} and leads to {}", excerpt(to));
    }
    let body = text(&answer.body);
    if body.is_empty() { format!("{status}{request}") } else { format!("{status} {body:?}{request}") }
}

fn text(body: &Bytes) -> String {
    excerpt(&String::from_utf8_lossy(body))
}

/// One line of bounded length, without control characters: it goes to a terminal.
fn excerpt(text: &str) -> String {
    let mut characters = text.trim().chars().map(|one| if one.is_control() { ' ' } else { one });
    let mut excerpt: String = characters.by_ref().take(EXCERPT).collect();
    if characters.next().is_some() {
        excerpt.push('…');
    }
    excerpt
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(status: u16, body: &str) -> Result<Answer, CallError> {
        let mut headers = HeaderMap::new();
        headers.insert(RETRY_AFTER, HeaderValue::from_static("2"));
        Ok(Answer { status, headers, body: Bytes::copy_from_slice(body.as_bytes()) })
    }

    fn refusal(status: u16, reason: &str) -> Reply {
        meaning(answer(
            status,
            &format!(r#"{{"code":{status},"status":"-","data":{{"reason":"{reason}"}}}}"#),
        ))
    }

    fn kind(reply: Reply) -> String {
        let Reply::Fault(fault) = reply else { panic!("{reply:?}") };
        fault.kind
    }

    #[test]
    fn an_order_is_read_from_its_envelope() {
        let body = r#"{"code":201,"status":"OK","data":{"id":"a","status":"reserved","product_id":1,"total":1,"new":0}}"#;
        let Reply::Order(order, _) = meaning(answer(201, body)) else { panic!() };
        assert_eq!((order.id.as_str(), order.status.as_str()), ("a", "reserved"));
        let body = r#"{"code":202,"status":"OK","data":{"id":"a","status":"pending"}}"#;
        let Reply::Order(_, wait) = meaning(answer(202, body)) else { panic!() };
        assert_eq!(wait, Some(Duration::from_secs(2)));
    }

    #[test]
    fn a_verdict_is_told_from_an_error() {
        assert_eq!(refusal(400, "insufficient_stock"), Reply::Refused("insufficient_stock".to_owned()));
        assert_eq!(refusal(400, "sale_not_open"), Reply::Refused("sale_not_open".to_owned()));
        assert_eq!(refusal(409, "order_expired"), Reply::Refused("order_expired".to_owned()));
        assert_eq!(refusal(503, "lane_full"), Reply::NotTaken(Duration::from_secs(2)));
        assert_eq!(meaning(answer(503, "a gateway's page")), Reply::NotTaken(Duration::from_secs(2)));
        assert_eq!(kind(refusal(400, "invalid_total")), "400 invalid_total");
        assert_eq!(kind(refusal(404, "product_not_found")), "404 product_not_found");
        assert_eq!(kind(refusal(500, "internal_error")), "500 internal_error");
    }

    #[test]
    fn an_answer_that_is_not_the_contracts_is_a_fault() {
        assert_eq!(kind(meaning(answer(201, "yes"))), "broken answer");
        assert_eq!(
            kind(meaning(answer(201, r#"{"code":200,"data":{"id":"a","status":"reserved"}}"#))),
            "broken answer"
        );
        assert_eq!(kind(meaning(answer(502, "<html>bad gateway</html>"))), "502, not an answer of antre");
        assert_eq!(kind(meaning(answer(301, ""))), "301, not an answer of antre");
    }

    #[test]
    fn an_excerpt_is_one_short_line() {
        assert_eq!(excerpt("a\u{1b}[2J\nb"), "a [2J b");
        assert_eq!(excerpt(&"x".repeat(EXCERPT + 1)).chars().count(), EXCERPT + 1);
    }
}
