//! The load, its own process with one thread, made by the generator of `antre rehearse`
//! ([`antre::rehearse::load`]).
//!
//! Closed loop: every connection sends its next order when the last is answered. Open loop: orders are due
//! at fixed times whether or not earlier ones have been answered, and an order's latency counts from when it was due, so
//! that a server that stalls cannot hide the orders it held up (Gil Tene's "coordinated omission").

use std::{
    net::SocketAddr,
    ops::AddAssign,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use antre::rehearse::load::{
    Visit,
    arrivals::Arrivals,
    client::{Call, Client},
    open_loop,
};
use antre_testkit::error::Result;
use axum::http::{HeaderName, HeaderValue, Method};
use clap::Args;
use serde::{Deserialize, Serialize};
use tokio::{task::JoinSet, time::sleep};
use tokio_util::sync::CancellationToken;

use crate::scenario::{Pace, reserved_order_id};

/// How long the load waits for outstanding answers at its end.
const LAST_ANSWERS: Duration = Duration::from_secs(30);
/// Connections that send the first orders.
const PRIMING: usize = 16;

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

impl AddAssign for Counts {
    fn add_assign(&mut self, more: Self) {
        self.accepted += more.accepted;
        self.refused += more.refused;
        self.pending += more.pending;
        self.unavailable += more.unavailable;
        self.failed += more.failed;
        self.unanswered += more.unanswered;
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
    println!("{}", serde_json::to_string(&runtime.block_on(generate(args))?)?);
    Ok(())
}

/// What all connections share.
struct Shared {
    client: Client,
    /// One for each product.
    orders: Vec<Call>,
    /// The prefix of this run's idempotency keys, if orders have keys.
    keys: Option<String>,
    /// The number of orders to pay; 0 when orders are placed.
    payments: u64,
    next: AtomicU64,
    sent: AtomicU64,
    tally: Mutex<Tally>,
    /// After this, nobody waits for an answer.
    deadline: Instant,
}

#[derive(Default)]
struct Tally {
    all: Counts,
    measured: Counts,
    latencies_us: Vec<u32>,
}

/// What is measured.
#[derive(Clone, Copy)]
struct Window {
    begins: Instant,
    ends: Instant,
}

async fn generate(args: &LoadArgs) -> Result<Load> {
    let target = format!("http://{}", args.target).parse()?;
    let client = Client::new(target, args.connections).await?;
    // A payment needs no lane to be opened first.
    let orders: Vec<_> = match args.payments {
        0 => (1..=args.products).map(order).collect(),
        _ => Vec::new(),
    };
    let primed = prime(&client, &orders).await?;

    let now = Instant::now();
    let begins = now + Duration::from_secs_f64(args.warm_up_seconds);
    let window = Window { begins, ends: begins + Duration::from_secs_f64(args.seconds) };
    let shared = Arc::new(Shared {
        client,
        orders,
        keys: args.keys.then(|| format!("{}-", uuid::Uuid::now_v7().simple())),
        payments: args.payments,
        next: AtomicU64::new(0),
        sent: AtomicU64::new(0),
        tally: Mutex::default(),
        deadline: window.ends + LAST_ANSWERS,
    });
    match args.pace {
        Pace::Closed => closed_loop(&shared, args.connections, window, None).await,
        Pace::Pausing { milliseconds } => {
            let pause = Duration::from_millis(milliseconds);
            closed_loop(&shared, args.connections, window, Some(pause)).await;
        }
        Pace::Open { per_second } => {
            let count = ((window.ends - now).as_secs_f64() * per_second) as u64;
            let arrivals = Arrivals::at_rate(count, per_second, Duration::ZERO);
            let visit = |visit| visited(shared.clone(), window, visit);
            open_loop(arrivals, now, CancellationToken::new(), visit).await;
        }
    }

    if args.payments > 0 && shared.next.load(Ordering::Relaxed) > args.payments {
        return Err(format!("{} orders to be paid were not enough", args.payments).into());
    }
    let mut tally = std::mem::take(&mut *shared.tally());
    let answered = tally.all.decided() + tally.all.unknown() + tally.all.unavailable;
    tally.all.unanswered += shared.sent.load(Ordering::Relaxed).saturating_sub(answered);
    tally.all += primed;
    Ok(Load {
        measured: tally.measured,
        all: tally.all,
        seconds: args.seconds,
        latency: Latency::of(tally.latencies_us),
    })
}

fn order(product: u64) -> Call {
    Call::new(Method::POST, "/api/orders").json(format!(r#"{{"product_id":{product},"total":1}}"#))
}

/// One order for every product, until each has had a verdict: lanes are open and statements prepared before any clock
/// runs. Not on all connections at once: a thousand lanes take the broker some seconds.
async fn prime(client: &Client, orders: &[Call]) -> Result<Counts> {
    let deadline = Instant::now() + 4 * LAST_ANSWERS;
    let mut tasks = JoinSet::new();
    for first in 0..PRIMING {
        let client = client.clone();
        let orders: Vec<_> = orders.iter().skip(first).step_by(PRIMING).cloned().collect();
        tasks.spawn(async move {
            let mut counts = Counts::default();
            for order in &orders {
                loop {
                    let answer = ask(&client, order, deadline).await;
                    counts.add(answer);
                    if matches!(answer, Some(201 | 400)) {
                        break;
                    }
                    if Instant::now() > deadline {
                        return Err(format!("{:?} got no verdict, but {answer:?}", order.body));
                    }
                    sleep(Duration::from_millis(100)).await;
                }
            }
            Ok(counts)
        });
    }
    let mut all = Counts::default();
    while let Some(counts) = tasks.join_next().await {
        all += counts??;
    }
    Ok(all)
}

async fn closed_loop(shared: &Arc<Shared>, connections: usize, window: Window, pause: Option<Duration>) {
    let mut tasks = JoinSet::new();
    for _ in 0..connections {
        tasks.spawn(one_after_the_other(shared.clone(), window, pause));
    }
    tasks.join_all().await;
}

async fn one_after_the_other(shared: Arc<Shared>, window: Window, pause: Option<Duration>) {
    let mut sent = Instant::now();
    while sent < window.ends {
        let Some(call) = shared.next_call() else { return };
        let answer = ask(&shared.client, &call, shared.deadline).await;
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

async fn visited(shared: Arc<Shared>, window: Window, visit: Visit) {
    let Some(call) = shared.next_call() else { return };
    let answer = ask(&shared.client, &call, shared.deadline).await;
    // By when it was due, not by when it was answered: late answers must not drop out.
    shared.count(answer, visit.due >= window.begins, visit.due.elapsed());
}

/// The status of the answer; `None` without an answer.
async fn ask(client: &Client, call: &Call, deadline: Instant) -> Option<u16> {
    match client.send(call, deadline.into()).await {
        Ok(answer) => Some(answer.status),
        Err(_) => {
            sleep(Duration::from_millis(10)).await; // no storm of connections when the server is gone
            None
        }
    }
}

impl Shared {
    /// Products take turns; an order is paid once. `None` when all are.
    fn next_call(&self) -> Option<Call> {
        let next = self.next.fetch_add(1, Ordering::Relaxed);
        let call = if self.payments > 0 {
            let number = next + 1;
            if number > self.payments {
                return None;
            }
            Call::new(Method::POST, format!("/api/orders/{}/payment", reserved_order_id(number)))
        } else {
            let mut order = self.orders[next as usize % self.orders.len()].clone();
            let key = self.keys.as_ref().and_then(|run| HeaderValue::try_from(format!("{run}{next}")).ok());
            if let Some(key) = key {
                order.headers.insert(HeaderName::from_static("idempotency-key"), key);
            }
            order
        };
        self.sent.fetch_add(1, Ordering::Relaxed);
        Some(call)
    }

    fn tally(&self) -> MutexGuard<'_, Tally> {
        self.tally.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, answer: Option<u16>, measured: bool, latency: Duration) {
        let mut tally = self.tally();
        tally.all.add(answer);
        if measured {
            tally.measured.add(answer);
            if matches!(answer, Some(200 | 201 | 400)) {
                tally.latencies_us.push(u32::try_from(latency.as_micros()).unwrap_or(u32::MAX));
            }
        }
    }
}
