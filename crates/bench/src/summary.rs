//! A run on one page, in Markdown: what the repository keeps of it. Every round is in the run's own file.

use std::{
    fmt::Write as _,
    fs,
    path::{Path, PathBuf},
};

use antre_testkit::error::Result;
use clap::Args;

use crate::report::{Comparison, Report};

#[derive(Args, Clone, Debug)]
pub(crate) struct SummarizeArgs {
    /// The file of a run with all of its rounds
    #[arg(required = true)]
    pub(crate) rounds: Option<PathBuf>,
    /// Where the summary is written
    #[arg(long, default_value = "crates/bench/results/latest.md")]
    pub(crate) summary: PathBuf,
    /// Where the chart is written
    #[arg(long, default_value = "docs/benchmark.svg")]
    pub(crate) chart: PathBuf,
}

impl SummarizeArgs {
    /// What the project shows.
    pub(crate) fn project() -> Self {
        let crate_directory = Path::new(env!("CARGO_MANIFEST_DIR"));
        Self {
            rounds: None,
            summary: crate_directory.join("results/latest.md"),
            chart: crate_directory.join("../../docs/benchmark.svg"),
        }
    }

    pub(crate) fn below(directory: &Path) -> Self {
        Self { rounds: None, summary: directory.join("latest.md"), chart: directory.join("benchmark.svg") }
    }
}

pub(crate) fn write(report: &Report, path: &Path) -> Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    Ok(fs::write(path, markdown(report))?)
}

fn markdown(report: &Report) -> String {
    let mut text = "# The latest complete run\n\n".to_owned();
    text += "Written by `antre-bench`; [the README](../README.md) explains the variants and scenarios.\n\n";
    for line in report.machine.describe().lines() {
        let _ = writeln!(text, "- {line}");
    }
    let _ = writeln!(
        text,
        "- {} rounds of {} s each after {} s of warm-up; medians",
        report.rounds, report.timing.seconds, report.timing.warm_up_seconds
    );
    text += "\nRates are accepted orders a second; refused ones where nothing is in stock; payments in `pay`. \"× best\" is \
             the ratio to the best variant with a transaction for each request.\n";
    text += "\n| scenario | connections | variant | rate | × best | of no-op | p50 ms | p99 ms |\n";
    text += "|---|--:|---|--:|--:|--:|--:|--:|\n";
    for comparison in &report.comparisons {
        text += &rows(comparison);
    }
    text
}

fn rows(comparison: &Comparison) -> String {
    let mut text = String::new();
    for result in &comparison.results {
        let ratio =
            |ratio: Option<f64>, digits| ratio.map_or(String::new(), |ratio| format!("{ratio:.digits$}"));
        let _ = writeln!(
            text,
            "| {} | {} | {} | {:.0} | {} | {} | {:.2} | {:.2} |",
            comparison.scenario,
            comparison.connections,
            result.variant,
            result.orders_per_second,
            ratio(result.times_best_direct, 1),
            ratio(result.of_noop, 2),
            result.p50_ms,
            result.p99_ms,
        );
    }
    text
}
