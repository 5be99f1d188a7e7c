//! `antre dead`: nothing is lost, and the order of a lane is kept.

use std::time::Duration;

use lapin::{BasicProperties, Confirmation, options::*};
use serde_json::{Value, json};
use tokio::time::sleep;
use uuid::Uuid;

use super::{json_of, printed, tool};
use crate::{
    processes::cli::{complaint, directory, run},
    support::{
        harness::{App, antre, eventually},
        servers::{Place, servers},
    },
};

/// A message that places one order of one piece: its id and the payload.
fn order(product: u64) -> (String, Vec<u8>) {
    let id = Uuid::now_v7();
    let order = json!({
        "id": id, "product_id": product, "total": 1, "answer_by": 4_102_444_800_000_u64, "request_id": format!("request-of-{id}")
    });
    (id.to_string(), json!({"orders": [order]}).to_string().into_bytes())
}

/// Publishes messages to a queue, each confirmed before the next.
async fn publish(place: &Place, queue: &str, payloads: impl IntoIterator<Item = Vec<u8>>) {
    let options = lapin::ConnectionProperties::default();
    let connection = lapin::Connection::connect(&place.amqp_url, options).await.unwrap();
    let channel = connection.create_channel().await.unwrap();
    channel.confirm_select(ConfirmSelectOptions::default()).await.unwrap();
    let properties = BasicProperties::default().with_delivery_mode(2).with_type("antre.orders.v1".into());
    let queue = format!("{}{queue}", place.queue_prefix);
    for payload in payloads {
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let published =
            channel.basic_publish("".into(), queue.as_str().into(), options, &payload, properties.clone());
        assert!(matches!(published.await.unwrap().await.unwrap(), Confirmation::Ack(None)));
    }
    connection.close(200, "done".into()).await.unwrap();
}

async fn listed(app: &App, code: i32) -> Vec<Value> {
    json_of(&tool(app, &["dead", "list", "--json"]).await, code)["letters"].as_array().unwrap().clone()
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_message_that_cannot_be_read_is_listed_shown_and_dropped() {
    let place = servers().await.fresh().await;
    let app = App::start_role("serve", &place, &[]).await;
    let product = app.create_stocked("Kaos Polos", 10).await;
    app.lane_served(product).await;
    assert!(listed(&app, 0).await.is_empty());
    publish(&place, &format!("orders.product.{product}"), [b"nonsense".to_vec()]).await;
    let letters = eventually("the message does not die", async || {
        let found = tool(&app, &["dead", "list", "--json"]).await;
        (found.status.code() == Some(1)).then_some(found)
    });
    let letters = json_of(&letters.await, 1)["letters"].as_array().unwrap().clone();
    assert_eq!(letters.len(), 1, "{letters:?}");
    let lane = format!("{}orders.product.{product}", place.queue_prefix);
    assert_eq!(json!([letters[0]["reason"], letters[0]["lane"]]), json!(["rejected", lane]), "{letters:?}");
    assert!(letters[0]["died_at"].is_string() && letters[0]["unreadable"].is_string(), "{letters:?}");
    let id = letters[0]["id"].as_str().unwrap();
    let shown = printed(&tool(&app, &["dead", "show", id]).await, 0);
    assert!(shown.lines().any(|line| line == "nonsense"), "{shown}");
    // It would only die again.
    let said = printed(&tool(&app, &["dead", "requeue", id]).await, 1);
    assert!(said.contains("0 dead letters queued again, 1 stayed"), "{said}");
    assert_eq!(listed(&app, 1).await.len(), 1);
    let said = printed(&tool(&app, &["dead", "drop", id]).await, 0);
    assert!(said.contains("1 dead letter dropped"), "{said}");
    assert!(listed(&app, 0).await.is_empty());
    let said = complaint(&tool(&app, &["dead", "show", id]).await, 1);
    assert!(said.contains(id) && said.contains("antre dead list"), "{said}");
}

/// RabbitMQ drops a message of this queue once its receiver has died with it 20 times. To look at a letter is no such death.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn looking_at_a_letter_never_uses_it_up() {
    let place = servers().await.fresh().await;
    let app = App::start_role("serve", &place, &[]).await;
    let (id, payload) = order(1);
    publish(&place, "orders.dead", [payload]).await;
    for look in 0..15 {
        let letters = listed(&app, 1).await;
        assert_eq!((letters.len(), &letters[0]["lost_deliveries"]), (1, &json!(0)), "{look}: {letters:?}");
        printed(&tool(&app, &["dead", "show", &id]).await, 0);
    }
}

/// Two pieces, three letters: the first two get them.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn letters_that_are_queued_again_keep_their_order() {
    let place = servers().await.fresh().await;
    let app = App::start_role("serve", &place, &[]).await;
    let product = app.create_stocked("Kaos Polos", 2).await;
    let orders: Vec<_> = (0..3).map(|_| order(product)).collect();
    publish(&place, "orders.dead", orders.iter().map(|(_, payload)| payload.clone())).await;
    let letters = listed(&app, 1).await;
    let ids: Vec<_> = letters.iter().map(|letter| &letter["commands"][0]["order_id"]).collect();
    assert_eq!(json!(ids), json!(orders.iter().map(|(id, _)| id).collect::<Vec<_>>()));
    for (id, _) in &orders {
        let said = printed(&tool(&app, &["dead", "show", id]).await, 0);
        assert!(said.contains(&format!(" of request request-of-{id}")), "{said}");
    }
    assert_eq!(letters[0]["commands"][0]["request_id"], format!("request-of-{}", orders[0].0), "{letters:?}");
    // Listing gives them back as they were.
    assert_eq!(listed(&app, 1).await, letters);
    printed(&tool(&app, &["dead", "requeue", "--all"]).await, 0);
    assert!(listed(&app, 0).await.is_empty());
    let mut statuses = Vec::new();
    for (id, _) in &orders {
        statuses.push(app.verdict(&format!("/api/orders/{id}")).await["status"].clone());
    }
    assert_eq!(json!(statuses), json!(["reserved", "reserved", "rejected"]));
    assert_eq!(app.inventory(product).await, [2, 0, 2]);
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_requeue_that_is_killed_loses_nothing_and_orders_nothing_twice() {
    const LETTERS: usize = 300;
    let place = servers().await.fresh().await;
    let app = App::start_role("serve", &place, &[]).await;
    let product = app.create_stocked("Kaos Polos", LETTERS as u64).await;
    let orders: Vec<_> = (0..LETTERS).map(|_| order(product)).collect();
    publish(&place, "orders.dead", orders.iter().map(|(_, payload)| payload.clone())).await;
    for ms in [150, 300, 600] {
        let mut requeue = antre(&app.file(""));
        requeue.args(["dead", "requeue", "--all"]).envs(place.settings());
        let mut requeue = requeue.stdout(std::process::Stdio::null()).spawn().unwrap();
        sleep(Duration::from_millis(ms)).await;
        requeue.kill().await.unwrap();
    }
    // The broker gives back what the dead process held once it sees that its connection is gone.
    eventually("letters are left", async || {
        let output = tool(&app, &["dead", "requeue", "--all"]).await;
        (output.status.success() && listed(&app, 0).await.is_empty()).then_some(())
    })
    .await;
    for (id, _) in &orders {
        assert_eq!(app.verdict(&format!("/api/orders/{id}")).await["status"], "reserved");
    }
    assert_eq!(app.inventory(product).await, [LETTERS as u64, 0, LETTERS as u64]);
}

#[tokio::test]
async fn the_embedded_mode_says_that_there_are_none() {
    let directory = directory();
    let said = printed(&run(directory.path(), &["dead", "list"], &[]).await, 0);
    assert!(said.contains("no dead letters"), "{said}");
    let report = json_of(&run(directory.path(), &["dead", "list", "--json"], &[]).await, 0);
    assert_eq!(report["letters"], json!([]));
    for arguments in [&["dead"] as &[&str], &["dead", "requeue"], &["dead", "drop", "an-id", "--all"]] {
        assert_eq!(run(directory.path(), arguments, &[]).await.status.code(), Some(2), "{arguments:?}");
    }
    let urls = [
        ("DATABASE_URL", "mysql://root:secret@127.0.0.1:1/antre"),
        ("AMQP_URL", "amqp://a:secret@127.0.0.1:1/%2f"),
    ];
    let said = complaint(&run(directory.path(), &["dead", "list"], &urls).await, 1);
    assert!(said.contains("AMQP_URL") && !said.contains("secret"), "{said}");
}
