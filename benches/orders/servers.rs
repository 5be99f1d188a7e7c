//! The MySQL and the RabbitMQ that every variant runs on: those that `TEST_DATABASE_URL` (a user that may create
//! databases) and `TEST_AMQP_URL` name, or containers of this run's own, from the images that
//! `scripts/build-test-images.sh` builds without a registry. Containers are gone at the end, however that comes.

use std::{
    env,
    fmt::Display,
    io::{Read, Write},
    net::{SocketAddr, TcpStream, ToSocketAddrs},
    path::Path,
    process::{self, Command, Stdio},
    time::{Duration, Instant},
};

use lapin::ConnectionProperties;
use reqwest::Url;
use serde::Serialize;
use sqlx::{Connection, Executor, MySqlConnection, Row};
use tokio::time::sleep;

use crate::{
    Result,
    reaper::{Reaper, Thing},
};

const MYSQL_IMAGE: &str = "antre-test/mysql:debian";
const RABBITMQ_IMAGE: &str = "antre-test/rabbitmq:debian";
/// How long a server may take to let clients in.
const PATIENCE: Duration = Duration::from_secs(90);
/// Password of MySQL's root, user and password of RabbitMQ.
const SECRET: &str = "antre";

/// What our own MySQL is started with, beside what the image sets: room for the tables in memory and for the redo log
/// of a run, as a server for this purpose would have. Durability stays at MySQL's default, which is the full one.
const MYSQL_OPTIONS: [&str; 3] =
    ["--innodb-buffer-pool-size=1G", "--innodb-redo-log-capacity=1G", "--max-connections=500"];

pub(crate) struct Servers {
    /// Names no database.
    mysql: Url,
    pub(crate) amqp_url: String,
    /// This run's database.
    database: String,
    containers: Option<Containers>,
}

/// How MySQL keeps what it has committed, and what it has for it. A measurement on anything less than fully durable
/// settings would compare promises of different worth.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Durability {
    pub(crate) innodb_flush_log_at_trx_commit: i64,
    pub(crate) sync_binlog: i64,
    pub(crate) log_bin: i64,
    pub(crate) innodb_doublewrite: String,
    pub(crate) innodb_buffer_pool_size: i64,
    pub(crate) innodb_redo_log_capacity: i64,
}

impl Servers {
    pub(crate) async fn start(reaper: &mut Reaper) -> Result<Self> {
        let (mysql, amqp_url, containers) =
            match (env::var("TEST_DATABASE_URL").ok(), env::var("TEST_AMQP_URL").ok()) {
                (Some(mysql), Some(amqp)) => (mysql, amqp, None),
                (None, None) => {
                    let containers = Containers::start(reaper)?;
                    let (mysql, amqp) = (
                        // Encrypted, as it is for who says nothing. Who the server is cannot be verified: it makes its own
                        // certificate.
                        format!(
                            "mysql://root:{SECRET}@{}?ssl-mode=required",
                            containers.address(&containers.mysql, 3306)?
                        ),
                        format!(
                            "amqp://{SECRET}:{SECRET}@{}/%2f",
                            containers.address(&containers.rabbitmq, 5672)?
                        ),
                    );
                    (mysql, amqp, Some(containers))
                }
                _ => return Err("only one of TEST_DATABASE_URL and TEST_AMQP_URL is set".into()),
            };
        let mysql = Url::parse(&mysql)?;
        let database = format!("antre_bench_{}", process::id());
        let servers = Self { mysql, amqp_url, database, containers };
        if !servers.is_ours() {
            let (url, name) = (servers.mysql.to_string(), servers.database.clone());
            reaper.made(Thing::Database { url, name })?;
        }
        patiently(|| async { Ok(servers.administer().await?.close().await?) }).await?;
        patiently(|| async {
            let broker = lapin::Connection::connect(&servers.amqp_url, ConnectionProperties::default());
            Ok(broker.await?.close(200, "reached".into()).await?)
        })
        .await?;
        Ok(servers)
    }

    /// `mysql://…/database`
    pub(crate) fn database_url(&self) -> String {
        self.database_of(self.mysql.clone())
    }

    /// The same without encryption.
    pub(crate) fn plain_database_url(&self) -> String {
        let mut url = self.mysql.clone();
        url.set_query(Some("ssl-mode=disabled"));
        self.database_of(url)
    }

    fn database_of(&self, mut server: Url) -> String {
        server.set_path(&self.database);
        server.into()
    }

    /// What the names of all queues of this run begin with.
    pub(crate) fn queue_prefix(&self) -> String {
        format!("{}.", self.database)
    }

    /// Whether they go when the run ends, with all that is in them.
    pub(crate) fn is_ours(&self) -> bool {
        self.containers.is_some()
    }

    /// A connection to no database in particular.
    async fn administer(&self) -> Result<MySqlConnection> {
        Ok(MySqlConnection::connect(self.mysql.as_str()).await?)
    }

    /// Makes this run's database anew, empty.
    pub(crate) async fn empty_database(&self) -> Result<()> {
        let mut connection = self.administer().await?;
        for statement in ["DROP DATABASE IF EXISTS", "CREATE DATABASE"] {
            let statement = format!("{statement} {}", self.database);
            connection.execute(sqlx::raw_sql(&statement)).await?;
        }
        Ok(connection.close().await?)
    }

    /// Fails when MySQL may forget what it has committed.
    pub(crate) async fn durability(&self) -> Result<Durability> {
        let mut connection = self.administer().await?;
        let row = sqlx::query(
            "SELECT CAST(@@innodb_flush_log_at_trx_commit AS SIGNED), CAST(@@sync_binlog AS SIGNED),
                    CAST(@@log_bin AS SIGNED), CAST(@@innodb_doublewrite AS CHAR),
                    CAST(@@innodb_buffer_pool_size AS SIGNED), CAST(@@innodb_redo_log_capacity AS SIGNED)",
        )
        .fetch_one(&mut connection)
        .await?;
        let durability = Durability {
            innodb_flush_log_at_trx_commit: row.try_get(0)?,
            sync_binlog: row.try_get(1)?,
            log_bin: row.try_get(2)?,
            innodb_doublewrite: row.try_get(3)?,
            innodb_buffer_pool_size: row.try_get(4)?,
            innodb_redo_log_capacity: row.try_get(5)?,
        };
        connection.close().await?;
        if (durability.innodb_flush_log_at_trx_commit, durability.sync_binlog) != (1, 1) {
            return Err(format!(
                "this MySQL is not fully durable: innodb_flush_log_at_trx_commit and sync_binlog must both be 1, \
                 not {} and {}",
                durability.innodb_flush_log_at_trx_commit, durability.sync_binlog
            )
            .into());
        }
        Ok(durability)
    }

    pub(crate) async fn mysql_version(&self) -> Result<String> {
        let mut connection = self.administer().await?;
        let version = sqlx::query_scalar("SELECT VERSION()").fetch_one(&mut connection).await?;
        connection.close().await?;
        Ok(version)
    }

    /// What the broker says in its first frame, whose properties hold `version` as a long string (AMQP 0-9-1,
    /// `connection.start`).
    pub(crate) fn rabbitmq_version(&self) -> Option<String> {
        const KEY: &[u8] = b"\x07versionS";
        let url = Url::parse(&self.amqp_url).ok()?;
        let address = (url.host_str()?, url.port().unwrap_or(5672)).to_socket_addrs().ok()?.next()?;
        let mut broker = TcpStream::connect_timeout(&address, Duration::from_secs(5)).ok()?;
        broker.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
        broker.write_all(b"AMQP\x00\x00\x09\x01").ok()?;
        let mut frame = [0; 4096];
        let length = broker.read(&mut frame).ok()?;
        let frame = &frame[..length];
        let at = frame.windows(KEY.len()).position(|bytes| bytes == KEY)? + KEY.len();
        let length = u32::from_be_bytes(frame.get(at..at + 4)?.try_into().ok()?) as usize;
        String::from_utf8(frame.get(at + 4..at + 4 + length)?.to_vec()).ok()
    }

    /// The servers' processes, where they are containers of ours.
    pub(crate) fn pids(&self) -> Vec<(&'static str, u32)> {
        self.containers.as_ref().map(|containers| containers.pids()).unwrap_or_default()
    }
}

async fn patiently<F: Future<Output = Result<()>>>(reach: impl Fn() -> F) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match reach().await {
            Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(200)).await,
            result => return result,
        }
    }
}

/// The reaper removes them.
struct Containers {
    mysql: String,
    rabbitmq: String,
}

impl Containers {
    fn start(reaper: &mut Reaper) -> Result<Self> {
        if docker(&["image", "inspect", MYSQL_IMAGE]).is_err()
            || docker(&["image", "inspect", RABBITMQ_IMAGE]).is_err()
        {
            let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/build-test-images.sh");
            eprintln!("building images of MySQL and RabbitMQ: {}", script.display());
            if !Command::new(&script).stdin(Stdio::null()).status()?.success() {
                return Err(format!(
                    "{} failed; or set TEST_DATABASE_URL and TEST_AMQP_URL to servers of your own",
                    script.display()
                )
                .into());
            }
        }
        let name = |server: &str| format!("antre-bench-{server}-{}", process::id());
        let containers = Self { mysql: name("mysql"), rabbitmq: name("rabbitmq") };
        reaper.made(Thing::Container(containers.mysql.clone()))?;
        reaper.made(Thing::Container(containers.rabbitmq.clone()))?;
        let password = format!("MYSQL_ROOT_PASSWORD={SECRET}");
        let mut run = vec!["run", "-d", "--name", &containers.mysql, "-p", "127.0.0.1::3306"];
        run.extend(["-e", &password, MYSQL_IMAGE]);
        run.extend(MYSQL_OPTIONS);
        docker(&run)?;
        let (user, password) =
            (format!("RABBITMQ_DEFAULT_USER={SECRET}"), format!("RABBITMQ_DEFAULT_PASS={SECRET}"));
        let mut run = vec!["run", "-d", "--name", &containers.rabbitmq, "-p", "127.0.0.1::5672"];
        run.extend(["-e", &user, "-e", &password, RABBITMQ_IMAGE]);
        docker(&run)?;
        Ok(containers)
    }

    /// The container's own address where this machine reaches it: a published port of 127.0.0.1 leads through Docker's
    /// proxy, a process that would take its share of the cores.
    fn address(&self, name: &str, port: u16) -> Result<SocketAddr> {
        let format = "{{range .NetworkSettings.Networks}}{{.IPAddress}} {{end}}";
        let own = docker(&["inspect", "-f", format, name])?;
        let own = own.split_whitespace().next().and_then(|ip| Some(SocketAddr::new(ip.parse().ok()?, port)));
        if let Some(own) = own {
            let deadline = Instant::now() + PATIENCE;
            loop {
                match TcpStream::connect_timeout(&own, Duration::from_secs(1)) {
                    Ok(_) => return Ok(own),
                    // It is there, and its server is not ready.
                    Err(error)
                        if error.kind() == std::io::ErrorKind::ConnectionRefused
                            && Instant::now() < deadline =>
                    {
                        std::thread::sleep(Duration::from_millis(100));
                    }
                    Err(_) => break,
                }
            }
        }
        let published = docker(&["port", name, &format!("{port}/tcp")])?;
        Ok(published.lines().next().unwrap_or_default().parse()?)
    }

    fn pids(&self) -> Vec<(&'static str, u32)> {
        let pid = |name: &str| docker(&["inspect", "-f", "{{.State.Pid}}", name]).ok()?.parse().ok();
        [("mysqld", pid(&self.mysql)), ("rabbitmq", pid(&self.rabbitmq))]
            .into_iter()
            .filter_map(|(name, pid)| Some((name, pid?)))
            .collect()
    }
}

pub(crate) fn docker(arguments: &[&str]) -> Result<String> {
    let failed = |why: &dyn Display| format!("docker {}: {why}", arguments.join(" "));
    let output = Command::new("docker").args(arguments).stdin(Stdio::null()).output();
    let output = output.map_err(|error| failed(&error))?;
    if !output.status.success() {
        return Err(failed(&String::from_utf8_lossy(&output.stderr).trim()).into());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}
