//! Starts the real program as a process, and speaks to it. Every answer is held against the contract.
//!
//! Most tests run on both pairs of adapters: write `async fn a_test(pair: Pair)`, and name it once in its file's
//! [`on_both_pairs!`].

use std::{
    collections::BTreeMap,
    io,
    path::{Path, PathBuf},
    process::{ExitStatus, Stdio},
    time::Duration,
};

use antre_testkit::processes::{self, Process};
use bytes::Bytes;
use reqwest::{
    Method, RequestBuilder,
    header::{CONTENT_TYPE, HeaderMap, HeaderName, HeaderValue, LINK},
};
use rustix::process::Signal;
use serde_json::{Value, json};
use sqlx::{Connection, Executor, MySqlConnection, SqliteConnection};
use tempfile::TempDir;
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader},
    net::TcpStream,
    process::Command,
    time::{Instant, sleep, timeout},
};

use crate::{
    api::contract,
    support::servers::{Place, servers},
};

/// After this long a test gives up waiting. Far more than anything takes, so that a slow machine fails nothing.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// The largest total that an order may have.
pub(crate) const MAX_TOTAL: u64 = 2_147_483_647;

/// The names of all settings; none of them reaches the program from the shell that runs the tests.
const SETTINGS: [&str; 13] = [
    "LISTEN_ADDR",
    "MAX_CONNECTIONS",
    "PUBLIC_URL",
    "TRUSTED_PROXIES",
    "DATABASE_URL",
    "AMQP_URL",
    "QUEUE_PREFIX",
    "ORDER_TIMEOUT",
    "RESERVATION_TTL",
    "EVENTS",
    "LANES",
    "RUST_LOG",
    "LOG_FORMAT",
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
    /// The servers' part of one fresh program on this pair: nothing in its database, nobody in its lanes.
    async fn place(self) -> Option<Place> {
        match self {
            Self::Embedded => None,
            Self::Servers => Some(servers().await.fresh().await),
        }
    }
}

/// Makes of each `async fn name(pair: Pair)` a test on each pair. Once in a file, with all of its names.
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

/// A running program, alone in a directory of its own. It ends with the test, and a test that fails shows its log.
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

    /// Starts one role of it in this place, where others may run too. A worker tells its health.
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

    /// What it has logged until now.
    pub(crate) fn log(&self) -> String {
        self.process.log()
    }

    /// Takes the write lock of its SQLite file, as another process would; closing the connection gives it back.
    pub(crate) async fn hold_the_database(&self) -> SqliteConnection {
        let url = format!("sqlite://{}", self.file("antre.db").display());
        let mut connection = SqliteConnection::connect(&url).await.unwrap();
        connection.execute("BEGIN IMMEDIATE").await.unwrap();
        connection
    }

    /// Takes what a decision must have: from now on nothing is decided, and all that is on record can be read.
    pub(crate) async fn hold_decisions(&self) -> Hold {
        let Some(place) = &self._place else { return Hold::Sqlite(self.hold_the_database().await) };
        let mut connection = MySqlConnection::connect(&place.database_url).await.unwrap();
        connection.execute("BEGIN").await.unwrap();
        connection.execute("SELECT 1 FROM inventories FOR UPDATE").await.unwrap();
        Hold::MySql(connection)
    }

    /// Locks the tables of its MySQL database: from now on whoever reads gets no answer, as from a server that stands still.
    /// Closing the connection gives them back.
    pub(crate) async fn hold_reads(&self) -> MySqlConnection {
        let place = self._place.as_ref().expect("in SQLite, readers never wait");
        let mut connection = MySqlConnection::connect(&place.database_url).await.unwrap();
        let tables = "LOCK TABLES products WRITE, inventories WRITE, orders WRITE, order_aliases WRITE";
        connection.execute(tables).await.unwrap();
        connection
    }

    /// Sends it a signal.
    pub(crate) fn signal(&self, signal: Signal) {
        self.process.signal(signal).unwrap();
    }

    /// Kills it on the spot: nothing is finished, nothing is tidied.
    pub(crate) async fn kill9(&mut self) {
        self.signal(Signal::KILL);
        self.exited().await;
    }

    /// Asks it to stop, as container runtimes do.
    pub(crate) async fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.exited().await
    }

    /// Waits for its end.
    pub(crate) async fn exited(&mut self) -> ExitStatus {
        self.process.exited().await.unwrap()
    }

    /// Waits until it takes no connections any more: then it has heard that it should stop.
    pub(crate) async fn closed_its_door(&self) {
        eventually("it still takes connections", async || {
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

/// Asks again and again until there is an answer.
pub(crate) async fn eventually<T>(complaint: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "{complaint}");
        sleep(Duration::from_millis(2)).await;
    }
}

/// A client of the program.
#[derive(Clone)]
pub(crate) struct Client {
    url: String,
    http: reqwest::Client,
}

impl Client {
    /// Of a program that this harness did not start.
    pub(crate) fn at(url: &str) -> Self {
        Self::new(url.to_owned())
    }

    fn new(url: String) -> Self {
        Self { url, http: reqwest::Client::builder().no_proxy().timeout(PATIENCE).build().unwrap() }
    }

    /// Host and port.
    pub(crate) fn address(&self) -> &str {
        self.url.strip_prefix("http://").unwrap()
    }

    /// Waits until it is ready.
    pub(crate) async fn ready(&self) {
        eventually("it does not become ready", async || {
            let answer = self.try_send(Method::GET, "/health/ready", |request| request).await;
            answer.is_ok_and(|answer| answer.status == 200).then_some(())
        })
        .await;
    }

    /// Sends a request that `build` completes. An error is one of the connection: there was no answer.
    pub(crate) async fn try_send(
        &self,
        method: Method,
        path: &str,
        build: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Result<Answer, reqwest::Error> {
        let request = self.http.request(method.clone(), format!("{}{path}", self.url));
        let response = build(request).send().await?;
        let (status, headers) = (response.status().as_u16(), response.headers().clone());
        Ok(Answer::checked(method.as_str(), path, status, headers, response.bytes().await?))
    }

    /// Sends a request that `build` completes.
    pub(crate) async fn send(
        &self,
        method: Method,
        path: &str,
        build: impl FnOnce(RequestBuilder) -> RequestBuilder,
    ) -> Answer {
        self.try_send(method, path, build).await.unwrap()
    }

    pub(crate) async fn get(&self, path: &str) -> Answer {
        self.send(Method::GET, path, |request| request).await
    }

    pub(crate) async fn post(&self, path: &str, body: Value) -> Answer {
        self.send(Method::POST, path, |request| request.json(&body)).await
    }

    pub(crate) async fn put(&self, path: &str, body: Value) -> Answer {
        self.send(Method::PUT, path, |request| request.json(&body)).await
    }

    /// A new product's id.
    pub(crate) async fn create_product(&self, name: &str) -> u64 {
        let answer = self.post("/api/products", json!({"name": name})).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        answer.data()["id"].as_u64().unwrap()
    }

    /// A new product's id, with so many pieces in stock.
    pub(crate) async fn create_stocked(&self, name: &str, pieces: u64) -> u64 {
        let id = self.create_product(name).await;
        let answer = self.stock(id, pieces).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        id
    }

    /// The seller counted so many pieces.
    pub(crate) async fn stock(&self, product: u64, pieces: u64) -> Answer {
        self.put(&format!("/api/products/{product}/inventory"), json!({"stock": pieces})).await
    }

    /// Stored, available, reserved.
    pub(crate) async fn inventory(&self, product: u64) -> [u64; 3] {
        let answer = self.get(&format!("/api/products/{product}/inventory")).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let pieces = |which: &str| answer.data()[which].as_u64().unwrap();
        [pieces("stored_stock"), pieces("available_stock"), pieces("reserved_stock")]
    }

    pub(crate) async fn order(&self, product: u64, total: u64) -> Answer {
        self.try_order(product, total).await.unwrap()
    }

    /// An error is one of the connection: nobody knows what became of the order.
    pub(crate) async fn try_order(&self, product: u64, total: u64) -> Result<Answer, reqwest::Error> {
        let body = json!({"product_id": product, "total": total});
        self.try_send(Method::POST, "/api/orders", |request| request.json(&body)).await
    }

    /// An order with these request headers.
    pub(crate) async fn order_with(&self, product: u64, total: u64, headers: &[(&str, &str)]) -> Answer {
        let body = json!({"product_id": product, "total": total});
        self.send(Method::POST, "/api/orders", |request| with(request, headers).json(&body)).await
    }

    /// The buyer of the order paid.
    pub(crate) async fn pay(&self, order: &str) -> Answer {
        self.change(order, "payment", &[]).await
    }

    /// The buyer gives the order up.
    pub(crate) async fn cancel(&self, order: &str) -> Answer {
        self.change(order, "cancellation", &[]).await
    }

    /// A `payment` or `cancellation` with these request headers.
    pub(crate) async fn change(&self, order: &str, what: &str, headers: &[(&str, &str)]) -> Answer {
        self.try_change(order, what, headers).await.unwrap()
    }

    /// An error is one of the connection.
    pub(crate) async fn try_change(
        &self,
        order: &str,
        what: &str,
        headers: &[(&str, &str)],
    ) -> Result<Answer, reqwest::Error> {
        let path = format!("/api/orders/{order}/{what}");
        self.try_send(Method::POST, &path, |request| with(request, headers)).await
    }

    /// All rows of a list, page by page. A page may be empty while there are more.
    pub(crate) async fn all(&self, list: &str) -> Vec<Value> {
        let (mut rows, mut page) = (Vec::new(), Some(list.to_owned()));
        while let Some(path) = page {
            let answer = self.get(&path).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            let mut found = answer.data().as_array().unwrap().clone();
            rows.append(&mut found);
            page = answer.next();
        }
        rows
    }

    /// Waits until every order that got in line for this product before now is decided: a lane is served in
    /// order, so an order that asks for more than there can be tells by its refusal.
    pub(crate) async fn lane_served(&self, product: u64) {
        eventually("the lane is not served", async || {
            let answer = self.order(product, MAX_TOTAL).await;
            match answer.status {
                400 if answer.reason() == "insufficient_stock" => Some(()),
                202 => {
                    self.verdict(answer.header("location")).await;
                    Some(())
                }
                503 => None,
                _ => panic!("{answer:?}"),
            }
        })
        .await;
    }

    /// A pending order once it is decided.
    pub(crate) async fn verdict(&self, location: &str) -> Value {
        eventually("it stays pending", async || {
            let found = self.get(location).await;
            assert_eq!(found.status, 200, "{found:?}");
            (found.data()["status"] != "pending").then(|| found.data().clone())
        })
        .await
    }

    /// Holds the inventory of a product against all of its orders on record, when the seller counted so many pieces
    /// before the first of them, and never again. Nothing may be moving meanwhile. Returns the pieces by status.
    pub(crate) async fn ledger(&self, product: u64, counted: u64) -> BTreeMap<String, u64> {
        let mut pieces = BTreeMap::<_, u64>::new();
        for order in self.all(&format!("/api/orders?product_id={product}&limit=100")).await {
            *pieces.entry(order["status"].as_str().unwrap().to_owned()).or_default() +=
                order["total"].as_u64().unwrap();
        }
        let of = |status: &str| pieces.get(status).copied().unwrap_or_default();
        let stored = counted - of("paid");
        let expected = [stored, stored - of("reserved"), of("reserved")];
        assert_eq!(
            self.inventory(product).await,
            expected,
            "the inventory and the orders disagree: {pieces:?}"
        );
        pieces
    }

    /// The books of a product: its inventory and the totals of its reserved orders by id, once they are held
    /// against each other. Nothing may be moving meanwhile.
    pub(crate) async fn books(&self, product: u64) -> Books {
        let [stored, available, reserved] = self.inventory(product).await;
        assert_eq!(stored, available + reserved);
        let rows = self.all(&format!("/api/orders?product_id={product}&status=reserved&limit=100")).await;
        let ids: Vec<_> = rows.iter().map(|order| order["id"].as_str().unwrap()).collect();
        assert!(ids.is_sorted(), "orders are not listed in the order of their creation");
        let orders: BTreeMap<_, _> = rows
            .iter()
            .map(|order| {
                assert_eq!((&order["product_id"], &order["status"]), (&json!(product), &json!("reserved")));
                (order["id"].as_str().unwrap().to_owned(), order["total"].as_u64().unwrap())
            })
            .collect();
        assert_eq!(orders.len(), rows.len(), "an order is listed twice");
        assert_eq!(orders.values().sum::<u64>(), reserved, "orders on record and reserved stock disagree");
        Books { stored, available, reserved, orders }
    }
}

fn with(request: RequestBuilder, headers: &[(&str, &str)]) -> RequestBuilder {
    headers.iter().fold(request, |request, (name, value)| request.header(*name, *value))
}

/// See [`Client::books`].
#[derive(Debug)]
pub(crate) struct Books {
    pub(crate) stored: u64,
    pub(crate) available: u64,
    pub(crate) reserved: u64,
    /// Total by id.
    pub(crate) orders: BTreeMap<String, u64>,
}

/// An answer that keeps the contract.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// Null when the body is none.
    pub(crate) json: Value,
}

impl Answer {
    /// Panics when the answer breaks the contract, or, for a call that is none of the contract's, when it is not
    /// what all answers are: with an `x-request-id`, and errors in the envelope.
    #[track_caller]
    fn checked(method: &str, path: &str, status: u16, headers: HeaderMap, body: Bytes) -> Self {
        let json = serde_json::from_slice(&body).unwrap_or_default();
        let answer = Self { status, headers, body, json };
        assert!(
            answer.headers.contains_key("x-request-id"),
            "{method} {path} without x-request-id: {answer:?}"
        );
        if contract::has(method, path) {
            contract::check(method, path, status, &answer.headers, &answer.body);
        } else if method != "HEAD" {
            assert!([404, 405].contains(&status), "{method} {path} is not in the contract: {answer:?}");
            assert_eq!(answer.headers[CONTENT_TYPE], "application/json", "{answer:?}");
            assert_eq!(answer.json["code"], status, "{answer:?}");
            assert!(answer.data()["message"].is_string(), "{answer:?}");
            let reason = if status == 404 { "route_not_found" } else { "method_not_allowed" };
            assert_eq!(answer.reason(), reason, "{answer:?}");
        }
        answer
    }

    /// What the envelope holds.
    #[track_caller]
    pub(crate) fn data(&self) -> &Value {
        self.json.get("data").unwrap_or_else(|| panic!("no envelope: {self:?}"))
    }

    /// The id of an order.
    #[track_caller]
    pub(crate) fn id(&self) -> &str {
        self.data()["id"].as_str().unwrap_or_else(|| panic!("no order: {self:?}"))
    }

    /// The stable word of an error.
    #[track_caller]
    pub(crate) fn reason(&self) -> &str {
        self.data()["reason"].as_str().unwrap_or_else(|| panic!("no reason: {self:?}"))
    }

    /// A header that must be there, as text.
    #[track_caller]
    pub(crate) fn header(&self, name: &str) -> &str {
        self.headers.get(name).unwrap_or_else(|| panic!("no {name}: {self:?}")).to_str().unwrap()
    }

    /// Where the next page is.
    #[track_caller]
    pub(crate) fn next(&self) -> Option<String> {
        let link = self.headers.get(LINK)?.to_str().unwrap();
        let next = link.strip_prefix('<').and_then(|link| link.strip_suffix(">; rel=\"next\""));
        Some(next.unwrap_or_else(|| panic!("not a link to the next page: {link}")).to_owned())
    }
}

/// The bytes of a request that places an order.
pub(crate) fn order_request(product: u64, total: u64) -> String {
    let body = json!({"product_id": product, "total": total}).to_string();
    let length = body.len();
    format!(
        "POST /api/orders HTTP/1.1\r\nHost: antre\r\nContent-Type: application/json\r\n\
         Content-Length: {length}\r\n\r\n{body}"
    )
}

/// A connection on which the test writes each byte itself.
pub(crate) struct Wire(BufReader<TcpStream>);

impl Wire {
    pub(crate) async fn open(client: &Client) -> Self {
        Self(BufReader::new(TcpStream::connect(client.address()).await.unwrap()))
    }

    pub(crate) async fn send(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).await.unwrap();
    }

    /// Fails when the connection is closed.
    pub(crate) async fn try_send(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes).await
    }

    /// Says that nothing more comes, and goes on listening.
    pub(crate) async fn finish_sending(&mut self) {
        self.0.shutdown().await.unwrap();
    }

    /// The answer to a request, held against the contract.
    pub(crate) async fn answer(&mut self, method: &str, path: &str) -> Answer {
        let (status, headers, body) = self.read().await.expect("the connection closed without an answer");
        Answer::checked(method, path, status, headers, body)
    }

    /// The head and body of an answer that the HTTP library may have given by itself. `None`: the connection
    /// closed without one.
    pub(crate) async fn read(&mut self) -> Option<(u16, HeaderMap, Bytes)> {
        timeout(PATIENCE, self.read_answer()).await.expect("no answer")
    }

    async fn read_answer(&mut self) -> Option<(u16, HeaderMap, Bytes)> {
        let (status, headers) = self.read_head().await?;
        let length = match headers.get("content-length") {
            Some(length) if status != 304 => length.to_str().unwrap().parse().unwrap(),
            _ => 0,
        };
        let mut body = vec![0; length];
        self.0.read_exact(&mut body).await.expect("the connection closed in the middle of an answer");
        Some((status, headers, body.into()))
    }

    /// The head of an answer that has no body. `None`: the connection closed without one.
    pub(crate) async fn read_head(&mut self) -> Option<(u16, HeaderMap)> {
        let status_line = self.line().await?;
        let status = status_line.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.unwrap_or_else(|| panic!("not a status line: {status_line}"));
        let mut headers = HeaderMap::new();
        loop {
            let line = self.line().await.expect("the connection closed in the middle of an answer");
            let Some((name, value)) = line.split_once(": ") else { break };
            headers.append(name.parse::<HeaderName>().unwrap(), HeaderValue::from_str(value).unwrap());
        }
        Some((status, headers))
    }

    /// `None`: the connection closed.
    async fn line(&mut self) -> Option<String> {
        let mut line = String::new();
        match self.0.read_line(&mut line).await {
            Ok(0) | Err(_) => None,
            Ok(_) => Some(line.trim_end_matches(['\r', '\n']).to_owned()),
        }
    }
}
