//! A status, a reason or a change is one word: the contract, the wire, the checks of both databases and the code agree on all
//! of them. Needs no server. To add a word, change what fails here.

use std::{collections::BTreeSet, fs, path::Path};

use antre::{
    domain::{
        movement::MovementKind,
        order::{ChangeKind, OrderStatus},
        rejection::RejectionReason,
    },
    http::{CONTRACT, error_reasons},
};
use serde_json::Value;

type Words = BTreeSet<String>;

fn words<'a>(words: impl IntoIterator<Item = &'a str>) -> Words {
    words.into_iter().map(str::to_owned).collect()
}

fn statuses() -> Words {
    words(OrderStatus::ALL.map(OrderStatus::as_str))
}

/// As clients see them.
fn public_statuses() -> Words {
    &statuses() | &words([OrderStatus::PENDING])
}

fn reasons(which: impl Fn(RejectionReason) -> bool) -> Words {
    words(RejectionReason::ALL.into_iter().filter(|reason| which(*reason)).map(RejectionReason::as_str))
}

fn contract() -> Value {
    serde_json::from_str(CONTRACT).unwrap()
}

/// The list at this place of the contract.
#[track_caller]
fn listed(pointer: &str) -> Words {
    let contract = contract();
    let list = contract.pointer(pointer).and_then(Value::as_array);
    let list = list.unwrap_or_else(|| panic!("the contract has no list at {pointer}"));
    let found = words(list.iter().map(|word| word.as_str().unwrap()));
    assert!(found.len() > 1 && found.len() == list.len(), "{pointer}: {list:?}");
    found
}

fn read(path: impl AsRef<Path>) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The words of each `column IN ('…', …)`.
fn lists_of(column: &str, text: &str) -> Vec<Words> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices(&format!("{column} ")) {
        if text[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_') {
            continue;
        }
        let rest = &text[at + column.len()..];
        let Some(rest) = rest.strip_prefix(" IN (").or_else(|| rest.strip_prefix(" NOT IN (")) else {
            continue;
        };
        let (list, _) = rest.split_once(')').unwrap();
        found.push(words(list.split(',').map(|word| word.trim().trim_matches('\''))));
    }
    found
}

/// The list of the newest migration that has one for the column: it replaced the earlier ones.
fn checked(database: &str, column: &str) -> Words {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("migrations").join(database);
    let files = fs::read_dir(&directory).unwrap().map(|file| file.unwrap().path());
    let mut files: Vec<_> = files.filter(|file| file.extension().is_some_and(|end| end == "sql")).collect();
    files.sort();
    assert!(files.len() > 3, "{files:?}");
    let lists = files.iter().rev().map(|file| lists_of(column, &read(file))).find(|lists| !lists.is_empty());
    let [list] = &lists.unwrap_or_default()[..] else {
        panic!("{database}: not one check of {column}");
    };
    assert!(list.len() > 1, "{database}: {list:?}");
    list.clone()
}

#[test]
fn lists_are_found_in_sql() {
    let sql = "CHECK (status IN ('a', 'b')), x_status IN ('c'), status = 'd', order_status NOT IN ('e'), OR status NOT IN ('f')";
    assert_eq!(lists_of("status", sql), [words(["a", "b"]), words(["f"])]);
}

#[test]
fn the_contract_lists_the_statuses_of_the_code() {
    let status = "/components/schemas/Order/properties/status/x-extensible-enum";
    assert_eq!(listed(status), public_statuses());
    let contract = contract();
    let parameters = contract.pointer("/paths/~1api~1orders/get/parameters").unwrap().as_array().unwrap();
    let at = parameters.iter().position(|parameter| parameter["name"] == "status").unwrap();
    let filter = format!("/paths/~1api~1orders/get/parameters/{at}/schema/enum");
    assert_eq!(listed(&filter), public_statuses());
    let of_an_error = "/components/schemas/ErrorDetails/properties/order_status/x-extensible-enum";
    assert_eq!(listed(of_an_error), public_statuses());
}

#[test]
fn the_contract_and_the_checks_list_the_kinds_of_movements_of_the_code() {
    let kinds = words(MovementKind::ALL.map(MovementKind::as_str));
    assert_eq!(listed("/components/schemas/Movement/properties/kind/x-extensible-enum"), kinds);
    for database in ["mysql", "sqlite"] {
        assert_eq!(checked(database, "kind"), kinds, "{database}");
    }
}

#[test]
fn the_contract_lists_the_reasons_of_the_code() {
    let of_an_error = "/components/schemas/ErrorDetails/properties/reason/x-extensible-enum";
    let in_code: Vec<_> = error_reasons().collect();
    assert_eq!(listed(of_an_error), words(in_code.iter().map(|(word, _)| *word)));
    assert_eq!(listed(of_an_error).len(), in_code.len(), "a word has two statuses: {in_code:?}");
    for reason in RejectionReason::ALL {
        assert!(in_code.contains(&(reason.as_str(), reason.http_status())), "{reason:?}");
    }
    // A stored order has only the reasons that are stored.
    let of_an_order = "/components/schemas/Order/properties/reason/x-extensible-enum";
    assert_eq!(listed(of_an_order), reasons(RejectionReason::is_stored));
}

#[test]
fn the_examples_of_the_contract_have_the_http_statuses_of_the_code() {
    let contract = contract();
    let in_code: Vec<_> = error_reasons().collect();
    let mut found = Words::new();
    for (name, response) in contract["components"]["responses"].as_object().unwrap() {
        let examples = &response["content"]["application/json"]["examples"];
        for example in examples.as_object().into_iter().flatten().map(|(_, example)| &example["value"]) {
            let (Some(reason), Some(code)) = (example["data"]["reason"].as_str(), example["code"].as_u64())
            else {
                panic!("{name}: {example}");
            };
            let known = in_code.iter().any(|(word, status)| *word == reason && u64::from(*status) == code);
            assert!(known, "{name}: {reason} with {code}");
            found.insert(reason.to_owned());
        }
    }
    assert!(found.is_superset(&reasons(|_| true)) && found.len() > 20, "{found:?}");
}

#[test]
fn the_checks_of_both_databases_list_the_words_of_the_code() {
    for database in ["mysql", "sqlite"] {
        assert_eq!(checked(database, "status"), statuses(), "{database}");
        let stored = reasons(RejectionReason::is_stored);
        assert_eq!(checked(database, "rejection_reason"), stored, "{database}");
    }
    // The only reason with a number of pieces stands in the checks, too.
    let with_stock = RejectionReason::InsufficientStock.as_str();
    for file in ["migrations/mysql/0013_rejection_reason.sql", "migrations/sqlite/0006_rejection_reason.sql"]
    {
        let check =
            format!("(COALESCE(rejection_reason, '') = '{with_stock}') = (rejected_available IS NOT NULL)");
        assert!(read(file).contains(&check), "{file}");
    }
    let audit = read("src/store/audit.rs");
    assert_eq!(lists_of("status", &audit), [statuses()]);
    assert_eq!(lists_of("rejection_reason", &audit), [reasons(RejectionReason::is_stored)]);
}

/// `docs/internals/lanes.md` shows the wire format, and a unit test of the wire format compares the code with the same words.
#[test]
fn the_wire_has_the_words_of_the_code() {
    for status in OrderStatus::ALL {
        assert_eq!(serde_json::to_value(status).unwrap(), status.as_str());
    }
    for change in ChangeKind::ALL {
        assert_eq!(serde_json::to_value(change).unwrap(), change.as_str());
    }
    let lanes = read("docs/internals/lanes.md");
    let paragraphs: Vec<_> =
        lanes.split("\n\n").filter(|text| text.starts_with("**`type: antre.verdicts.v1`**")).collect();
    let [paragraph] = paragraphs[..] else { panic!("{} paragraphs show verdicts", paragraphs.len()) };
    let shown = words(paragraph.split('`').skip(1).step_by(2));
    let fields = words(["type: antre.verdicts.v1", "verdict", "order"]);
    assert!(shown.is_superset(&fields), "{shown:?}");
    let current: Vec<_> = OrderStatus::ALL.map(|status| format!("is_{}", status.as_str())).into();
    let others = ["reserved", "already_placed", "order_not_found", "undecidable", "other_installation"];
    let expected = &reasons(|_| true) | &words(others.into_iter().chain(current.iter().map(String::as_str)));
    assert_eq!(&shown - &fields, expected);
}
