use tokio::time::advance;

use super::*;
use crate::{
    clock::SystemClock,
    domain::{
        command::{NewOrder, ReplyMode},
        inventory::Stock,
        lines::Lines,
        order::Quantity,
        origin::Origin,
        outcome::Effect,
        verdict::Verdict,
    },
    queue::Refusal,
};

fn product(number: u64) -> ProductId {
    ProductId::new(number).unwrap()
}

fn order(number: u64) -> Command {
    let (id, total) = (SystemClock.order_id(), Quantity::new(1).unwrap());
    let (reply, origin) = (ReplyMode::Detached, Origin::default());
    NewOrder { id, lines: Lines::one(product(number), total), buyer: None, reply, key: None, origin }.into()
}

fn activity() -> Activity {
    Activity::new(Arc::new(SystemClock))
}

fn decided() -> Outcome {
    Outcome::Decided(Verdict::Undecidable)
}

/// A batch of one product, with this effect for each command.
fn result(number: u64, effects: &[Effect], inventory: Option<Inventory>) -> BatchResult {
    let mut outcome = ProductOutcome::default();
    outcome.inventory = inventory;
    effects.iter().for_each(|effect| outcome.count(*effect));
    BatchResult { outcomes: [(product(number), outcome)].into(), ..BatchResult::default() }
}

#[tokio::test(start_paused = true)]
async fn a_report_says_what_happened_since_the_last_one() {
    let activity = activity();
    let mut inventory = Inventory::EMPTY;
    inventory.recount(Stock::new(5).unwrap()).unwrap();
    let commands = [order(1), order(1)];
    activity.decide(&commands, &result(1, &[Effect::Reserved, Effect::Repeated], Some(inventory)));
    activity.decide(&commands, &result(1, &[Effect::Undecidable], None));
    activity.refuse_early(product(2));
    let (mut products, lanes) = activity.take_report();
    products.sort_by_key(|product| product.product_id);
    assert_eq!(lanes, []);
    let [first, second] = &products[..] else { panic!("{products:?}") };
    let expected = Counts { reserved: 1, repeated: 1, undecidable: 1, ..Counts::default() };
    assert_eq!((first.counts, first.stock.map(|stock| stock.available)), (expected, Some(5)));
    assert_eq!(first.decided_until_ms, time_of(&commands[1]));
    assert_eq!(second.counts, Counts { refused_early: 1, ..Counts::default() });
    assert_eq!(activity.take_report(), (vec![], vec![]));
}

#[tokio::test(start_paused = true)]
async fn commands_without_a_verdict_wait() {
    let activity = activity();
    let [first, second] = [activity.submit(&order(1)), activity.submit(&order(1))];
    let unanswered = || activity.take_report().1.iter().map(|lane| lane.unanswered).sum::<u64>();
    assert_eq!(unanswered(), 2);
    first.answer(Some(&decided()));
    assert_eq!(unanswered(), 1);
    second.answer(Some(&Outcome::Refused(Refusal::LaneFull)));
    assert_eq!(unanswered(), 0);
    let third = activity.submit(&order(1));
    third.answer(Some(&decided()));
    let (products, lanes) = activity.take_report();
    assert_eq!(lanes, []);
    assert!(!products[0].latencies.is_empty());
}

#[tokio::test(start_paused = true)]
async fn a_command_whose_client_left_waits_until_a_later_one_is_decided() {
    let activity = activity();
    let unanswered = || activity.take_report().1.iter().map(|lane| lane.unanswered).sum::<u64>();
    drop(activity.submit(&order(1)));
    activity.submit(&order(1)).answer(None);
    activity.submit(&order(1)).answer(Some(&Outcome::Queued));
    assert_eq!((unanswered(), activity.abandoned()), (3, vec![product(1)]));
    let last = order(1);
    activity.decided_until(product(1), time_of(&last) - 60_000);
    activity.decided_until(product(2), time_of(&last));
    assert_eq!(unanswered(), 3);
    activity.decided_until(product(1), time_of(&last));
    assert_eq!((unanswered(), activity.abandoned()), (0, vec![]));
    activity.submit(&order(1)).answer(None);
    activity.nothing_waits(product(1));
    assert_eq!(unanswered(), 0);
    activity.submit(&order(1)).answer(None);
    activity.submit(&order(1)).answer(Some(&decided()));
    assert_eq!(unanswered(), 0);
}

#[tokio::test(start_paused = true)]
async fn what_an_api_waits_for_and_its_worker_holds_is_one_lane() {
    let activity = activity();
    let command = order(1);
    let _submitted = activity.submit(&command);
    let delivery = crate::queue::Delivery {
        commands: vec![command.clone()],
        lane: "a lane".into(),
        reply_to: "an API".into(),
        tag: 1,
    };
    activity.undecided().take(&[delivery]);
    activity.fail(&[command], "locked");
    let (_, lanes) = activity.take_report();
    let [lane] = &lanes[..] else { panic!("{lanes:?}") };
    assert_eq!((lane.unanswered, lane.held, lane.tries, lane.error.as_deref()), (1, 1, 1, Some("locked")));
}

#[tokio::test(start_paused = true)]
async fn products_that_nobody_orders_leave() {
    let activity = activity();
    activity.refuse_early(product(1));
    let waiting = activity.submit(&order(2));
    activity.take_report();
    advance(IDLE).await;
    activity.take_report();
    assert!(activity.known(product(1)).is_none());
    assert!(activity.known(product(2)).is_some());
    waiting.answer(Some(&decided()));
    activity.take_report();
    assert!(activity.known(product(2)).is_some());
    advance(IDLE).await;
    activity.take_report();
    assert!(activity.known(product(2)).is_none());
}
