//! The contract, `apispec.json`, as a check on every answer of the server.
//!
//! [`check`] is what a test calls with an answer; it panics with a sentence that says what breaks the contract.
//! It is stricter than the file has to be for clients. The file leaves answers open for later releases; this release
//! sends no field, no status and no reason that the file does not name. [`rules`] has what a schema cannot say.
//! [`calls`] is for asking whether the tests touched every call.
//!
//! Answers that belong to no call (404 `route_not_found`, 405 `method_not_allowed`) are not in the contract, so
//! they are not for `check`; [`has`] tells.
#![allow(clippy::panic, clippy::expect_used, reason = "this is test code, and a panic is how a test says no")]

mod generators;
mod rules;

use std::{collections::BTreeMap, sync::OnceLock};

use jsonschema::{Draft, Validator};
use reqwest::header::{CONTENT_TYPE, HeaderMap};
use serde_json::Value;
use uuid::fmt::Hyphenated;

const TEXT: &str = include_str!("../../../apispec.json");
const METHODS: [&str; 8] = ["get", "put", "post", "delete", "options", "head", "patch", "trace"];

/// Panics unless the contract allows this answer: it has the call, declares the status for it, and the answer's
/// headers, content type and body are as declared. `path` may carry a query.
#[track_caller]
pub(crate) fn check(method: &str, path: &str, status: u16, headers: &HeaderMap, body: &[u8]) {
    if let Err(breaches) = Contract::get().breaches(method, path, status, headers, body) {
        panic!(
            "{method} {path} was answered {status}, and that breaks apispec.json:\n  {}\nheaders: {headers:?}\nbody: {}",
            breaches.join("\n  "),
            String::from_utf8_lossy(body),
        );
    }
}

/// Every call in the contract: the method in capitals and the path template.
pub(crate) fn calls() -> Vec<(String, String)> {
    Contract::get().calls.iter().map(|call| (call.method.clone(), call.template.clone())).collect()
}

/// Whether the contract has this call. `path` may carry a query.
pub(crate) fn has(method: &str, path: &str) -> bool {
    Contract::get().call(method, path).is_some()
}

struct Contract {
    calls: Vec<Call>,
}

struct Call {
    method: String,
    template: String,
    answers: BTreeMap<u16, Answer>,
}

struct Answer {
    headers: Vec<Header>,
    /// By media type. Empty: the answer has no body.
    bodies: BTreeMap<String, Validator>,
    /// The `data` of its examples.
    examples: Vec<Value>,
}

struct Header {
    name: String,
    required: bool,
    is_integer: bool,
    schema: Validator,
}

impl Contract {
    fn get() -> &'static Self {
        static CONTRACT: OnceLock<Contract> = OnceLock::new();
        CONTRACT.get_or_init(|| Self::compile(&Document::load()))
    }

    fn compile(document: &Document) -> Self {
        let mut calls = Vec::new();
        for (template, item) in entries(&document.0["paths"]) {
            for (method, operation) in entries(item).filter(|(key, _)| METHODS.contains(key)) {
                let answers = entries(&operation["responses"]).map(|(status, answer)| {
                    let status = status.parse().expect("a status in the contract is a number");
                    (status, Answer::compile(document, document.resolve(answer)))
                });
                let answers = answers.collect();
                calls.push(Call { method: method.to_uppercase(), template: template.to_owned(), answers });
            }
        }
        Self { calls }
    }

    fn call(&self, method: &str, path: &str) -> Option<&Call> {
        let path = path.split('?').next().unwrap_or_default();
        // A literal path wins over a template (OpenAPI 3.0.3, "Path Templating Matching").
        self.calls
            .iter()
            .filter(|call| call.method == method && matches(&call.template, path))
            .min_by_key(|call| call.template.matches('{').count())
    }

    fn breaches(
        &self,
        method: &str,
        path: &str,
        status: u16,
        headers: &HeaderMap,
        body: &[u8],
    ) -> Result<(), Vec<String>> {
        let call = self
            .call(method, path)
            .ok_or_else(|| vec!["there is no such call in the contract".to_owned()])?;
        let answer = call.answers.get(&status).ok_or_else(|| {
            let declared = call.answers.keys().map(u16::to_string).collect::<Vec<_>>().join(", ");
            vec![format!("{method} {} does not declare this status, only {declared}", call.template)]
        })?;
        let mut breaches = answer.header_breaches(headers);
        breaches.extend(answer.body_breaches(headers, body));
        if let (true, Ok(body)) = (breaches.is_empty(), serde_json::from_slice(body)) {
            let call = format!("{method} {}", call.template);
            breaches.extend(rules::breaches(&call, status, headers, &body, &answer.examples));
        }
        if breaches.is_empty() { Ok(()) } else { Err(breaches) }
    }
}

impl Answer {
    fn compile(document: &Document, answer: &Value) -> Self {
        let headers = entries(&answer["headers"]).map(|(name, header)| {
            let header = document.resolve(header);
            Header {
                name: name.to_owned(),
                required: header["required"] == true,
                is_integer: document.resolve(&header["schema"])["type"] == "integer",
                schema: document.validator(&header["schema"]),
            }
        });
        let bodies = entries(&answer["content"])
            .map(|(media_type, content)| (media_type.to_lowercase(), document.validator(&content["schema"])));
        let examples = entries(&answer["content"])
            .flat_map(|(_, content)| entries(&content["examples"]))
            .map(|(_, example)| example["value"]["data"].clone());
        Self { headers: headers.collect(), bodies: bodies.collect(), examples: examples.collect() }
    }

    fn header_breaches(&self, headers: &HeaderMap) -> Vec<String> {
        let mut breaches = Vec::new();
        for header in &self.headers {
            let Some(value) = headers.get(&header.name) else {
                if header.required {
                    breaches.push(format!("header {} is missing", header.name));
                }
                continue;
            };
            let text = String::from_utf8_lossy(value.as_bytes()).into_owned();
            let value = match text.parse::<i64>() {
                Ok(number) if header.is_integer => Value::from(number),
                _ => Value::from(text),
            };
            breaches.extend(schema_breaches(&header.schema, &value, &format!("header {}", header.name)));
        }
        breaches
    }

    fn body_breaches(&self, headers: &HeaderMap, body: &[u8]) -> Vec<String> {
        if self.bodies.is_empty() {
            return if body.is_empty() { Vec::new() } else { vec!["no body is declared".to_owned()] };
        }
        let content_type = headers.get(CONTENT_TYPE).map(|value| String::from_utf8_lossy(value.as_bytes()));
        let media_type = content_type.as_deref().unwrap_or("none").split(';').next().unwrap_or_default();
        let media_type = media_type.trim().to_lowercase();
        let Some(schema) = self.bodies.get(&media_type) else {
            let declared = self.bodies.keys().cloned().collect::<Vec<_>>().join(", ");
            return vec![format!("content type {media_type} is not declared, only {declared}")];
        };
        let value = if media_type.ends_with("json") {
            serde_json::from_slice(body).map_err(|error| format!("the body is not JSON: {error}"))
        } else {
            std::str::from_utf8(body)
                .map(Value::from)
                .map_err(|error| format!("the body is not text: {error}"))
        };
        match value {
            Ok(value) => schema_breaches(schema, &value, "body"),
            Err(breach) => vec![breach],
        }
    }
}

/// The contract as JSON, with OpenAPI's `nullable` spelled as JSON Schema spells it, and closed: see [`close`].
struct Document(Value);

impl Document {
    fn load() -> Self {
        let mut document = serde_json::from_str(TEXT).expect("apispec.json is JSON");
        spell_out_nullable(&mut document);
        close(&mut document["components"]["schemas"]);
        Self(document)
    }

    /// What a `$ref` leads to; anything else is itself.
    fn resolve<'a>(&'a self, mut value: &'a Value) -> &'a Value {
        while let Some(reference) = value["$ref"].as_str() {
            let pointer = reference.strip_prefix('#').expect("a $ref in the contract stays in it");
            value = self.0.pointer(pointer).unwrap_or_else(|| panic!("{reference} leads nowhere"));
        }
        value
    }

    /// Draft 4, because OpenAPI 3.0's schemas descend from it: `1.0` is no integer, and nothing next to a `$ref`
    /// counts. The components go in with the schema, so that its references find them.
    fn validator(&self, schema: &Value) -> Validator {
        let mut schema = schema.clone();
        let fields = schema.as_object_mut().unwrap_or_else(|| panic!("a schema is missing"));
        fields.insert("components".to_owned(), self.0["components"].clone());
        jsonschema::options()
            .with_draft(Draft::Draft4)
            .should_validate_formats(true)
            .should_ignore_unknown_formats(false)
            .with_format("uuid", |text: &str| text.parse::<Hyphenated>().is_ok())
            // Their ranges are given as minimum and maximum.
            .with_format("int32", |_: &str| true)
            .with_format("int64", |_: &str| true)
            .build(&schema)
            .unwrap_or_else(|error| panic!("a schema in the contract is broken: {error}"))
    }
}

/// `{"type": "string", "nullable": true}` becomes `{"type": ["string", "null"]}`.
fn spell_out_nullable(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("nullable") == Some(&Value::Bool(true)) {
                fields.remove("nullable");
                let kind =
                    fields.remove("type").expect("nullable means nothing without type (OpenAPI 3.0.3)");
                fields.insert("type".to_owned(), Value::from(vec![kind, Value::from("null")]));
            }
            fields.values_mut().for_each(spell_out_nullable);
        }
        Value::Array(items) => items.iter_mut().for_each(spell_out_nullable),
        _ => {}
    }
}

/// Refuses what the file leaves open for later releases: fields that it does not name, and values that it does not list.
fn close(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            if fields.get("properties").is_some_and(Value::is_object) {
                fields.entry("additionalProperties").or_insert(Value::Bool(false));
            }
            if let Some(known) = fields.remove("x-extensible-enum") {
                let is_nullable = fields["type"].is_array();
                let known = known.as_array().into_iter().flatten().cloned();
                let known = known.chain(is_nullable.then_some(Value::Null)).collect();
                fields.insert("enum".to_owned(), Value::Array(known));
            }
            fields.values_mut().for_each(close);
        }
        Value::Array(items) => items.iter_mut().for_each(close),
        _ => {}
    }
}

/// The fields of an object; nothing where there is none.
fn entries(value: &Value) -> impl Iterator<Item = (&str, &Value)> {
    value.as_object().into_iter().flatten().map(|(key, value)| (key.as_str(), value))
}

fn matches(template: &str, path: &str) -> bool {
    let (mut expected, mut given) = (template.split('/'), path.split('/'));
    loop {
        match (expected.next(), given.next()) {
            (None, None) => return true,
            (Some(name), Some(segment)) if name.starts_with('{') && !segment.is_empty() => {}
            (Some(name), Some(segment)) if name == segment => {}
            _ => return false,
        }
    }
}

fn schema_breaches(schema: &Validator, value: &Value, of: &str) -> Vec<String> {
    schema.iter_errors(value).map(|error| format!("{of}{}: {error}", error.instance_path())).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const ORDER_ID: &str = "0197f5a2-7c1e-7b3a-9d42-3f0c5e8a1b6d";

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()));
        pairs.chain([("x-request-id".parse().unwrap(), "r-1".parse().unwrap())]).collect()
    }

    fn answer(code: u16, status: &str, data: Value) -> Vec<u8> {
        json!({"code": code, "status": status, "data": data}).to_string().into_bytes()
    }

    fn list(data: Value, next: Value) -> Vec<u8> {
        json!({"code": 200, "status": "OK", "data": data, "next": next}).to_string().into_bytes()
    }

    fn order(status: &str) -> Value {
        json!({
            "id": ORDER_ID, "lines": [{"product_id": 1, "total": 12}], "product_id": 1, "total": 12, "status": status,
            "created_at": "2026-01-31T09:00:00.000Z", "expires_at": "2026-01-31T09:15:00.000Z",
        })
    }

    fn rejected() -> Value {
        let mut order = order("rejected");
        order["expires_at"] = Value::Null;
        order["reason"] = json!("insufficient_stock");
        order["available_stock"] = json!(3);
        order
    }

    fn check_order(data: Value) {
        let body = answer(200, "OK", data);
        check(
            "GET",
            &format!("/api/orders/{ORDER_ID}"),
            200,
            &headers(&[("content-type", "application/json")]),
            &body,
        );
    }

    #[test]
    fn answers_of_the_contract_pass() {
        let json = ("content-type", "application/json; charset=utf-8");
        let created = headers(&[json, ("location", "/api/products/1")]);
        check(
            "POST",
            "/api/products",
            201,
            &created,
            &answer(201, "OK", json!({"id": 1, "name": "Kaos Polos"})),
        );
        check(
            "GET",
            "/api/orders?limit=2",
            200,
            &headers(&[json]),
            &list(json!([order("paid"), rejected()]), Value::Null),
        );
        check_order(order("reserved"));
        check_order(rejected());
        let mut of_a_used_key = rejected();
        of_a_used_key["reason"] = json!("idempotency_key_reused");
        of_a_used_key.as_object_mut().unwrap().remove("available_stock");
        check_order(of_a_used_key);
        check_order(json!({"id": ORDER_ID, "status": "pending"}));
        let away = json!({"reason": "database_unavailable", "message": "the database does not answer"});
        let retry = headers(&[json, ("retry-after", "1")]);
        check("GET", "/api/products/1/inventory", 503, &retry, &answer(503, "SERVICE UNAVAILABLE", away));
        check("GET", "/apispec.json", 200, &headers(&[json]), TEXT.as_bytes());
    }

    #[test]
    fn calls_are_listed_by_method_and_template() {
        let calls = calls();
        assert!(
            calls.contains(&("PUT".to_owned(), "/api/products/{productId}/inventory".to_owned())),
            "{calls:?}"
        );
        assert!(calls.contains(&("POST".to_owned(), "/api/orders".to_owned())), "{calls:?}");
        assert!(!calls.iter().any(|(method, _)| method == "PARAMETERS"), "{calls:?}");
    }

    #[test]
    #[should_panic(expected = "there is no such call in the contract")]
    fn an_unknown_path_is_refused() {
        check("GET", "/api/orders/1/2", 200, &headers(&[]), b"");
    }

    #[test]
    #[should_panic(expected = "there is no such call in the contract")]
    fn an_empty_path_segment_is_not_an_id() {
        check("GET", "/api/orders/", 200, &headers(&[]), b"");
    }

    #[test]
    #[should_panic(expected = "does not declare this status, only 200, 400, 404, 500, 503")]
    fn an_undeclared_status_is_refused() {
        check("GET", "/api/products/1", 418, &headers(&[]), b"");
    }

    #[test]
    #[should_panic(expected = "content type text/plain is not declared, only application/json")]
    fn another_content_type_is_refused() {
        check("GET", "/health/live", 200, &headers(&[("content-type", "text/plain")]), b"ok");
    }

    #[test]
    #[should_panic(expected = "header Location is missing")]
    fn a_missing_required_header_is_refused() {
        let body = answer(201, "OK", json!({"id": 1, "name": "Kaos Polos"}));
        check("POST", "/api/products", 201, &headers(&[("content-type", "application/json")]), &body);
    }

    #[test]
    #[should_panic(expected = "header Retry-After: \"soon\" is not of type \"integer\"")]
    fn a_header_must_fit_its_schema() {
        let away = json!({"reason": "database_unavailable", "message": "away"});
        let soon = headers(&[("content-type", "application/json"), ("retry-after", "soon")]);
        check("GET", "/api/products", 503, &soon, &answer(503, "SERVICE UNAVAILABLE", away));
    }

    #[test]
    #[should_panic(expected = "Additional properties are not allowed ('colour' was unexpected)")]
    fn an_unknown_field_is_refused() {
        let body = answer(200, "OK", json!({"live": true, "colour": "green"}));
        check("GET", "/health/live", 200, &headers(&[("content-type", "application/json")]), &body);
    }

    #[test]
    #[should_panic(expected = "12.0 is not of types")]
    fn an_integer_has_no_fraction() {
        let mut order = order("reserved");
        order["total"] = json!(12.0);
        check_order(order);
    }

    #[test]
    #[should_panic(expected = "is not a \"uuid\"")]
    fn a_uuid_has_one_spelling() {
        let mut order = order("reserved");
        order["id"] = json!(ORDER_ID.replace('-', ""));
        check_order(order);
    }

    #[test]
    #[should_panic(expected = "is not a \"date-time\"")]
    fn an_invalid_time_is_refused() {
        let mut order = order("reserved");
        order["created_at"] = json!("2026-02-31T09:00:00.000Z");
        check_order(order);
    }

    #[test]
    #[should_panic(expected = "null is not of type \"string\"")]
    fn null_is_refused_where_it_is_not_declared() {
        let mut order = order("reserved");
        order["status"] = Value::Null;
        check_order(order);
    }

    #[test]
    #[should_panic(expected = "\"shipped\" is not one of")]
    fn a_status_that_the_contract_does_not_list_is_refused() {
        check_order(order("shipped"));
    }

    #[test]
    #[should_panic(expected = "a reserved order has expires_at null")]
    fn an_order_has_the_fields_of_its_status() {
        let mut order = order("reserved");
        order["expires_at"] = Value::Null;
        check_order(order);
    }

    #[test]
    #[should_panic(expected = "created_at has not exactly three digits of fraction: 2026-01-31T09:00:00.12Z")]
    fn a_time_has_three_digits_of_fraction() {
        let mut order = order("reserved");
        order["created_at"] = json!("2026-01-31T09:00:00.12Z");
        check_order(order);
    }

    #[test]
    #[should_panic(expected = "no example of this answer is like it")]
    fn an_error_matches_one_of_the_examples() {
        let full = json!({"reason": "lane_full", "message": "full"});
        let headers = headers(&[("content-type", "application/json"), ("retry-after", "1")]);
        check("GET", "/api/products", 503, &headers, &answer(503, "SERVICE UNAVAILABLE", full));
    }

    #[test]
    #[should_panic(expected = "Link and next disagree")]
    fn the_body_and_the_header_of_a_page_agree() {
        let headers = headers(&[("content-type", "application/json")]);
        check("GET", "/api/orders", 200, &headers, &list(json!([order("paid")]), json!(ORDER_ID)));
    }

    /// Requests, answers, parameters, headers and schemas: a client that copies an example must get a valid one.
    #[test]
    fn every_example_fits_its_schema() {
        let document = Document::load();
        let mut found = 0;
        each_example(&document, &document.0, "", &mut |pointer, schema, example| {
            found += 1;
            let breaches = schema_breaches(&document.validator(schema), example, "example");
            assert!(breaches.is_empty(), "{pointer}:\n  {}\n{example:#}", breaches.join("\n  "));
        });
        assert!(found > 50, "only {found} examples");
    }

    #[test]
    fn every_request_and_every_answer_has_an_example() {
        let document = Document::load();
        for (template, item) in entries(&document.0["paths"]) {
            for (method, operation) in entries(item).filter(|(key, _)| METHODS.contains(key)) {
                let answers = entries(&operation["responses"])
                    .map(|(status, answer)| (status, document.resolve(answer)));
                let request =
                    operation.get("requestBody").map(|request| ("request", document.resolve(request)));
                for (which, message) in answers.chain(request) {
                    for (_, content) in entries(&message["content"]) {
                        let examples = entries(&content["examples"]).count();
                        assert!(examples > 0, "{method} {template} {which} has no example");
                    }
                }
            }
        }
    }

    fn each_example(
        document: &Document,
        value: &Value,
        pointer: &str,
        visit: &mut impl FnMut(&str, &Value, &Value),
    ) {
        // Media types, parameters and headers have their schema next to the example; a schema has its own.
        let schema = value.get("schema").or_else(|| value.get("type").is_some().then_some(value));
        if let Some(schema) = schema {
            if let Some(example) = value.get("example") {
                visit(pointer, schema, example);
            }
            for (name, example) in entries(&value["examples"]) {
                visit(&format!("{pointer}/examples/{name}"), schema, &document.resolve(example)["value"]);
            }
        }
        for (key, child) in entries(value).filter(|(key, _)| !["example", "examples"].contains(key)) {
            each_example(document, child, &format!("{pointer}/{key}"), visit);
        }
        for (index, child) in value.as_array().into_iter().flatten().enumerate() {
            each_example(document, child, &format!("{pointer}/{index}"), visit);
        }
    }
}
