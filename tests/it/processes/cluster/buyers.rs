//! Limits per buyer with several APIs and workers.

use super::*;
use crate::api::buyers;

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_buyer_gets_no_more_than_the_limit_though_a_worker_is_killed() {
    let place = servers().await.fresh().await;
    let mut cluster = Cluster::start(&place, 2, 3, &[("ORDER_TIMEOUT", "60s")]).await;
    workers_are_ready(&cluster).await;
    for killed in 0..2 {
        let Cluster { apis, workers } = &mut cluster;
        let clients: Vec<_> = apis.iter().map(|api| &**api).collect();
        let worker = &mut workers[killed];
        buyers::race_of_buyers(&clients, 12, async { worker.kill9().await }).await;
    }
    all_is_decided(&place).await;
}
