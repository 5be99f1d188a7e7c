//! Terms of sale with several APIs and workers: from the answer on they count for all of them.

use super::*;
use crate::api::terms;

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn nothing_is_reserved_after_a_pause_by_any_worker() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 2, &[("ORDER_TIMEOUT", "60s")]).await;
    workers_are_ready(&cluster).await;
    terms::pause_under_load(&cluster.clients()).await;
    all_is_decided(&place).await;
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn nobody_gets_in_before_the_opening_at_any_api() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 2, &[("ORDER_TIMEOUT", "60s")]).await;
    workers_are_ready(&cluster).await;
    terms::storm_around_the_opening(&cluster.clients()).await;
    all_is_decided(&place).await;
}

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn an_opening_at_one_api_is_known_to_the_other() {
    let place = servers().await.fresh().await;
    let cluster = Cluster::start(&place, 2, 2, &[]).await;
    workers_are_ready(&cluster).await;
    terms::each_opening_is_known_to_all(&cluster.apis[0], &cluster.apis[1]).await;
}
