//! What client generators cannot read, or read wrongly, must not come back into `apispec.json`. Each rule here broke the
//! clients that twenty generators made of an earlier contract: they refused the file, or threw on an order that was
//! reserved. `scripts/clients.sh` runs four of the generators themselves.

use serde_json::Value;

use super::{METHODS, TEXT, entries};

fn contract() -> Value {
    serde_json::from_str(TEXT).unwrap()
}

/// Every object in the document, with its JSON pointer.
fn objects<'a>(value: &'a Value, pointer: &str, visit: &mut impl FnMut(&str, &'a Value)) {
    match value {
        Value::Object(fields) => {
            visit(pointer, value);
            for (name, child) in fields {
                objects(child, &format!("{pointer}/{name}"), visit);
            }
        }
        Value::Array(items) => {
            for (index, child) in items.iter().enumerate() {
                objects(child, &format!("{pointer}/{index}"), visit);
            }
        }
        _ => {}
    }
}

/// Pointers of the objects that break a rule.
fn offenders(breaks: impl Fn(&str, &Value) -> bool) -> Vec<String> {
    let mut found = Vec::new();
    objects(&contract(), "", &mut |pointer, object| {
        if !pointer.contains("/examples/") && breaks(pointer, object) {
            found.push(pointer.to_owned());
        }
    });
    found
}

const NONE: [&str; 0] = [];

#[test]
fn no_link_has_a_request_body() {
    assert_eq!(
        offenders(|pointer, link| pointer.contains("/links/") && link.get("requestBody").is_some()),
        NONE
    );
}

#[test]
fn no_time_has_a_pattern() {
    assert_eq!(
        offenders(|_, schema| schema["format"] == "date-time" && schema.get("pattern").is_some()),
        NONE
    );
}

#[test]
fn no_enum_has_a_single_value_or_null() {
    let is_bad = |values: &Vec<Value>| values.len() < 2 || values.contains(&Value::Null);
    assert_eq!(offenders(|_, schema| schema["enum"].as_array().is_some_and(is_bad)), NONE);
}

#[test]
fn no_schema_is_one_of_several() {
    let kinds = ["oneOf", "anyOf", "allOf", "not", "discriminator"];
    assert_eq!(offenders(|_, schema| kinds.iter().any(|kind| schema.get(kind).is_some())), NONE);
}

/// Nothing next to a `$ref` counts in OpenAPI 3.0, and generators disagree about what they do with it.
#[test]
fn a_reference_stands_alone() {
    assert_eq!(
        offenders(|_, object| object.get("$ref").is_some() && object.as_object().unwrap().len() > 1),
        NONE
    );
}

/// A class `NewProduct` collides with the constructor function of a class `Product`.
#[test]
fn no_schema_is_called_as_a_constructor() {
    let document = contract();
    let names: Vec<_> = entries(&document["components"]["schemas"]).map(|(name, _)| name).collect();
    assert!(names.contains(&"Order") && names.contains(&"Error"), "{names:?}");
    assert!(!names.iter().any(|name| name.starts_with("New")), "{names:?}");
}

/// A client has one type for an order and one for an error, whatever the status: with a separate type for 202,
/// clients threw on it though the order was queued.
#[test]
fn all_answers_of_a_call_have_one_type_and_all_errors_have_one() {
    let document = contract();
    for (path, item) in entries(&document["paths"]) {
        for (method, operation) in entries(item).filter(|(key, _)| METHODS.contains(key)) {
            let mut of_success = Vec::new();
            for (status, answer) in entries(&operation["responses"]) {
                let answer = match answer["$ref"].as_str() {
                    Some(reference) => document.pointer(&reference[1..]).unwrap(),
                    None => answer,
                };
                for (_, content) in entries(&answer["content"]) {
                    if status.starts_with('2') {
                        of_success.push(&content["schema"]);
                    } else {
                        let schema = &content["schema"]["$ref"];
                        assert_eq!(schema, "#/components/schemas/Error", "{method} {path} {status}");
                    }
                }
            }
            of_success.dedup();
            assert_eq!(of_success.len(), 1, "{method} {path}: {of_success:?}");
        }
    }
}

/// Requests are strict, so that a typing error is reported; answers are open, so that an older client takes a newer answer.
#[test]
fn requests_are_closed_and_answers_are_open() {
    let document = contract();
    let mut requests = 0;
    for (name, schema) in entries(&document["components"]["schemas"]) {
        let is_request = name.ends_with("Request");
        requests += usize::from(is_request);
        objects(schema, name, &mut |pointer, object| {
            if object["properties"].is_object() {
                assert_eq!(object["additionalProperties"] == false, is_request, "{pointer}");
            }
            assert!(
                is_request || object.get("enum").is_none(),
                "{pointer}: a list of values that cannot grow"
            );
        });
    }
    assert_eq!(requests, 9);
}
