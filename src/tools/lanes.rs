//! `antre lanes`: what waits in the lanes now, as the processes themselves and the broker say it.

use std::{sync::Arc, time::Duration};

use futures_util::StreamExt;
use serde::Serialize;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    broker, database,
    outcome::{Finding, ToolError},
    output::{self, count},
};
use crate::{
    clock::SystemClock,
    domain::ids::ProductId,
    monitor::{
        board::{Board, ProductFilter, ProductQuery, ProductSort, ProductView},
        report::Report,
    },
    queue::{Depths, QueueError, Reports, rabbitmq::RabbitMqQueue},
    server_url::shown,
    settings::{Backends, Database, Settings, tools::Output},
    store::{Catalog, mysql::MySqlStore},
};

/// How long it listens: each process tells once a second, and a rate is of whole seconds.
const LISTEN: Duration = Duration::from_millis(2_500);
/// How many lanes the broker is asked for at most, and how long that may take.
const MAX_ASKED: u32 = 1_000;
const ASK_LIMIT: Duration = Duration::from_secs(5);
/// How long the database may take to say which products there are.
const DATABASE_LIMIT: Duration = Duration::from_secs(3);
/// How many lanes are printed.
const MAX_ROWS: usize = 500;

pub(super) async fn run(settings: &Settings, output: Output) -> Result<Finding, ToolError> {
    let Backends::Servers { database_url, amqp_url } = settings.backends.backends()? else {
        return Err(ToolError::Failed(
            "there is no broker to ask: in the embedded mode the lanes are in the process. Its page shows them; for RabbitMQ \
             set AMQP_URL and DATABASE_URL"
                .to_owned(),
        ));
    };
    let failed = |error: QueueError| {
        ToolError::Failed(format!(
            "cannot ask the broker {}: {error}. Check that it runs, and AMQP_URL (--amqp-url)",
            shown(&amqp_url)
        ))
    };
    let queue =
        RabbitMqQueue::connect(broker::settings(&settings.backends, &amqp_url)).await.map_err(failed)?;
    let board = Board::new(Arc::new(SystemClock));
    let (listened, products) = tokio::join!(listen(&queue, &board), known_products(&database_url));
    listened.map_err(failed)?;
    let (products, database_error) = match products {
        Ok(products) => (products, None),
        Err(error) => (Vec::new(), Some(error)),
    };
    let query = ProductQuery {
        show: ProductFilter::Active,
        sort: ProductSort::Oldest,
        descending: true,
        page_size: MAX_ROWS,
        ..ProductQuery::default()
    };
    let mut lanes: Vec<_> = board.products(&query).rows.iter().map(Lane::of).collect();
    add_unserved(&queue, &products, &mut lanes).await;
    lanes.sort_by_key(|lane| (std::cmp::Reverse(lane.undecided_ms), lane.product_id));
    let overview = board.overview();
    let processes = overview.processes.iter().filter(|process| process.gone_since.is_none());
    let workers = processes.clone().filter(|process| process.role.is_worker()).count();
    let report = LanesReport { processes: processes.count(), workers, lanes, database_error };
    match output.json {
        true => output::json(&report)?,
        false => print(&report)?,
    }
    Ok(if report.lanes.iter().any(|lane| lane.is_stalled) { Finding::Some } else { Finding::None })
}

/// What was found.
#[derive(Serialize)]
struct LanesReport {
    /// How many told something.
    processes: usize,
    workers: usize,
    /// Those in which something happens or waits, the longest standstill first.
    lanes: Vec<Lane>,
    /// Why the lanes of products that nobody tells of were not asked for.
    #[serde(skip_serializing_if = "Option::is_none")]
    database_error: Option<String>,
}

#[derive(Serialize)]
struct Lane {
    product_id: ProductId,
    /// Commands without a verdict. Of a lane that nobody tells of: messages, each of one or more commands.
    waiting: u64,
    oldest_ms: Option<u64>,
    undecided_ms: u64,
    is_stalled: bool,
    /// The worker that decided its commands last.
    worker: Option<String>,
    decided_per_s: f64,
    tries: u32,
    error: Option<String>,
}

impl Lane {
    fn of(product: &ProductView) -> Self {
        let lane = product.lane.clone();
        Self {
            product_id: product.id,
            waiting: lane.waiting,
            oldest_ms: (lane.waiting > 0).then_some(lane.oldest_ms),
            undecided_ms: lane.undecided_ms,
            is_stalled: lane.is_stalled,
            worker: product.worker.clone(),
            decided_per_s: product.accepted_per_s + product.refused_per_s,
            tries: lane.tries,
            error: lane.error,
        }
    }

    fn line(&self) -> String {
        let age = self.oldest_ms.map_or("-".to_owned(), |ms| format!("{} s", ms / 1_000));
        let (waiting, worker) = (count(self.waiting, "waiting", "waiting"), self.worker.as_deref());
        let stalled = if self.is_stalled { "  STANDS STILL" } else { "" };
        let error = match (&self.error, self.tries) {
            (Some(error), tries @ 1..) => format!("  try {tries}: {error}"),
            (Some(error), 0) => format!("  {error}"),
            (None, _) => String::new(),
        };
        let (id, rate, worker) = (self.product_id, self.decided_per_s, worker.unwrap_or("-"));
        format!("lane {id}  {waiting}  oldest {age}  {rate:.1}/s  {worker}{stalled}{error}")
    }
}

fn print(report: &LanesReport) -> Result<(), ToolError> {
    for lane in &report.lanes {
        output::line(lane.line())?;
    }
    if let Some(error) = &report.database_error {
        output::line(format!("Lanes of which no process tells were not asked for: {error}"))?;
    }
    let lanes = count(report.lanes.len() as u64, "lane", "lanes");
    let processes = count(report.processes as u64, "process", "processes");
    let workers = count(report.workers as u64, "worker", "workers");
    output::line(format!("{lanes} in which something happens, told by {processes} ({workers})"))?;
    Ok(())
}

/// Takes in what the processes tell.
async fn listen(queue: &RabbitMqQueue, board: &Board) -> Result<(), QueueError> {
    let mut reports = queue.listen().await?;
    let deadline = Instant::now() + LISTEN;
    while let Ok(Some(bytes)) = timeout_at(deadline, reports.next()).await {
        // One that cannot be read is of another release.
        if let Ok(report) = Report::decode(&bytes) {
            board.receive(report);
        }
    }
    Ok(())
}

/// Adds lanes of which no process tells, and in which messages wait: no worker serves them.
async fn add_unserved(queue: &RabbitMqQueue, products: &[ProductId], lanes: &mut Vec<Lane>) {
    let deadline = Instant::now() + ASK_LIMIT;
    for product_id in products {
        if lanes.iter().any(|lane| lane.product_id == *product_id) {
            continue;
        }
        let Ok(depth) = timeout_at(deadline, queue.depth(*product_id)).await else { return };
        let Ok(depth) = depth else { continue };
        if depth.messages > 0 {
            let error = (depth.workers == 0).then(|| "no worker serves this lane".to_owned());
            lanes.push(Lane {
                product_id: *product_id,
                waiting: depth.messages,
                oldest_ms: None,
                undecided_ms: 0,
                is_stalled: depth.workers == 0,
                worker: None,
                decided_per_s: 0.0,
                tries: 0,
                error,
            });
        }
    }
}

/// The first products, as the database has them.
async fn known_products(url: &str) -> Result<Vec<ProductId>, String> {
    let read = async {
        database::must_have_tables(&Database::MySql(url.to_owned())).await?;
        let store = MySqlStore::open(url).await.map_err(|error| error.to_string())?;
        let page = store.products(false, None, MAX_ASKED).await.map_err(|error| error.to_string())?;
        Ok(page.rows.into_iter().map(|product| product.id).collect())
    };
    timeout(DATABASE_LIMIT, read).await.unwrap_or_else(|_| Err("the database does not answer".to_owned()))
}
