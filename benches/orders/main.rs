//! `cargo bench --bench orders` measures antre beside other ways to take an order: in one run, on the same fully durable
//! MySQL and the same RabbitMQ, with the same HTTP stack and the same load. `benches/README.md` says what is measured
//! and what the numbers do not say; `-- --help` says what can be chosen.
//!
//! In the order of a run: [`plan`] (what to measure), [`servers`], [`run`] (one variant under one load: [`books`],
//! [`processes`], [`direct`], [`load`]), [`report`] and [`chart`]; and the [`reaper`] leaves nothing behind.

mod books;
mod chart;
mod direct;
mod load;
mod machine;
mod plan;
mod processes;
mod reaper;
mod report;
mod run;
mod servers;

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use clap::Parser;
use tokio::signal::unix::{SignalKind, signal};

use machine::Machine;
use plan::{Cell, Cli, Part, Plan};
use report::Report;
use run::{Measurement, Stage};

type Result<T, E = Box<dyn std::error::Error + Send + Sync>> = std::result::Result<T, E>;

fn main() -> ExitCode {
    let ours = |argument: &str| matches!(argument, "--bench" | "serve" | "load" | "reap" | "--help" | "-h");
    if !env::args().skip(1).any(|argument| ours(&argument)) {
        // `cargo test --benches` builds and starts it as well.
        println!("nothing to test here; cargo bench --bench orders measures");
        return ExitCode::SUCCESS;
    }
    let cli = Cli::parse();
    processes::allow_many_files();
    let result = match &cli.part {
        Some(Part::Serve(args)) => direct::run(args),
        Some(Part::Load(args)) => load::run(args),
        Some(Part::Reap) => reaper::run(),
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
    // In the target directory: that is on a disk, which a directory for temporary files is not everywhere.
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("orders");
    fs::create_dir_all(&directory)?;
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
    runtime.block_on(async {
        let stage = tokio::select! {
            stage = Stage::set(plan, &directory) => stage,
            interrupted = interrupted() => Err(interrupted),
        };
        let mut stage = stage?;
        let result = tokio::select! {
            result = measure(plan, &mut stage, &directory) => result,
            interrupted = interrupted() => Err(interrupted),
        };
        result.and(stage.strike())
    })
}

/// Why it ends before its end. What was started is stopped all the same.
async fn interrupted() -> Box<dyn std::error::Error + Send + Sync> {
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

async fn measure(plan: &Plan, stage: &mut Stage, directory: &Path) -> Result<()> {
    let mut machine = Machine::look(directory)?;
    if let Some(servers) = &stage.servers {
        machine.durability = Some(servers.durability().await?);
        machine.mysql = Some(servers.mysql_version().await?);
        machine.rabbitmq = servers.rabbitmq_version();
    }
    eprint!("{}", machine.describe());
    stage.tune(plan).await?;
    let variants = |cell: &Cell| plan.variants(*cell, 0, stage.best_direct(cell.scenario)).len();
    let count: usize = plan.cells.iter().map(variants).sum();
    let estimate = (plan.timing.total() + Duration::from_secs(3)) * (count * plan.rounds) as u32;
    eprintln!("{count} measurements × {} rounds, some {} minutes", plan.rounds, estimate.as_secs() / 60 + 1);

    let mut measured: Vec<_> = plan.cells.iter().map(|cell| (*cell, Vec::new())).collect();
    let result = all_rounds(plan, stage, &mut measured).await;
    let report = Report::new(machine, plan, stage, measured);
    println!("\n{}", report.table());
    result?; // a table of what there was, but no files

    let (json, chart) = outputs(plan, directory);
    report.save(&json)?;
    chart::draw(&report, &chart)?;
    println!("{}\n{}", json.display(), chart.display());
    Ok(())
}

async fn all_rounds(plan: &Plan, stage: &mut Stage, measured: &mut [(Cell, Vec<Measurement>)]) -> Result<()> {
    for round in 0..plan.rounds {
        for (cell, measurements) in &mut *measured {
            for variant in plan.variants(*cell, round, stage.best_direct(cell.scenario)) {
                let one = stage.measure(variant, *cell, plan.timing).await?;
                eprintln!(
                    "round {}: {cell}: {variant:<20} {:>8.0} orders/s, p99 {:.2} ms",
                    round + 1,
                    one.per_second(cell.scenario),
                    f64::from(one.load.latency.p99_us) / 1000.0
                );
                measurements.push(one);
            }
        }
    }
    Ok(())
}

/// Only a complete run becomes what the project shows; a look at a part of it does not overwrite that.
fn outputs(plan: &Plan, directory: &Path) -> (PathBuf, PathBuf) {
    let project = Path::new(env!("CARGO_MANIFEST_DIR"));
    if plan.is_complete {
        (project.join("benches/results/latest.json"), project.join("docs/benchmark.svg"))
    } else {
        (directory.join("latest.json"), directory.join("benchmark.svg"))
    }
}
