//! `cargo run --release -p antre-bench` measures antre in comparison with other ways to take an order: in one run, on the
//! same fully durable MySQL and the same RabbitMQ, with the same HTTP stack and the same load. `crates/bench/README.md`
//! describes what is measured and what the numbers do not say; `-- --help` lists the options.
//!
//! In the order of a run: [`plan`] (which [`variant`]s meet which [`scenario`]s), [`servers`], [`run`] (one variant under
//! one load: [`database`], [`builds`], [`direct`], [`load`]; a [`measurement`]), [`report`], [`summary`] and [`chart`].

mod builds;
mod chart;
mod database;
mod direct;
mod load;
mod machine;
mod measurement;
mod plan;
mod report;
mod run;
mod scenario;
mod servers;
mod summary;
mod variant;

use std::{fs, io::ErrorKind, path::PathBuf, process::ExitCode, time::Duration};

use antre_testkit::{
    error::{Error, Result},
    processes, reaper,
};
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

use builds::Builds;
use direct::ServeArgs;
use load::LoadArgs;
use machine::Machine;
use measurement::Measurement;
use plan::{Plan, PlanArgs};
use report::Report;
use run::Runner;
use scenario::Cell;
use servers::RemoveArgs;
use summary::SummarizeArgs;

/// Measures antre in comparison with other ways to take an order, in one run, on the same servers.
#[derive(Parser, Debug)]
#[command(bin_name = "cargo run --release -p antre-bench --", args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    part: Option<Part>,
    #[command(flatten)]
    plan: PlanArgs,
}

#[derive(Subcommand, Debug)]
enum Part {
    /// Writes the summary and the chart of a run again, from its file
    Summarize(SummarizeArgs),
    // The rest is what this program starts itself as.
    #[command(hide = true)]
    Serve(ServeArgs),
    #[command(hide = true)]
    Load(LoadArgs),
    #[command(hide = true)]
    Remove(RemoveArgs),
}

/// Below the directory of a run: logs, and the database of the embedded mode.
const PROCESSES: &str = "processes";

fn main() -> ExitCode {
    let cli = Cli::parse();
    processes::raise_file_limit();
    let result = match &cli.part {
        Some(Part::Serve(args)) => direct::run(args),
        Some(Part::Load(args)) => load::run(args),
        Some(Part::Remove(args)) => servers::remove(args),
        Some(Part::Summarize(args)) => summarize(args),
        None => measure_all(&cli.plan.plan()),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn measure_all(plan: &Plan) -> Result<()> {
    let directory = builds::directory()?;
    match fs::remove_dir_all(directory.join(PROCESSES)) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(error.into()),
        _ => fs::create_dir_all(directory.join(PROCESSES))?,
    }
    let builds = Builds::find(plan)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    let measured = runtime.block_on(async {
        tokio::select! {
            result = measure(plan, builds, directory) => result,
            interrupted = interrupted() => Err(interrupted),
        }
    });
    // All processes are killed by now: the future is dropped.
    measured.and(reaper::finish())
}

/// Returns when this process should stop.
async fn interrupted() -> Error {
    let (Ok(mut interrupt), Ok(mut terminate)) =
        (signal(SignalKind::interrupt()), signal(SignalKind::terminate()))
    else {
        return "cannot listen for signals".into();
    };
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    "interrupted".into()
}

async fn measure(plan: &Plan, builds: Builds, directory: PathBuf) -> Result<()> {
    let mut machine = Machine::inspect(&directory, &builds)?;
    let mut runner = Runner::start(plan, builds, &directory.join(PROCESSES)).await?;
    if let Some(servers) = &runner.servers {
        machine.durability = Some(servers.durability().await?);
        machine.mysql = Some(servers.mysql_version().await?);
        machine.rabbitmq = servers.rabbitmq_version();
    }
    eprint!("{}", machine.describe());
    runner.tune(plan).await?;
    let variants = |cell: &Cell| plan.variants(*cell, 0, runner.best_direct(cell.scenario)).len();
    let count: usize = plan.cells.iter().map(variants).sum();
    let estimate = (plan.timing.total() + Duration::from_secs(3)) * (count * plan.rounds) as u32;
    eprintln!("{count} measurements × {} rounds, some {} minutes", plan.rounds, estimate.as_secs() / 60 + 1);

    let mut measured: Vec<_> = plan.cells.iter().map(|cell| (*cell, Vec::new())).collect();
    let result = all_rounds(plan, &mut runner, &mut measured).await;
    let report = Report::new(machine, plan, runner.pools(), measured);
    println!("\n{}", report.table());
    result?; // a table of what was measured, but no files

    let rounds = directory.join("latest.json");
    report.save(&rounds)?;
    println!("{}", rounds.display());
    // Only a complete run becomes what the project shows; a part of it does not overwrite that.
    publish(
        &report,
        &if plan.is_complete { SummarizeArgs::project() } else { SummarizeArgs::below(&directory) },
    )
}

async fn all_rounds(
    plan: &Plan,
    runner: &mut Runner,
    measured: &mut [(Cell, Vec<Measurement>)],
) -> Result<()> {
    for round in 0..plan.rounds {
        for (cell, measurements) in &mut *measured {
            for variant in plan.variants(*cell, round, runner.best_direct(cell.scenario)) {
                let measurement = runner.measure(variant, *cell, plan.timing).await?;
                eprintln!(
                    "round {}: {cell}: {variant:<24} {:>8.0} orders/s, p99 {:.2} ms",
                    round + 1,
                    measurement.per_second(cell.scenario),
                    f64::from(measurement.load.latency.p99_us) / 1000.0
                );
                measurements.push(measurement);
            }
        }
    }
    Ok(())
}

fn summarize(args: &SummarizeArgs) -> Result<()> {
    let path = args.rounds.as_ref().ok_or("which file?")?;
    publish(&Report::read(path)?, args)
}

fn publish(report: &Report, args: &SummarizeArgs) -> Result<()> {
    summary::write(report, &args.summary)?;
    chart::draw(report, &args.chart)?;
    println!("{}\n{}", args.summary.display(), args.chart.display());
    Ok(())
}
