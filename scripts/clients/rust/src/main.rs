//! A whole session through the client that progenitor generates from the contract: every kind of answer that a shop meets.
//!
//!     generated-client URL STUCK_URL PRODUCT
//!
//! STUCK_URL is an antre whose database is locked, PRODUCT a product that it has.

use std::{
    env,
    error::Error,
    num::{NonZeroU32, NonZeroU64},
    time::Duration,
};

use client::{Client, Error as ClientError, ResponseValue, types};
use uuid::Uuid;

#[allow(clippy::all, dead_code, irrefutable_let_patterns, mismatched_lifetime_syntaxes, unused_imports)]
mod client {
    include!(concat!(env!("OUT_DIR"), "/client.rs"));
}

type Outcome<T> = Result<ResponseValue<T>, ClientError<types::Error>>;

/// The answer to a call that must succeed with this status.
fn success<T>(outcome: Outcome<T>, status: u16) -> T {
    let answer = outcome.expect("the call succeeds");
    assert_eq!(answer.status(), status);
    answer.into_inner()
}

/// What went wrong with a call that must fail with this status and reason.
fn failure<T: std::fmt::Debug>(outcome: Outcome<T>, status: u16, reason: &str) -> types::ErrorDetails {
    match outcome {
        Err(ClientError::ErrorResponse(error)) => {
            assert_eq!((error.status().as_u16(), error.data.reason.as_str()), (status, reason));
            error.into_inner().data
        }
        other => panic!("{status} {reason} was expected, not {other:?}"),
    }
}

/// One session with one server.
struct Session(Client);

impl Session {
    async fn create(&self, name: &str) -> Outcome<types::ProductAnswer> {
        self.0.create_product().body_map(|product| product.name(name)).send().await
    }

    async fn stock(&self, product: NonZeroU64, stock: i32) -> Outcome<types::InventoryAnswer> {
        self.0.set_stock().product_id(product).body_map(|count| count.stock(stock)).send().await
    }

    async fn order(&self, product: NonZeroU64, total: u32, key: Option<&str>) -> Outcome<types::OrderAnswer> {
        let total = NonZeroU32::new(total).expect("an order has pieces");
        let call = self.0.place_order().body_map(|order| order.product_id(product).total(total));
        match key {
            Some(key) => call.idempotency_key(key).prefer("respond-async").send().await,
            None => call.send().await,
        }
    }

    /// A pending order once it is decided.
    async fn decided(&self, id: Uuid) -> types::Order {
        loop {
            let order = success(self.0.get_order().order_id(id).send().await, 200).data;
            if order.status != "pending" {
                return order;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    /// All orders of a product, two at a time.
    async fn orders(&self, product: NonZeroU64) -> Vec<types::Order> {
        let (mut orders, mut after) = (Vec::new(), None);
        loop {
            let call = self.0.list_orders().product_id(product).limit(2);
            let call = if let Some(after) = after { call.after(after) } else { call };
            let page = success(call.send().await, 200);
            orders.extend(page.data);
            after = page.next;
            if after.is_none() {
                return orders;
            }
        }
    }

    /// How many products there are, counted two at a time.
    async fn products(&self) -> usize {
        let (mut count, mut after) = (0, None);
        loop {
            let call = self.0.list_products().limit(2);
            let call = if let Some(after) = after { call.after(after) } else { call };
            let page = success(call.send().await, 200);
            count += page.data.len();
            after = page.next;
            if after.is_none() {
                return count;
            }
        }
    }
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let [url, stuck_url, stuck_product]: [String; 3] =
        env::args().skip(1).collect::<Vec<_>>().try_into().map_err(|_| "give URL STUCK_URL PRODUCT")?;
    let http = reqwest::Client::builder().no_proxy().build()?;
    let shop = Session(Client::new_with_client(&url, http.clone()));

    // A product with five pieces.
    let product = success(shop.create("Kaos Polos").await, 201).data.id.0;
    let inventory = success(shop.stock(product, 5).await, 200).data;
    assert_eq!((inventory.stored_stock, inventory.available_stock, inventory.reserved_stock), (5, 5, 0));
    assert_eq!(
        success(shop.0.get_product().product_id(product).send().await, 200).data.name.as_str(),
        "Kaos Polos"
    );

    // 201, and the order has all that is known of it.
    let first = success(shop.order(product, 2, None).await, 201).data;
    assert_eq!((first.status.as_str(), first.total.map(|total| total.get())), ("reserved", Some(2)));
    let holds = first.expires_at.ok_or("no expires_at")? - first.created_at.ok_or("no created_at")?;
    assert!(holds.num_seconds() >= 1, "{holds}");

    // 202, then the same key again, with the same order and with another one.
    let key = Uuid::new_v4().to_string();
    let second = success(shop.order(product, 1, Some(&key)).await, 202).data;
    assert_eq!((second.status.as_str(), second.total), ("pending", None));
    assert_eq!(shop.decided(second.id.0).await.status, "reserved");
    let again = success(shop.order(product, 1, Some(&key)).await, 201).data;
    assert_eq!((again.id.0, again.status.as_str()), (second.id.0, "reserved"));
    failure(shop.order(product, 2, Some(&key)).await, 422, "idempotency_key_reused");

    // 400, 404.
    let short = failure(shop.order(product, 3, None).await, 400, "insufficient_stock");
    assert_eq!(short.available_stock, Some(2));
    let nowhere = NonZeroU64::new(4711).ok_or("zero")?;
    failure(shop.order(nowhere, 1, None).await, 404, "product_not_found");
    failure(shop.0.get_order().order_id(Uuid::nil()).send().await, 404, "order_not_found");

    // Payment, cancellation, and what is not possible after them: 409.
    let paid = success(shop.0.pay_order().order_id(first.id.0).send().await, 200).data;
    assert_eq!(paid.status, "paid");
    let refused = failure(shop.0.cancel_order().order_id(first.id.0).send().await, 409, "order_already_paid");
    assert_eq!(refused.order_status.as_deref(), Some("paid"));
    let below = failure(shop.stock(product, 0).await, 409, "stock_below_reserved");
    assert_eq!(below.reserved_stock, Some(1));
    assert_eq!(
        success(shop.0.cancel_order().order_id(second.id.0).send().await, 200).data.status,
        "cancelled"
    );
    let over = failure(shop.order(product, 1, Some(&key)).await, 409, "order_not_reserved");
    assert_eq!(over.order_status.as_deref(), Some("cancelled"));

    // Lists to their end.
    for _ in 0..3 {
        success(shop.order(product, 1, None).await, 201);
        success(shop.create("Kaos Garis").await, 201);
    }
    let orders = shop.orders(product).await;
    assert_eq!(orders.len(), 5);
    assert_eq!((orders[0].id.0, orders[1].id.0), (first.id.0, second.id.0));
    assert!(shop.products().await >= 4);

    // Health, and the contract itself.
    assert!(shop.0.get_live().send().await?.data.live);
    assert_eq!(success(shop.0.get_ready().send().await, 200).data.database, "ok");
    assert_eq!(shop.0.get_contract().send().await?["openapi"], "3.0.3");

    // 202 at the deadline and 503 where the database cannot be written.
    let stuck = Session(Client::new_with_client(&stuck_url, http));
    let stuck_product: NonZeroU64 = stuck_product.parse()?;
    assert_eq!(success(stuck.order(stuck_product, 1, None).await, 202).data.status, "pending");
    failure(stuck.create("Kaos Polos").await, 503, "database_unavailable");
    Ok(())
}
