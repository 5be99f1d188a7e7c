//! The `antre` binary: parse the command line, run one role until a signal.

use std::process::ExitCode;

use antre::{
    app::{self, AppError},
    dotenv::DotEnv,
    server_url,
    settings::Settings,
    telemetry,
};
use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A request makes and drops dozens of small things, on whichever thread: with glibc's allocator an API spends 15 % of
/// its time on that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The settings are wrong: what clap exits with, too.
const USAGE: u8 = 2;

fn main() -> ExitCode {
    let dotenv = match DotEnv::load() {
        Ok(dotenv) => dotenv,
        Err(error) => return complain(&error.to_string(), USAGE),
    };
    let settings = match Settings::try_parse() {
        Ok(settings) => settings,
        Err(error) => return complain_as_clap(&error),
    };
    if let Err(error) = telemetry::init(&settings.log) {
        return complain(&error, USAGE);
    }
    if let Some(dotenv) = dotenv {
        dotenv.log();
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return complain(&format!("cannot start: {error}"), 1),
    };
    let result = runtime.block_on(async { app::run(settings, signals()?).await });
    // What is still running then is not worth waiting for: a stop is bounded.
    runtime.shutdown_background();
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ AppError::Usage(_)) => complain(&error.to_string(), USAGE),
        Err(error) => complain(&error.to_string(), 1),
    }
}

/// Cancelled by the first SIGTERM or Ctrl-C. The second one ends the process at once.
fn signals() -> Result<CancellationToken, AppError> {
    let listen =
        |kind| signal(kind).map_err(|error| AppError::Start(format!("cannot listen for signals: {error}")));
    let (mut terminate, mut interrupt) = (listen(SignalKind::terminate())?, listen(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let stopped = stop.clone();
    tokio::spawn(async move {
        let mut next = async || {
            tokio::select! {
                _ = terminate.recv() => 128 + 15,
                _ = interrupt.recv() => 128 + 2,
            }
        };
        next().await;
        stopped.cancel();
        std::process::exit(next().await);
    });
    Ok(stop)
}

/// Help and the version are no complaints to clap, and a URL in a wrong place is not repeated with its password.
fn complain_as_clap(error: &clap::Error) -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    let urls: Vec<_> = arguments.iter().filter_map(|argument| server_url::within(argument)).collect();
    if !error.use_stderr() || urls.is_empty() {
        error.exit();
    }
    let said =
        urls.iter().fold(error.render().to_string(), |said, url| said.replace(url, &server_url::shown(url)));
    eprint!("{said}");
    ExitCode::from(USAGE)
}

fn complain(what: &str, code: u8) -> ExitCode {
    eprintln!("antre: {what}");
    ExitCode::from(code)
}
