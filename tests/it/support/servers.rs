//! A real MySQL and a real RabbitMQ, shared by all tests of one run of the test binary, as [`antre_testkit::servers`]
//! finds them. On servers that environment variables name, databases and queues whose names begin with `antre_test_`
//! stay.

use std::{
    fmt::Debug,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use antre_testkit::servers::{Containers, Options};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use sqlx::{Connection, Executor, MySqlConnection};
use tokio::{
    runtime,
    sync::{OnceCell, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock},
    time::sleep,
};
use uuid::Uuid;

pub(crate) use antre_testkit::servers::Server;

/// Small, but as durable as it is by default: tests that kill it ask what survives.
const MYSQL_ARGUMENTS: [&str; 2] = ["--innodb-buffer-pool-size=64M", "--max-connections=500"];

/// A quorum queue reports its numbers every five seconds by default, and a channel too.
const RABBITMQ_ARGUMENTS: &str = "-rabbit quorum_tick_interval 500 -rabbit collect_statistics_interval 500";

/// The time in which the broker must report an expected state.
const REPORT_TIMEOUT: Duration = Duration::from_secs(60);

/// The servers of this run.
pub(crate) struct Servers {
    servers: antre_testkit::servers::Servers,
    /// Held shared by tests that use the servers, alone by a test that disturbs them.
    undisturbed: Arc<RwLock<()>>,
}

/// An empty database, and a prefix that no queue begins with. While it is held, no test disturbs the servers. A test takes
/// one at a time: while another test waits to disturb the servers, no second one is given.
pub(crate) struct Place {
    /// `mysql://…`
    pub(crate) database_url: String,
    /// `amqp://…`
    pub(crate) amqp_url: String,
    /// The prefix of all queues here.
    pub(crate) queue_prefix: String,
    _undisturbed: Option<OwnedRwLockReadGuard<()>>,
}

impl Place {
    /// The same place with another URL of the database. Valid as long as this one is held.
    pub(crate) fn behind(&self, database_url: &str) -> Self {
        Self {
            database_url: database_url.to_owned(),
            amqp_url: self.amqp_url.clone(),
            queue_prefix: self.queue_prefix.clone(),
            _undisturbed: None,
        }
    }

    /// The program's settings for this place.
    pub(crate) fn settings(&self) -> Vec<(String, String)> {
        [
            ("DATABASE_URL", &self.database_url),
            ("AMQP_URL", &self.amqp_url),
            ("QUEUE_PREFIX", &self.queue_prefix),
        ]
        .map(|(name, value)| (name.to_owned(), value.clone()))
        .to_vec()
    }
}

/// A queue as the broker's management plugin sees it. Its numbers are about a second old.
#[derive(Clone, Debug, Deserialize)]
pub(crate) struct QueueInfo {
    pub(crate) name: String,
    /// `quorum` or `classic`.
    #[serde(rename = "type")]
    pub(crate) kind: String,
    pub(crate) durable: bool,
    pub(crate) exclusive: bool,
    pub(crate) auto_delete: bool,
    pub(crate) arguments: Map<String, Value>,
    /// Ready and unacknowledged ones.
    #[serde(default)]
    pub(crate) messages: u64,
    #[serde(default)]
    pub(crate) messages_ready: u64,
    #[serde(default)]
    pub(crate) messages_unacknowledged: u64,
    #[serde(default)]
    pub(crate) consumers: u64,
}

/// A consumer as the broker's management plugin sees it.
#[derive(Clone, Debug, Deserialize)]
#[serde(from = "ConsumerRow")]
pub(crate) struct ConsumerInfo {
    pub(crate) queue: String,
    /// The broker's name for its connection: the addresses of both ends.
    pub(crate) connection: String,
    /// Whether it receives the messages.
    pub(crate) active: bool,
    pub(crate) priority: i64,
}

#[derive(Deserialize)]
struct ConsumerRow {
    queue: QueueName,
    /// An empty list until the broker has collected it.
    channel_details: Value,
    active: bool,
    arguments: Value,
}

#[derive(Deserialize)]
struct QueueName {
    name: String,
}

impl From<ConsumerRow> for ConsumerInfo {
    fn from(row: ConsumerRow) -> Self {
        Self {
            queue: row.queue.name,
            connection: row.channel_details["connection_name"].as_str().unwrap_or_default().to_owned(),
            active: row.active,
            priority: row.arguments["x-priority"].as_i64().unwrap_or_default(),
        }
    }
}

/// The servers of this run; the first call starts them. Panics where there are none.
pub(crate) async fn servers() -> &'static Servers {
    static SERVERS: OnceCell<Result<Servers, String>> = OnceCell::const_new();
    let options = Options {
        purpose: "test",
        mysql_arguments: &MYSQL_ARGUMENTS,
        rabbitmq_arguments: RABBITMQ_ARGUMENTS,
        own_addresses: false,
        needs_management: true,
    };
    let started = SERVERS.get_or_init(|| async {
        let servers = antre_testkit::servers::Servers::start(&options).await;
        servers
            .map(|servers| Servers { servers, undisturbed: Arc::default() })
            .map_err(|error| error.to_string())
    });
    match started.await {
        Ok(servers) => servers,
        Err(error) => panic!(
            "This test needs MySQL and RabbitMQ: start Docker, or run scripts/build-test-images.sh as root once, or \
             set TEST_DATABASE_URL and TEST_AMQP_URL to other servers ({error})."
        ),
    }
}

impl Servers {
    /// A new place for one test.
    pub(crate) async fn fresh(&self) -> Place {
        let undisturbed = self.undisturbed.clone().read_owned().await;
        Place { _undisturbed: Some(undisturbed), ..self.place().await }
    }

    async fn place(&self) -> Place {
        let name = format!("antre_test_{}", Uuid::new_v4().simple());
        let mut connection = MySqlConnection::connect(self.servers.database_url.as_str()).await.unwrap();
        let create = format!("CREATE DATABASE {name}");
        connection.execute(sqlx::raw_sql(&create)).await.unwrap();
        connection.close().await.unwrap();
        let mut database_url = self.servers.database_url.clone();
        database_url.set_path(&name);
        Place {
            database_url: database_url.into(),
            amqp_url: self.servers.amqp_url.to_string(),
            queue_prefix: format!("{name}."),
            _undisturbed: None,
        }
    }

    /// A new place for one test that disturbs the servers, while no other test uses them. Panics when the environment
    /// names these servers: others may use them.
    pub(crate) async fn alone(&'static self) -> Alone {
        let Some(containers) = &self.servers.containers else {
            panic!(
                "This test pauses and kills servers, and does that only to its own containers: unset \
                 TEST_DATABASE_URL and TEST_AMQP_URL."
            );
        };
        let undisturbed = self.undisturbed.clone().write_owned().await;
        Alone { place: self.place().await, servers: self, containers, undisturbed: Some(undisturbed) }
    }

    /// The queues with this prefix, by name.
    pub(crate) async fn queues(&self, prefix: &str) -> Vec<QueueInfo> {
        let mut queues: Vec<QueueInfo> = self.ask_broker("api/queues").await;
        queues.retain(|queue| queue.name.starts_with(prefix));
        queues.sort_by(|a, b| a.name.cmp(&b.name));
        queues
    }

    /// Polls the queues with this prefix until the condition holds. Panics when it does not.
    pub(crate) async fn queues_when(
        &self,
        prefix: &str,
        condition: impl Fn(&[QueueInfo]) -> bool,
    ) -> Vec<QueueInfo> {
        poll_until(async || self.queues(prefix).await, condition).await
    }

    /// Polls the consumers of queues with this prefix until the condition holds. Panics when it does not.
    pub(crate) async fn consumers_when(
        &self,
        prefix: &str,
        condition: impl Fn(&[ConsumerInfo]) -> bool,
    ) -> Vec<ConsumerInfo> {
        let consumers = async || {
            let mut consumers: Vec<ConsumerInfo> = self.ask_broker("api/consumers").await;
            consumers.retain(|consumer| consumer.queue.starts_with(prefix));
            consumers
        };
        poll_until(consumers, condition).await
    }

    /// The broker's names of the connections with this client-provided name.
    pub(crate) async fn connections(&self, called: &str) -> Vec<String> {
        let connections: Vec<Value> = self.ask_broker("api/connections").await;
        let named = connections.iter().filter(|connection| connection["user_provided_name"] == called);
        named.filter_map(|connection| connection["name"].as_str().map(str::to_owned)).collect()
    }

    async fn ask_broker<T: DeserializeOwned>(&self, what: &str) -> T {
        let url = self.servers.management_url.join(what).unwrap();
        reqwest::get(url).await.unwrap().error_for_status().unwrap().json().await.unwrap()
    }
}

/// Polls until the condition holds.
async fn poll_until<T: Debug>(ask: impl AsyncFn() -> Vec<T>, condition: impl Fn(&[T]) -> bool) -> Vec<T> {
    let deadline = Instant::now() + REPORT_TIMEOUT;
    loop {
        let found = ask().await;
        if condition(&found) {
            return found;
        }
        assert!(Instant::now() < deadline, "after {REPORT_TIMEOUT:?} still {found:#?}");
        sleep(Duration::from_millis(50)).await;
    }
}

/// Exclusive use of both servers. When it is dropped, they are running again for the next test.
pub(crate) struct Alone {
    /// Where the test takes place.
    pub(crate) place: Place,
    servers: &'static Servers,
    containers: &'static Containers,
    undisturbed: Option<OwnedRwLockWriteGuard<()>>,
}

impl Alone {
    /// Stops every process of the server where it is: its connections stay open, and nothing answers.
    pub(crate) async fn pause(&self, server: Server) {
        self.containers.of(server).pause().await.unwrap();
    }

    pub(crate) async fn unpause(&self, server: Server) {
        self.containers.of(server).unpause().await.unwrap();
    }

    /// Kills it (SIGKILL).
    pub(crate) async fn kill(&self, server: Server) {
        self.containers.of(server).kill().await.unwrap();
    }

    /// Starts it again, with the data it had and at the same address, and waits until it accepts logins.
    pub(crate) async fn start(&self, server: Server) {
        self.containers.of(server).start().await.unwrap();
        self.servers.servers.wait_for(server).await.unwrap();
    }

    /// Runs the broker's own tool.
    pub(crate) async fn rabbitmqctl(&self, arguments: &[&str]) {
        self.containers.broker.exec(&[&["rabbitmqctl"], arguments].concat()).await.unwrap();
    }

    /// Runs a shell command beside the database, as its host does.
    pub(crate) async fn database_shell(&self, command: &str) {
        self.containers.of(Server::Database).exec(&["sh", "-c", command]).await.unwrap();
    }

    /// Kills it and starts it again.
    pub(crate) async fn restart(&self, server: Server) {
        self.kill(server).await;
        self.start(server).await;
    }
}

impl Drop for Alone {
    /// On its own thread: the runtime of this test ends.
    fn drop(&mut self) {
        let (servers, containers, undisturbed) = (self.servers, self.containers, self.undisturbed.take());
        thread::spawn(move || {
            runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
                for server in [Server::Database, Server::Broker] {
                    let container = containers.of(server);
                    let _ = container.unpause().await; // an error: it was not paused
                    let _ = container.start().await; // already running is no error
                    servers.servers.wait_for(server).await.unwrap();
                }
            });
            drop(undisturbed);
        });
    }
}

mod tests {
    use super::*;

    #[tokio::test]
    #[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
    async fn a_fresh_place_is_empty_and_durable() {
        let (servers, other) = (servers().await, servers().await.fresh().await);
        let place = servers.place().await;
        assert!(place.database_url != other.database_url && place.queue_prefix != other.queue_prefix);
        assert!(servers.queues(&place.queue_prefix).await.is_empty());
        let mut database = MySqlConnection::connect(&place.database_url).await.unwrap();
        let tables: Vec<(String,)> = sqlx::query_as("SHOW TABLES").fetch_all(&mut database).await.unwrap();
        assert!(tables.is_empty());
        let durable: (u64, u64) = sqlx::query_as("SELECT @@innodb_flush_log_at_trx_commit, @@sync_binlog")
            .fetch_one(&mut database)
            .await
            .unwrap();
        assert_eq!(durable, (1, 1));
    }

    #[tokio::test]
    #[ignore = "needs MySQL and RabbitMQ: run ./test.sh"]
    async fn servers_come_back_from_anything() {
        let alone = servers().await.alone().await;
        for server in [Server::Database, Server::Broker] {
            let reached = || async {
                tokio::time::timeout(Duration::from_secs(1), alone.servers.servers.login(server)).await
            };
            reached().await.unwrap().unwrap();
            alone.pause(server).await;
            reached().await.unwrap_err();
            alone.unpause(server).await;
            alone.servers.servers.wait_for(server).await.unwrap();
            alone.kill(server).await;
            reached().await.unwrap().unwrap_err();
            alone.start(server).await;
            alone.servers.servers.login(server).await.unwrap();
            // Left like this, the next test must find it running.
            alone.kill(server).await;
        }
        drop(alone);
        servers().await.fresh().await;
        for server in [Server::Database, Server::Broker] {
            servers().await.servers.login(server).await.unwrap();
        }
    }
}
