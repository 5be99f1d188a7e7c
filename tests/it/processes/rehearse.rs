//! The rehearsal, on the built program: against a real antre, and against servers that do what an antre must not.

mod fake;

use std::{fs, net::TcpListener, path::Path, process::Output};

use serde_json::{Value, json};

use self::fake::{Fake, Manner};
use crate::{
    processes::cli::{complaint, directory, run},
    support::{
        harness::{App, Pair, TIMEOUT, antre},
        wait::eventually,
    },
};

/// Plays with these arguments in addition to the target.
async fn rehearse(directory: &Path, target: &str, more: &[&str]) -> Output {
    let mut arguments = vec!["rehearse", "--target", target];
    arguments.extend(more);
    run(directory, &arguments, &[]).await
}

fn stdout(output: &Output) -> &str {
    str::from_utf8(&output.stdout).unwrap()
}

fn verdict(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
}

/// How many of the product's orders are stored with this status.
async fn stored(app: &App, product: u64, status: &str) -> usize {
    app.all(&format!("/api/orders?product_id={product}&status={status}&limit=100")).await.len()
}

#[tokio::test]
async fn a_good_sale_exits_with_0_and_agrees_with_the_api() {
    let app = App::start(Pair::Embedded).await;
    let directory = directory();
    let target = format!("http://{}", app.address());
    let more = [
        "--buyers=300",
        "--stock=40",
        "--rate=1000",
        "--ramp=200ms",
        "--pay=0.5",
        "--json",
        "--report=out.html",
    ];
    let output = rehearse(directory.path(), &target, &more).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");

    let found = verdict(&output);
    let product = found["sale"]["product_id"].as_u64().unwrap();
    assert_eq!(found["orders"]["accepted"], 40);
    assert_eq!(found["orders"]["refused"], json!({"insufficient_stock": 260}));
    assert_eq!((&found["orders"]["placed"], &found["orders"]["failed"]), (&json!(300), &json!(0)));
    assert_eq!((&found["oversold"], &found["passed"]), (&json!(0), &json!(true)));
    assert_eq!(found["latency"]["count"], 300);
    let paid = found["afterwards"]["paid"].as_u64().unwrap();
    assert!((1..40).contains(&paid), "{paid}");
    assert_eq!(stored(&app, product, "paid").await as u64, paid);
    assert_eq!(stored(&app, product, "reserved").await as u64, 40 - paid);
    assert_eq!(app.inventory(product).await, [40 - paid, 0, 40 - paid]);
    let name = app.get(&format!("/api/products/{product}")).await.data()["name"].clone();
    assert_eq!(name, found["sale"]["product_name"]);
    assert!(name.as_str().unwrap().starts_with("rehearsal 20"), "{name}");

    opens_without_a_network(&fs::read_to_string(directory.path().join("out.html")).unwrap(), &target);
}

/// Every asset is in the page, every tag that opens is closed.
fn opens_without_a_network(page: &str, target: &str) {
    assert!(page.starts_with("<!doctype html>\n<html lang=\"en\">"), "{page:.100}");
    assert!(page.contains("PASSED: 0 oversold, books balanced, no errors"), "{page}");
    for reference in ["src=", "href=", "url(", "@import", "<script", "<link", "<iframe", "<img"] {
        assert!(!page.contains(reference), "{reference} in {page}");
    }
    assert_eq!(page.matches("://").count(), page.matches(target).count(), "{page}");
    for tag in [
        "html", "head", "style", "body", "main", "header", "figure", "svg", "table", "section", "ul", "dl",
        "div",
    ] {
        let opened = page.matches(&format!("<{tag}>")).count() + page.matches(&format!("<{tag} ")).count();
        assert!(opened > 0, "no {tag}");
        assert_eq!(opened, page.matches(&format!("</{tag}>")).count(), "{tag}");
    }
}

/// Pieces that are cancelled are sold again: more orders are accepted than there are pieces, and no piece is oversold.
#[tokio::test]
async fn cancelled_pieces_are_sold_again() {
    let app = App::start(Pair::Embedded).await;
    let directory = directory();
    let target = format!("http://{}", app.address());
    let more = ["--buyers=400", "--stock=30", "--rate=800", "--pay=0.2", "--cancel=0.8", "--json"];
    let output = rehearse(directory.path(), &target, &more).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let found = verdict(&output);
    let cancelled = found["afterwards"]["cancelled"].as_u64().unwrap();
    assert!(found["orders"]["accepted"].as_u64().unwrap() > 30 && cancelled > 0, "{found}");
    let product = found["sale"]["product_id"].as_u64().unwrap();
    assert_eq!(stored(&app, product, "cancelled").await as u64, cancelled);
}

#[tokio::test]
async fn reservations_that_expire_during_the_sale_are_no_mismatch() {
    let app = App::start_with(Pair::Embedded, &[("RESERVATION_TTL", "300ms")]).await;
    let directory = directory();
    let target = format!("http://{}", app.address());
    let more = ["--buyers=20", "--stock=5", "--rate=20", "--pay=0", "--json"];
    let output = rehearse(directory.path(), &target, &more).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let found = verdict(&output);
    assert!(found["afterwards"]["expired"].as_u64().unwrap() > 0, "{found}");
}

#[tokio::test]
async fn overselling_is_detected() {
    let fake = Fake::start(Manner::Oversells).await;
    let directory = directory();
    let output = rehearse(directory.path(), &fake.url, &["--buyers=50", "--stock=10", "--pay=0.3"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = stdout(&output);
    assert!(said.ends_with("OVERSOLD: 40 pieces were sold that are not there\n"), "{said}");
    let progress = String::from_utf8(output.stderr.clone()).unwrap();
    assert!(!progress.contains('\u{1b}'), "{progress:?}");
}

#[tokio::test]
async fn unbalanced_books_are_detected() {
    let fake = Fake::start(Manner::LosesOrders).await;
    let directory = directory();
    let output = rehearse(directory.path(), &fake.url, &["--buyers=20", "--stock=10", "--pay=0"]).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = stdout(&output);
    let sentence = "the inventory has 5 pieces reserved, and the answers say 10 are reserved";
    assert!(said.contains(sentence) && said.contains("FAILED: the books do not balance"), "{said}");
}

#[tokio::test]
async fn an_error_is_reported_with_an_example() {
    let fake = Fake::start(Manner::Breaks).await;
    let directory = directory();
    let more = ["--buyers=20", "--stock=10", "--pay=0", "--report=out.html"];
    let output = rehearse(directory.path(), &fake.url, &more).await;
    assert_eq!(output.status.code(), Some(1), "{output:?}");
    let said = stdout(&output);
    assert!(said.contains("500 internal_error; the first: 500 internal_error: <b>oh</b>"), "{said}");
    assert!(said.ends_with("FAILED: 20 errors\n"), "{said}");
    let page = fs::read_to_string(directory.path().join("out.html")).unwrap();
    assert!(page.contains("&lt;b&gt;oh&lt;/b&gt;") && !page.contains("<b>oh"), "{page}");
}

#[tokio::test]
async fn a_503_is_tried_again_and_a_202_is_followed() {
    let fake = Fake::start(Manner::IsBusyAndSlow).await;
    let directory = directory();
    let more = ["--buyers=20", "--stock=10", "--pay=1", "--patience=20s", "--json"];
    let output = rehearse(directory.path(), &fake.url, &more).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let found = verdict(&output);
    assert_eq!((&found["orders"]["accepted"], &found["afterwards"]["paid"]), (&json!(10), &json!(10)));
    assert_eq!(found["on_the_way"]["answered_503"], 20);
    assert_eq!(found["on_the_way"]["answered_202"], 20);
    assert!(found["latency"]["p50_ms"].as_f64().unwrap() >= 1_000.0, "{found}");
}

/// A stall of a second is in the latencies of all buyers who arrive in it, not only of those whose requests it held.
#[tokio::test]
async fn a_stall_counts_for_every_buyer_who_arrives_in_it() {
    let fake = Fake::start(Manner::Stalls).await;
    let directory = directory();
    let more = ["--buyers=200", "--stock=200", "--rate=100", "--pay=0", "--connections=2", "--json"];
    let output = rehearse(directory.path(), &fake.url, &more).await;
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    // With two connections a closed loop would have measured two slow answers of 200: 1 %.
    let p90 = verdict(&output)["latency"]["p90_ms"].as_f64().unwrap();
    assert!(p90 > 400.0, "{p90}");
}

#[tokio::test]
async fn an_unreachable_target_is_explained() {
    let directory = directory();
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let target = format!("http://{free}");
    let more = ["--buyers=1", "--stock=1", "--report=out.html"];
    let said = complaint(&rehearse(directory.path(), &target, &more).await, 1);
    assert!(said.contains(&target) && said.contains("cannot be reached") && said.contains("antre"), "{said}");
    assert!(!directory.path().join("out.html").exists());

    let target = "http://no-such-host.invalid:3000";
    let said = complaint(&rehearse(directory.path(), target, &["--yes", "--buyers=1", "--stock=1"]).await, 1);
    assert!(said.contains("no-such-host.invalid") && said.contains("resolved"), "{said}");
}

#[tokio::test]
async fn a_target_that_is_not_an_antre_is_not_changed() {
    let fake = Fake::start(Manner::IsAWebSite).await;
    let directory = directory();
    let said = complaint(&rehearse(directory.path(), &fake.url, &["--buyers=1", "--stock=1"]).await, 1);
    assert!(said.contains("is not an antre") && said.contains("404"), "{said}");
    assert_eq!(fake.written(), 0);
}

#[tokio::test]
async fn another_machine_is_not_touched_without_yes() {
    let directory = directory();
    let target = "http://shop.invalid";
    let said = complaint(&rehearse(directory.path(), target, &["--buyers=1", "--stock=1"]).await, 2);
    assert!(said.contains("shop.invalid") && said.contains("--yes"), "{said}");
}

#[tokio::test]
async fn an_invalid_argument_is_named() {
    let directory = directory();
    let here = "http://localhost:1";
    for (arguments, words) in [
        (&["rehearse", "--buyers=1", "--stock=1"][..], &["--target"][..]),
        (&["rehearse", "--target=localhost:3000", "--buyers=1", "--stock=1"], &["--target", "scheme"]),
        (&["rehearse", "--target", here, "--stock=1"], &["--buyers"]),
        (&["rehearse", "--target", here, "--buyers=0", "--stock=1"], &["--buyers"]),
        (&["rehearse", "--target", here, "--buyers=1", "--stock=1", "--cancel=0.5"], &["--pay", "--cancel"]),
        (&["rehearse", "--target", here, "--buyers=1", "--stock=1", "--rate=fast"], &["--rate", "all"]),
    ] {
        let said = complaint(&run(directory.path(), arguments, &[]).await, 2);
        for word in words {
            assert!(said.contains(word), "{arguments:?}: {said}");
        }
    }
    let report = "no/such/directory/out.html";
    let more = ["--buyers=1", "--stock=1", "--report", report];
    let said = complaint(&rehearse(directory.path(), here, &more).await, 1);
    assert!(said.contains(report), "{said}");
}

/// The first Ctrl-C lets nobody in any more, and the verdict is on what was played.
#[tokio::test]
async fn an_interrupted_rehearsal_has_a_verdict() {
    let app = App::start(Pair::Embedded).await;
    let directory = directory();
    let mut command = antre(directory.path());
    command.args(["rehearse", "--target", &format!("http://{}", app.address())]);
    command.args(["--buyers=100000", "--stock=5", "--rate=20", "--pay=0"]);
    command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let child = command.spawn().unwrap();
    let id = rustix::process::Pid::from_raw(child.id().unwrap().cast_signed()).unwrap();
    eventually("no buyer comes", async || {
        let orders = app.all("/api/orders").await;
        (orders.len() == 5).then_some(())
    })
    .await;
    rustix::process::kill_process(id, rustix::process::Signal::INT).unwrap();
    let output = tokio::time::timeout(TIMEOUT, child.wait_with_output()).await.unwrap().unwrap();
    assert_eq!(output.status.code(), Some(130), "{output:?}");
    let said = stdout(&output);
    assert!(said.contains("stopped after") && said.contains("PASSED"), "{said}");
}
