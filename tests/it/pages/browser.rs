//! The pages for people in a browser.

use std::{net::TcpListener, path::Path, time::Instant};

use serde_json::{Value, json};
use sqlx::{Connection, Executor, SqliteConnection};
use thirtyfour::{By, Key};

use crate::support::{
    browser::{Browser, Look},
    harness::{App, Pair, eventually},
};

fn url(app: &App, path: &str) -> String {
    format!("http://{}{path}", app.address())
}

/// What the list of products shows of one, by the labels of its cells.
async fn row(browser: &Browser, product: u64) -> Value {
    let script = format!(
        "return Object.fromEntries([...document.querySelectorAll('#product-{product} td[data-label]')]
            .map(cell => [cell.dataset.label, cell.textContent.trim()]))"
    );
    browser.run(&script).await
}

/// Waits until the row of a product shows its inventory as the API tells it.
async fn row_agrees(app: &App, browser: &Browser, product: u64) {
    let [stored, available, reserved] = app.inventory(product).await.map(|pieces| pieces.to_string());
    eventually("the page and the API disagree", async || {
        let row = row(browser, product).await;
        (row["Stored"] == *stored && row["Available"] == *available && row["Reserved"] == *reserved)
            .then_some(())
    })
    .await;
}

/// A sale is seen while it runs, in light and in dark, and what is seen is what the API tells.
///
/// It leaves `dashboard-light.png` and `dashboard-dark.png` in the directory of the tests (`target/tmp`): the pictures of the
/// documentation.
#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver"]
async fn a_sale_is_seen_while_it_runs() {
    let app = App::start(Pair::Embedded).await;
    let mut products = Vec::new();
    for (name, pieces) in [("Kaos Polos", 60), ("Sepatu Lari", 400), ("Tas Anyam", 250), ("Topi Rimba", 0)] {
        products.push(app.create_stocked(name, pieces).await);
    }
    let hot = products[0];
    let [light, dark] = [Browser::open(Look::Light).await, Browser::open(Look::Dark).await];
    for browser in [&light, &dark] {
        browser.get(url(&app, "/?sort=id")).await.unwrap();
        browser.shows("#connection", "Live").await;
        browser.run("window.isSamePage = true").await;
        row_agrees(&app, browser, hot).await;
    }

    // 80 buyers for 60 pieces, and some for the others.
    let mut accepted = Vec::new();
    for at in 0..80 {
        let answer = app.order(hot, 1).await;
        if answer.status == 201 {
            accepted.push(answer.id().to_owned());
        }
        for other in &products[1..3] {
            if at % 2 == 0 {
                assert_eq!(app.order(*other, 1 + at % 3).await.status, 201);
            }
        }
    }
    assert_eq!(accepted.len(), 60);
    for order in &accepted[..20] {
        assert_eq!(app.pay(order).await.status, 200);
    }
    assert_eq!(app.inventory(hot).await, [40, 0, 40]);

    for (browser, name) in [(&light, "light"), (&dark, "dark")] {
        for product in &products {
            row_agrees(&app, browser, *product).await;
        }
        browser.shows("#accepted-total", "140").await;
        browser.shows("#refused-total", "20").await;
        browser.shows("#waiting-total", "0").await;
        assert_eq!(browser.run("return window.isSamePage").await, true, "the page has loaded itself again");
        let picture = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("dashboard-{name}.png"));
        browser.screenshot(&picture).await.unwrap();

        browser.find(By::Css(format!("#product-{hot} a"))).await.unwrap().click().await.unwrap();
        browser.shows("#connection", "Live").await;
        assert_eq!(browser.text("#title").await.unwrap(), format!("Kaos Polos #{hot}"));
        let bar = browser.run("return document.querySelector('#stock svg').getAttribute('aria-label')").await;
        assert_eq!(bar, "Pieces: 0 available, 40 reserved, 40 stored");
        let listed = browser.find_all(By::Css("#orders tbody tr")).await.unwrap();
        assert_eq!(listed.len(), 25, "a page of orders");
        let order = &accepted[0];
        browser.find(By::Id("order-id")).await.unwrap().send_keys(format!("{order}\n")).await.unwrap();
        browser.shows("#order .tag", "paid").await;
        browser.get(url(&app, "/docs")).await.unwrap();
        eventually("the viewer does not list the calls", async || {
            let calls = browser.find_all(By::Css("#viewer .opblock")).await.unwrap();
            (calls.len() >= 10).then_some(())
        })
        .await;
        browser.assert_is_quiet().await;
    }
    let ground = "return getComputedStyle(document.body).backgroundColor";
    assert_ne!(light.run(ground).await, dark.run(ground).await);
    app.reservations(hot).await;
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver"]
async fn nothing_is_wider_than_a_phone() {
    let app = App::start(Pair::Embedded).await;
    let browser = Browser::open(Look::Phone).await;
    let is_wide = "return document.documentElement.scrollWidth > 400 || innerWidth !== 400";
    browser.get(url(&app, "/")).await.unwrap();
    browser.shows("#connection", "Live").await;
    assert_eq!(browser.run(is_wide).await, false, "the empty shop");
    let product = app.create_stocked(&"Kaos".repeat(25), 9).await;
    let order = app.order(product, 2).await.id().to_owned();
    for path in
        ["/".to_owned(), format!("/products/{product}"), format!("/orders/{order}"), "/orders/x".to_owned()]
    {
        browser.get(url(&app, &path)).await.unwrap();
        assert_eq!(browser.run(is_wide).await, false, "{path}");
        let picture =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("phone{}.png", path.replace('/', "-")));
        browser.screenshot(&picture).await.unwrap();
    }
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver"]
async fn the_keyboard_reaches_everything_and_the_focus_is_seen() {
    let app = App::start(Pair::Embedded).await;
    let product = app.create_stocked("Kaos Polos", 9).await;
    app.order(product, 1).await;
    let browser = Browser::open(Look::Light).await;
    for path in ["/".to_owned(), format!("/products/{product}")] {
        browser.get(url(&app, &path)).await.unwrap();
        browser.shows("#connection", "Live").await;
        if path == "/" {
            row_agrees(&app, &browser, product).await;
        }
        let all = "return [...document.querySelectorAll('a[href], button, select, input:not([type=hidden])')].length";
        let all = browser.run(all).await.as_u64().unwrap();
        assert!(all > 10, "{path}: {all}");
        let mut reached = 0;
        browser.run("document.activeElement.blur(); window.reached = new Set()").await;
        for _ in 0..all {
            browser.action_chain().send_keys(Key::Tab).perform().await.unwrap();
            let focus = browser
                .run(
                    "const now = document.activeElement, style = getComputedStyle(now);
                     if (now === document.body || reached.has(now)) return null;
                     reached.add(now);
                     return style.outlineStyle !== 'none' && parseFloat(style.outlineWidth) >= 1",
                )
                .await;
            assert_eq!(focus, true, "{path}: after {reached}");
            reached += 1;
        }
        let landmarks =
            "return ['header', 'nav', 'main', 'footer', 'h1'].every(name => document.querySelector(name))";
        assert_eq!(browser.run(landmarks).await, true, "{path}");
        let unnamed = "return [...document.querySelectorAll('input:not([type=hidden]), select')]
            .filter(field => !field.labels.length).length";
        assert_eq!(browser.run(unnamed).await, 0, "{path}: fields without a label");
    }
}

#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver"]
async fn a_page_says_that_the_server_is_away_and_goes_on_when_it_is_back() {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let address = format!("127.0.0.1:{port}");
    let mut app = App::start_with(Pair::Embedded, &[("LISTEN_ADDR", &address)]).await;
    let product = app.create_stocked("Kaos Polos", 9).await;
    let browser = Browser::open(Look::Light).await;
    browser.get(url(&app, "/")).await.unwrap();
    browser.shows("#connection", "Live").await;
    browser.run("window.isSamePage = true").await;

    app.kill9().await;
    eventually("the page does not notice", async || {
        browser
            .text("#connection")
            .await
            .filter(|text| text.starts_with("Reconnecting. These figures are from "))
    })
    .await;
    app.restart().await;
    browser.shows("#connection", "Live").await;
    assert_eq!(app.stock(product, 7).await.status, 200);
    row_agrees(&app, &browser, product).await;
    assert_eq!(browser.run("return window.isSamePage").await, true);
}

/// The figures are printed: they are of this machine.
#[tokio::test]
#[ignore = "needs Chromium: apt-get install chromium chromium-driver"]
async fn five_thousand_products_are_as_quick_as_five() {
    let app = App::start(Pair::Embedded).await;
    let file = format!("sqlite://{}", app.file("antre.db").display());
    let mut database = SqliteConnection::connect(&file).await.unwrap();
    let rows = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000) ";
    for table in [
        "INSERT INTO products (name) {} SELECT 'Kaos nomor ' || i FROM n",
        "INSERT INTO inventories (product_id, stored_stock, available_stock) {} SELECT i, 100, 100 FROM n",
        "INSERT INTO movements (product_id, moved_at, kind, stock_change, order_count, stored_stock)
         {} SELECT i, 0, 'recount', 100, 0, 100 FROM n",
    ] {
        database.execute(&*table.replace("{}", rows)).await.unwrap();
    }
    database.close().await.unwrap();
    let browser = Browser::open(Look::Light).await;
    browser.get(url(&app, "/")).await.unwrap();
    browser.shows("#count", "5,000").await;

    browser.get(url(&app, "/?sort=name&q=nomor")).await.unwrap();
    let interactive = "return performance.getEntriesByType('navigation')[0].domInteractive";
    let interactive_ms = browser.run(interactive).await.as_f64().unwrap();
    browser.shows("#connection", "Live").await;
    assert_eq!(browser.find_all(By::Css("#rows tr")).await.unwrap().len(), 50);
    let began = Instant::now();
    browser.find(By::LinkText("Next")).await.unwrap().click().await.unwrap();
    browser.shows("#pager span", "Page 2 of 100").await;
    let next_page = began.elapsed();
    let (elements, heap) = (
        browser.run("return document.querySelectorAll('*').length").await,
        browser.run("return Math.round(performance.memory.usedJSHeapSize / 1048576)").await,
    );
    println!(
        "5,000 products: interactive after {interactive_ms:.0} ms, next page in {next_page:?}, {elements} elements, {heap} MiB of \
         script memory, {} MiB in the page's process",
        browser.renderer_mib()
    );
    assert!(interactive_ms < 10_000.0);
    assert_ne!(heap, json!(null));
}
