//! A real MySQL and a real RabbitMQ. The first of these that is there:
//!
//! 1. `TEST_DATABASE_URL` (`mysql://root:…@host:port`, a user that may create databases) and `TEST_AMQP_URL`, with
//!    `TEST_RABBITMQ_MANAGEMENT_URL` where it is not `http://guest:guest@host:15672`.
//! 2. Containers of the images that `scripts/build-test-images.sh` builds without a registry, if they are built.
//! 3. Containers of the official images.
//! 4. As 2., after that script has run.
//!
//! Containers are removed when this process ends, even when it is killed.

use std::{
    env, iter,
    time::{Duration, Instant},
};

use lapin::ConnectionProperties;
use sqlx::{Connection, MySqlConnection};
use tokio::time::sleep;
use url::Url;
use uuid::Uuid;

use crate::{
    containers::{Container, Request, free_port},
    error::Result,
};

/// The time in which a server must accept a login.
const START_TIMEOUT: Duration = Duration::from_secs(90);

/// The password of MySQL's root, and RabbitMQ's user and password.
const PASSWORD: &str = "antre";

/// How containers are started.
pub struct Options<'a> {
    /// A part of the containers' names: `antre-{purpose}-mysql-…`.
    pub purpose: &'a str,
    pub mysql_arguments: &'a [&'a str],
    /// Settings of the broker as arguments of its Erlang machine, such as `-rabbit quorum_tick_interval 500`.
    pub rabbitmq_arguments: &'a str,
    /// URLs name the containers' own addresses where this machine reaches them, not published ports. They are valid
    /// until a container is started again.
    pub own_addresses: bool,
    /// Whether the broker counts as started only when its management plugin answers too.
    pub needs_management: bool,
}

pub struct Servers {
    /// `mysql://…`, without a database.
    pub database_url: Url,
    /// `amqp://…`
    pub amqp_url: Url,
    /// `http://…`, the broker's management plugin.
    pub management_url: Url,
    /// `None`: the environment names the servers.
    pub containers: Option<Containers>,
    needs_management: bool,
}

pub struct Containers {
    pub database: Container,
    pub broker: Container,
}

#[derive(Clone, Copy, Debug)]
pub enum Server {
    Database,
    Broker,
}

impl Servers {
    /// Returns when both servers accept logins.
    pub async fn start(options: &Options<'_>) -> Result<Self> {
        let servers = match (env::var("TEST_DATABASE_URL").ok(), env::var("TEST_AMQP_URL").ok()) {
            (Some(database_url), Some(amqp_url)) => Self::named(&database_url, &amqp_url, options)?,
            (None, None) => Self::contained(options).await?,
            _ => return Err("only one of TEST_DATABASE_URL and TEST_AMQP_URL is set".into()),
        };
        servers.wait_for(Server::Database).await?;
        servers.wait_for(Server::Broker).await?;
        Ok(servers)
    }

    fn named(database_url: &str, amqp_url: &str, options: &Options<'_>) -> Result<Self> {
        let parse = |url: &str| Url::parse(url).map_err(|error| format!("{url}: {error}"));
        let (mut database_url, amqp_url) = (parse(database_url)?, parse(amqp_url)?);
        database_url.set_path("");
        let management_url = env::var("TEST_RABBITMQ_MANAGEMENT_URL").unwrap_or_else(|_| {
            format!("http://guest:guest@{}:15672", amqp_url.host_str().unwrap_or("localhost"))
        });
        Ok(Self {
            database_url,
            management_url: parse(&management_url)?,
            amqp_url,
            containers: None,
            needs_management: options.needs_management,
        })
    }

    async fn contained(options: &Options<'_>) -> Result<Self> {
        let (mysql_port, amqp_port, management_port) = (free_port()?, free_port()?, free_port()?);
        let containers = Containers::start(options, mysql_port, [amqp_port, management_port]).await?;
        let host = containers.broker.host().await?;
        let (mut mysql, mut amqp) = (format!("{host}:{mysql_port}"), format!("{host}:{amqp_port}"));
        if options.own_addresses {
            mysql = containers.database.own_address(3306).await?.map_or(mysql, |own| own.to_string());
            amqp = containers.broker.own_address(5672).await?.map_or(amqp, |own| own.to_string());
        }
        Ok(Self {
            database_url: Url::parse(&format!("mysql://root:{PASSWORD}@{mysql}"))?,
            amqp_url: Url::parse(&format!("amqp://{PASSWORD}:{PASSWORD}@{amqp}/%2f"))?,
            management_url: Url::parse(&format!("http://{PASSWORD}:{PASSWORD}@{host}:{management_port}"))?,
            containers: Some(containers),
            needs_management: options.needs_management,
        })
    }

    /// Tries until clients can log in.
    pub async fn wait_for(&self, server: Server) -> Result<()> {
        let deadline = Instant::now() + START_TIMEOUT;
        loop {
            match self.login(server).await {
                Err(_) if Instant::now() < deadline => sleep(Duration::from_millis(50)).await,
                result => return result,
            }
        }
    }

    /// One attempt to log in.
    pub async fn login(&self, server: Server) -> Result<()> {
        match server {
            Server::Database => {
                Ok(MySqlConnection::connect(self.database_url.as_str()).await?.close().await?)
            }
            Server::Broker => {
                let options = ConnectionProperties::default();
                let broker = lapin::Connection::connect(self.amqp_url.as_str(), options).await?;
                broker.close(200, "logged in".into()).await?;
                if self.needs_management {
                    reqwest::get(self.management_url.join("api/overview")?).await?.error_for_status()?;
                }
                Ok(())
            }
        }
    }
}

impl Containers {
    async fn start(options: &Options<'_>, mysql_port: u16, [amqp, management]: [u16; 2]) -> Result<Self> {
        let run = Uuid::new_v4().simple();
        let mysql_arguments: Vec<_> = iter::once("--mysqlx=OFF")
            .chain(["--skip-name-resolve", "--performance-schema=OFF"])
            .chain(options.mysql_arguments.iter().copied())
            .collect();
        // The default of 512 MB for each file of the write-ahead log wants about 1.5 GB of memory under load.
        let rabbitmq_arguments = format!("-ra wal_max_size_bytes 64000000 {}", options.rabbitmq_arguments);
        let database = Request {
            name: format!("antre-{}-mysql-{run}", options.purpose),
            local_image: "antre-test/mysql:debian",
            official_image: "mysql:8.4",
            ports: &[(mysql_port, 3306)],
            environment: &[("MYSQL_ROOT_PASSWORD", PASSWORD)],
            arguments: &mysql_arguments,
        };
        let broker = Request {
            name: format!("antre-{}-rabbitmq-{run}", options.purpose),
            local_image: "antre-test/rabbitmq:debian",
            official_image: "rabbitmq:4-management",
            ports: &[(amqp, 5672), (management, 15672)],
            environment: &[
                ("RABBITMQ_DEFAULT_USER", PASSWORD),
                ("RABBITMQ_DEFAULT_PASS", PASSWORD),
                ("RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS", &rabbitmq_arguments),
            ],
            arguments: &[],
        };
        let (database, broker) = tokio::try_join!(database.start(), broker.start())?;
        Ok(Self { database, broker })
    }

    pub fn of(&self, server: Server) -> &Container {
        match server {
            Server::Database => &self.database,
            Server::Broker => &self.broker,
        }
    }
}
