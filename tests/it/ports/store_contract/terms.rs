//! Terms of sale: how they are stored, and how the lanes obey them.

use antre::domain::terms::{Hold, SalePeriod, Terms};

use super::*;

suite! {
    every_store: [
        terms_are_read_as_they_were_set,
        a_paused_product_is_not_sold,
        a_sale_opens_and_closes_by_the_databases_clock,
        an_order_may_ask_for_so_many_pieces,
        a_reservation_holds_as_long_as_its_product_says,
        changes_are_not_subject_to_the_terms,
        what_was_reserved_before_a_pause_stays_reserved,
        a_rejection_by_the_terms_is_stored_when_nobody_waits,
        products_that_are_closed_to_orders_are_known_with_the_commit,
        after_a_pause_nothing_is_reserved,
    ],
    sql_only: [
        invalid_terms_stop_no_other_product,
    ],
}

fn terms() -> Terms {
    Terms::default()
}

fn paused() -> Terms {
    Terms { selling: false, ..terms() }
}

fn period(opens_at: Option<Timestamp>, closes_at: Option<Timestamp>) -> Terms {
    Terms { period: SalePeriod::new(opens_at, closes_at).unwrap(), ..terms() }
}

fn pieces(count: u32) -> Option<Quantity> {
    Some(Quantity::new(count).unwrap())
}

fn milliseconds(count: i64) -> SignedDuration {
    SignedDuration::from_millis(count)
}

fn sale_paused(product_id: ProductId) -> Verdict {
    Verdict::Rejected(Rejection::SalePaused { product_id })
}

fn sale_not_open(product_id: ProductId, opens_at: Timestamp) -> Verdict {
    Verdict::Rejected(Rejection::SaleNotOpen { product_id, opens_at })
}

fn sale_closed(product_id: ProductId) -> Verdict {
    Verdict::Rejected(Rejection::SaleClosed { product_id })
}

fn limit_per_order(product_id: ProductId, limit: u32) -> Verdict {
    Verdict::Rejected(Rejection::LimitPerOrder { product_id, limit })
}

#[track_caller]
fn expires_at(verdict: &Verdict) -> Timestamp {
    let Verdict::Reserved { expires_at } = verdict else { panic!("{verdict:?}") };
    *expires_at
}

impl Database {
    async fn set_terms(&self, id: ProductId, terms: Terms) {
        assert!(self.store.set_terms(id, terms).await.unwrap());
    }

    /// The verdict on one more order.
    async fn verdict_on(&self, id: ProductId, total: u32) -> Verdict {
        self.decide(&[order(id, total)]).await.remove(0)
    }

    /// By the clock that decides.
    async fn now(&self) -> Timestamp {
        self.store.now().await.unwrap()
    }
}

async fn terms_are_read_as_they_were_set(database: Database) {
    let (id, other) = (database.product_of(3).await, database.product_of(3).await);
    let at = |text: &str| Some(text.parse::<Timestamp>().unwrap());
    let (early, late) = (at("2026-01-31T09:00:00.125Z"), at("9999-12-30T00:00:00Z"));
    assert_eq!(database.store.terms(id).await.unwrap(), Some(terms()));
    for set in [
        paused(),
        period(early, None),
        period(None, late),
        period(early, late),
        period(at("0001-01-01T00:00:00Z"), at("1969-12-31T23:59:59.999Z")),
        Terms { max_per_order: pieces(1), max_per_buyer: pieces(Quantity::MAX), ..terms() },
        Terms { max_per_order: pieces(5), max_per_buyer: pieces(2), ..terms() },
        Terms { hold: Hold::new(1), ..terms() },
        Terms { hold: Hold::new(Hold::MAX), ..period(early, late) },
        terms(),
    ] {
        for _ in 0..2 {
            database.set_terms(id, set).await;
            assert_eq!(database.store.terms(id).await.unwrap(), Some(set));
        }
        assert_eq!(database.store.terms(other).await.unwrap(), Some(terms()));
        assert_eq!(database.pieces(id).await, [3, 3, 0], "they do not touch the stock");
    }
    database.set_terms(id, paused()).await;
    database.store.recount(id, stock(7)).await.unwrap().done().unwrap();
    assert_eq!(database.home.open().await.terms(id).await.unwrap(), Some(paused()), "opened again");
    assert_eq!(database.store.terms(stranger()).await.unwrap(), None);
    assert!(!database.store.set_terms(stranger(), paused()).await.unwrap());
}

async fn a_paused_product_is_not_sold(database: Database) {
    let (shirt, hat) = (database.product_of(5).await, database.product_of(5).await);
    let far = database.now().await + SignedDuration::from_hours(1);
    database.set_terms(shirt, Terms { selling: false, ..period(Some(far), None) }).await;
    for _ in 0..2 {
        let verdicts = database.decide(&[order(shirt, 1), order(hat, 1), order(shirt, 9)]).await;
        let refused = sale_paused(shirt);
        assert!(
            verdicts[0] == refused && is_reserved(&verdicts[1]) && verdicts[2] == refused,
            "{verdicts:?}"
        );
    }
    database.set_terms(shirt, terms()).await;
    assert!(is_reserved(&database.verdict_on(shirt, 5).await));
    assert_eq!(database.pieces(shirt).await, [5, 0, 5]);
    database.assert_balanced().await;
}

/// The clock of the process that decides takes no part: it is compared with nothing here.
async fn a_sale_opens_and_closes_by_the_databases_clock(database: Database) {
    let id = database.product_of(1_000_000).await;
    let opens_at = database.now().await + milliseconds(250);
    let closes_at = opens_at + milliseconds(250);
    database.set_terms(id, period(Some(opens_at), Some(closes_at))).await;
    let (mut early, mut open) = (0, 0);
    loop {
        let before = database.now().await;
        let verdict = database.verdict_on(id, 1).await;
        let after = database.now().await;
        if verdict == sale_not_open(id, opens_at) {
            assert!(before < opens_at, "refused at {before} or later");
            early += 1;
        } else if verdict == sale_closed(id) {
            assert!(after >= closes_at, "refused at {after} or earlier");
            break;
        } else {
            assert!(is_reserved(&verdict), "{verdict:?}");
            assert!(after >= opens_at && before < closes_at, "reserved between {before} and {after}");
            open += 1;
        }
    }
    assert!(early > 0 && open > 0, "{early} {open}");
    assert_eq!(database.pieces(id).await, [1_000_000, 1_000_000 - open, open]);
    assert_eq!(database.verdict_on(id, 1).await, sale_closed(id));
    database.assert_balanced().await;
}

async fn an_order_may_ask_for_so_many_pieces(database: Database) {
    let id = database.product_of(10).await;
    database.set_terms(id, Terms { max_per_order: pieces(3), ..terms() }).await;
    let verdicts =
        database.decide(&[order(id, 3), order(id, 4), order(id, 1), order(id, Quantity::MAX)]).await;
    assert_eq!(accepted(&verdicts), [true, false, true, false]);
    assert_eq!(
        [&verdicts[1], &verdicts[3]],
        [&limit_per_order(id, 3), &limit_per_order(id, 3)],
        "whatever is there"
    );
    // The limit is for each order: two of three pieces are fine.
    assert!(is_reserved(&database.verdict_on(id, 3).await));
    assert_eq!(database.pieces(id).await, [10, 3, 7]);
    database.assert_balanced().await;
}

async fn a_reservation_holds_as_long_as_its_product_says(database: Database) {
    let (short, usual) = (database.product_of(5).await, database.product_of(5).await);
    database.set_terms(short, Terms { hold: Hold::new(60), ..terms() }).await;
    let batch = [order(short, 1), order(usual, 1)];
    let before = database.now().await;
    let verdicts = database.decide(&batch).await;
    let after = database.now().await;
    let ttl = SignedDuration::try_from(TTL.reservation_ttl).unwrap();
    for ((verdict, order), hold) in verdicts.iter().zip(&batch).zip([SignedDuration::from_secs(60), ttl]) {
        let expires_at = self::expires_at(verdict);
        assert!(before + hold <= expires_at && expires_at <= after + hold, "{verdict:?}");
        let stored = database.store.order(order.id).await.unwrap().unwrap();
        assert_eq!(stored.expires_at(), Some(expires_at));
    }
    // No reservation ends before its order was created, whatever the clock of its API.
    let ahead = database.now().await + SignedDuration::from_secs(90);
    let id = OrderId::with_checksum(OrderId::first_at(ahead).uuid());
    let order = NewOrder { id, ..order(short, 1) };
    assert_eq!(expires_at(&database.decide(slice::from_ref(&order)).await[0]), order.id.created_at());
    // It does not change what is reserved already.
    database.set_terms(short, terms()).await;
    let stored = database.store.order(batch[0].id).await.unwrap().unwrap();
    assert_eq!(stored.expires_at(), Some(expires_at(&verdicts[0])));
    database.assert_balanced().await;
}

async fn changes_are_not_subject_to_the_terms(database: Database) {
    let now = database.now().await;
    let closed = period(None, Some(now));
    let unopened = period(Some(now + SignedDuration::from_hours(1)), None);
    let limited = Terms { max_per_order: pieces(1), ..terms() };
    for closed in [paused(), closed, unopened, limited] {
        let id = database.product_of(10).await;
        let [paid, cancelled, expired] = database.reserve_for(id, [2, 3, 4], NO_TIME).await;
        database.set_terms(id, closed).await;
        assert_eq!(database.change(&paid, PAY).await, PAID);
        assert_eq!(database.change(&cancelled, Change::Cancel).await, CANCELLED);
        assert_eq!(database.change(&expired, Change::Expire).await, EXPIRED);
        assert!(!is_reserved(&database.verdict_on(id, 2).await));
        assert_eq!(database.pieces(id).await, [8, 8, 0]);
    }
    database.assert_balanced().await;
}

async fn what_was_reserved_before_a_pause_stays_reserved(database: Database) {
    let id = database.product_of(5).await;
    let (plain, with_key) = (order(id, 1), keyed(order(id, 1), "a-key"));
    let batch = [plain, with_key.clone()];
    let verdicts = database.decide(&batch).await;
    assert_eq!(accepted(&verdicts), [true, true]);
    database.set_terms(id, paused()).await;
    // Redelivered, alone and beside another one; and sent again under its key.
    assert_eq!(database.decide(&batch).await, verdicts);
    let again = database.decide(&[order(id, 1), batch[0].clone(), keyed(order(id, 1), "a-key")]).await;
    assert_eq!(again[..2], [sale_paused(id), verdicts[0].clone()]);
    assert!(matches!(&again[2], Verdict::AlreadyPlaced(order) if order.id == with_key.id), "{again:?}");
    assert_eq!(database.verdict_on(id, 1).await, sale_paused(id));
    assert_eq!(database.pieces(id).await, [5, 3, 2]);
    database.assert_balanced().await;
}

async fn a_rejection_by_the_terms_is_stored_when_nobody_waits(database: Database) {
    let now = database.now().await;
    let opens_at = now + SignedDuration::from_hours(1);
    let limited = Terms { max_per_order: pieces(1), ..terms() };
    for closed in [paused(), period(None, Some(now)), period(Some(opens_at), None), limited] {
        let id = database.product_of(5).await;
        database.set_terms(id, closed).await;
        let (waited_for, detached) = (order(id, 2), detached_order(id, 2));
        let verdicts = database.decide(&[waited_for.clone(), detached.clone()]).await;
        let Verdict::Rejected(rejection) = &verdicts[1] else { panic!("{verdicts:?}") };
        assert_eq!(verdicts[0], verdicts[1]);
        assert_eq!(database.store.order(waited_for.id).await.unwrap(), None);
        let stored = database.store.order(detached.id).await.unwrap().unwrap();
        assert_eq!(stored.rejection(), Some(*rejection), "with its details");
        // What is stored stays, whatever the terms are later.
        database.set_terms(id, terms()).await;
        assert_eq!(database.decide(slice::from_ref(&detached)).await, verdicts[1..]);
        assert_eq!(database.pieces(id).await, [5, 5, 0]);
    }
}

async fn products_that_are_closed_to_orders_are_known_with_the_commit(database: Database) {
    const MARGIN: Duration = Duration::from_secs(1);
    let store = &database.store;
    let (id, empty) = (database.product_of(5).await, database.product_of(0).await);
    let closed = async |id: ProductId| {
        let closed = store.closed_to_orders(&[stranger(), id], MARGIN).await.unwrap();
        let closed = closed.into_iter().inspect(|(of, _)| assert_eq!(*of, id));
        closed.map(|(_, rejection)| rejection).collect::<Vec<_>>()
    };
    let now = database.now().await;
    let soon = period(Some(now + milliseconds(999)), None);
    let later = now + SignedDuration::from_secs(3_600);
    let limited = Terms { max_per_order: pieces(1), ..terms() };
    for (set, expected) in [
        (terms(), None),
        (paused(), Some(sale_paused(id))),
        (period(Some(later), None), Some(sale_not_open(id, later))),
        (Terms { selling: false, ..period(Some(later), None) }, Some(sale_paused(id))),
        (soon, None),
        (period(None, Some(now)), Some(sale_closed(id))),
        (period(Some(now), Some(later)), None),
        (limited, None),
    ] {
        database.set_terms(id, set).await;
        let found = closed(id).await.pop().map(Verdict::Rejected);
        assert_eq!(found, expected, "{set:?}");
    }
    // Why a product without pieces is refused is what its lane says.
    assert_eq!(closed(empty).await.pop().map(Verdict::Rejected), Some(database.verdict_on(empty, 1).await));
    for set in [paused(), period(Some(later), None), period(None, Some(now))] {
        database.set_terms(empty, set).await;
        let found = closed(empty).await.pop().map(Verdict::Rejected);
        assert_eq!(found, Some(database.verdict_on(empty, 1).await));
    }
    database.set_terms(empty, period(Some(database.now().await + milliseconds(999)), None)).await;
    assert_eq!(closed(empty).await, [], "its lane decides");
}

/// The seller's emergency brake, while several workers decide: it counts from its commit on.
async fn after_a_pause_nothing_is_reserved(database: Database) {
    const WORKERS: usize = 4;
    let id = database.product_of(1_000_000).await;
    let (stop, stopped) = tokio::sync::watch::channel(false);
    let mut workers = JoinSet::new();
    for _ in 0..WORKERS {
        let (store, stopped) = (database.home.open().await, stopped.clone());
        workers.spawn(async move {
            let mut reserved = 0;
            while !*stopped.borrow() {
                let verdicts = decide(&*store, &[order(id, 1), order(id, 1)]).await;
                reserved += accepted(&verdicts).into_iter().filter(|accepted| *accepted).count();
            }
            reserved
        });
    }
    let reserved = async || database.pieces(id).await[2];
    for _ in 0..5 {
        let before = reserved().await;
        let deadline = Instant::now() + DEADLINE;
        while reserved().await == before {
            assert!(Instant::now() < deadline, "nobody buys");
        }
        database.set_terms(id, paused()).await;
        let at_the_pause = reserved().await;
        for _ in 0..5 {
            assert_eq!(database.verdict_on(id, 1).await, sale_paused(id));
            assert_eq!(reserved().await, at_the_pause);
        }
        database.set_terms(id, terms()).await;
    }
    stop.send(true).unwrap();
    let all: usize = workers.join_all().await.into_iter().sum();
    assert_eq!(reserved().await as usize, all);
    database.assert_balanced().await;
}

async fn invalid_terms_stop_no_other_product(database: Database) {
    let (id, other) = (database.product_of(5).await, database.product_of(5).await);
    let unchecked = match database.home {
        Home::Sqlite { .. } => "PRAGMA ignore_check_constraints = 1;",
        _ => "",
    };
    for column in
        ["opens_at = 2, closes_at = 1", "max_per_order = 0", "max_per_buyer = -1", "hold_seconds = 0"]
    {
        let statement = format!("{unchecked} UPDATE inventories SET {column} WHERE product_id = {id}");
        database.by_hand(&statement).await.unwrap();
        let error = database.store.terms(id).await.unwrap_err();
        assert!(!error.is_transient(), "{error}");
        let verdicts = database.decide(&[order(id, 1), order(other, 1)]).await;
        assert!(verdicts[0] == Verdict::Undecidable && is_reserved(&verdicts[1]), "{column}: {verdicts:?}");
        // The seller mends it.
        database.set_terms(id, terms()).await;
        assert!(is_reserved(&database.verdict_on(id, 1).await), "{column}");
    }
    database.assert_balanced().await;
}
