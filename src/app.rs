//! Wires a process together: the store, the queue, the roles. Starts it, and stops it in order.

mod monitoring;
mod running_worker;
mod watching;

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::{
    net::TcpListener,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use self::{
    monitoring::{Monitoring, Servers},
    running_worker::{RunningWorker, mysql_audit, sqlite_audit},
    watching::Watching,
};
use crate::{
    clock::{Clock, SystemClock},
    http::{self, Api, Dashboard, Links, Probes, Server, Site},
    lane_watch::LaneWatch,
    monitor::{
        metrics::{MetricsError, Parts},
        report::ProcessRole,
    },
    queue::{
        Ping, Queue,
        memory::MemoryQueue,
        rabbitmq::{RabbitMqQueue, RabbitMqSettings},
    },
    server_url::{self, shown},
    service::{
        catalog::CatalogService, dispatcher::Dispatcher, known_products::KnownProducts,
        ordering::OrderService,
    },
    settings::{Backends, Database, Role, Settings, SettingsError, Switch},
    store::{Store, TimeLimited, Usability, mysql::MySqlStore, sqlite::SqliteStore},
    telemetry::LogFormat,
    worker::health::WorkerHealth,
};

/// How long an API, and the watch for lanes, wait for a read of the database.
const READ_LIMIT: Duration = Duration::from_secs(3);
/// How long a process that was asked to stop finishes requests and batches in flight. Less than the ten seconds after which
/// container runtimes kill.
const GRACE: Duration = Duration::from_secs(8);

/// How many commands one lane of the embedded mode takes.
const LANE_CAPACITY: usize = 10_000;

/// Why a process did not start. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    #[error(transparent)]
    Usage(#[from] SettingsError),
    /// Something that it needs is not available.
    #[error("{0}")]
    Start(String),
    #[error(transparent)]
    Metrics(#[from] MetricsError),
}

/// Runs a role until `stop`.
pub async fn run(settings: Settings, role: Role, stop: CancellationToken) -> Result<(), AppError> {
    if let Role::Migrate { status } = role {
        return if status { migration_status(&settings).await } else { migrate(&settings).await };
    }
    raise_file_limit();
    if role != Role::Api {
        settings.orders.check()?;
    }
    let clock: Arc<dyn Clock> = Arc::new(SystemClock);
    match (settings.backends.backends()?, role) {
        (Backends::Embedded { database_url }, Role::Serve | Role::Migrate { .. }) => {
            serve_embedded(&settings, &database_url, clock, stop).await
        }
        (Backends::Servers { database_url, amqp_url }, role) => {
            run_on_servers(&settings, role, &database_url, &amqp_url, clock, stop).await
        }
        (Backends::Embedded { .. }, Role::Api | Role::Worker) => Err(SettingsError(
            "DATABASE_URL (mysql://…) and AMQP_URL are missing: separate API and worker processes need both servers; \
             to run both roles in one process without servers, use antre serve"
                .to_owned(),
        )
        .into()),
    }
}

/// Every connection is a file to the system, and the soft limit of shells is often 1,024.
fn raise_file_limit() {
    let limit = getrlimit(Resource::Nofile);
    if let Err(error) = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }) {
        tracing::warn!(%error, limit = limit.current, "cannot raise the limit of open files");
    }
}

async fn migrate(settings: &Settings) -> Result<(), AppError> {
    let url = match settings.backends.database()? {
        Database::Sqlite(url) => {
            open_sqlite(&url).await?.close().await;
            url
        }
        Database::MySql(url) => {
            open_mysql(&url).await?.close().await;
            url
        }
    };
    say(settings, &[format!("The tables of {} are up to date.", shown(&url))]);
    Ok(())
}

/// Lists the migrations. An error if this program may not run on the tables as they are.
async fn migration_status(settings: &Settings) -> Result<(), AppError> {
    let (url, schema) = match settings.backends.database()? {
        Database::Sqlite(url) => (url.clone(), SqliteStore::schema(&url).await),
        Database::MySql(url) => (url.clone(), MySqlStore::schema(&url).await),
    };
    let url = shown(&url);
    let schema =
        schema.map_err(|error| AppError::Start(format!("cannot read the tables of {url}: {error}")))?;
    say(settings, &[format!("The tables of {url}:\n{schema}").trim_end().to_owned()]);
    let why = match schema.usability() {
        Usability::Now => {
            say(settings, &["This antre may run.".to_owned()]);
            return Ok(());
        }
        Usability::AfterMigration => "some migrations are pending; antre migrate applies them".to_owned(),
        Usability::Never(why) => why,
    };
    Err(AppError::Start(format!("this antre may not run on {url}: {why}")))
}

/// API and worker in one process, with an SQLite file and lanes in memory.
async fn serve_embedded(
    settings: &Settings,
    database_url: &str,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) -> Result<(), AppError> {
    let listener = listen(settings.http.listen_addr_or_default()).await?;
    let watching = Watching::new(Parts { has_api: true, has_worker: true, is_on_servers: false }, "serve")?;
    let store = open_sqlite(database_url).await?.observed_by(watching.metrics.worker.clone());
    let pools = store.clone();
    watching.pools(move || pools.pool_use())?;
    let store: Arc<dyn Store> = Arc::new(store);
    let queue = MemoryQueue::new(LANE_CAPACITY, clock.now());
    let monitoring = Monitoring::new(ProcessRole::Serve, clock.clone());
    watching.undecided(&monitoring.activity)?;
    let worker = RunningWorker::start(
        settings,
        &store,
        Arc::new(queue.clone()),
        &watching,
        &monitoring,
        sqlite_audit(database_url.to_owned()),
        clock.clone(),
    )?;
    let dispatcher = dispatcher(settings, &store, &queue, &clock, &stop, &watching, &monitoring).await?;
    let health = Some(worker.health.clone());
    let api = api(&store, &dispatcher, health, &watching, &monitoring, clock, &stop);
    let running = monitoring.start(Servers {
        health: store.clone(),
        catalogue: Arc::new(TimeLimited::new(store.clone(), READ_LIMIT)),
        ping: Arc::new(queue.clone()),
        reports: Arc::new(queue.clone()),
        depths: Arc::new(queue.clone()),
    });
    let mut lines = vec![
        banner("API and worker in one process"),
        "  queue            in this process (for RabbitMQ and MySQL set AMQP_URL and DATABASE_URL)".into(),
        format!("  database         {database_url}"),
    ];
    lines.extend(try_lines(&listener)?);
    announce(settings, Role::Serve, &lines);
    let deadline = serve_http(settings, listener, http::site(api, links(settings)), stop).await;

    // No request and no expiry arrives any more. Decide the queued commands, then stop the worker.
    worker.abort_helpers();
    let _ = timeout_at(deadline, queue.drain()).await;
    worker.stop(deadline).await;
    running.stop().await;
    let _ = timeout_at(deadline, store.close()).await;
    Ok(())
}

/// One role or two, on MySQL and RabbitMQ.
async fn run_on_servers(
    settings: &Settings,
    role: Role,
    database_url: &str,
    amqp_url: &str,
    clock: Arc<dyn Clock>,
    stop: CancellationToken,
) -> Result<(), AppError> {
    let address = match role {
        Role::Worker => settings.http.listen_addr.as_deref(),
        _ => Some(settings.http.listen_addr_or_default()),
    };
    let listener = match address {
        Some(address) => Some(listen(address).await?),
        None => None,
    };
    if amqp_url.starts_with("amqp://") && !server_url::is_this_machine(amqp_url) {
        tracing::warn!(
            broker = shown(amqp_url),
            "orders and the broker's password travel unencrypted to another machine: unless the network between is private, \
             use amqps://"
        );
    }
    let (has_api, has_worker) = (role != Role::Worker, role != Role::Api);
    let watching = Watching::new(
        Parts { has_api, has_worker, is_on_servers: true },
        match role {
            Role::Api => "api",
            Role::Worker => "worker",
            Role::Serve | Role::Migrate { .. } => "serve",
        },
    )?;
    let store = open_mysql(database_url).await?.observed_by(watching.metrics.worker.clone());
    let pools = store.clone();
    watching.pools(move || pools.pool_use())?;
    let store: Arc<dyn Store> = Arc::new(store);
    let queue = open_rabbitmq(settings, amqp_url, &*store).await?;
    let _lane_watch = LaneWatch::start(
        Arc::new(TimeLimited::new(store.clone(), READ_LIMIT)),
        queue.clone(),
        settings.backends.lane_set(),
    )
    .await;
    watching.broker(&queue)?;
    let process_role = match role {
        Role::Api => ProcessRole::Api,
        Role::Worker => ProcessRole::Worker,
        _ => ProcessRole::Serve,
    };
    let monitoring = Monitoring::new(process_role, clock.clone());
    watching.undecided(&monitoring.activity)?;
    let (reports, depths) = (Arc::new(queue.clone()), Arc::new(queue.clone()));
    let queue: Arc<dyn Queue> = Arc::new(queue);
    let worker = match has_worker {
        true => {
            let audit = mysql_audit(database_url.to_owned());
            let (queue, clock) = (queue.clone(), clock.clone());
            Some(RunningWorker::start(settings, &store, queue, &watching, &monitoring, audit, clock)?)
        }
        false => None,
    };
    let health = worker.as_ref().map(|worker| worker.health.clone());
    let mut api_dispatcher = None;
    let (site, ping) = match role {
        Role::Worker => {
            let probes = Probes::new(store.clone(), queue.clone(), health, monitoring.progress());
            (http::worker_site(probes, watching.metrics.clone()), queue as Arc<dyn Ping>)
        }
        _ => {
            let dispatcher =
                dispatcher(settings, &store, &*queue, &clock, &stop, &watching, &monitoring).await?;
            let dispatcher = api_dispatcher.insert(dispatcher);
            let api = api(&store, dispatcher, health, &watching, &monitoring, clock, &stop);
            (http::site(api, links(settings)), dispatcher.health_check())
        }
    };
    let running = monitoring.start(Servers {
        health: store.clone(),
        catalogue: Arc::new(TimeLimited::new(store.clone(), READ_LIMIT)),
        ping,
        reports,
        depths,
    });
    watching.dead_letters(running.reporter())?;
    let mut lines = vec![
        banner(match role {
            Role::Api => "the API; orders wait for a worker (antre worker)",
            Role::Worker => "a worker",
            _ => "API and worker in one process",
        }),
        format!("  queue            {}", shown(amqp_url)),
        format!("  database         {}", shown(database_url)),
    ];
    if let Some(listener) = &listener {
        match role {
            Role::Worker => lines.push(health_line(listener)?),
            _ => lines.extend(try_lines(listener)?),
        }
    }
    announce(settings, role, &lines);
    let deadline = match listener {
        Some(listener) => serve_http(settings, listener, site, stop).await,
        None => {
            stop.cancelled().await;
            Instant::now() + GRACE
        }
    };
    // Nobody else knows of the commands that could not be queued yet.
    if let Some(dispatcher) = api_dispatcher
        && timeout_at(deadline - GRACE / 8, dispatcher.drain()).await.is_err()
    {
        tracing::error!("stops with parked commands whose clients were answered 202: they are lost");
    }
    if let Some(worker) = worker {
        worker.stop(deadline).await;
    }
    running.stop().await;
    let _ = timeout_at(deadline, store.close()).await;
    Ok(())
}

fn api(
    store: &Arc<dyn Store>,
    dispatcher: &Arc<Dispatcher>,
    worker: Option<Arc<WorkerHealth>>,
    Watching { metrics }: &Watching,
    monitoring: &Monitoring,
    clock: Arc<dyn Clock>,
    stop: &CancellationToken,
) -> Api {
    let reads = Arc::new(TimeLimited::new(store.clone(), READ_LIMIT));
    Api::new(
        CatalogService::new(reads.clone(), reads.clone(), dispatcher.clone()),
        OrderService::new(reads.clone(), reads, dispatcher.clone(), metrics.api.clone()),
        Probes::new(store.clone(), dispatcher.health_check(), worker, monitoring.progress()),
        metrics.clone(),
        Dashboard::new(monitoring.board.clone(), clock, stop.clone()),
    )
}

async fn dispatcher(
    settings: &Settings,
    store: &Arc<dyn Store>,
    queue: &dyn Queue,
    clock: &Arc<dyn Clock>,
    stop: &CancellationToken,
    watching: &Watching,
    monitoring: &Monitoring,
) -> Result<Arc<Dispatcher>, AppError> {
    let (timeout, clock) = (settings.http.order_timeout, clock.clone());
    let (metrics, activity) = (watching.metrics.api.clone(), monitoring.activity.clone());
    let products = Arc::new(KnownProducts::new(Arc::new(TimeLimited::new(store.clone(), READ_LIMIT))));
    let dispatcher = Dispatcher::new(queue, products, timeout, clock, activity, stop.clone(), metrics).await;
    let dispatcher = dispatcher.map(Arc::new).map_err(|error| AppError::Start(error.to_string()))?;
    watching.parked(&dispatcher)?;
    Ok(dispatcher)
}

/// Answers requests until `stop`, then finishes those in flight. Returns the deadline of the rest of the process.
async fn serve_http(
    settings: &Settings,
    listener: TcpListener,
    site: Site,
    stop: CancellationToken,
) -> Instant {
    let server = Server::start(listener, site, max_connections(settings.http.max_connections));
    stop.cancelled().await;
    tracing::info!("stopping: finishing requests in flight");
    let deadline = Instant::now() + GRACE;
    server.finish(deadline - GRACE / 4).await;
    deadline
}

fn links(settings: &Settings) -> Links {
    Links {
        public_url: settings.http.public_url.clone(),
        trusted_proxies: settings.http.trusted_proxies.clone(),
    }
}

/// The maximum number of connections: the setting, as long as files are left for everything else.
fn max_connections(wanted: Option<u32>) -> usize {
    let (max, files) = possible_connections(wanted);
    if let Some(wanted) = wanted
        && wanted as usize > max
    {
        tracing::warn!(
            wanted,
            possible = max,
            files,
            "MAX_CONNECTIONS is more than the limit of open files (ulimit -n) allows"
        );
    }
    max
}

/// The same without a warning, and the limit of open files.
fn possible_connections(wanted: Option<u32>) -> (usize, Option<usize>) {
    const DEFAULT: usize = 10_000;
    const MIN: usize = 16;
    let wanted = wanted.map_or(DEFAULT, |wanted| wanted as usize);
    let Some(files) = getrlimit(Resource::Nofile).current else { return (wanted, None) };
    let files = usize::try_from(files).unwrap_or(usize::MAX);
    (wanted.min(files.saturating_sub(100 + files / 10).max(MIN)), Some(files))
}

async fn listen(address: &str) -> Result<TcpListener, AppError> {
    http::listen(address).await.map_err(|error| {
        AppError::Start(format!(
            "cannot listen on {address}: {error}. Set LISTEN_ADDR (--listen-addr) to another HOST:PORT"
        ))
    })
}

async fn open_sqlite(url: &str) -> Result<SqliteStore, AppError> {
    SqliteStore::open(url).await.map_err(|error| {
        AppError::Start(format!(
            "cannot open the database {url}: {error}. DATABASE_URL (--database-url) must name a file that this \
             user can write, in a directory that exists"
        ))
    })
}

async fn open_mysql(url: &str) -> Result<MySqlStore, AppError> {
    MySqlStore::open(url).await.map_err(|error| {
        AppError::Start(format!(
            "cannot open the database {}: {error}. Check that the server runs, and DATABASE_URL (--database-url)",
            shown(url)
        ))
    })
}

async fn open_rabbitmq(settings: &Settings, url: &str, store: &dyn Store) -> Result<RabbitMqQueue, AppError> {
    let database = store.installation_id().await;
    let settings = RabbitMqSettings {
        url: url.to_owned(),
        lanes: settings.backends.lane_set(),
        database: database.map_err(|error| AppError::Start(format!("cannot read the database: {error}")))?,
        lane_capacity: RabbitMqSettings::LANE_CAPACITY,
        events: settings.orders.events == Switch::On,
        consumer_timeout: RabbitMqSettings::CONSUMER_TIMEOUT,
    };
    RabbitMqQueue::connect(settings).await.map_err(|error| {
        AppError::Start(format!(
            "cannot open the queue {}: {error}. Check that the broker runs, and AMQP_URL (--amqp-url)",
            shown(url)
        ))
    })
}

fn banner(what: &str) -> String {
    format!("antre {} is open: {what}.", env!("CARGO_PKG_VERSION"))
}

/// Where a person begins.
fn try_lines(listener: &TcpListener) -> Result<[String; 3], AppError> {
    let url = url(listener)?;
    Ok([
        format!("  dashboard        {url}/"),
        format!("  API reference    {url}/docs"),
        format!("  try              curl {url}/api/products"),
    ])
}

fn health_line(listener: &TcpListener) -> Result<String, AppError> {
    Ok(format!("  health           curl {}/health/ready", url(listener)?))
}

/// The URL at which a person can try it.
fn url(listener: &TcpListener) -> Result<String, AppError> {
    let address = listener.local_addr().map_err(|error| AppError::Start(error.to_string()))?;
    Ok(match address.ip().is_unspecified() {
        true => format!("http://127.0.0.1:{}", address.port()),
        false => format!("http://{address}"),
    })
}

/// A role is open.
fn announce(settings: &Settings, role: Role, lines: &[String]) {
    settings.log_effective(role, possible_connections(settings.http.max_connections).0);
    say(settings, lines);
}

/// For the person who started it, on stdout; with `--log-format json`, in the log.
fn say(settings: &Settings, lines: &[String]) {
    match settings.log.log_format {
        LogFormat::Json => {
            for line in lines {
                tracing::info!("{}", line.trim());
            }
        }
        LogFormat::Text => {
            let _ = writeln!(io::stdout(), "{}", lines.join("\n"));
        }
    }
}
