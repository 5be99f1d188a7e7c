//! A rehearsal: plays a flash sale against a running antre over its REST API, and judges it.
//!
//! [`load`] lets buyers in by a schedule, [`buyer`] is what one of them does, with the calls of [`shop`]; [`journal`] is
//! what happened, [`assessment`] whether it adds up, [`text`] and [`report`] show it.

pub mod args;
pub mod assessment;
pub mod buyer;
mod consent;
pub mod journal;
pub mod load;
pub mod percentiles;
mod progress;
pub mod report;
pub mod shop;
pub mod text;

use std::{
    fs::{self, File},
    io::{self, Write},
    path::Path,
    sync::Arc,
    time::{Duration, Instant},
};

use jiff::{SignedDuration, Timestamp};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use self::{
    args::{Rate, RehearseArgs},
    assessment::{Assessment, Sale, assess},
    buyer::Behaviour,
    journal::Journal,
    load::open_loop,
    shop::{Reply, Shop, ShopError},
};

/// Connections when nothing is said: half of what a server takes whose shell allows 1,024 files.
const CONNECTIONS: usize = 512;
/// Files that are open in addition to connections.
const OTHER_FILES: u64 = 32;
/// The first buyer comes so long after all is ready.
const BREATH: Duration = Duration::from_millis(50);
/// A reservation that ends within this time of the end may end while the books are read.
const SOON: SignedDuration = SignedDuration::from_secs(5);
/// How often the books are read while reservations are about to end.
const READINGS: u32 = 8;

/// How a rehearsal ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// Not oversold, the books balance, no errors.
    Passed,
    /// Not so.
    Failed,
    /// Stopped by the user; the verdict is on what was played until then.
    Interrupted,
}

/// Why there is no verdict, or nobody can read it. Each text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum RehearseError {
    /// The command line is wrong.
    #[error("{0}")]
    Usage(String),
    /// The target is not there, or is not an antre.
    #[error(transparent)]
    Shop(#[from] ShopError),
    /// The report cannot be written.
    #[error("the report {path} cannot be written: {source}")]
    Report {
        /// As given.
        path: String,
        /// What the system says.
        source: io::Error,
    },
}

/// Plays it, prints the verdict to stdout and writes the report. After `stop` no more buyers come.
pub async fn run(args: &RehearseArgs, stop: CancellationToken) -> Result<Ended, RehearseError> {
    args.check().map_err(RehearseError::Usage)?;
    consent::obtain(&args.target, args.yes).map_err(RehearseError::Usage)?;
    let connections = connections(args)?;
    // Known before the sale, not after it.
    let report = args.report.as_deref().map(Report::create).transpose()?;

    let played = play(args, connections, stop).await;
    if let (Err(_), Some(report)) = (&played, &report) {
        report.withdraw();
    }
    let assessment = played?;
    let verdict = if args.json {
        serde_json::to_string_pretty(&assessment).unwrap_or_default() + "\n"
    } else {
        text::verdict(&assessment)
    };
    // Nobody may be there to read it any more (`| head`); the exit code counts all the same.
    let _ = io::stdout().write_all(verdict.as_bytes());
    if let Some(report) = report {
        report.write(&assessment)?;
    }
    Ok(match &assessment {
        Assessment { passed: false, .. } => Ended::Failed,
        Assessment { interrupted: true, .. } => Ended::Interrupted,
        _ => Ended::Passed,
    })
}

async fn play(
    args: &RehearseArgs,
    connections: usize,
    stop: CancellationToken,
) -> Result<Assessment, RehearseError> {
    let shop = Arc::new(Shop::find(args.target.clone(), connections).await?);
    let product_name = format!("rehearsal {:.3}", Timestamp::now());
    let product_id = shop.create_product(&product_name).await?;
    shop.set_stock(product_id, args.stock).await?;

    let behaviour =
        Behaviour { product: product_id, pay: args.pay, cancel: args.cancel, patience: args.patience };
    let started_at = Timestamp::now();
    let start = Instant::now() + BREATH;
    let journal = Arc::new(Journal::new(start));
    let visit = |visit| {
        let (shop, journal) = (shop.clone(), journal.clone());
        async move { buyer::visit(&shop, &behaviour, &journal, visit).await }
    };
    let let_in = tokio::select! {
        let_in = open_loop(args.arrivals(), start, stop, visit) => let_in,
        () = progress::show(&journal, args.buyers) => 0,
    };

    let sale = Sale {
        target: args.target.to_string(),
        product_id,
        product_name,
        started_at: format!("{started_at:.3}"),
        buyers: args.buyers,
        stock: args.stock,
        rate: match args.rate {
            Rate::PerSecond(rate) => Some(rate),
            Rate::All => None,
        },
        ramp_seconds: args.ramp.as_secs_f64(),
        pay: args.pay,
        cancel: args.cancel,
        patience_seconds: args.patience.as_secs_f64(),
        connections,
        antre: env!("CARGO_PKG_VERSION"),
    };
    Ok(judge(&shop, &journal, sale, let_in < args.buyers).await?)
}

/// Reads the inventory, and the orders whose answers leave a doubt. Reservations may end in between: then it reads again.
async fn judge(
    shop: &Shop,
    journal: &Journal,
    sale: Sale,
    interrupted: bool,
) -> Result<Assessment, ShopError> {
    let mut readings = 1;
    loop {
        let doubtful = journal.doubtful(Timestamp::now() + SOON);
        for id in &doubtful {
            let deadline = tokio::time::Instant::now() + Duration::from_secs(10);
            if let Reply::Order(order, _) = shop.look(id, deadline).await {
                journal.seen(id, &order.status);
            }
        }
        let inventory = shop.inventory(sale.product_id).await?;
        let found = assess(sale.clone(), journal.record(), inventory, shop.closed_when_idle(), interrupted);
        if found.differences.is_empty() || doubtful.is_empty() || readings == READINGS {
            return Ok(found);
        }
        readings += 1;
        sleep(Duration::from_secs(1)).await;
    }
}

/// How many connections there may be. Each is a file to the system, and shells often allow 1,024: the limit is raised as far
/// as the system lets us.
fn connections(args: &RehearseArgs) -> Result<usize, RehearseError> {
    let limit = getrlimit(Resource::Nofile);
    // Where that is refused, the limit of before counts.
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
    let allowed = getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX).saturating_sub(OTHER_FILES);
    let allowed = usize::try_from(allowed).unwrap_or(usize::MAX).max(1);
    match args.connections {
        Some(connections) if connections > allowed => Err(RehearseError::Usage(format!(
            "--connections {connections} needs as many open files, and the system allows {allowed}: raise the hard limit \
             (`ulimit -Hn`), or take fewer connections"
        ))),
        Some(connections) => Ok(connections),
        None => Ok(CONNECTIONS.min(allowed)),
    }
}

/// A file that is there, and gets its contents at the end.
struct Report<'a> {
    path: &'a Path,
    file: File,
    was_there: bool,
}

impl<'a> Report<'a> {
    fn create(path: &'a Path) -> Result<Self, RehearseError> {
        let was_there = path.exists();
        // Not emptied yet: an earlier report stays until there is a new one.
        let file = File::options().create(true).write(true).truncate(false).open(path);
        Ok(Self { path, file: file.map_err(|source| failed(path, source))?, was_there })
    }

    /// There is nothing to report.
    fn withdraw(&self) {
        if !self.was_there {
            let _ = fs::remove_file(self.path);
        }
    }

    fn write(mut self, assessment: &Assessment) -> Result<(), RehearseError> {
        let page = report::page(assessment);
        let written = self.file.set_len(0).and_then(|()| self.file.write_all(page.as_bytes()));
        written.map_err(|source| failed(self.path, source))
    }
}

fn failed(path: &Path, source: io::Error) -> RehearseError {
    RehearseError::Report { path: path.display().to_string(), source }
}
