//! What the contract says in words, because no schema can: which fields belong to which status or reason, that the envelope
//! and the headers agree with the body, and how times are written.

use reqwest::{
    StatusCode,
    header::{HeaderMap, LINK},
};
use serde_json::Value;

/// What of the words an answer breaks whose headers and body fit their schemas. `examples` are those of this answer.
pub(super) fn breaches(
    call: &str,
    status: u16,
    headers: &HeaderMap,
    body: &Value,
    examples: &[Value],
) -> Vec<String> {
    if call == "GET /apispec.json" {
        return Vec::new(); // it has no envelope
    }
    let mut breaches: Vec<_> = envelope(status, body).into_iter().collect();
    if status >= 400 {
        breaches.extend(error(&body["data"], examples));
    }
    if let Some(rows) = body["data"].as_array() {
        breaches.extend(link(headers, &body["next"]));
        breaches.extend(rows.iter().flat_map(order));
    } else {
        breaches.extend(order(&body["data"]));
        breaches.extend(outcome(call, status, &body["data"]["status"]));
    }
    breaches
}

fn envelope(status: u16, body: &Value) -> Option<String> {
    let phrase = StatusCode::from_u16(status).ok().and_then(|status| status.canonical_reason());
    let words = if status < 300 { "OK".to_owned() } else { phrase.unwrap_or_default().to_uppercase() };
    let fits = body["code"] == status && body["status"] == words;
    (!fits).then(|| format!("the envelope says {} {}, not {status} {words}", body["code"], body["status"]))
}

/// The examples of an answer list its reasons, each with the fields that go with it.
fn error(data: &Value, examples: &[Value]) -> Option<String> {
    let fields = |data: &Value| -> Vec<String> {
        data.as_object().into_iter().flatten().map(|(name, _)| name.clone()).collect()
    };
    let is_like = |example: &Value| example["reason"] == data["reason"] && fields(example) == fields(data);
    (!examples.iter().any(is_like)).then(|| format!("no example of this answer is like it: {data}"))
}

/// `next` is what the URL in `Link` has as `after`.
fn link(headers: &HeaderMap, next: &Value) -> Option<String> {
    let link = headers.get(LINK).map(|link| String::from_utf8_lossy(link.as_bytes()).into_owned());
    let after = match next {
        Value::String(after) => Some(after.clone()),
        Value::Null => None,
        after => Some(after.to_string()),
    };
    let agree = match (&link, after) {
        (Some(link), Some(after)) => link.contains(&format!("after={after}>")),
        (None, None) => true,
        _ => false,
    };
    (!agree).then(|| format!("Link and next disagree: {link:?}, {next}"))
}

/// Of an order: its status says which of the fields are there. Anything else passes.
fn order(data: &Value) -> Vec<String> {
    let (Some(status), Some(_)) = (data["status"].as_str(), data.get("id")) else { return Vec::new() };
    let is_decided = status != "pending";
    // One that was cancelled while it was pending: its lines are not known before its turn in the lane.
    let was_given_up = status == "cancelled" && data["expires_at"].is_null();
    let is_known = if was_given_up { !data["lines"].is_null() } else { is_decided };
    let is_rejected = status == "rejected";
    let is_of_one_line = data["lines"].as_array().is_some_and(|lines| lines.len() == 1);
    let is_short = data["reason"] == "insufficient_stock";
    let expected = [
        ("lines", is_known),
        ("product_id", is_of_one_line),
        ("total", is_of_one_line),
        ("created_at", is_decided),
        ("expires_at", is_decided && !is_rejected && !was_given_up),
        ("reason", is_rejected),
        ("available_stock", is_short),
    ];
    let fields = expected.iter().filter(|(name, is_known)| data[name].is_null() == *is_known);
    let fields = fields.map(|(name, _)| format!("a {status} order has {name} {}", data[name]));
    let times =
        ["created_at", "expires_at", "paid_at"].iter().filter_map(|name| Some((name, data[name].as_str()?)));
    let times = times
        .filter(|(_, time)| time.len() != "2026-01-31T09:00:00.125Z".len() || !time.ends_with('Z'))
        .map(|(name, time)| format!("{name} has not exactly three digits of fraction: {time}"));
    fields.chain(times).collect()
}

/// Which statuses of an order an answer may have.
fn outcome(call: &str, status: u16, order_status: &Value) -> Option<String> {
    let allowed: &[&str] = match (call, status) {
        ("POST /api/orders", 201) => &["reserved", "paid"],
        ("POST /api/orders", 202) => &["pending"],
        ("POST /api/orders/{orderId}/payment", 200) => &["paid"],
        ("POST /api/orders/{orderId}/cancellation", 200) => &["cancelled"],
        ("POST /api/orders/{orderId}/extension", 200) => &["reserved"],
        ("POST /api/orders/{orderId}/return", 200) => &["returned"],
        ("POST /api/orders/{orderId}/payment", 202) => &["reserved", "expired"],
        ("POST /api/orders/{orderId}/cancellation" | "POST /api/orders/{orderId}/extension", 202) => {
            &["reserved"]
        }
        ("POST /api/orders/{orderId}/return", 202) => &["paid"],
        _ => return None,
    };
    let is_allowed = order_status.as_str().is_some_and(|status| allowed.contains(&status));
    (!is_allowed).then(|| format!("{call} was answered {status} with an order that is {order_status}"))
}
