//! Thousands of buyers at once: never oversold, and every answer is true.

use std::collections::BTreeMap;

use futures_util::future::join_all;
use rustix::process::Signal;
use serde_json::json;

use crate::support::harness::{Answer, App, Client, Pair, RawConnection, order_request};

on_both_pairs!(
    two_thousand_orders_for_a_hundred_pieces,
    four_thousand_buyers_of_two_products,
    disconnecting_clients_do_no_harm,
);

/// All of these orders at once, each `(product, total)` by a buyer with its own connection, spread over the
/// APIs; the answers in the same order.
async fn rush(apis: &[&Client], orders: &[(u64, u64)]) -> Vec<Answer> {
    // They stand at the door before it begins. Otherwise most of them would not come at once: the kernel makes
    // those wait for a second who find more than a thousand others before them.
    let mut at_the_door = Vec::new();
    for (n, &order) in orders.iter().enumerate() {
        // By twos: products alternate, and each is ordered at each API.
        let mut wire = RawConnection::open(apis[n / 2 % apis.len()]).await;
        if n % 500 == 499 {
            // Connections are taken in the order of their arrival: when this one is served, so are all before it.
            wire.send(b"GET /health/live HTTP/1.1\r\nHost: antre\r\n\r\n").await;
            wire.answer("GET", "/health/live").await;
        }
        at_the_door.push((wire, order));
    }
    let buyers = at_the_door.into_iter().map(|(mut wire, (product, total))| {
        tokio::spawn(async move {
            wire.send(order_request(product, total).as_bytes()).await;
            wire.answer("POST", "/api/orders").await
        })
    });
    join_all(buyers.collect::<Vec<_>>()).await.into_iter().map(Result::unwrap).collect()
}

async fn two_thousand_orders_for_a_hundred_pieces(pair: Pair) {
    let app = App::start(pair).await;
    race_for_a_hundred_pieces(&[&app]).await;
}

/// 2,000 orders at once for 100 pieces: 100 buyers get one each.
pub(crate) async fn race_for_a_hundred_pieces(apis: &[&Client]) {
    let app = apis[0];
    let product = app.create_stocked("Kaos Polos", 100).await;
    let answers = rush(apis, &[(product, 1); 2_000]).await;
    let (accepted, refused): (Vec<_>, Vec<_>) = answers.iter().partition(|answer| answer.status == 201);
    assert_eq!(accepted.len(), 100);
    for answer in refused {
        assert_eq!(answer.status, 400, "{answer:?}");
        assert_eq!((answer.reason(), &answer.data()["available_stock"]), ("insufficient_stock", &json!(0)));
    }
    let books = app.reservations(product).await;
    assert_eq!([books.stored, books.available, books.reserved], [100, 0, 100]);
    assert_eq!(books.orders, orders_of(product, &accepted));
}

async fn four_thousand_buyers_of_two_products(pair: Pair) {
    let app = App::start(pair).await;
    race_for_two_products(&[&app]).await;
}

/// 4,000 buyers at once, each of 1 to 3 pieces, for two products that do not suffice.
pub(crate) async fn race_for_two_products(apis: &[&Client]) {
    const STOCKS: [u64; 2] = [1_000, 1_500];
    let app = apis[0];
    let products = [
        app.create_stocked("Kaos Polos", STOCKS[0]).await,
        app.create_stocked("Kaos Garis", STOCKS[1]).await,
    ];
    // The products alternate, and the totals vary with them: each product sees 1, 2 and 3.
    let orders: Vec<_> = (0..4_000).map(|n| (products[n % 2], 1 + n as u64 % 3)).collect();
    let answers = rush(apis, &orders).await;

    for (product, stock) in products.into_iter().zip(STOCKS) {
        let books = app.reservations(product).await;
        assert_eq!(books.stored, stock);
        // 2,000 buyers want about 4,000 pieces: what is left is too little for somebody who was refused.
        assert!(books.available < 3, "{books:?}");
        let of_product = orders.iter().zip(&answers).filter(|((of, _), _)| *of == product);
        let (accepted, refused): (Vec<_>, Vec<_>) = of_product.partition(|(_, answer)| answer.status == 201);
        for ((_, total), answer) in refused {
            assert_eq!((answer.status, answer.reason()), (400, "insufficient_stock"), "{answer:?}");
            let left = answer.data()["available_stock"].as_u64().unwrap();
            assert!(left < *total, "{left} were left for an order of {total} that was refused");
            assert!(books.available <= left, "pieces came back that nobody gave back");
        }
        let accepted: Vec<_> = accepted.into_iter().map(|(_, answer)| answer).collect();
        assert_eq!(books.orders, orders_of(product, &accepted));
    }

    let accepted = answers.iter().filter(|answer| answer.status == 201);
    for answer in accepted.step_by(20) {
        let found = app.get(answer.header("location")).await;
        assert_eq!((found.status, found.data()), (200, answer.data()));
    }
}

/// What the buyers were promised: total by id.
#[track_caller]
fn orders_of(product: u64, accepted: &[&Answer]) -> BTreeMap<String, u64> {
    let orders: BTreeMap<_, _> = accepted
        .iter()
        .map(|answer| {
            let order = answer.data();
            assert_eq!((&order["product_id"], &order["status"]), (&json!(product), &json!("reserved")));
            (order["id"].as_str().unwrap().to_owned(), order["total"].as_u64().unwrap())
        })
        .collect();
    assert_eq!(orders.len(), accepted.len(), "two buyers got one order");
    orders
}

/// Some leave while the program stands still, so that it finds their requests and nobody behind them; some leave
/// while it works. Those who stay are served, and the books balance.
async fn disconnecting_clients_do_no_harm(pair: Pair) {
    const STOCK: u64 = 150;
    let mut app = App::start(pair).await;
    let product = app.create_stocked("Kaos Polos", STOCK).await;
    let request = order_request(product, 1);
    let leave = async || {
        let buyers = (0..100).map(async |_| RawConnection::open(&app).await.send(request.as_bytes()).await);
        join_all(buyers).await;
    };

    app.signal(Signal::STOP);
    leave().await;
    app.signal(Signal::CONT);
    let orders = [(product, 1); 200];
    let apis: [&Client; 1] = [&app];
    let (stayed, ()) = tokio::join!(rush(&apis, &orders), leave());

    let accepted: Vec<_> = stayed.iter().filter(|answer| answer.status == 201).collect();
    let refused =
        stayed.iter().filter(|answer| answer.status == 400 && answer.reason() == "insufficient_stock");
    assert_eq!(accepted.len() + refused.count(), stayed.len(), "{stayed:?}");

    // Once it has ended, what those who left had sent is decided or gone.
    assert!(app.terminate().await.success());
    app.restart().await;
    app.lane_served(product).await;
    let books = app.reservations(product).await;
    assert_eq!([books.stored, books.available, books.reserved], [STOCK, 0, STOCK]);
    let promised = orders_of(product, &accepted);
    assert!(promised.iter().all(|(id, total)| books.orders.get(id) == Some(total)), "{books:?}");
}
