//! The MySQL and the RabbitMQ of a run, this run's database in the one and its queues in the other.

use std::{
    env,
    io::{Read, Write},
    net::{TcpStream, ToSocketAddrs},
    process,
    time::Duration,
};

use antre_testkit::{
    error::Result,
    reaper,
    servers::{Options, Server},
};
use clap::Args;
use lapin::{
    ConnectionProperties,
    options::{ExchangeDeleteOptions, QueueDeleteOptions},
};
use serde::{Deserialize, Serialize};
use sqlx::{Connection, Executor, MySqlConnection, Row};
use url::Url;

use crate::scenario::Scenario;

/// Room for the tables in memory and for the redo log of a run, as a server for such a load would have. Durability stays
/// at MySQL's default, which is the full one.
const MYSQL_ARGUMENTS: [&str; 3] =
    ["--innodb-buffer-pool-size=1G", "--innodb-redo-log-capacity=1G", "--max-connections=500"];

pub(crate) struct Servers {
    servers: antre_testkit::servers::Servers,
    /// This run's database.
    database: String,
}

/// How MySQL keeps what it has committed. Measurements on settings that are not fully durable would compare different
/// promises.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Durability {
    pub(crate) innodb_flush_log_at_trx_commit: i64,
    pub(crate) sync_binlog: i64,
    pub(crate) log_bin: i64,
    pub(crate) innodb_doublewrite: String,
    pub(crate) innodb_buffer_pool_size: i64,
    pub(crate) innodb_redo_log_capacity: i64,
}

/// Removes what a run leaves on servers that `TEST_DATABASE_URL` and `TEST_AMQP_URL` name. The reaper starts it.
#[derive(Args, Clone, Debug)]
pub(crate) struct RemoveArgs {
    #[arg(long)]
    database: Option<String>,
    #[arg(long)]
    queue_prefix: Option<String>,
}

impl Servers {
    pub(crate) async fn start() -> Result<Self> {
        let options = Options {
            purpose: "bench",
            mysql_arguments: &MYSQL_ARGUMENTS,
            rabbitmq_arguments: "",
            own_addresses: true,
            needs_management: false,
        };
        let mut servers = antre_testkit::servers::Servers::start(&options).await?;
        let database = format!("antre_bench_{}", process::id());
        if servers.containers.is_some() {
            // Encrypted, as it is by default. The server cannot be verified: it generates its own certificate.
            servers.database_url.set_query(Some("ssl-mode=required"));
            servers.login(Server::Database).await?;
        } else {
            at_end("--database", &database)?;
        }
        Ok(Self { servers, database })
    }

    /// `mysql://…/database`
    pub(crate) fn database_url(&self) -> String {
        self.database_at(self.servers.database_url.clone())
    }

    /// The same without encryption.
    pub(crate) fn plain_database_url(&self) -> String {
        let mut url = self.servers.database_url.clone();
        url.set_query(Some("ssl-mode=disabled"));
        self.database_at(url)
    }

    fn database_at(&self, mut server: Url) -> String {
        server.set_path(&self.database);
        server.into()
    }

    pub(crate) fn amqp_url(&self) -> &str {
        self.servers.amqp_url.as_str()
    }

    /// What the names of all queues of this run begin with.
    pub(crate) fn queue_prefix(&self) -> String {
        format!("{}.", self.database)
    }

    /// Registers queues to be deleted at the end, unless their broker is removed as a whole.
    pub(crate) fn delete_queues_at_end(&self, prefix: &str) -> Result<()> {
        if self.servers.containers.is_some() { Ok(()) } else { at_end("--queue-prefix", prefix) }
    }

    pub(crate) async fn delete_queues(&self, prefix: &str) -> Result<()> {
        delete_queues(self.amqp_url(), prefix).await
    }

    /// A connection to no database in particular.
    async fn administer(&self) -> Result<MySqlConnection> {
        Ok(MySqlConnection::connect(self.servers.database_url.as_str()).await?)
    }

    /// Creates this run's database again, empty.
    pub(crate) async fn empty_database(&self) -> Result<()> {
        let mut connection = self.administer().await?;
        drop_database(&mut connection, &self.database).await?;
        connection.execute(sqlx::raw_sql(&format!("CREATE DATABASE {}", self.database))).await?;
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

    /// From the broker's first frame, whose properties hold `version` as a long string (AMQP 0-9-1, `connection.start`).
    pub(crate) fn rabbitmq_version(&self) -> Option<String> {
        const KEY: &[u8] = b"\x07versionS";
        let url = Url::parse(self.amqp_url()).ok()?;
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

    /// Where the servers are containers of this run.
    pub(crate) async fn pids(&self) -> Vec<(&'static str, u32)> {
        let Some(containers) = &self.servers.containers else { return Vec::new() };
        let (mysqld, rabbitmq) = tokio::join!(containers.database.pid(), containers.broker.pid());
        [("mysqld", mysqld), ("rabbitmq", rabbitmq)]
            .into_iter()
            .filter_map(|(name, pid)| Some((name, pid?)))
            .collect()
    }
}

/// Has this program started with `remove` when the run has ended. The URLs are in the environment.
fn at_end(option: &str, value: &str) -> Result<()> {
    let program = env::current_exe()?;
    let program = program.to_str().ok_or("the path of this program is not UTF-8")?;
    reaper::at_end(&[program, "remove", option, value]).map(drop)
}

pub(crate) fn remove(args: &RemoveArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        if let Some(database) = &args.database {
            let mut connection = MySqlConnection::connect(&env::var("TEST_DATABASE_URL")?).await?;
            drop_database(&mut connection, database).await?;
        }
        if let Some(prefix) = &args.queue_prefix {
            delete_queues(&env::var("TEST_AMQP_URL")?, prefix).await?;
        }
        Ok(())
    })
}

async fn drop_database(connection: &mut MySqlConnection, name: &str) -> Result<()> {
    connection.execute(sqlx::raw_sql(&format!("DROP DATABASE IF EXISTS {name}"))).await?;
    Ok(())
}

async fn delete_queues(url: &str, prefix: &str) -> Result<()> {
    let broker = lapin::Connection::connect(url, ConnectionProperties::default()).await?;
    let channel = broker.create_channel().await?;
    let queues = (0..=Scenario::Products1000.products())
        .flat_map(|lane| [format!("orders.product.{lane}"), format!("orders.lane.{lane}")])
        .chain(["orders.dead".to_owned()]);
    for queue in queues {
        let name = format!("{prefix}{queue}");
        channel.queue_delete(name.into(), QueueDeleteOptions::default()).await?; // absent ones are no error
    }
    for exchange in ["lanes", "stock"] {
        let name = format!("{prefix}{exchange}");
        channel.exchange_delete(name.into(), ExchangeDeleteOptions::default()).await?;
    }
    Ok(broker.close(200, "done".into()).await?)
}
