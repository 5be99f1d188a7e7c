use tokio::time::advance;
use uuid::Uuid;

use super::*;
use crate::{
    clock::SystemClock,
    domain::inventory::Stock,
    monitor::{
        STALLED_AFTER,
        latency::LatencyRecorder,
        report::{Counts, LaneReport, ProcessIdentity, ProcessRole, ProductReport, Vital},
    },
};

fn product(number: u64) -> ProductId {
    ProductId::new(number).unwrap()
}

/// A process that tells things to a board.
struct Teller {
    report: Report,
}

impl Teller {
    fn new(role: ProcessRole, name: &str) -> Self {
        let process = ProcessIdentity {
            id: Uuid::now_v7(),
            name: name.to_owned(),
            role,
            version: "1".to_owned(),
            started_at: SystemClock.now(),
        };
        let report = Report {
            process,
            sequence: 0,
            is_last: false,
            database: Vital::Ok,
            broker: Vital::Ok,
            lanes_served: 3,
            dead_letters: None,
            products: Vec::new(),
            lanes: Vec::new(),
        };
        Self { report }
    }

    fn tell(&mut self, board: &Board, change: impl FnOnce(&mut Report)) {
        self.report.sequence += 1;
        let mut report = self.report.clone();
        change(&mut report);
        board.receive(report);
    }
}

fn counts(product_id: ProductId, reserved: u64, rejected: u64) -> ProductReport {
    ProductReport {
        product_id,
        counts: Counts { reserved, rejected, ..Counts::default() },
        stock: None,
        decided_until_ms: 1,
        latencies: Default::default(),
    }
}

fn waiting(product_id: ProductId, unanswered: u64, undecided: Duration) -> LaneReport {
    let ms = undecided.as_millis() as u64;
    LaneReport { product_id, unanswered, held: 0, oldest_ms: ms, undecided_ms: ms, tries: 0, error: None }
}

fn board() -> Board {
    Board::new(Arc::new(SystemClock))
}

fn named(number: u64, name: &str, stock: u32) -> (Product, Option<Inventory>) {
    let mut inventory = Inventory::EMPTY;
    inventory.recount(Stock::new(stock).unwrap()).unwrap();
    (
        Product {
            id: product(number),
            name: name.to_owned().try_into().unwrap(),
            sku: None,
            archived_at: None,
        },
        Some(inventory),
    )
}

fn kinds(board: &Board) -> Vec<AlertKind> {
    board.overview().alerts.iter().map(|alert| alert.kind).collect()
}

#[tokio::test(start_paused = true)]
async fn an_empty_board_has_nothing_to_say_until_a_worker_is_missed() {
    let board = board();
    assert_eq!(kinds(&board), []);
    let overview = board.overview();
    assert_eq!((overview.database, overview.dead_letters, overview.products), (Vital::Unknown, None, 0));
    assert_eq!(board.products(&ProductQuery::default()).pages, 1);
    advance(PATIENCE).await;
    assert_eq!(kinds(&board), [AlertKind::NoWorker]);
}

#[tokio::test(start_paused = true)]
async fn what_two_processes_tell_is_added_up() {
    let board = board();
    let (mut a, mut b) = (Teller::new(ProcessRole::Worker, "a"), Teller::new(ProcessRole::Serve, "b"));
    let recorder = LatencyRecorder::default();
    for _ in 0..6 {
        recorder.record(Duration::from_millis(5));
        a.tell(&board, |report| report.products = vec![counts(product(1), 2, 1)]);
        b.tell(&board, |report| {
            let latencies = recorder.take();
            report.products =
                vec![ProductReport { latencies, ..counts(product(1), 3, 0) }, counts(product(2), 0, 5)];
        });
        advance(Duration::from_secs(1)).await;
        board.tick();
    }
    let overview = board.overview();
    assert_eq!((overview.totals.reserved, overview.totals.refused()), (30, 36));
    assert_eq!((overview.accepted_per_s, overview.refused_per_s), (5.0, 6.0));
    assert!(overview.latency.is_some_and(|latency| (5.0..6.3).contains(&latency.p99_ms)));
    assert_eq!(overview.series.len(), 6);
    let last = overview.series[5];
    assert_eq!((last.accepted, last.refused), (5, 6));
    assert!(overview.processes.iter().all(|process| process.gone_since.is_none()));
    let detail = board.product(product(1)).unwrap();
    assert_eq!((detail.product.accepted_per_s, detail.product.totals.reserved), (5.0, 30));
    assert_eq!(detail.product.worker.as_deref(), Some("b"));
    assert_eq!(detail.series.iter().map(|point| point.accepted).sum::<u64>(), 30);
    assert_eq!(board.product(product(9)), None);
}

#[tokio::test(start_paused = true)]
async fn a_report_that_comes_twice_counts_once() {
    let board = board();
    let mut worker = Teller::new(ProcessRole::Worker, "a");
    worker.tell(&board, |report| report.products = vec![counts(product(1), 2, 0)]);
    let again = Report { products: vec![counts(product(1), 2, 0)], ..worker.report.clone() };
    board.receive(again);
    assert_eq!(board.overview().totals.reserved, 2);
}

#[tokio::test(start_paused = true)]
async fn a_process_that_is_silent_is_gone_and_one_that_leaves_at_once() {
    let board = board();
    let (mut a, mut b) = (Teller::new(ProcessRole::Worker, "a"), Teller::new(ProcessRole::Worker, "b"));
    a.tell(&board, |_| ());
    b.tell(&board, |_| ());
    b.tell(&board, |report| report.is_last = true);
    let shown = |board: &Board| {
        let processes = board.overview().processes;
        processes.iter().map(|one| (one.name.clone(), one.gone_since.is_some())).collect::<Vec<_>>()
    };
    assert_eq!(shown(&board), [("a".to_owned(), false), ("b".to_owned(), true)]);
    advance(Duration::from_secs(5)).await;
    assert_eq!(shown(&board), [("a".to_owned(), true), ("b".to_owned(), true)]);
    assert_eq!(kinds(&board), [AlertKind::NoWorker]);
    a.tell(&board, |_| ());
    assert_eq!(shown(&board), [("a".to_owned(), false), ("b".to_owned(), true)]);
    assert_eq!(kinds(&board), []);
    advance(Duration::from_secs(700)).await;
    board.tick();
    assert_eq!(shown(&board), []);
}

#[tokio::test(start_paused = true)]
async fn a_lane_that_stands_still_is_an_alert_and_one_that_goes_on_is_not() {
    let board = board();
    let (mut api, mut worker) = (Teller::new(ProcessRole::Api, "api"), Teller::new(ProcessRole::Worker, "w"));
    board.learn([named(1, "Kaos", 3)], SystemClock.now());
    let old = STALLED_AFTER - Duration::from_secs(1);
    worker.tell(&board, |report| report.products = vec![counts(product(2), 1, 0)]);
    api.tell(&board, |report| report.lanes = vec![waiting(product(1), 7, old), waiting(product(2), 1, old)]);
    assert_eq!(kinds(&board), []);
    assert_eq!(board.standstill().stalled().count(), 0);
    advance(Duration::from_secs(2)).await;
    worker.tell(&board, |report| {
        report.products = vec![counts(product(2), 1, 0)];
        report.lanes = vec![LaneReport {
            unanswered: 0,
            held: 5,
            tries: 3,
            error: Some("locked".to_owned()),
            ..waiting(product(1), 0, Duration::from_secs(1))
        }];
    });
    let overview = board.overview();
    assert_eq!((overview.waiting, overview.oldest_ms), (8, Some(5_000)));
    let [alert] = &overview.alerts[..] else { panic!("{:?}", overview.alerts) };
    assert_eq!((alert.kind, alert.product_id), (AlertKind::LaneStalled, Some(product(1))));
    assert_eq!(alert.text, "Lane 1 (Kaos) stands still: 7 waiting, the oldest for 5 s, try 3: locked");
    let standstill = board.standstill();
    assert!(!standstill.is_complete, "another lane goes on");
    assert_eq!(standstill.stalled().count(), 1);
    advance(STALLED_AFTER).await;
    assert!(board.standstill().is_complete);
    worker.tell(&board, |_| ());
    api.tell(&board, |_| ());
    assert_eq!(kinds(&board), []);
}

#[tokio::test(start_paused = true)]
async fn servers_that_one_process_misses_and_dead_letters_are_alerts() {
    let board = board();
    let (mut a, mut b) = (Teller::new(ProcessRole::Serve, "a"), Teller::new(ProcessRole::Worker, "b"));
    let away = || Vital::Unavailable { since: Timestamp::UNIX_EPOCH, error: "silent".to_owned() };
    a.tell(&board, |report| report.database = away());
    b.tell(&board, |report| {
        report.broker = away();
        report.dead_letters = Some(2);
    });
    let overview = board.overview();
    let expected = Vital::Unavailable { since: Timestamp::UNIX_EPOCH, error: "a: silent".to_owned() };
    assert_eq!(overview.database, expected);
    let kinds: Vec<_> = overview.alerts.iter().map(|alert| alert.kind).collect();
    assert_eq!(kinds, [AlertKind::DatabaseUnavailable, AlertKind::BrokerUnavailable, AlertKind::DeadLetters]);
    a.tell(&board, |_| ());
    b.tell(&board, |report| report.dead_letters = Some(0));
    assert!(board.overview().alerts.is_empty());
}

#[tokio::test(start_paused = true)]
async fn the_newest_stock_counts_in_whatever_order_it_is_told() {
    let board = board();
    let mut worker = Teller::new(ProcessRole::Worker, "w");
    let now = SystemClock.now();
    let stock = |available, seen_ms| Some(StockLevel { available, reserved: 0, seen_ms });
    let seen_ms = now.as_millisecond();
    worker.tell(&board, |report| {
        report.products = vec![ProductReport { stock: stock(4, seen_ms), ..counts(product(1), 1, 0) }];
    });
    board.learn([named(1, "Kaos", 5)], now - jiff::SignedDuration::from_secs(1));
    let detail = board.product(product(1)).unwrap();
    assert_eq!(detail.product.stock.map(|stock| stock.available), Some(4));
    assert_eq!(detail.product.name.as_deref(), Some("Kaos"));
    board.learn([named(1, "Kaos", 9)], now + jiff::SignedDuration::from_secs(1));
    assert_eq!(board.product(product(1)).unwrap().product.stock.map(|stock| stock.available), Some(9));
}

#[tokio::test(start_paused = true)]
async fn products_are_searched_filtered_sorted_and_paged() {
    let board = board();
    let mut api = Teller::new(ProcessRole::Api, "api");
    let all = (1..=5_000).map(|number| named(number, &format!("Item {number:04}"), (number % 7) as u32));
    board.learn(all, SystemClock.now());
    api.tell(&board, |report| {
        report.products = vec![counts(product(4_711), 9, 0)];
        report.lanes = vec![waiting(product(17), 3, Duration::from_secs(60))];
    });
    let ids = |query: ProductQuery| {
        let page = board.products(&query);
        (page.rows.iter().map(|row| row.id.get()).collect::<Vec<_>>(), page.matching, page.page, page.pages)
    };
    let all = ProductQuery { page_size: 3, ..ProductQuery::default() };
    assert_eq!(ids(all.clone()), (vec![1, 2, 3], 5_000, 0, 1_667));
    assert_eq!(ids(ProductQuery { page: 9_999, ..all.clone() }), (vec![4_999, 5_000], 5_000, 1_666, 1_667));
    let searched = ProductQuery { search: " item 004 ".to_owned(), ..all.clone() };
    assert_eq!(ids(searched).1, 10);
    let by_id = ProductQuery { search: "12".to_owned(), ..all.clone() };
    assert!(ids(by_id).0.contains(&12));
    let (mut with_sku, stock) = named(4_321, "Item 4321", 3);
    with_sku.sku = Some("KAOS-Polos/m".to_owned().try_into().unwrap());
    board.learn([(with_sku, stock)], SystemClock.now());
    for sku in ["kaos-polos/M", " POLOS"] {
        let by_sku = ProductQuery { search: sku.to_owned(), ..all.clone() };
        assert_eq!(ids(by_sku), (vec![4_321], 1, 0, 1), "{sku}");
    }
    board.learn([named(4_321, "Item 4321", 3)], SystemClock.now());
    assert_eq!(ids(ProductQuery { search: "polos".to_owned(), ..all.clone() }).1, 0, "it has none any more");
    let name = ProductQuery { sort: ProductSort::Name, descending: true, ..all.clone() };
    assert_eq!(ids(name).0, [5_000, 4_999, 4_998]);
    let stock = ProductQuery { sort: ProductSort::Available, descending: true, ..all.clone() };
    assert_eq!(ids(stock).0, [6, 13, 20], "equal ones by id");
    for (show, matching) in [
        (ProductFilter::Active, vec![4_711]),
        (ProductFilter::Waiting, vec![17]),
        (ProductFilter::Stalled, vec![17]),
    ] {
        assert_eq!(ids(ProductQuery { show, ..all.clone() }).0, matching, "{show:?}");
    }
    assert_eq!(ids(ProductQuery { show: ProductFilter::SoldOut, ..all.clone() }).1, 714);
    let oldest = ProductQuery { sort: ProductSort::Oldest, descending: true, page_size: 1, ..all };
    assert_eq!(ids(oldest).0, [17]);
}

#[tokio::test(start_paused = true)]
async fn a_board_is_watched_while_somebody_asks_and_says_when_it_changes() {
    let board = board();
    assert!(!board.is_watched());
    board.overview();
    assert!(board.is_watched());
    advance(WATCHED).await;
    assert!(!board.is_watched());
    let mut changed = board.changed();
    board.tick();
    assert!(changed.has_changed().unwrap());
    assert_eq!(*changed.borrow_and_update(), 1);
}
