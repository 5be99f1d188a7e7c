//! Workers that are killed, stopped, frozen or join under load.

use std::{fs, net::TcpListener, process::Stdio};

use futures_util::future::join_all;
use rustix::process::{Pid, Signal, kill_process};
use sqlx::{Connection, Executor, MySqlConnection};
use tokio::{
    io::{AsyncBufReadExt, BufReader},
    time::timeout,
};

use super::{
    load::{Answered, BUYERS, Load, stocks, the_answers_are_true},
    *,
};
use crate::support::{
    harness::{RawConnection, TIMEOUT, antre},
    servers::ConsumerInfo,
};

#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn killed_stopped_and_joined_under_load() {
    const ORDERS: usize = 1_200;
    let place = servers().await.fresh().await;
    let mut cluster = Cluster::start(&place, 2, 3, &[("ORDER_TIMEOUT", "5s")]).await;
    let stocks = stocks(&cluster.apis[0]).await;
    let products: Vec<_> = stocks.keys().copied().collect();
    workers_serve(&place, products.len(), 3).await;
    let mut load = Load::start(&cluster.clients(), &products);

    load.go_on(ORDERS).await;
    cluster.workers[0].kill9().await;
    load.done().await;
    let left = workers_serve(&place, products.len(), 2).await;

    // Its connections stay open, but it is frozen: the broker declares it dead when two heartbeats are missing.
    load.go_on(ORDERS).await;
    cluster.workers[1].signal(Signal::STOP);
    let other = workers_serve(&place, products.len(), 1).await;
    assert!(other.is_subset(&left));
    load.go_on(ORDERS).await;
    cluster.workers[1].signal(Signal::CONT);
    load.done().await;
    workers_serve(&place, products.len(), 2).await;

    load.go_on(ORDERS).await;
    cluster.workers[0].restart().await;
    cluster.workers.push(App::start_role("worker", &place, &[]).await);
    workers_serve(&place, products.len(), 4).await;

    load.go_on(ORDERS).await;
    cluster.apis[1].kill9().await;
    let history = load.over().await;
    cluster.apis[1].restart().await;

    all_is_decided(&place).await;
    the_answers_are_true(&cluster.apis[1], &stocks, &history).await;
    let count = |which: fn(&Answered) -> bool| history.iter().filter(|placed| which(&placed.answer)).count();
    assert!(count(|answer| matches!(answer, Answered::Reserved(_))) > ORDERS);
    assert!(count(|answer| matches!(answer, Answered::Rejected(_))) > ORDERS / 4);
    assert!(count(|answer| matches!(answer, Answered::Nothing)) <= BUYERS);
    for api in cluster.clients() {
        for product in &products {
            let answer = api.order(*product, 1).await;
            assert!([201, 400].contains(&answer.status), "{answer:?}");
        }
    }
}

/// For each lane the connection of its active consumer, once every lane has so many consumers and the one of them
/// with the highest priority is active. After a worker's death, the management plugin of RabbitMQ 4.3 may go on calling
/// another one active as well; `rabbitmqctl list_consumers`, which asks the queue itself, does not.
async fn owners(place: &Place, lanes: usize, workers: usize) -> BTreeMap<String, String> {
    let prefix = format!("{}orders.", place.queue_prefix);
    let by_lane = |consumers: &[ConsumerInfo]| {
        let mut by_lane = BTreeMap::<_, Vec<_>>::new();
        for consumer in consumers.iter().cloned() {
            by_lane.entry(consumer.queue.clone()).or_default().push(consumer);
        }
        by_lane
    };
    let owner = |consumers: &[ConsumerInfo]| {
        let owner = consumers.iter().max_by_key(|consumer| consumer.priority).unwrap();
        owner.active.then(|| owner.connection.clone())
    };
    let settled = |consumers: &Vec<ConsumerInfo>| {
        let known = consumers.iter().all(|consumer| !consumer.connection.is_empty());
        consumers.len() == workers && known && owner(consumers).is_some()
    };
    let consumers = servers()
        .await
        .consumers_when(&prefix, |consumers| {
            let by_lane = by_lane(consumers);
            by_lane.len() == lanes && by_lane.values().all(settled)
        })
        .await;
    by_lane(&consumers).into_iter().map(|(lane, consumers)| (lane, owner(&consumers).unwrap())).collect()
}

/// How many lanes each connection serves.
fn shares(owners: &BTreeMap<String, String>) -> BTreeMap<String, usize> {
    let mut shares = BTreeMap::new();
    owners.values().for_each(|owner| *shares.entry(owner.clone()).or_default() += 1);
    shares
}

/// A worker that dies leaves its lanes to the others, a worker that joins takes its share, and no other lane moves.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn lanes_spread_over_the_workers_and_move_when_one_dies() {
    const LANES: usize = 48;
    let place = servers().await.fresh().await;
    let mut cluster = Cluster::start(&place, 1, 2, &[]).await;
    join_all((0..LANES).map(|n| cluster.apis[0].create_stocked("Kaos Polos", n as u64))).await;
    let of_two = owners(&place, LANES, 2).await;
    assert_eq!(shares(&of_two).len(), 2);

    let join = async |before: &BTreeMap<String, String>, workers: usize| {
        let worker = App::start_role("worker", &place, &[]).await;
        let after = owners(&place, LANES, workers).await;
        let moved: BTreeSet<_> =
            after.iter().filter(|(lane, owner)| before[*lane] != **owner).map(|(_, owner)| owner).collect();
        assert_eq!(moved.len(), 1, "lanes moved to others than the one that joined");
        let joined = (*moved.first().unwrap()).clone();
        assert!(!before.values().any(|owner| *owner == joined));
        (worker, joined, after)
    };
    let (mut third, connection, of_three) = join(&of_two, 3).await;
    let share_of_three = shares(&of_three);
    assert_eq!(share_of_three.len(), 3);
    assert!(share_of_three.values().all(|share| *share >= 4), "{share_of_three:?}");
    let called = servers().await.connections("antre worker: orders").await;
    assert!(share_of_three.keys().all(|connection| called.contains(connection)));

    third.kill9().await;
    let of_those_left = owners(&place, LANES, 2).await;
    assert_eq!(shares(&of_those_left).len(), 2);
    for (lane, owner) in &of_three {
        let now = &of_those_left[lane];
        assert!(now == owner || *owner == connection, "{lane} moved, though its worker is alive");
    }
    // Each product takes an order, whichever worker serves its lane now.
    let products = cluster.apis[0].all("/api/products?limit=100").await;
    let orders = products.iter().map(|product| cluster.apis[0].order(product["id"].as_u64().unwrap(), 1));
    assert!(join_all(orders).await.iter().all(|answer| [201, 400].contains(&answer.status)));

    let (fourth, _, of_three) = join(&of_those_left, 3).await;
    assert!(shares(&of_three).values().all(|share| *share >= 4), "{of_three:?}");
    cluster.workers.push(fourth);
}

/// A process that is asked to stop finishes its work first: every buyer gets an answer, and the answers match the stored
/// orders.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn asked_to_stop_under_load() {
    const ORDERS: usize = 1_200;
    let place = servers().await.fresh().await;
    let mut cluster = Cluster::start(&place, 2, 3, &[]).await;
    let stocks = stocks(&cluster.apis[0]).await;
    let products: Vec<_> = stocks.keys().copied().collect();
    workers_serve(&place, products.len(), 3).await;
    let mut load = Load::start(&cluster.clients(), &products);
    for worker in &mut cluster.workers[..2] {
        load.go_on(ORDERS).await;
        assert_eq!(worker.terminate().await.code(), Some(0));
        load.done().await;
    }
    load.go_on(ORDERS).await;
    assert_eq!(cluster.apis[0].terminate().await.code(), Some(0));
    let history = load.over().await;
    assert_eq!(cluster.workers[2].terminate().await.code(), Some(0));

    all_is_decided(&place).await;
    the_answers_are_true(&cluster.apis[1], &stocks, &history).await;
    // Some buyers could not connect; every order that arrived has an answer.
    let stored = stocks.keys().map(|product| cluster.apis[1].reservations(*product));
    let stored: usize = join_all(stored).await.iter().map(|books| books.orders.len()).sum();
    let count = |which: fn(&Answered) -> bool| history.iter().filter(|placed| which(&placed.answer)).count();
    assert_eq!(stored, count(|answer| matches!(answer, Answered::Reserved(_))));
    assert_eq!(count(|answer| matches!(answer, Answered::Pending(_))), 0);
}

/// A worker that freezes in the middle of a transaction keeps its rows locked, until the database ends its session and the
/// broker moves its lanes.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn the_lanes_of_a_frozen_worker_go_on() {
    let mut place = servers().await.fresh().await;
    place.amqp_url.push_str("?heartbeat=2"); // the broker declares it dead sooner
    let mut cluster = Cluster::start(&place, 1, 1, &[("ORDER_TIMEOUT", "1s")]).await;
    let api = &cluster.apis[0];
    let product = api.create_stocked("Kaos Polos", 100).await;
    let placed = api.order(product, 1).await;
    assert_eq!(api.verdict(placed.header("location")).await["status"], "reserved");
    let held = frozen_with_the_row(&cluster, &place, product).await;

    cluster.workers.push(App::start_role("worker", &place, &[]).await);
    assert_eq!(cluster.apis[0].verdict(&held).await["status"], "reserved");
    all_is_decided(&place).await;

    // It resumes, finds that its connections are gone, and works again; in a new lane, because in the old one the broker may
    // have forgotten to remove it: see `queue_contract`.
    cluster.workers[0].signal(Signal::CONT);
    workers_serve(&place, 1, 2).await;
    let other = cluster.apis[0].create_stocked("Kaos Garis", 100).await;
    workers_serve(&place, 2, 2).await;
    cluster.workers[1].kill9().await;
    for _ in 0..3 {
        let placed = cluster.apis[0].order(other, 3).await;
        assert_eq!(cluster.apis[0].verdict(placed.header("location")).await["status"], "reserved");
    }
    all_is_decided(&place).await;
    for product in [product, other] {
        cluster.apis[0].reservations(product).await;
    }
}

/// Freezes the worker while it has the product's row locked, and returns the order that it is about to decide.
async fn frozen_with_the_row(cluster: &Cluster, place: &Place, product: u64) -> String {
    let mut database = MySqlConnection::connect(&place.database_url).await.unwrap();
    let lock = "SELECT 1 FROM inventories FOR UPDATE NOWAIT";
    // On a very busy machine, the worker may give up waiting for the row just before it is stopped.
    for _ in 0..5 {
        eventually("the row stays locked", async || {
            database.execute("BEGIN").await.unwrap();
            database.execute(lock).await.ok()
        })
        .await;
        let placed = cluster.apis[0].order(product, 2).await;
        assert_eq!(placed.status, 202);
        eventually("the worker never waits for the row", async || {
            // The view is refreshed only when it was not read for a tenth of a second.
            database.execute("DO SLEEP(0.15)").await.unwrap();
            let waiting: i64 = sqlx::query_scalar(
                "SELECT COUNT(*) FROM information_schema.innodb_trx JOIN information_schema.processlist
                 ON processlist.id = trx_mysql_thread_id
                 WHERE trx_state = 'LOCK WAIT' AND db = DATABASE()",
            )
            .fetch_one(&mut database)
            .await
            .unwrap();
            (waiting == 1).then_some(())
        })
        .await;
        // The worker waits for the row that the test has locked; when the test releases it, the worker has it.
        cluster.workers[0].signal(Signal::STOP);
        database.execute("COMMIT").await.unwrap();
        if database.execute(lock).await.is_err() {
            return placed.header("location").to_owned();
        }
        cluster.workers[0].signal(Signal::CONT);
    }
    panic!("the worker never gets the row");
}

/// A worker serves its health at `LISTEN_ADDR`, and nothing else; without that setting it does not listen.
#[tokio::test]
#[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
async fn a_worker_serves_its_health_at_its_listen_addr() {
    let place = servers().await.fresh().await;
    let mut cluster = Cluster::start(&place, 0, 1, &[]).await;
    let worker = &mut cluster.workers[0];
    assert_eq!(worker.get("/health/live").await.data(), &json!({"live": true}));
    let ready = eventually("it never becomes ready", async || {
        let answer = worker.get("/health/ready").await;
        (answer.status == 200).then_some(answer)
    });
    assert_eq!(ready.await.data(), &json!({"database": "ok", "queue": "ok", "worker": "ok"}));
    for path in ["/api/products", "/api/orders", "/apispec.json", "/"] {
        let mut wire = RawConnection::open(worker).await;
        wire.send(format!("GET {path} HTTP/1.1\r\nHost: antre\r\n\r\n").as_bytes()).await;
        assert_eq!(wire.read().await.unwrap().0, 404, "{path}");
    }
    assert_eq!(worker.terminate().await.code(), Some(0));

    let directory = tempfile::tempdir().unwrap();
    let mut worker = antre(directory.path());
    worker.arg("worker").envs(place.settings()).stdout(Stdio::piped());
    let mut worker = worker.spawn().unwrap();
    let mut stdout = BufReader::new(worker.stdout.take().unwrap()).lines();
    let first = timeout(TIMEOUT, stdout.next_line()).await.unwrap().unwrap().unwrap();
    assert!(first.contains("is open: a worker"), "{first}");
    assert_eq!(listening(worker.id().unwrap()), 0);
    let _own = TcpListener::bind("127.0.0.1:0").unwrap();
    assert!(listening(std::process::id()) > 0, "the test cannot see listening sockets");
    let id = Pid::from_raw(worker.id().unwrap().cast_signed()).unwrap();
    kill_process(id, Signal::TERM).unwrap();
    assert_eq!(timeout(TIMEOUT, worker.wait()).await.unwrap().unwrap().code(), Some(0));
}

/// On how many TCP sockets a process listens, from `/proc`.
fn listening(process: u32) -> usize {
    let sockets: BTreeSet<_> = fs::read_dir(format!("/proc/{process}/fd"))
        .unwrap()
        .filter_map(|file| fs::read_link(file.unwrap().path()).ok())
        .filter_map(|file| Some(file.to_str()?.strip_prefix("socket:[")?.strip_suffix(']')?.to_owned()))
        .collect();
    let tables =
        ["tcp", "tcp6"].map(|table| fs::read_to_string(format!("/proc/{process}/net/{table}")).unwrap());
    let rows = tables.iter().flat_map(|table| table.lines().skip(1));
    rows.filter(|row| {
        let columns: Vec<_> = row.split_whitespace().collect();
        columns[3] == "0A" && sockets.contains(columns[9]) // state LISTEN; inode
    })
    .count()
}
