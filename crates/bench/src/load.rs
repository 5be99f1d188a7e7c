//! The load generator, its own process: one thread, raw connections that are kept alive, requests that are built once. It
//! must not be the bottleneck, so it parses only the status and the length of an answer.
//!
//! Closed loop: every connection sends its next order when the last is answered. Open loop: orders are due
//! at fixed times whether or not earlier ones have been answered, and an order's latency counts from when it was due, so
//! that a server that stalls cannot hide the orders it held up (Gil Tene's "coordinated omission").

use std::{
    borrow::Cow,
    cell::{Cell, RefCell},
    io,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use antre_testkit::error::Result;
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::Semaphore,
    task::LocalSet,
    time::{sleep, timeout},
};

use crate::scenario::{Pace, reserved_order_id};

/// How long the load waits for outstanding answers at its end.
const LAST_ANSWERS: Duration = Duration::from_secs(30);
/// Connections that send the first orders.
const PRIMING: usize = 16;
/// The largest answer that is expected.
const BUFFER: usize = 8 * 1024;

#[derive(Args, Clone, Debug)]
pub(crate) struct LoadArgs {
    /// Where the server listens
    #[arg(long)]
    target: SocketAddr,
    #[arg(long)]
    connections: usize,
    /// Orders are for products 1 to this, in turn
    #[arg(long)]
    products: u64,
    /// Pays the orders 1 to this, each once, instead of placing new ones
    #[arg(long, default_value_t = 0)]
    payments: u64,
    /// Every order has its own Idempotency-Key
    #[arg(long)]
    keys: bool,
    #[arg(long)]
    pace: Pace,
    /// Not measured
    #[arg(long)]
    warm_up_seconds: f64,
    #[arg(long)]
    seconds: f64,
}

/// Answers by what they mean.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Counts {
    /// 201; of a payment, 200
    pub(crate) accepted: u64,
    /// 400: not enough stock
    pub(crate) refused: u64,
    /// 202: undecided
    pub(crate) pending: u64,
    /// 503: not queued
    pub(crate) unavailable: u64,
    /// Any other answer
    pub(crate) failed: u64,
    /// The connection broke, or no answer came
    pub(crate) unanswered: u64,
}

impl Counts {
    fn add(&mut self, answer: Option<u16>) {
        let count = match answer {
            Some(200 | 201) => &mut self.accepted,
            Some(400) => &mut self.refused,
            Some(202) => &mut self.pending,
            Some(503) => &mut self.unavailable,
            Some(_) => &mut self.failed,
            None => &mut self.unanswered,
        };
        *count += 1;
    }

    /// Orders that got a verdict.
    pub(crate) fn decided(&self) -> u64 {
        self.accepted + self.refused
    }

    /// Orders that may have been accepted although no answer says so.
    pub(crate) fn unknown(&self) -> u64 {
        self.pending + self.failed + self.unanswered
    }
}

/// Of orders that got a verdict, in microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Latency {
    pub(crate) p50_us: u32,
    pub(crate) p90_us: u32,
    pub(crate) p99_us: u32,
    pub(crate) p999_us: u32,
    pub(crate) max_us: u32,
}

impl Latency {
    fn of(mut all: Vec<u32>) -> Self {
        all.sort_unstable();
        let at = |share: f64| {
            let rank = (all.len() as f64 * share).ceil() as usize;
            all.get(rank.saturating_sub(1)).copied().unwrap_or_default()
        };
        Self { p50_us: at(0.5), p90_us: at(0.9), p99_us: at(0.99), p999_us: at(0.999), max_us: at(1.0) }
    }
}

/// Printed as JSON on standard output.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Load {
    /// While it was measured.
    pub(crate) measured: Counts,
    /// From the first order to the last.
    pub(crate) all: Counts,
    pub(crate) seconds: f64,
    pub(crate) latency: Latency,
}

pub(crate) fn run(args: &LoadArgs) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let load = runtime.block_on(LocalSet::new().run_until(generate(args)))?;
    println!("{}", serde_json::to_string(&load)?);
    Ok(())
}

/// What all connections share; there is one thread.
struct Shared {
    target: SocketAddr,
    /// One for each product.
    requests: Vec<Vec<u8>>,
    /// The prefix of this run's idempotency keys, if orders have keys.
    keys: Option<String>,
    /// The number of orders to pay; 0 when orders are placed.
    payments: u64,
    next: Cell<usize>,
    sent: Cell<u64>,
    tally: RefCell<Tally>,
}

#[derive(Default)]
struct Tally {
    all: Counts,
    measured: Counts,
    latencies_us: Vec<u32>,
}

impl Shared {
    /// Products take turns; an order is paid once. `None` when all are.
    fn next_request(&self) -> Option<Cow<'_, [u8]>> {
        let next = self.next.get();
        self.next.set(next + 1);
        if self.payments == 0 {
            self.sent.set(self.sent.get() + 1);
            let request = &self.requests[next % self.requests.len()];
            return Some(match &self.keys {
                None => Cow::Borrowed(request),
                Some(run) => Cow::Owned(with_key(request, &format!("{run}{next}"))),
            });
        }
        let number = next as u64 + 1;
        (number <= self.payments).then(|| {
            self.sent.set(self.sent.get() + 1);
            Cow::Owned(payment(self.target, number))
        })
    }
}

/// What is measured.
#[derive(Clone, Copy)]
struct Window {
    begins: Instant,
    ends: Instant,
}

async fn generate(args: &LoadArgs) -> Result<Load> {
    let shared = Rc::new(Shared {
        target: args.target,
        // A payment needs no lane to be opened first.
        requests: match args.payments {
            0 => (1..=args.products).map(|product| request(args.target, product)).collect(),
            _ => Vec::new(),
        },
        keys: args.keys.then(|| format!("{}-", uuid::Uuid::now_v7().simple())),
        payments: args.payments,
        next: Cell::new(0),
        sent: Cell::new(0),
        tally: RefCell::default(),
    });
    let connections = connect(&shared, args.connections).await?;
    let connections = prime(&shared, connections).await?;

    let now = Instant::now();
    let begins = now + Duration::from_secs_f64(args.warm_up_seconds);
    let window = Window { begins, ends: begins + Duration::from_secs_f64(args.seconds) };
    let mut tasks = tokio::task::JoinSet::new();
    match args.pace {
        Pace::Closed => {
            for connection in connections {
                tasks.spawn_local(closed(shared.clone(), connection, window, None));
            }
        }
        Pace::Pausing { milliseconds } => {
            let pause = Duration::from_millis(milliseconds);
            for connection in connections {
                tasks.spawn_local(closed(shared.clone(), connection, window, Some(pause)));
            }
        }
        Pace::Open { per_second } => {
            let schedule = Schedule::start(per_second, now, window, connections.len());
            for connection in connections {
                tasks.spawn_local(open(shared.clone(), connection, window, schedule.clone()));
            }
        }
    }
    let until_the_end = window.ends.saturating_duration_since(Instant::now()) + LAST_ANSWERS;
    let _ = timeout(until_the_end, async { while tasks.join_next().await.is_some() {} }).await;
    tasks.abort_all();

    if args.payments > 0 && shared.next.get() as u64 > args.payments {
        return Err(format!("{} orders to be paid were not enough", args.payments).into());
    }
    let mut tally = shared.tally.take();
    let answered = tally.all.decided() + tally.all.unknown() + tally.all.unavailable;
    tally.all.unanswered += shared.sent.get().saturating_sub(answered);
    Ok(Load {
        measured: tally.measured,
        all: tally.all,
        seconds: args.seconds,
        latency: Latency::of(tally.latencies_us),
    })
}

fn payment(target: SocketAddr, number: u64) -> Vec<u8> {
    let id = reserved_order_id(number);
    format!("POST /api/orders/{id}/payment HTTP/1.1\r\nhost: {target}\r\ncontent-length: 0\r\n\r\n")
        .into_bytes()
}

fn request(target: SocketAddr, product: u64) -> Vec<u8> {
    let body = format!(r#"{{"product_id":{product},"total":1}}"#);
    format!(
        "POST /api/orders HTTP/1.1\r\nhost: {target}\r\ncontent-type: application/json\r\n\
         content-length: {}\r\n\r\n{body}",
        body.len()
    )
    .into_bytes()
}

/// The request was built without a key.
fn with_key(request: &[u8], key: &str) -> Vec<u8> {
    const START: &[u8] = b"POST /api/orders HTTP/1.1\r\n";
    let rest = request.strip_prefix(START).unwrap_or_default();
    [START, format!("idempotency-key: {key}\r\n").as_bytes(), rest].concat()
}

/// Not all at once: a listener's backlog is short.
async fn connect(shared: &Rc<Shared>, count: usize) -> Result<Vec<Connection>> {
    let mut connections = Vec::with_capacity(count);
    for _ in 0..count {
        connections.push(Connection::open(shared.target).await?);
    }
    Ok(connections)
}

/// One order for every product, until each has had a verdict: lanes are open and statements prepared before any clock
/// runs. Not on all connections at once: a thousand lanes take the broker some seconds.
async fn prime(shared: &Rc<Shared>, mut connections: Vec<Connection>) -> Result<Vec<Connection>> {
    let deadline = Instant::now() + 4 * LAST_ANSWERS;
    let left = Rc::new(Cell::new(shared.requests.len()));
    let mut tasks = tokio::task::JoinSet::new();
    for mut connection in connections.split_off(connections.len().saturating_sub(PRIMING)) {
        let (shared, left) = (shared.clone(), left.clone());
        tasks.spawn_local(async move {
            while let Some(number) = left.get().checked_sub(1) {
                left.set(number);
                loop {
                    shared.sent.set(shared.sent.get() + 1);
                    let answer = connection.ask(&shared.requests[number]).await;
                    shared.tally.borrow_mut().all.add(answer);
                    if matches!(answer, Some(201 | 400)) {
                        break;
                    }
                    if Instant::now() > deadline {
                        return Err(format!("product {} got no verdict, but {answer:?}", number + 1));
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            }
            Ok(connection)
        });
    }
    while let Some(connection) = tasks.join_next().await {
        connections.push(connection??);
    }
    Ok(connections)
}

async fn closed(shared: Rc<Shared>, mut connection: Connection, window: Window, pause: Option<Duration>) {
    let mut sent = Instant::now();
    while sent < window.ends {
        let Some(request) = shared.next_request() else { return };
        let answer = connection.ask(&request).await;
        let now = Instant::now();
        let measured = now >= window.begins && now < window.ends;
        shared.count(answer, measured, now - sent);
        sent = now;
        if let Some(pause) = pause {
            sleep(pause).await;
            sent = Instant::now();
        }
    }
}

/// When each order of an open loop is due.
#[derive(Clone)]
struct Schedule {
    per_second: f64,
    starts: Instant,
    orders: u64,
    due: Arc<Semaphore>,
    taken: Rc<Cell<u64>>,
}

impl Schedule {
    /// On its own thread, because tokio's timers have a resolution of 1 ms.
    fn start(per_second: f64, starts: Instant, window: Window, connections: usize) -> Self {
        let orders = ((window.ends - starts).as_secs_f64() * per_second) as u64;
        let due = Arc::new(Semaphore::new(0));
        let schedule = Self { per_second, starts, orders, due: due.clone(), taken: Rc::default() };
        thread::spawn(move || {
            let mut given = 0;
            while given < orders {
                let elapsed = starts.elapsed().as_secs_f64();
                let now_due = ((elapsed * per_second) as u64 + 1).min(orders);
                due.add_permits((now_due - given) as usize);
                given = now_due;
                let next = starts + Duration::from_secs_f64(given as f64 / per_second);
                thread::sleep(next.saturating_duration_since(Instant::now()));
            }
            due.add_permits(connections); // one each, to learn that there is no more
        });
        schedule
    }

    /// Waits until the next order is due, and returns when that was. `None` after the last one.
    async fn next(&self) -> Option<Instant> {
        self.due.acquire().await.ok()?.forget();
        let number = self.taken.get();
        self.taken.set(number + 1);
        (number < self.orders).then(|| self.starts + Duration::from_secs_f64(number as f64 / self.per_second))
    }
}

async fn open(shared: Rc<Shared>, mut connection: Connection, window: Window, schedule: Schedule) {
    while let Some(due) = schedule.next().await {
        let Some(request) = shared.next_request() else { return };
        let answer = connection.ask(&request).await;
        // By when it was due, not by when it was answered: late answers must not drop out.
        shared.count(answer, due >= window.begins, due.elapsed());
    }
}

impl Shared {
    fn count(&self, answer: Option<u16>, measured: bool, latency: Duration) {
        let mut tally = self.tally.borrow_mut();
        tally.all.add(answer);
        if measured {
            tally.measured.add(answer);
            if matches!(answer, Some(200 | 201 | 400)) {
                tally.latencies_us.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
            }
        }
    }
}

/// One connection, opened again when it breaks.
struct Connection {
    target: SocketAddr,
    stream: TcpStream,
    buffer: Box<[u8; BUFFER]>,
}

impl Connection {
    async fn open(target: SocketAddr) -> io::Result<Self> {
        Ok(Self { target, stream: Self::dial(target).await?, buffer: Box::new([0; BUFFER]) })
    }

    async fn dial(target: SocketAddr) -> io::Result<TcpStream> {
        let stream = TcpStream::connect(target).await?;
        stream.set_nodelay(true)?;
        Ok(stream)
    }

    /// Returns the status of the answer; `None` without an answer.
    async fn ask(&mut self, request: &[u8]) -> Option<u16> {
        match self.try_ask(request).await {
            Ok(status) => Some(status),
            Err(_) => {
                sleep(Duration::from_millis(10)).await; // no storm of connections when the server is gone
                if let Ok(stream) = Self::dial(self.target).await {
                    self.stream = stream;
                }
                None
            }
        }
    }

    async fn try_ask(&mut self, request: &[u8]) -> io::Result<u16> {
        self.stream.write_all(request).await?;
        let mut filled = 0;
        loop {
            match self.stream.read(&mut self.buffer[filled..]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => filled += count,
            }
            if let Some(status) = status_of_whole(&self.buffer[..filled])? {
                return Ok(status);
            }
        }
    }
}

/// The status of an answer, once all of it is there. Nothing is sent before that, so nothing comes after it.
fn status_of_whole(bytes: &[u8]) -> io::Result<Option<u16>> {
    let mut headers = [httparse::EMPTY_HEADER; 16];
    let mut answer = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(head) = answer.parse(bytes).map_err(io::Error::other)? else {
        return Ok(None);
    };
    let length = answer.headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"));
    let length: usize =
        length.and_then(|header| str::from_utf8(header.value).ok()?.parse().ok()).unwrap_or_default();
    Ok(answer.code.filter(|_| bytes.len() >= head + length))
}
