//! Wires a process together: which store, which queue, which roles; starts it, and stops it in order.

use std::{
    io::{self, Write},
    sync::Arc,
    time::Duration,
};

use axum::serve::ListenerExt;
use tokio::{
    net::TcpListener,
    time::{Instant, timeout_at},
};
use tokio_util::sync::CancellationToken;

use crate::{
    http::{self, Api},
    placement::Placement,
    queue::in_process::InProcessQueue,
    settings::{Backends, HttpSettings, LogFormat, Role, Settings, SettingsError},
    store::{Store, sqlite::SqliteStore},
    worker::Worker,
};

/// How long a process that was told to stop finishes what is in flight. Less than the ten seconds after which
/// container runtimes kill.
const GRACE: Duration = Duration::from_secs(8);

/// How many orders may stand in one lane of the embedded mode.
const LANE_CAPACITY: usize = 10_000;

/// Why a process did not start. The text says what to do.
#[derive(Debug, thiserror::Error)]
pub enum AppError {
    /// The settings are wrong.
    #[error(transparent)]
    Usage(#[from] SettingsError),
    /// Something it needs is not there.
    #[error("{0}")]
    Start(String),
}

/// Runs the role that the settings name until `stop`.
pub async fn run(settings: Settings, stop: CancellationToken) -> Result<(), AppError> {
    match (settings.role.unwrap_or_default(), settings.backends.backends()?) {
        (Role::Serve, Backends::Embedded { database_url }) => {
            serve_embedded(&settings, &database_url, stop).await
        }
        (Role::Migrate, Backends::Embedded { database_url }) => {
            open_sqlite(&database_url).await?.close().await;
            say(&settings, &[format!("The tables of {database_url} are up to date.")]);
            Ok(())
        }
    }
}

/// API and worker in one process, with an SQLite file and lanes in memory.
async fn serve_embedded(
    settings: &Settings,
    database_url: &str,
    stop: CancellationToken,
) -> Result<(), AppError> {
    let listener = listen(&settings.http).await?;
    let store: Arc<dyn Store> = open_sqlite(database_url).await?;
    let queue = InProcessQueue::new(LANE_CAPACITY);
    let placement = Placement::new(store.clone(), &queue, settings.http.order_timeout)
        .await
        .map_err(|error| AppError::Start(error.to_string()))?;
    let worker_stop = CancellationToken::new();
    let worker = tokio::spawn(
        Worker {
            queue: Arc::new(queue.clone()),
            store: store.clone(),
            reservation_ttl: settings.orders.reservation_ttl,
            stop: worker_stop.clone(),
        }
        .run(),
    );
    say(
        settings,
        &[
            format!("antre {} is open: API and worker in one process.", env!("CARGO_PKG_VERSION")),
            "  orders in line   in this process (for RabbitMQ and MySQL set AMQP_URL and DATABASE_URL)"
                .into(),
            format!("  orders on record {database_url}"),
            format!("  try              curl {}/api/products", url(&listener)?),
        ],
    );
    let api = Api { store: store.clone(), placement: Arc::new(placement) };
    let deadline = serve_http(listener, api, stop).await?;

    // Nobody comes in any more. Those in line are served, then the worker may go.
    let _ = timeout_at(deadline, queue.drained()).await;
    worker_stop.cancel();
    let _ = timeout_at(deadline, worker).await;
    let _ = timeout_at(deadline, store.close()).await;
    Ok(())
}

/// Answers requests until `stop`, then finishes those in flight. Returns by when the rest of the process must have
/// finished too.
async fn serve_http(listener: TcpListener, api: Api, stop: CancellationToken) -> Result<Instant, AppError> {
    // Answers are small and complete: waiting for more to send (Nagle) would only delay them.
    let listener = listener.tap_io(|connection| {
        let _ = connection.set_nodelay(true);
    });
    let stopping = stop.clone();
    let mut serving = tokio::spawn(
        axum::serve(listener, http::router(api))
            .with_graceful_shutdown(async move { stopping.cancelled().await })
            .into_future(),
    );
    let failed = |error: &dyn std::fmt::Display| AppError::Start(format!("the HTTP server ended: {error}"));
    tokio::select! {
        ended = &mut serving => match ended {
            Ok(Ok(())) => {}
            Ok(Err(error)) => return Err(failed(&error)),
            Err(error) => return Err(failed(&error)),
        },
        () = stop.cancelled() => tracing::info!("stopping: finishing what is in flight"),
    }
    let deadline = Instant::now() + GRACE;
    if !serving.is_finished() && timeout_at(deadline - GRACE / 2, &mut serving).await.is_err() {
        tracing::warn!("some requests did not finish in time");
        serving.abort();
    }
    Ok(deadline)
}

async fn listen(settings: &HttpSettings) -> Result<TcpListener, AppError> {
    let address = settings.listen_addr.as_deref().unwrap_or(HttpSettings::DEFAULT_LISTEN_ADDR);
    TcpListener::bind(address).await.map_err(|error| {
        AppError::Start(format!(
            "cannot listen on {address}: {error}. Set LISTEN_ADDR (--listen-addr) to another HOST:PORT"
        ))
    })
}

async fn open_sqlite(url: &str) -> Result<Arc<SqliteStore>, AppError> {
    SqliteStore::open(url).await.map(Arc::new).map_err(|error| {
        AppError::Start(format!(
            "cannot open the database {url}: {error}. DATABASE_URL (--database-url) must name a file that this \
             user can write, in a directory that exists"
        ))
    })
}

/// The URL at which a person can try it.
fn url(listener: &TcpListener) -> Result<String, AppError> {
    let address = listener.local_addr().map_err(|error| AppError::Start(error.to_string()))?;
    Ok(match address.ip().is_unspecified() {
        true => format!("http://127.0.0.1:{}", address.port()),
        false => format!("http://{address}"),
    })
}

/// Tells the person who started it, on stdout; for machines, it goes to the log.
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
