//! What one buyer does: order a piece, follow a 202 to its end, and pay or cancel what is reserved. A buyer is a good client:
//! it has an idempotency key, heeds `Retry-After`, and gives up.

use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::{
    journal::{Ending, Journal},
    load::Visit,
    shop::{Fault, Reply, Request, SeenOrder, Shop},
};

/// How often a buyer sends the same request again.
const RETRIES: u32 = 5;
/// The pause before a request is sent again whose connection broke; twice as long each time.
const RECONNECT: Duration = Duration::from_millis(100);
/// The most that a `Retry-After` is heeded.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);

/// What all buyers do.
#[derive(Clone, Copy, Debug)]
pub struct Behaviour {
    /// What they order.
    pub product: u64,
    /// The share of accepted orders that is paid.
    pub pay: f64,
    /// The share of accepted orders that is cancelled.
    pub cancel: f64,
    /// How long a buyer waits for a verdict, and then for the payment.
    pub patience: Duration,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Plan {
    Pay,
    Cancel,
    Keep,
}

/// Plays one buyer.
pub async fn visit(shop: &Shop, behaviour: &Behaviour, journal: &Journal, visit: Visit) {
    journal.entered(visit.due.elapsed());
    let deadline = Instant::from_std(visit.due) + behaviour.patience;
    let key = uuid::Uuid::new_v4().simple().to_string();
    let order = Request::Order { product: behaviour.product, key };
    let (reply, may_have_acted) = persistently(shop, journal, visit.number, deadline, &order).await;
    let ending = match reply {
        Reply::Order(order, wait) if order.status == "pending" => {
            journal.was_told_to_look_later();
            follow(shop, &order.id, wait, deadline).await
        }
        Reply::Order(order, _) => verdict(order),
        Reply::Refused(reason) => Ending::Refused(reason),
        Reply::NotTaken(_) => Ending::NotTaken { may_have_acted },
        Reply::Fault(fault) => {
            let may_have_acted = may_have_acted || fault.may_have_acted;
            Ending::Failed(Fault { may_have_acted, ..fault })
        }
    };
    let accepted = match &ending {
        Ending::Accepted(order) => Some(order.id.clone()),
        _ => None,
    };
    journal.decided(visit.due, ending);
    if let Some(id) = accepted {
        settle(shop, behaviour, journal, visit.number, &id).await;
    }
}

/// What an order that is not pending says.
fn verdict(order: SeenOrder) -> Ending {
    match (order.status.as_str(), &order.reason) {
        ("reserved" | "paid", _) => Ending::Accepted(order),
        ("rejected", Some(reason)) => Ending::Refused(reason.clone()),
        // It was reserved, and nobody saw it before it expired.
        ("expired", _) => Ending::Refused("order_expired".to_owned()),
        _ => Ending::Failed(Fault::unexpected(&order)),
    }
}

/// Looks at the order until it is decided.
async fn follow(shop: &Shop, id: &str, wait: Option<Duration>, deadline: Instant) -> Ending {
    let mut pause = wait.unwrap_or(Duration::from_secs(1));
    while Instant::now() + pause < deadline {
        sleep(pause).await;
        match shop.look(id, deadline).await {
            Reply::Order(order, _) if order.status != "pending" => return verdict(order),
            Reply::Order(_, wait) => pause = wait.unwrap_or(Duration::from_secs(1)),
            Reply::NotTaken(wait) => pause = wait,
            Reply::Fault(fault) if fault.is_worth_a_retry => pause = Duration::from_secs(1),
            Reply::Fault(fault) if fault.kind == "no answer in time" => return Ending::Pending,
            Reply::Fault(fault) => return Ending::Failed(Fault { may_have_acted: true, ..fault }),
            Reply::Refused(reason) => return Ending::Refused(reason),
        }
        pause = pause.min(LONGEST_PAUSE);
    }
    Ending::Pending
}

/// Pays or cancels, as this buyer does.
async fn settle(shop: &Shop, behaviour: &Behaviour, journal: &Journal, number: u64, id: &str) {
    let deadline = Instant::now() + behaviour.patience;
    let begun = Instant::now();
    let plan = plan(number, behaviour.pay, behaviour.cancel);
    let request = match plan {
        Plan::Keep => return,
        Plan::Pay => Request::Pay(id.to_owned()),
        Plan::Cancel => {
            journal.cancels();
            Request::Cancel(id.to_owned())
        }
    };
    let (reply, _) = persistently(shop, journal, number, deadline, &request).await;
    let wanted = if plan == Plan::Cancel { "cancelled" } else { "paid" };
    let record = || match plan {
        Plan::Cancel => journal.cancelled(id),
        Plan::Pay | Plan::Keep => journal.paid(id, begun.elapsed()),
    };
    match reply {
        Reply::Order(order, _) if order.status == wanted => record(),
        Reply::Order(_, wait) => {
            // 202: not known yet.
            let mut pause = wait.unwrap_or(Duration::from_secs(1)).min(LONGEST_PAUSE);
            while Instant::now() + pause < deadline {
                sleep(pause).await;
                match shop.look(id, deadline).await {
                    Reply::Order(order, _) if order.status == wanted => return record(),
                    Reply::Order(order, _) if !matches!(order.status.as_str(), "pending" | "reserved") => {
                        return journal.change_refused(id, &format!("order_is_{}", order.status));
                    }
                    Reply::NotTaken(wait) => pause = wait.min(LONGEST_PAUSE),
                    _ => pause = Duration::from_secs(1),
                }
            }
            journal.change_pending(id);
        }
        Reply::Refused(reason) => journal.change_refused(id, &reason),
        Reply::NotTaken(_) => journal.change_not_taken(id),
        Reply::Fault(fault) => journal.change_failed(id, fault),
    }
}

/// Sends a request until there is an answer, or retries or time are used up. Also whether an attempt without an answer may
/// have been acted on.
async fn persistently(
    shop: &Shop,
    journal: &Journal,
    number: u64,
    deadline: Instant,
    request: &Request,
) -> (Reply, bool) {
    let mut may_have_acted = false;
    let mut retries = 0;
    loop {
        let reply = shop.send(request, deadline).await;
        let pause = match &reply {
            Reply::NotTaken(wait) => {
                journal.was_not_taken();
                let wait = (*wait).min(LONGEST_PAUSE);
                // All were refused in the same instant: they do not come back in the same instant.
                wait + wait.min(Duration::from_secs(1)).mul_f64(share(number, u64::from(retries) + 1))
            }
            Reply::Fault(fault) if fault.is_worth_a_retry => {
                may_have_acted |= fault.may_have_acted;
                RECONNECT * 2_u32.pow(retries)
            }
            _ => return (reply, may_have_acted),
        };
        if retries == RETRIES || Instant::now() + pause >= deadline {
            return (reply, may_have_acted);
        }
        retries += 1;
        if matches!(reply, Reply::Fault(_)) {
            journal.reconnects();
        }
        sleep(pause).await;
    }
}

/// The same buyers pay in every rehearsal.
fn plan(number: u64, pay: f64, cancel: f64) -> Plan {
    match share(number, 0) {
        share if share < pay => Plan::Pay,
        share if share < pay + cancel => Plan::Cancel,
        _ => Plan::Keep,
    }
}

/// A number from 0 up to 1 that looks random, and is always the same (SplitMix64).
fn share(number: u64, salt: u64) -> f64 {
    let mut mixed = number.wrapping_add(salt << 48).wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_of_buyers_pay_and_cancel() {
        let plans: Vec<_> = (0..10_000).map(|number| plan(number, 0.8, 0.1)).collect();
        let count = |wanted| plans.iter().filter(|plan| **plan == wanted).count();
        assert!((7_800..8_200).contains(&count(Plan::Pay)), "{}", count(Plan::Pay));
        assert!((900..1_100).contains(&count(Plan::Cancel)), "{}", count(Plan::Cancel));
        assert!((0..1_000).all(|number| plan(number, 1.0, 0.0) == Plan::Pay));
        assert!((0..1_000).all(|number| plan(number, 0.0, 0.0) == Plan::Keep));
        assert!((0..1_000).all(|number| plan(number, 0.0, 1.0) == Plan::Cancel));
    }

    #[test]
    fn an_order_that_is_decided_says_what_became_of_the_buyer() {
        let order = |status: &str, reason: Option<&str>| {
            let json = serde_json::json!({"id": "a", "status": status, "reason": reason});
            verdict(serde_json::from_value(json).unwrap())
        };
        assert!(matches!(order("reserved", None), Ending::Accepted(_)));
        let Ending::Refused(reason) = order("rejected", Some("insufficient_stock")) else { panic!() };
        assert_eq!(reason, "insufficient_stock");
        assert!(matches!(order("rejected", None), Ending::Failed(_)));
        assert!(matches!(order("cancelled", None), Ending::Failed(_)));
    }
}
