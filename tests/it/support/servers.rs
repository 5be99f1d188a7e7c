//! A real MySQL and a real RabbitMQ, shared by all tests of one run of the test binary. Where they come from, the
//! first that is there:
//!
//! 1. `TEST_DATABASE_URL` (`mysql://root:…@host:port`, may create databases) and `TEST_AMQP_URL`, with
//!    `TEST_RABBITMQ_MANAGEMENT_URL` where it is not `http://guest:guest@host:15672`. What tests make there stays,
//!    under names that begin with `antre_test_`.
//! 2. Containers of the images that `scripts/build-test-images.sh` builds without any registry, if they are built.
//! 3. Containers of the official images.
//! 4. As 2., after running that script.
//!
//! Containers are gone when the process ends, in whatever way: a child that outlives it removes them.

use std::{
    env,
    fmt::{Debug, Display},
    future::Future,
    net::TcpListener,
    os::unix::process::CommandExt,
    path::Path,
    process::{Child, Command, Stdio},
    sync::{Arc, LazyLock, OnceLock},
    time::{Duration, Instant},
};

use reqwest::Url;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use sqlx::{Connection, Executor, MySqlConnection};
use testcontainers::{
    ContainerAsync, ContainerRequest, GenericImage, ImageExt,
    core::{IntoContainerPort, WaitFor},
    runners::AsyncRunner,
};
use tokio::{
    runtime::Runtime,
    sync::{OnceCell, OwnedRwLockReadGuard, OwnedRwLockWriteGuard, RwLock},
    time::sleep,
};
use uuid::Uuid;

/// How long a server may take to become reachable.
const PATIENCE: Duration = Duration::from_secs(60);
/// The password of MySQL's root, and RabbitMQ's user and password.
const ANTRE: &str = "antre";

/// Docker's client keeps tasks of its own, which must outlive the runtime of the test that came first.
static RUNTIME: LazyLock<Runtime> = LazyLock::new(|| {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
});

/// The servers of this run.
pub(crate) struct Servers {
    database_url: Url,
    amqp_url: Url,
    management_url: Url,
    /// `None`: somebody else's servers.
    containers: Option<Containers>,
    /// Held shared by those who use the servers, alone by those who disturb them.
    undisturbed: Arc<RwLock<()>>,
}

struct Containers {
    database: ContainerAsync<GenericImage>,
    broker: ContainerAsync<GenericImage>,
}

/// One of the two.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Server {
    Database,
    Broker,
}

/// An empty database, and a prefix that no queue begins with. While it is held, nobody disturbs the servers. A test
/// takes one at a time: who waits to disturb them lets nobody else in.
pub(crate) struct Place {
    /// `mysql://…`
    pub(crate) database_url: String,
    /// `amqp://…`
    pub(crate) amqp_url: String,
    /// What all of its queues begin with.
    pub(crate) queue_prefix: String,
    _undisturbed: Option<OwnedRwLockReadGuard<()>>,
}

impl Place {
    /// The same place, with the database behind something else. It lasts as long as this one is held.
    pub(crate) fn behind(&self, database_url: &str) -> Self {
        Self {
            database_url: database_url.to_owned(),
            amqp_url: self.amqp_url.clone(),
            queue_prefix: self.queue_prefix.clone(),
            _undisturbed: None,
        }
    }

    /// What the program's settings must be to run here.
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
    /// Whether it is the one that gets the messages.
    pub(crate) active: bool,
    pub(crate) priority: i64,
}

#[derive(Deserialize)]
struct ConsumerRow {
    queue: QueueName,
    /// An empty list when the broker does not know yet.
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

/// The servers of this run; the first call starts them. Panics when there are none to be had.
pub(crate) async fn servers() -> &'static Servers {
    static SERVERS: OnceCell<Result<Servers, String>> = OnceCell::const_new();
    let started = SERVERS.get_or_init(|| async {
        let started = RUNTIME.spawn(Servers::start()).await.map_err(|error| error.to_string());
        started.and_then(|servers| servers)
    });
    match started.await {
        Ok(servers) => servers,
        Err(error) => panic!(
            "This test needs MySQL and RabbitMQ: start Docker, or run scripts/build-test-images.sh as root once, or \
             set TEST_DATABASE_URL and TEST_AMQP_URL to servers of your own ({error})."
        ),
    }
}

impl Servers {
    async fn start() -> Result<Self, String> {
        let servers = match (env::var("TEST_DATABASE_URL").ok(), env::var("TEST_AMQP_URL").ok()) {
            (Some(database_url), Some(amqp_url)) => Self::given(&database_url, &amqp_url)?,
            (None, None) => Self::contained().await?,
            _ => return Err("only one of TEST_DATABASE_URL and TEST_AMQP_URL is set".to_owned()),
        };
        servers.wait_for(Server::Database).await?;
        servers.wait_for(Server::Broker).await?;
        Ok(servers)
    }

    /// Servers that somebody else runs.
    fn given(database_url: &str, amqp_url: &str) -> Result<Self, String> {
        let parse = |url: &str| Url::parse(url).map_err(|error| format!("{url}: {error}"));
        let (mut database_url, amqp_url) = (parse(database_url)?, parse(amqp_url)?);
        database_url.set_path(""); // every test makes its own
        let management_url = env::var("TEST_RABBITMQ_MANAGEMENT_URL").unwrap_or_else(|_| {
            format!("http://guest:guest@{}:15672", amqp_url.host_str().unwrap_or("localhost"))
        });
        Ok(Self {
            database_url,
            management_url: parse(&management_url)?,
            amqp_url,
            containers: None,
            undisturbed: Arc::default(),
        })
    }

    /// Servers in containers.
    async fn contained() -> Result<Self, String> {
        let run = Uuid::new_v4().simple();
        let names = [format!("antre-test-mysql-{run}"), format!("antre-test-rabbitmq-{run}")];
        let ports = [free_port()?, free_port()?, free_port()?];
        leave_a_reaper(&names);
        let (database, broker) = tokio::join!(
            start("mysql:8.4", "antre-test/mysql:debian", |image| mysql(image, &names[0], ports[0])),
            start("rabbitmq:4-management", "antre-test/rabbitmq:debian", |image| {
                rabbitmq(image, &names[1], [ports[1], ports[2]])
            }),
        );
        let containers = Containers { database: database?, broker: broker? };
        let host = containers.database.get_host().await.map_err(text)?;
        let url = |url: String| Url::parse(&url).map_err(text);
        Ok(Self {
            database_url: url(format!("mysql://root:{ANTRE}@{host}:{}", ports[0]))?,
            amqp_url: url(format!("amqp://{ANTRE}:{ANTRE}@{host}:{}/%2f", ports[1]))?,
            management_url: url(format!("http://{ANTRE}:{ANTRE}@{host}:{}", ports[2]))?,
            containers: Some(containers),
            undisturbed: Arc::default(),
        })
    }

    /// A new place for one test.
    pub(crate) async fn fresh(&self) -> Place {
        let undisturbed = self.undisturbed.clone().read_owned().await;
        Place { _undisturbed: Some(undisturbed), ..self.place().await }
    }

    async fn place(&self) -> Place {
        let name = format!("antre_test_{}", Uuid::new_v4().simple());
        let mut connection = MySqlConnection::connect(self.database_url.as_str()).await.unwrap();
        let create = format!("CREATE DATABASE {name}");
        connection.execute(sqlx::raw_sql(&create)).await.unwrap();
        connection.close().await.unwrap();
        let mut database_url = self.database_url.clone();
        database_url.set_path(&name);
        Place {
            database_url: database_url.into(),
            amqp_url: self.amqp_url.to_string(),
            queue_prefix: format!("{name}."),
            _undisturbed: None,
        }
    }

    /// A new place for one test that disturbs the servers, while no other test uses them. Panics when these servers
    /// are not ours to disturb.
    pub(crate) async fn alone(&'static self) -> Alone {
        let Some(containers) = &self.containers else {
            panic!(
                "This test pauses and kills servers, and does that only to containers of its own: unset \
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

    /// The queues with this prefix, as soon as they are as they should be. Panics when they do not become so.
    pub(crate) async fn queues_when(
        &self,
        prefix: &str,
        condition: impl Fn(&[QueueInfo]) -> bool,
    ) -> Vec<QueueInfo> {
        as_soon_as(async || self.queues(prefix).await, condition).await
    }

    /// The consumers of queues with this prefix, as soon as they are as they should be. Panics when they do not
    /// become so.
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
        as_soon_as(consumers, condition).await
    }

    /// The broker's names for the connections that call themselves this.
    pub(crate) async fn connections(&self, called: &str) -> Vec<String> {
        let connections: Vec<Value> = self.ask_broker("api/connections").await;
        let named = connections.iter().filter(|connection| connection["user_provided_name"] == called);
        named.filter_map(|connection| connection["name"].as_str().map(str::to_owned)).collect()
    }

    async fn ask_broker<T: DeserializeOwned>(&self, what: &str) -> T {
        let url = self.management_url.join(what).unwrap();
        reqwest::get(url).await.unwrap().error_for_status().unwrap().json().await.unwrap()
    }

    /// Waits until clients are let in.
    async fn wait_for(&self, server: Server) -> Result<(), String> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.reach(server).await {
                Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(50)).await,
                result => return result,
            }
        }
    }

    /// One attempt at being let in.
    async fn reach(&self, server: Server) -> Result<(), String> {
        match server {
            Server::Database => {
                let database = MySqlConnection::connect(self.database_url.as_str()).await.map_err(text)?;
                database.close().await.map_err(text)
            }
            Server::Broker => {
                let options = lapin::ConnectionProperties::default();
                let broker =
                    lapin::Connection::connect(self.amqp_url.as_str(), options).await.map_err(text)?;
                broker.close(200, "reached".into()).await.map_err(text)?;
                let overview = self.management_url.join("api/overview").map_err(text)?;
                reqwest::get(overview).await.and_then(reqwest::Response::error_for_status).map_err(text)?;
                Ok(())
            }
        }
    }
}

/// What is asked for again and again, as soon as it is as it should be.
async fn as_soon_as<T: Debug>(ask: impl AsyncFn() -> Vec<T>, condition: impl Fn(&[T]) -> bool) -> Vec<T> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let found = ask().await;
        if condition(&found) {
            return found;
        }
        assert!(Instant::now() < deadline, "after {PATIENCE:?} still {found:#?}");
        sleep(Duration::from_millis(50)).await;
    }
}

impl Containers {
    fn of(&self, server: Server) -> &ContainerAsync<GenericImage> {
        match server {
            Server::Database => &self.database,
            Server::Broker => &self.broker,
        }
    }
}

/// Both servers for one test alone. However it ends, the next one finds them running.
pub(crate) struct Alone {
    /// Where the test takes place.
    pub(crate) place: Place,
    servers: &'static Servers,
    containers: &'static Containers,
    undisturbed: Option<OwnedRwLockWriteGuard<()>>,
}

impl Alone {
    /// Stops every process of the server where it is: its connections stay open, and nobody answers.
    pub(crate) async fn pause(&self, server: Server) {
        let container = self.containers.of(server);
        on_runtime(async move { container.pause().await.unwrap() }).await;
    }

    /// Lets it go on.
    pub(crate) async fn unpause(&self, server: Server) {
        let container = self.containers.of(server);
        on_runtime(async move { container.unpause().await.unwrap() }).await;
    }

    /// Kills it (SIGKILL).
    pub(crate) async fn kill(&self, server: Server) {
        let container = self.containers.of(server);
        on_runtime(async move { container.stop_with_timeout(Some(0)).await.unwrap() }).await;
    }

    /// Starts it again, with the data it had and at the same address, and waits until it lets clients in.
    pub(crate) async fn start(&self, server: Server) {
        let (container, servers) = (self.containers.of(server), self.servers);
        on_runtime(async move {
            container.start().await.unwrap();
            servers.wait_for(server).await.unwrap();
        })
        .await;
    }

    /// Has the broker's own tool do something.
    pub(crate) async fn rabbitmqctl(&self, arguments: &[&str]) {
        let mut command = Command::new("docker");
        command.args(["exec", self.containers.broker.id(), "rabbitmqctl"]).args(arguments);
        let answer = tokio::task::spawn_blocking(move || command.output()).await.unwrap().unwrap();
        assert!(answer.status.success(), "{}", String::from_utf8_lossy(&answer.stderr));
    }

    /// Kills it and starts it again.
    pub(crate) async fn restart(&self, server: Server) {
        self.kill(server).await;
        self.start(server).await;
    }
}

impl Drop for Alone {
    fn drop(&mut self) {
        let (servers, containers, undisturbed) = (self.servers, self.containers, self.undisturbed.take());
        RUNTIME.spawn(async move {
            for server in [Server::Database, Server::Broker] {
                let container = containers.of(server);
                let _ = container.unpause().await; // an error: it was not paused
                let _ = container.start().await; // already running is no error
                servers.wait_for(server).await.unwrap();
            }
            drop(undisturbed);
        });
    }
}

async fn on_runtime(work: impl Future<Output = ()> + Send + 'static) {
    RUNTIME.spawn(work).await.unwrap();
}

/// From the local image if it is there, else from the official one, else from the local one once it is built.
async fn start(
    official: &str,
    local: &str,
    request: impl Fn(&str) -> ContainerRequest<GenericImage>,
) -> Result<ContainerAsync<GenericImage>, String> {
    if !is_built(local) {
        let failed = match request(official).start().await {
            Ok(container) => return Ok(container),
            Err(error) => error,
        };
        eprintln!("no {official} ({failed}); running scripts/build-test-images.sh");
        tokio::task::spawn_blocking(build_images).await.map_err(text)??;
    }
    request(local).start().await.map_err(text)
}

fn is_built(image: &str) -> bool {
    let inspect = Command::new("docker").args(["image", "inspect", image]).output();
    inspect.is_ok_and(|answer| answer.status.success())
}

/// Both images; one run of the script waits for another.
fn build_images() -> Result<(), String> {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/build-test-images.sh");
    let run = Command::new(&script).stdin(Stdio::null()).output();
    let run = run.map_err(|error| format!("{}: {error}", script.display()))?;
    if run.status.success() {
        return Ok(());
    }
    Err(format!("{}: {}", script.display(), String::from_utf8_lossy(&run.stderr).trim()))
}

/// Small, but as durable as it is by default: tests that kill it ask what survives.
fn mysql(image: &str, name: &str, port: u16) -> ContainerRequest<GenericImage> {
    generic(image)
        .with_exposed_port(3306.tcp())
        // Once, and with this port: the official image has a server for its setup, at port 0. The X protocol's own
        // line would say 33060.
        .with_wait_for(WaitFor::message_on_stderr("port: 3306"))
        .with_mapped_port(port, 3306.tcp())
        .with_container_name(name)
        .with_env_var("MYSQL_ROOT_PASSWORD", ANTRE)
        .with_cmd([
            "--mysqlx=OFF",
            "--skip-name-resolve",
            "--performance-schema=OFF",
            "--innodb-buffer-pool-size=64M",
            "--max-connections=500",
        ])
        .with_startup_timeout(PATIENCE)
}

fn rabbitmq(image: &str, name: &str, [amqp, management]: [u16; 2]) -> ContainerRequest<GenericImage> {
    let settings = "raft.wal_max_size_bytes = 64000000\ncollect_statistics_interval = 500\n";
    generic(image)
        .with_exposed_port(5672.tcp())
        .with_exposed_port(15672.tcp())
        .with_wait_for(WaitFor::message_on_stdout("Server startup complete"))
        .with_mapped_port(amqp, 5672.tcp())
        .with_mapped_port(management, 15672.tcp())
        .with_container_name(name)
        .with_env_var("RABBITMQ_DEFAULT_USER", ANTRE)
        .with_env_var("RABBITMQ_DEFAULT_PASS", ANTRE)
        // A quorum queue tells its numbers every five seconds by default.
        .with_env_var("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", "-rabbit quorum_tick_interval 500")
        .with_copy_to("/etc/rabbitmq/conf.d/90-antre-test.conf", settings.as_bytes().to_vec())
        .with_startup_timeout(PATIENCE)
}

fn generic(image: &str) -> GenericImage {
    let (name, tag) = image.split_once(':').unwrap();
    GenericImage::new(name, tag)
}

/// A port of the host that is free now. Docker would choose one too, but another one after every restart.
fn free_port() -> Result<u16, String> {
    let listener = TcpListener::bind("0.0.0.0:0").map_err(text)?;
    Ok(listener.local_addr().map_err(text)?.port())
}

/// Statics are never dropped, and a process that is killed drops nothing at all. So a child waits for the end of its
/// standard input, which comes when this process ends, and removes the containers. In its own process group, Ctrl-C does
/// not reach it. It begins before they do and tries several times: Docker may just be creating them.
fn leave_a_reaper(containers: &[String]) {
    static REAPER: OnceLock<Child> = OnceLock::new();
    REAPER.get_or_init(|| {
        Command::new("sh")
            .args([
                "-c",
                "trap '' HUP INT TERM; read -r _; for _ in 1 2 3; do docker rm -f -v \"$@\"; sleep 2; done",
            ])
            .arg("reaper of antre's tests")
            .args(containers)
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    });
}

fn text(error: impl Display) -> String {
    error.to_string()
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
            let reached =
                || async { tokio::time::timeout(Duration::from_secs(1), alone.servers.reach(server)).await };
            reached().await.unwrap().unwrap();
            alone.pause(server).await;
            reached().await.unwrap_err();
            alone.unpause(server).await;
            alone.servers.wait_for(server).await.unwrap();
            alone.kill(server).await;
            reached().await.unwrap().unwrap_err();
            alone.start(server).await;
            alone.servers.reach(server).await.unwrap();
            // Left like this, the next test must find it running.
            alone.kill(server).await;
        }
        drop(alone);
        servers().await.fresh().await;
        for server in [Server::Database, Server::Broker] {
            servers().await.reach(server).await.unwrap();
        }
    }
}
