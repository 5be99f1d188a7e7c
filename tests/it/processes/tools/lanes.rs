//! `antre lanes`, and with it what processes tell each other.

use std::time::Duration;

use super::*;
use crate::support::{
    harness::{Pair, eventually},
    servers::servers,
};

#[tokio::test]
async fn in_the_embedded_mode_there_is_no_broker_to_ask() {
    let app = App::start(Pair::Embedded).await;
    let output = tool(&app, &["lanes"]).await;
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("AMQP_URL"), "{said}");
}

/// Two APIs and two workers: all of them tell, and a lane says who decided last.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn all_processes_tell_what_they_do() {
    let place = servers().await.fresh().await;
    let start = |role| App::start_role(role, &place, &[("ORDER_TIMEOUT", "2s")]);
    let (one, other, first, second) =
        tokio::join!(start("api"), start("api"), start("worker"), start("worker"));
    let product = one.create_stocked("Kaos Polos", 10_000).await;
    let found = eventually("not all of them tell", async || {
        for api in [&one, &other] {
            assert_eq!(api.order(product, 1).await.status, 201);
        }
        let found = json_of(&tool(&one, &["lanes", "--json"]).await, 0);
        (found["processes"] == 4).then_some(found)
    })
    .await;
    assert_eq!(found["workers"], 2, "{found}");
    drop((first, second));
    let waiting = other.order(product, 1).await;
    assert_eq!(waiting.status, 202);
    // A lane without a worker stands still.
    let found = eventually("the lane does not stand still", async || {
        let output = tool(&one, &["lanes", "--json"]).await;
        (output.status.code() == Some(1)).then(|| json_of(&output, 1))
    })
    .await;
    let lane = &found["lanes"][0];
    assert_eq!((&lane["product_id"], &lane["is_stalled"]), (&product.into(), &true.into()), "{found}");
    assert!(lane["waiting"].as_u64().is_some_and(|waiting| waiting >= 1), "{found}");
    let said = printed(&tool(&one, &["lanes"]).await, 1);
    assert!(
        said.contains(&format!("lane {product}  "))
            && said.contains(" waiting  oldest ")
            && said.contains("STANDS STILL"),
        "{said}"
    );
    // Nobody tells of it any more, and the broker knows.
    let settings = one.settings().to_vec();
    drop((one, other));
    let directory = directory();
    let settings: Vec<_> = settings.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    tokio::time::sleep(Duration::from_millis(100)).await;
    let output = run(directory.path(), &["lanes"], &settings).await;
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.code() == Some(1) && said.contains("no worker serves this lane"), "{said}");
}
