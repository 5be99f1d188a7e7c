//! The `antre` binary: parse the command line, run one role until a signal.

use std::process::ExitCode;

use antre::{
    app::{self, AppError},
    dotenv::DotEnv,
    rehearse::{self, Ended, RehearseError, args::RehearseArgs},
    server_url,
    settings::{Command, Role, Settings, tools::Tool},
    telemetry::{self, traces},
    tools::{self, Finding, ToolError},
};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// A request allocates dozens of small objects, and frees them on other threads: with glibc's allocator an API spends 15 % of its
/// time on that.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// The exit code for wrong settings, as clap has it.
const USAGE_ERROR: u8 = 2;

/// The exit code after Ctrl-C, as shells expect it.
const INTERRUPTED: u8 = 128 + 2;

fn main() -> ExitCode {
    let dotenv = match DotEnv::load() {
        Ok(dotenv) => dotenv,
        Err(error) => return fail(&error.to_string(), USAGE_ERROR),
    };
    let settings = match Settings::of_process() {
        Ok(settings) => settings,
        Err(error) => return report_usage_error(&error),
    };
    if let Err(error) = telemetry::init(&settings.log) {
        return fail(&error, USAGE_ERROR);
    }
    if let Some(dotenv) = dotenv {
        dotenv.log();
    }
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&format!("cannot start: {error}"), 1),
    };
    let code = runtime.block_on(async {
        match settings.command.clone() {
            Some(Command::Rehearse(args)) => rehearse(&args).await,
            Some(Command::Tool(tool)) => run_tool(settings, tool).await,
            Some(Command::Role(role)) => run_role(settings, role).await,
            None => run_role(settings, Role::default()).await,
        }
    });
    traces::stop();
    // Do not wait for tasks that still run: a stop is bounded.
    runtime.shutdown_background();
    code
}

async fn run_role(settings: Settings, role: Role) -> ExitCode {
    if let Err(error) = traces::start(role.as_str()) {
        return fail(&error, USAGE_ERROR);
    }
    let result = async { app::run(settings, role, signals()?).await };
    match result.await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error @ AppError::Usage(_)) => fail(&error.to_string(), USAGE_ERROR),
        Err(error) => fail(&error.to_string(), 1),
    }
}

async fn run_tool(settings: Settings, tool: Tool) -> ExitCode {
    match tools::run(&settings, tool).await {
        Ok(Finding::None) => ExitCode::SUCCESS,
        Ok(Finding::Some) => ExitCode::FAILURE,
        Err(error @ ToolError::Usage(_)) => fail(&error.to_string(), USAGE_ERROR),
        Err(error) => fail(&error.to_string(), 1),
    }
}

async fn rehearse(args: &RehearseArgs) -> ExitCode {
    let stop = match signals() {
        Ok(stop) => stop,
        Err(error) => return fail(&error.to_string(), 1),
    };
    match rehearse::run(args, stop).await {
        Ok(Ended::Passed) => ExitCode::SUCCESS,
        Ok(Ended::Failed) => ExitCode::FAILURE,
        Ok(Ended::Interrupted) => ExitCode::from(INTERRUPTED),
        Err(error @ RehearseError::Usage(_)) => fail(&error.to_string(), USAGE_ERROR),
        Err(error) => fail(&error.to_string(), 1),
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

/// Prints what clap says, but without the passwords of URLs in wrong places. Help and the version are no errors.
fn report_usage_error(error: &clap::Error) -> ExitCode {
    let arguments: Vec<_> = std::env::args().collect();
    let urls: Vec<_> = arguments.iter().filter_map(|argument| server_url::within(argument)).collect();
    if !error.use_stderr() || urls.is_empty() {
        error.exit();
    }
    let message = urls
        .iter()
        .fold(error.render().to_string(), |message, url| message.replace(url, &server_url::shown(url)));
    eprint!("{message}");
    ExitCode::from(USAGE_ERROR)
}

fn fail(message: &str, code: u8) -> ExitCode {
    eprintln!("antre: {message}");
    ExitCode::from(code)
}
