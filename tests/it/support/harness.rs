//! Starts the real program as a process.
//!
//! Most tests run on both pairs of adapters: write `async fn a_test(pair: Pair)`, and name it once in its file's
//! [`on_both_pairs!`].

use std::{
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
};

use antre_testkit::processes::{self, Process};
use rustix::process::Signal;
use sqlx::{Connection, Executor, MySqlConnection, SqliteConnection};
use tempfile::TempDir;
use tokio::{net::TcpStream, process::Command};

use super::servers::{Place, servers};

pub(crate) use super::{
    client::{Answer, Client, MAX_TOTAL},
    raw_connection::{RawConnection, order_request},
    wait::{TIMEOUT, eventually},
};

/// The names of all settings; none of them reaches the program from the shell that runs the tests.
const SETTINGS: [&str; 20] = [
    "LISTEN_ADDR",
    "MAX_CONNECTIONS",
    "PUBLIC_URL",
    "TRUSTED_PROXIES",
    "DATABASE_URL",
    "AMQP_URL",
    "QUEUE_PREFIX",
    "ORDER_TIMEOUT",
    "RESERVATION_TTL",
    "MAX_HOLD",
    "LATE_PAYMENT",
    "RETENTION",
    "EVENTS",
    "LANES",
    "RUST_LOG",
    "LOG_FORMAT",
    "SLOW_BATCH",
    "SLOW_QUERY",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
];

/// The two pairs of adapters behind the program.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Pair {
    /// An SQLite file and lanes in memory.
    Embedded,
    /// A database in MySQL and lanes on RabbitMQ.
    Servers,
}

impl Pair {
    /// The empty database and lanes for one program on this pair, where they are on servers.
    async fn place(self) -> Option<Place> {
        match self {
            Self::Embedded => None,
            Self::Servers => Some(servers().await.fresh().await),
        }
    }
}

/// Turns each `async fn name(pair: Pair)` into a test on each pair. Once in a file, with all names.
macro_rules! on_both_pairs {
    ($($test:ident),+ $(,)?) => {
        on_pair!(embedded, Embedded, [], $($test),+);
        on_pair!(servers, Servers, [ignore = "needs MySQL and RabbitMQ: run ./test.sh"], $($test),+);
    };
}

/// A module of tests on one pair, each with these attributes.
macro_rules! on_pair {
    ($module:ident, $pair:ident, $attributes:tt, $($test:ident),+) => {
        mod $module {
            $( test_on_pair!($pair, $attributes, $test); )+
        }
    };
}

macro_rules! test_on_pair {
    ($pair:ident, [$($attribute:meta),*], $test:ident) => {
        $(#[$attribute])*
        #[tokio::test]
        async fn $test() {
            super::$test($crate::support::harness::Pair::$pair).await;
        }
    };
}

/// The program with arguments and settings, in its own directory.
pub(crate) fn antre(directory: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_antre"));
    command.current_dir(directory).stdin(Stdio::null()).kill_on_drop(true);
    for name in SETTINGS {
        command.env_remove(name);
    }
    command
}

/// A running program, alone in its directory. It ends with the test, and a test that fails shows its log.
pub(crate) struct App {
    client: Client,
    role: Option<&'static str>,
    settings: Vec<(String, String)>,
    process: Process,
    directory: TempDir,
    _place: Option<Place>,
}

impl App {
    /// Starts it on this pair.
    pub(crate) async fn start(pair: Pair) -> Self {
        Self::start_with(pair, &[]).await
    }

    /// Starts it on this pair, with more settings.
    pub(crate) async fn start_with(pair: Pair, settings: &[(&str, &str)]) -> Self {
        let place = pair.place().await;
        let more = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        let settings = place.iter().flat_map(Place::settings).chain(more).collect();
        Self::spawned(None, settings, place).await
    }

    /// Starts one role in this place, where others may run too. A worker serves its health.
    pub(crate) async fn start_role(role: &'static str, place: &Place, settings: &[(&str, &str)]) -> Self {
        let more = settings.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Self::spawned(Some(role), place.settings().into_iter().chain(more).collect(), None).await
    }

    async fn spawned(
        role: Option<&'static str>,
        settings: Vec<(String, String)>,
        place: Option<Place>,
    ) -> Self {
        processes::raise_file_limit();
        let directory = tempfile::tempdir().unwrap();
        let (process, url) = spawn(directory.path(), role, &settings).await;
        Self { client: Client::new(url), role, settings, process, directory, _place: place }
    }

    /// Starts it again after its end: same directory, same settings, another port.
    pub(crate) async fn restart(&mut self) {
        assert!(self.process.has_ended().unwrap(), "it still runs");
        let (process, url) = spawn(self.directory.path(), self.role, &self.settings).await;
        (self.process, self.client) = (process, Client::new(url));
    }

    /// A file in its directory.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// Its settings, besides where it listens.
    pub(crate) fn settings(&self) -> &[(String, String)] {
        &self.settings
    }

    /// What it has logged so far.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Takes the write lock of its SQLite file, as another process would. Closing the connection releases it.
    pub(crate) async fn lock_database(&self) -> SqliteConnection {
        let url = format!("sqlite://{}", self.file("antre.db").display());
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        connection.execute("BEGIN IMMEDIATE").await.unwrap();
        connection
    }

    /// Takes the locks that a decision needs: from now on nothing is decided, and everything that is stored can be read.
    pub(crate) async fn hold_decisions(&self) -> Hold {
        let Some(place) = &self._place else { return Hold::Sqlite(self.lock_database().await) };
        let mut connection = MySqlConnection::connect(&place.database_url).await.unwrap();
        connection.execute("BEGIN").await.unwrap();
        connection.execute("SELECT 1 FROM inventories FOR UPDATE").await.unwrap();
        Hold::MySql(connection)
    }

    /// Locks the tables of its MySQL database: from now on no read gets an answer, as from a paused server. Closing the
    /// connection releases them.
    pub(crate) async fn hold_reads(&self) -> MySqlConnection {
        let place = self._place.as_ref().expect("in SQLite, readers never wait");
        let mut connection = MySqlConnection::connect(&place.database_url).await.unwrap();
        let tables = "LOCK TABLES products WRITE, inventories WRITE, orders WRITE, order_aliases WRITE";
        connection.execute(tables).await.unwrap();
        connection
    }

    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal).unwrap();
    }

    /// SIGKILL: nothing is finished, nothing is cleaned up.
    pub(crate) async fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.exited().await;
    }

    /// SIGTERM, as container runtimes send it.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.exited().await
    }

    /// Waits for its end.
    pub(crate) async fn exited(&mut self) -> ExitStatus {
        self.process.exited().await.unwrap()
    }

    /// Waits until it accepts no connections: then it is shutting down.
    pub(crate) async fn refuses_connections(&self) {
        eventually("it still accepts connections", async || {
            TcpStream::connect(self.client.address()).await.is_err().then_some(())
        })
        .await;
    }
}

/// See [`App::hold_decisions`].
pub(crate) enum Hold {
    Sqlite(SqliteConnection),
    MySql(MySqlConnection),
}

impl Hold {
    /// Decisions go on.
    pub(crate) async fn end(self) {
        match self {
            Self::Sqlite(connection) => connection.close().await.unwrap(),
            Self::MySql(connection) => connection.close().await.unwrap(),
        }
    }
}

impl std::ops::Deref for App {
    type Target = Client;

    fn deref(&self) -> &Client {
        &self.client
    }
}

impl Drop for App {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- what the program logged\n{}---", self.log());
        }
    }
}

/// The process, and its URL.
async fn spawn(directory: &Path, role: Option<&str>, settings: &[(String, String)]) -> (Process, String) {
    let mut command = antre(directory);
    command
        .args(role)
        .env("LISTEN_ADDR", "127.0.0.1:0")
        .envs(settings.iter().map(|(name, value)| (name, value)));
    let mut process = Process::start("antre", command, directory).unwrap();
    let url = process.url().await.unwrap();
    (process, url)
}
