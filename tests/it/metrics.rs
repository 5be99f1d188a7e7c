//! What processes say of themselves at `/metrics`, and that rules, dashboards and documents name what there is.

mod files;

use std::{collections::BTreeMap, process::Stdio};

use serde_json::Value;
use sqlx::{Connection, Executor, SqliteConnection};
use tokio::{io::AsyncWriteExt, process::Command};

use crate::support::{
    harness::{App, Client, Pair, eventually},
    servers::servers,
};

/// The samples of a process by name and labels, as they stand in the text: `antre_ready{part="worker"}`.
pub(crate) struct Scrape {
    text: String,
    samples: BTreeMap<String, f64>,
}

impl Scrape {
    pub(crate) async fn of(process: &Client) -> Self {
        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        let answer = http.get(format!("http://{}/metrics", process.address())).send().await.unwrap();
        assert_eq!(answer.status(), 200);
        assert_eq!(answer.headers()["content-type"], "text/plain; version=0.0.4");
        assert_eq!(answer.headers()["cache-control"], "no-store");
        let text = answer.text().await.unwrap();
        let lines = text.lines().filter(|line| !line.starts_with('#'));
        let sample = |line: &str| {
            let (name, value) = line.rsplit_once(' ').unwrap();
            (name.to_owned(), value.parse().unwrap())
        };
        let samples = lines.map(sample).collect();
        Self { text, samples }
    }

    /// The value of a series; one that has not appeared is 0.
    pub(crate) fn get(&self, series: &str) -> f64 {
        self.samples.get(series).copied().unwrap_or(0.0)
    }

    /// Orders answered with this outcome, for this reason.
    fn answered(&self, outcome: &str, reason: &str) -> f64 {
        self.get(&format!(r#"antre_orders_answered_total{{outcome="{outcome}",reason="{reason}"}}"#))
    }

    fn decided(&self, outcome: &str, reason: &str) -> f64 {
        self.get(&format!(r#"antre_commands_decided_total{{outcome="{outcome}",reason="{reason}"}}"#))
    }
}

/// A sale of 5 pieces to 12 buyers, of whom one pays and one cancels. Returns how many got which status.
async fn sale(api: &Client) -> BTreeMap<u16, u32> {
    let product = api.create_stocked("Kaos Polos", 5).await;
    let (mut statuses, mut accepted) = (BTreeMap::new(), Vec::new());
    for _ in 0..12 {
        let answer = api.order(product, 1).await;
        *statuses.entry(answer.status).or_default() += 1;
        if answer.status == 201 {
            accepted.push(answer.data()["id"].as_str().unwrap().to_owned());
        }
    }
    assert_eq!(api.order(product + 1, 1).await.status, 404);
    assert_eq!(api.pay(&accepted[0]).await.status, 200);
    assert_eq!(api.cancel(&accepted[1]).await.status, 200);
    assert_eq!(api.pay(&accepted[1]).await.status, 409);
    statuses
}

#[tokio::test]
async fn the_figures_of_a_sale_are_what_was_sent_and_answered() {
    let app = App::start(Pair::Embedded).await;
    let statuses = sale(&app).await;
    assert_eq!(statuses, BTreeMap::from([(201, 5), (400, 7)]));

    let scrape = Scrape::of(&app).await;
    assert_eq!(scrape.answered("accepted", ""), 5.0);
    assert_eq!(scrape.answered("rejected", "insufficient_stock"), 7.0);
    assert_eq!(scrape.answered("rejected", "product_not_found"), 1.0);
    let change = |change, outcome| {
        scrape.get(&format!(r#"antre_changes_answered_total{{change="{change}",outcome="{outcome}"}}"#))
    };
    assert_eq!((change("payment", "done"), change("payment", "conflict")), (1.0, 1.0));
    assert_eq!((change("cancellation", "done"), change("cancellation", "conflict")), (1.0, 0.0));

    // What the order gate refused, no worker decided.
    let refused = scrape.get(r#"antre_gate_refusals_total{reason="insufficient_stock"}"#);
    assert_eq!(scrape.decided("reserved", ""), 5.0);
    assert_eq!(scrape.decided("rejected", "insufficient_stock") + refused, 7.0);
    assert_eq!((scrape.decided("paid", ""), scrape.decided("cancelled", "")), (1.0, 1.0));
    let decided = 5.0 + 7.0 - refused + 2.0;
    assert_eq!(scrape.get("antre_commands_taken_total"), decided);
    assert_eq!(scrape.get("antre_verdict_latency_seconds_count"), decided);
    assert_eq!(scrape.get("antre_lane_wait_seconds_count"), decided);
    assert_eq!(scrape.get("antre_batch_commands_sum"), decided);
    let phase = r#"antre_batch_phase_duration_seconds_count{phase="write_and_commit"}"#;
    assert_eq!(scrape.get(phase), scrape.get("antre_batch_duration_seconds_count"));

    let requests = |status| {
        let labels = format!(r#"method="POST",route="/api/orders",status="{status}""#);
        scrape.get(&format!("antre_http_requests_total{{{labels}}}"))
    };
    assert_eq!((requests("2xx"), requests("4xx"), requests("5xx")), (5.0, 8.0, 0.0));
    assert_eq!(scrape.get(r#"antre_http_errors_total{reason="order_not_reserved"}"#), 1.0);
    assert_eq!((scrape.get("antre_pending_replies"), scrape.get("antre_parked_commands")), (0.0, 0.0));
    for part in ["database", "queue", "worker"] {
        assert_eq!(scrape.get(&format!(r#"antre_ready{{part="{part}"}}"#)), 1.0, "{part}");
    }
    assert_eq!(scrape.get(r#"antre_build_info{version="0.1.0",role="serve"}"#), 1.0);
    assert!(scrape.get("process_resident_memory_bytes") > 1_000_000.0);
}

/// Labels come from a closed set: what clients send makes no series.
#[tokio::test]
async fn what_clients_send_makes_no_series() {
    let app = App::start(Pair::Embedded).await;
    let before = Scrape::of(&app).await.samples.len();
    let http = reqwest::Client::builder().no_proxy().build().unwrap();
    for number in 0..20 {
        let method = reqwest::Method::from_bytes(format!("BREW{number}").as_bytes()).unwrap();
        let url = format!("http://{}/made/up/{number}", app.address());
        assert_eq!(http.request(method, url).send().await.unwrap().status(), 404);
        app.get(&format!("/api/orders/{number}")).await;
    }
    let scrape = Scrape::of(&app).await;
    assert!(!scrape.text.contains("BREW") && !scrape.text.contains("/made"), "{}", scrape.text);
    let of_unknown = r#"antre_http_requests_total{method="other",route="other",status="4xx"}"#;
    assert_eq!(scrape.get(of_unknown), 20.0);
    assert!(scrape.samples.len() <= before + 5, "{} {before}", scrape.samples.len());
}

on_both_pairs!(a_lane_that_stands_still_is_told_with_its_age_and_forgotten_afterwards);

async fn a_lane_that_stands_still_is_told_with_its_age_and_forgotten_afterwards(pair: Pair) {
    let app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", 5).await;
    app.lane_served(product).await;
    let idle = Scrape::of(&app).await;
    assert_eq!((idle.get("antre_undecided_commands"), idle.get("antre_stalled_lanes")), (0.0, 0.0));
    let hold = app.hold_decisions().await;
    let pending = app.order_with(product, 1, &[("prefer", "wait=0")]).await;
    assert_eq!(pending.status, 202);
    let stalled = eventually("no lane is stalled", async || {
        let scrape = Scrape::of(&app).await;
        (scrape.get("antre_stalled_lanes") > 0.0).then_some(scrape)
    })
    .await;
    assert_eq!((stalled.get("antre_stalled_lanes"), stalled.get("antre_undecided_commands")), (1.0, 1.0));
    assert!(stalled.get("antre_oldest_undecided_command_seconds") >= 3.0, "{}", stalled.text);
    hold.end().await;
    eventually("the lane stays stalled", async || {
        let scrape = Scrape::of(&app).await;
        let names = ["stalled_lanes", "undecided_commands", "oldest_undecided_command_seconds"];
        names.iter().all(|name| scrape.get(&format!("antre_{name}")) == 0.0).then_some(())
    })
    .await;
    assert_eq!(Scrape::of(&app).await.decided("reserved", ""), 1.0);
}

/// A piece that was moved by hand.
#[tokio::test]
async fn a_piece_that_was_moved_shows_in_the_conservation_gauge() {
    let app = App::start(Pair::Embedded).await;
    app.create_stocked("Kaos Polos", 5).await;
    let checked = eventually("no inventory is compared", async || {
        let scrape = Scrape::of(&app).await;
        (scrape.get("antre_conservation_rounds_total") > 0.0).then_some(scrape)
    });
    assert_eq!(checked.await.get("antre_conservation_difference_pieces"), 0.0);
    let url = format!("sqlite://{}", app.file("antre.db").display());
    let mut connection = SqliteConnection::connect(&url).await.unwrap();
    connection
        .execute("UPDATE inventories SET available_stock = available_stock - 2, reserved_stock = reserved_stock + 2")
        .await
        .unwrap();
    connection.close().await.unwrap();
    eventually("the difference does not show", async || {
        (Scrape::of(&app).await.get("antre_conservation_difference_pieces") == 2.0).then_some(())
    })
    .await;
    let logged = async || app.log().contains("does not agree with its orders").then_some(());
    eventually("the log does not name it", logged).await;
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn an_api_and_a_worker_count_the_same_sale() {
    let place = servers().await.fresh().await;
    let (api, worker) =
        (App::start_role("api", &place, &[]).await, App::start_role("worker", &place, &[]).await);
    api.ready().await;
    worker.ready().await;
    assert_eq!(sale(&api).await, BTreeMap::from([(201, 5), (400, 7)]));

    let (of_api, of_worker) = (Scrape::of(&api).await, Scrape::of(&worker).await);
    assert_eq!(of_api.answered("accepted", ""), 5.0);
    assert_eq!(of_worker.decided("reserved", ""), 5.0);
    let refused = of_api.get(r#"antre_gate_refusals_total{reason="insufficient_stock"}"#);
    assert_eq!(of_worker.decided("rejected", "insufficient_stock") + refused, 7.0);
    let decided = of_worker.get("antre_commands_taken_total");
    assert_eq!(of_api.get("antre_verdict_latency_seconds_count"), decided);

    let published = |scrape: &Scrape, message: &str| {
        scrape.get(&format!(r#"antre_broker_publishes_total{{message="{message}",outcome="confirmed"}}"#))
    };
    assert_eq!(published(&of_api, "commands"), decided, "one after the other, each is one message");
    assert!(published(&of_worker, "replies") > 0.0);
    assert_eq!(of_worker.get(r#"antre_broker_deliveries_total{redelivered="false"}"#), decided);
    assert_eq!(of_worker.get("antre_consumers_started_total"), 1.0);
    let opened = r#"antre_broker_connections_opened_total{purpose="worker: orders",outcome="opened"}"#;
    assert_eq!(of_worker.get(opened), 1.0);
    assert!(of_api.get(r#"antre_database_connections_max{pool="writes"}"#) >= 1.0);
    assert_eq!(of_worker.get(r#"antre_ready{part="worker"}"#), 1.0);

    // Each has what it does, and not what the other does.
    assert!(!of_worker.text.contains("antre_orders_answered_total"));
    assert!(!of_api.text.contains("antre_batch_commands"));
    for scrape in [&of_api, &of_worker] {
        lint(&scrape.text).await;
    }
}

#[tokio::test]
#[ignore = "needs promtool, which is in Debian's package prometheus: run ./test.sh"]
async fn promtool_accepts_what_a_process_says_under_traffic() {
    let app = App::start(Pair::Embedded).await;
    sale(&app).await;
    lint(&Scrape::of(&app).await.text).await;
}

/// `promtool check metrics` finds nothing.
async fn lint(text: &str) {
    let mut promtool = Command::new("promtool")
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("promtool: apt-get install prometheus");
    let mut stdin = promtool.stdin.take().unwrap();
    stdin.write_all(text.as_bytes()).await.unwrap();
    drop(stdin);
    let output = promtool.wait_with_output().await.unwrap();
    let said = [output.stdout, output.stderr].concat();
    assert!(output.status.success() && said.is_empty(), "{}", String::from_utf8_lossy(&said));
}

/// The panels of a dashboard.
fn panels(dashboard: &Value) -> Vec<&Value> {
    let panels = dashboard["panels"].as_array().unwrap().iter();
    panels.filter(|panel| panel["type"] != "row").collect()
}
