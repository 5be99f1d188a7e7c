use std::sync::Arc;

use super::*;
use crate::{
    clock::{Clock, SystemClock},
    domain::{
        command::{ChangeOrder, NewOrder, ReplyMode},
        ids::OrderId,
        names::PaymentReference,
        order::{Change, OrderState, Quantity},
        origin::{Origin, RequestId, TraceContext},
        rejection::Rejection,
    },
};

fn product(number: u64) -> ProductId {
    ProductId::new(number).unwrap()
}

fn id() -> OrderId {
    "0193ab5e-0000-7000-8000-000000000000".parse().unwrap()
}

fn new_order(id: OrderId, number: u64, key: Option<&str>) -> Command {
    let key = key.map(|key| key.to_owned().try_into().unwrap());
    let reply = ReplyMode::Until(from_millis(4_102_444_800_000));
    NewOrder {
        id,
        lines: Lines::one(product(number), Quantity::new(2).unwrap()),
        buyer: None,
        reply,
        key,
        origin: Origin::default(),
    }
    .into()
}

fn change(id: CommandId, change: Change) -> Command {
    let reply = ReplyMode::Until(from_millis(4_102_444_800_000));
    ChangeOrder {
        id,
        order_id: self::id(),
        product_id: product(1),
        other_products: [].into(),
        change,
        reply,
        origin: Origin::default(),
    }
    .into()
}

fn order(number: u64, status: OrderStatus) -> Order {
    let state = OrderState::Accepted { status, expires_at: from_millis(1_734_000_900_000) };
    Order {
        id: id(),
        lines: Some(Lines::one(product(number), Quantity::new(2).unwrap())),
        buyer: None,
        payment: None,
        state,
    }
}

/// Statuses of orders whose pieces were reserved once.
const ACCEPTED: [OrderStatus; 5] = [
    OrderStatus::Reserved,
    OrderStatus::Paid,
    OrderStatus::Cancelled,
    OrderStatus::Expired,
    OrderStatus::Returned,
];

fn text(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap()
}

/// Those of a message without a bad one.
#[track_caller]
fn all_outcomes(bytes: &[u8]) -> Vec<(CommandId, Outcome)> {
    let Outcomes { outcomes, skipped } = decode_outcomes(bytes, Some(VERDICTS_V1)).unwrap();
    assert!(skipped.is_empty(), "{skipped:?}");
    outcomes
}

#[test]
fn what_is_encoded_is_decoded() {
    let reference = || Some(PaymentReference::try_from("tx-4711".to_owned()).unwrap());
    let changes = [
        Change::Pay { reference: None },
        Change::Pay { reference: reference() },
        Change::Cancel,
        Change::Expire,
        Change::Extend,
        Change::Return { restock: true },
        Change::Return { restock: false },
    ];
    let commands: Vec<_> = changes
        .into_iter()
        .map(|one| change(SystemClock.command_id(), one))
        .chain((1..=3).map(|number| new_order(SystemClock.order_id(), number, None)))
        .chain([new_order(SystemClock.order_id(), 4, Some("a-key"))])
        .chain([new_order(SystemClock.order_id(), 5, None).detached()])
        .collect();
    assert_eq!(decode_commands(&encode_commands(&commands), Some(ORDERS_V1)).unwrap(), commands);

    let rejected =
        |rejection| Order { state: OrderState::Rejected(rejection), ..order(1, OrderStatus::Paid) };
    let rejections = [
        Rejection::InsufficientStock { product_id: product(1), available: 0 },
        Rejection::KeyReused,
        Rejection::ProductNotFound { product_id: product(1) },
        Rejection::SaleNotOpen { product_id: product(2), opens_at: from_millis(1_734_000_900_000) },
        Rejection::LimitPerBuyer { product_id: product(2), limit: 2, held: 1 },
    ];
    let verdicts: Vec<_> = [Verdict::Reserved { expires_at: SystemClock.now() }, Verdict::OrderNotFound]
        .into_iter()
        .chain([Verdict::Undecidable])
        .chain(rejections.map(Verdict::Rejected))
        .chain(ACCEPTED.map(|status| Verdict::Current(order(1, status))))
        .chain([Verdict::Current(rejected(rejections[0]))])
        .chain([
            Verdict::AlreadyPlaced(order(1, OrderStatus::Paid)),
            Verdict::AlreadyPlaced(rejected(rejections[0])),
            Verdict::AlreadyPlaced(rejected(rejections[1])),
        ])
        .map(|verdict| (SystemClock.command_id(), verdict))
        .collect();
    let encoded = encode_verdicts(verdicts.clone());
    let outcomes: Vec<_> =
        verdicts.into_iter().map(|(id, verdict)| (id, Outcome::Decided(verdict))).collect();
    assert_eq!(all_outcomes(&encoded), outcomes);
    let refused: Vec<_> =
        commands.iter().map(|command| (command.id(), Outcome::Refused(Refusal::OtherInstallation))).collect();
    assert_eq!(all_outcomes(&encode_refusals(&commands)), refused);
    assert_eq!(decode_product(&encode_product(product(7)), Some(PRODUCT_V1)).unwrap(), product(7));
}

#[test]
fn the_wire_format_is_what_architecture_md_shows() {
    let commands = [
        new_order(id(), 1, None),
        new_order(id(), 1, Some("a-key")),
        change(id().into(), Change::Pay { reference: None }),
    ];
    let detached = new_order(id(), 1, None).detached();
    assert_eq!(
        text(encode_commands(&[detached])),
        r#"{"orders":[{"id":"0193ab5e-0000-7000-8000-000000000000","product_id":1,"total":2,"answer_by":1733746884608,"detached":true}]}"#
    );
    assert_eq!(
        text(encode_commands(&commands)),
        r#"{"orders":[{"id":"0193ab5e-0000-7000-8000-000000000000","product_id":1,"total":2,"answer_by":4102444800000},{"id":"0193ab5e-0000-7000-8000-000000000000","product_id":1,"total":2,"idempotency_key":"a-key","answer_by":4102444800000},{"id":"0193ab5e-0000-7000-8000-000000000000","product_id":1,"change":"pay","order_id":"0193ab5e-0000-7000-8000-000000000000","answer_by":4102444800000}]}"#
    );
    let reserved = Verdict::Reserved { expires_at: from_millis(1_734_000_900_000) };
    let rejected = Verdict::Rejected(Rejection::InsufficientStock { product_id: product(1), available: 0 });
    let paid = Verdict::Current(order(1, OrderStatus::Paid));
    let placed = Verdict::AlreadyPlaced(order(1, OrderStatus::Reserved));
    let verdicts = [reserved, rejected, paid, placed].map(|verdict| (id().into(), verdict));
    assert_eq!(
        text(encode_verdicts(verdicts.to_vec())),
        r#"{"verdicts":[{"id":"0193ab5e-0000-7000-8000-000000000000","verdict":"reserved","expires_at":1734000900000},{"id":"0193ab5e-0000-7000-8000-000000000000","verdict":"insufficient_stock","product_id":1,"available_stock":0},{"id":"0193ab5e-0000-7000-8000-000000000000","verdict":"is_paid","order":{"order_id":"0193ab5e-0000-7000-8000-000000000000","product_id":1,"total":2,"status":"paid","expires_at":1734000900000}},{"id":"0193ab5e-0000-7000-8000-000000000000","verdict":"already_placed","order":{"order_id":"0193ab5e-0000-7000-8000-000000000000","product_id":1,"total":2,"status":"reserved","expires_at":1734000900000}}]}"#
    );
}

#[test]
fn a_command_says_which_request_and_trace_it_comes_from() {
    let trace: TraceContext = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
    let origin = Origin {
        request_id: Some("a\"b\\".parse().unwrap()),
        trace: Some(Arc::new(trace.with_state(Some("rojo=1,congo=\"2\"")))),
    };
    let Command::Place(order) = new_order(id(), 1, None) else { panic!("it places an order") };
    let commands = [Command::Place(NewOrder { origin, ..order })];
    let message = encode_commands(&commands);
    assert_eq!(decode_commands(&message, Some(ORDERS_V1)).unwrap(), commands);
    assert_eq!(
        text(message),
        r#"{"orders":[{"id":"0193ab5e-0000-7000-8000-000000000000","product_id":1,"total":2,"answer_by":4102444800000,"request_id":"a\"b\\","traceparent":"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01","tracestate":"rojo=1,congo=\"2\""}]}"#
    );
}

/// A later release, or another language, may write them differently.
#[test]
fn what_only_logs_need_makes_no_command_undecodable() {
    let decoded = |fields: &str| {
        let message = format!(
            r#"{{"orders":[{{"id":"0193ab5e-0000-7000-8000-000000000000","product_id":1,"answer_by":4102444800000,"total":2{fields}}}]}}"#
        );
        decode_commands(message.as_bytes(), Some(ORDERS_V1)).unwrap().remove(0)
    };
    let without = new_order(id(), 1, None);
    assert_eq!(decoded(""), without);
    assert_eq!(decoded(r#","something":"of a later release""#), without);
    let long = format!("{:?}", "a".repeat(RequestId::MAX_LENGTH + 1));
    for bad in ["\"\"", "\"a b\"", &long, "null", "true", "7", "-7", "7.5", "[7]", r#"{"id":"abc"}"#] {
        assert_eq!(decoded(&format!(r#","request_id":{bad}"#)), without, "{bad}");
        assert_eq!(decoded(&format!(r#","traceparent":{bad},"tracestate":"a=b""#)), without, "{bad}");
    }
}

#[test]
fn events_keep_their_order_within_a_product() {
    use OrderStatus::{Cancelled, Paid, Reserved};
    let lane = [(1, Reserved), (2, Reserved), (1, Reserved), (1, Paid), (1, Reserved), (2, Cancelled)];
    let events: Vec<_> =
        lane.iter().map(|(number, status)| Event::of_order(order(*number, *status))).collect();
    let messages = encode_events(&events);
    let keys: Vec<_> = messages.iter().map(|(keys, _)| keys.join(" ")).collect();
    let expected =
        ["order.reserved.1 order.reserved.2", "order.cancelled.2", "order.paid.1", "order.reserved.1"];
    assert_eq!(keys, expected);
    assert_eq!(
        text(messages[2].1.clone()),
        r#"{"events":[{"order_id":"0193ab5e-0000-7000-8000-000000000000","product_id":1,"total":2,"status":"paid","expires_at":1734000900000}]}"#
    );
    assert_eq!(text(messages[0].1.clone()).matches("order_id").count(), 3);
}

#[test]
fn the_keys_of_events_fit_into_a_frame() {
    let event = |number| Event::of_order(order(number, OrderStatus::Cancelled));
    let events: Vec<_> = (0..2_000).map(|n| event(ProductId::MAX - n % 250)).collect();
    let messages = encode_events(&events);
    assert_eq!(messages.iter().map(|(keys, _)| keys.len()).collect::<Vec<_>>(), [100, 100, 50]);
    let bytes = |keys: &[String]| keys.iter().map(|key| key.len() + 5).sum::<usize>();
    assert!(messages.iter().all(|(keys, _)| bytes(keys) < 4_000), "{:?}", messages[0].0);
    let told: usize =
        messages.iter().map(|(_, payload)| text(payload.clone()).matches("order_id").count()).sum();
    assert_eq!(told, events.len());
}

#[test]
fn what_cannot_be_is_undecodable() {
    let order = |fields: &str| {
        format!(
            r#"{{"orders":[{{"id":"0193ab5e-0000-7000-8000-000000000000","product_id":1,"answer_by":0{fields}}}]}}"#
        )
    };
    let decoded = |message: &str| decode_commands(message.as_bytes(), Some(ORDERS_V1));
    let of_an_earlier_release = decoded(&order(r#","total":1"#)).unwrap();
    assert!(of_an_earlier_release[0].is_detached(), "its deadline is over from birth");
    for bad in [
        "",
        r#","total":0"#,
        r#","total":-1"#,
        r#","total":"1""#,
        r#","total":4e9"#,
        r#","total":1,"change":"pay""#,
        r#","change":"pay""#,
        r#","total":1,"idempotency_key":"""#,
        r#","change":"steal","order_id":"0193ab5e-0000-7000-8000-000000000000""#,
    ] {
        assert!(decoded(&order(bad)).is_err(), "{bad}");
    }
    for bad in ["", "[]", "{}", r#"{"orders":[]}"#] {
        assert!(decoded(bad).is_err(), "{bad}");
    }
    let good = order(r#","total":1"#);
    assert!(decode_commands(good.as_bytes(), Some("antre.orders.v2")).is_err());
    assert!(decode_commands(good.as_bytes(), None).is_err());
}

/// `tests/it/api/one_rule.rs` compares these words with the documentation.
#[test]
fn each_word_of_a_verdict_stands_for_itself() {
    use Word::{AlreadyPlaced, OrderNotFound, OtherInstallation, Reserved, Undecidable};
    let words = [Reserved, AlreadyPlaced, OrderNotFound, Undecidable, OtherInstallation]
        .into_iter()
        .chain(RejectionReason::ALL.map(Word::Rejected))
        .chain(OrderStatus::ALL.map(Word::Current));
    let mut seen = std::collections::HashSet::new();
    for word in words {
        assert_eq!(word.as_str().parse::<Word>().unwrap(), word);
        assert!(seen.insert(word.as_str()), "{word:?}");
    }
}

#[test]
fn a_bad_verdict_is_skipped_and_the_others_of_its_message_are_delivered() {
    let id = CommandId::from(id());
    let good = |word: &str| format!(r#"{{"id":"{id}","verdict":"{word}"}}"#);
    let bad = [
        // Incomplete. The last one is what a worker of an earlier release sends: it leaves the order out.
        good("reserved"),
        good("insufficient_stock"),
        good("already_placed"),
        good("is_paid"),
        // Unknown: of a later release.
        good("is_pending"),
        good("paid"),
        // Anything else.
        r#"{"id":"1","verdict":"undecidable"}"#.to_owned(),
        r#"{"verdict":"undecidable"}"#.to_owned(),
        format!(r#"{{"id":"{id}","verdict":7}}"#),
        format!(r#"{{"id":"{id}","verdict":"reserved","expires_at":"soon"}}"#),
        "7".to_owned(),
    ];
    let expected = [
        (id, Outcome::Decided(Verdict::Undecidable)),
        (id, Outcome::Decided(Verdict::Rejected(Rejection::KeyReused))),
    ];
    for bad in bad {
        let (first, last) = (good("undecidable"), good("idempotency_key_reused"));
        let message = format!(r#"{{"verdicts":[{first},{bad},{last}]}}"#);
        let decoded = decode_outcomes(message.as_bytes(), Some(VERDICTS_V1)).unwrap();
        assert_eq!(decoded.outcomes, expected, "{bad}");
        assert_eq!(decoded.skipped.len(), 1, "{bad}");
    }
    for bad in ["", "7", "{}", r#"{"verdicts":7}"#, r#"{"verdicts":[7"#] {
        assert!(decode_outcomes(bad.as_bytes(), Some(VERDICTS_V1)).is_err(), "{bad}");
    }
    assert!(decode_outcomes(br#"{"verdicts":[]}"#, Some(ORDERS_V1)).is_err());
}
