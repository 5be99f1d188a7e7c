//! The results: medians of the rounds, compared with each other; as a table, and with all rounds as JSON.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path};

use antre_testkit::error::Result;
use serde::{Deserialize, Serialize};

use crate::{
    machine::Machine,
    measurement::{Measurement, ProcessUse},
    plan::{Plan, Timing},
    scenario::{Cell, Pace, Scenario},
    variant::Variant,
};

#[derive(Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) timing: Timing,
    pub(crate) rounds: usize,
    /// The best numbers of connections to MySQL, by trial.
    pub(crate) pools: Vec<Pool>,
    pub(crate) comparisons: Vec<Comparison>,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Pool {
    variant: Variant,
    scenario: Scenario,
    connections: u32,
}

/// What all variants did under the same load.
#[derive(Serialize, Deserialize)]
pub(crate) struct Comparison {
    pub(crate) title: String,
    pub(crate) scenario: Scenario,
    pub(crate) connections: usize,
    pace: String,
    pub(crate) results: Vec<Summary>,
}

/// One variant, medians of all rounds.
#[derive(Serialize, Deserialize)]
pub(crate) struct Summary {
    pub(crate) variant: Variant,
    /// Accepted orders; when sold out, refused ones.
    pub(crate) orders_per_second: f64,
    /// Divided by the rate of the best direct variant.
    pub(crate) times_best_direct: Option<f64>,
    /// Divided by the rate of the no-op.
    pub(crate) of_noop: Option<f64>,
    pub(crate) p50_ms: f64,
    pub(crate) p99_ms: f64,
    /// Largest resident memory of each of antre's processes in any round: under load, peak, after a rest.
    memory: Vec<Memory>,
    /// With `--baseline`: the rate divided by that of the other build.
    #[serde(default)]
    pub(crate) of_baseline: Option<Ratio>,
    rounds: Vec<Measurement>,
}

/// Of the rates in one round each, which follow each other closely.
#[derive(Clone, Copy, Serialize, Deserialize)]
pub(crate) struct Ratio {
    pub(crate) median: f64,
    pub(crate) least: f64,
    pub(crate) greatest: f64,
}

#[derive(Serialize, Deserialize)]
pub(crate) struct Memory {
    process: String,
    loaded_mb: f64,
    peak_mb: f64,
    rested_mb: f64,
}

impl Report {
    pub(crate) fn new(
        machine: Machine,
        plan: &Plan,
        pools: &BTreeMap<(Variant, Scenario), u32>,
        measured: Vec<(Cell, Vec<Measurement>)>,
    ) -> Self {
        let pools =
            pools.iter().map(|(&(variant, scenario), &connections)| Pool { variant, scenario, connections });
        Self {
            machine,
            timing: plan.timing,
            rounds: plan.rounds,
            pools: pools.collect(),
            comparisons: measured
                .into_iter()
                .map(|(cell, all)| Comparison::new(cell, &plan.variants, &all))
                .collect(),
        }
    }

    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        Ok(fs::write(path, serde_json::to_string_pretty(self)? + "\n")?)
    }

    pub(crate) fn read(path: &Path) -> Result<Self> {
        Ok(serde_json::from_slice(&fs::read(path)?)?)
    }

    pub(crate) fn table(&self) -> String {
        let mut text = self.machine.describe();
        for comparison in &self.comparisons {
            text += "\n";
            text += &comparison.table();
        }
        text
    }
}

impl Machine {
    pub(crate) fn describe(&self) -> String {
        let mut text = format!(
            "{}\n{} cores, {}, {} GB, {}, Linux {}, load average {} at the start\n\
             write and fdatasync of 4 KiB: {} µs; {}; {}\n",
            self.date,
            self.cores,
            self.cpu,
            self.memory_gb,
            self.system,
            self.kernel,
            self.load_average,
            self.sync_microseconds,
            self.antre,
            self.rustc,
        );
        if let Some(baseline) = &self.baseline {
            let _ = writeln!(text, "baseline: {baseline}");
        }
        if let (Some(mysql), Some(durability)) = (&self.mysql, &self.durability) {
            let _ = writeln!(
                text,
                "MySQL {mysql}, innodb_flush_log_at_trx_commit={}, sync_binlog={}; RabbitMQ {}, quorum queues",
                durability.innodb_flush_log_at_trx_commit,
                durability.sync_binlog,
                self.rabbitmq.as_deref().unwrap_or("of unknown version"),
            );
        }
        text
    }
}

impl Comparison {
    fn new(cell: Cell, variants: &[Variant], measurements: &[Measurement]) -> Self {
        let mut results: Vec<_> = variants
            .iter()
            .filter_map(|variant| {
                let rounds: Vec<_> =
                    measurements.iter().filter(|one| one.variant == *variant).cloned().collect();
                (!rounds.is_empty()).then(|| Summary::new(*variant, cell.scenario, rounds))
            })
            .collect();
        // Ratios mean something only where the server limits the rate.
        if cell.pace == Pace::Closed {
            let best = |of: &dyn Fn(Variant) -> bool| {
                let rates = results.iter().filter(|one| of(one.variant)).map(|one| one.orders_per_second);
                rates.reduce(f64::max).filter(|rate| *rate > 0.0)
            };
            let (direct, noop) = (best(&Variant::is_direct), best(&|variant| variant == Variant::Noop));
            for result in &mut results {
                result.times_best_direct = direct.map(|direct| result.orders_per_second / direct);
                result.of_noop = noop.map(|noop| result.orders_per_second / noop);
                let rates = |variant: Variant| -> Vec<f64> {
                    let rounds = measurements.iter().filter(|one| one.variant == variant);
                    rounds.map(|one| one.per_second(cell.scenario)).collect()
                };
                let baseline = result.variant.baseline().map(rates).unwrap_or_default();
                let ratios =
                    rates(result.variant).into_iter().zip(baseline).map(|(rate, other)| rate / other);
                result.of_baseline = Ratio::of(ratios.collect());
            }
        }
        Self {
            title: cell.to_string(),
            scenario: cell.scenario,
            connections: cell.connections,
            pace: cell.pace.to_string(),
            results,
        }
    }

    fn table(&self) -> String {
        let counted = match self.scenario {
            Scenario::SoldOut => "refused/s",
            Scenario::Pay => "paid/s",
            _ => "accepted/s",
        };
        let mut text = format!(
            "{}\n  {:<24}{counted:>11}{:>10}{:>9}{:>10}{:>10}  {}\n",
            self.title,
            "variant",
            "× direct",
            "of noop",
            "p50 ms",
            "p99 ms",
            "cores used; memory under load/peak/after"
        );
        for result in &self.results {
            let ratio = |ratio: Option<f64>, digits| {
                ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.digits$}"))
            };
            let _ = writeln!(
                text,
                "  {:<24}{:>11.0}{:>10}{:>9}{:>10.2}{:>10.2}  {}",
                result.variant,
                result.orders_per_second,
                ratio(result.times_best_direct, 1),
                ratio(result.of_noop, 2),
                result.p50_ms,
                result.p99_ms,
                result.notes(),
            );
        }
        for result in &self.results {
            if let Some(Ratio { median, least, greatest }) = result.of_baseline {
                let variant = result.variant;
                let _ = writeln!(
                    text,
                    "  {variant} / baseline: {median:.3} (rounds: {least:.3} to {greatest:.3})"
                );
            }
        }
        let rate =
            |variant| self.results.iter().find(|one| one.variant == variant).map(|one| one.orders_per_second);
        if let (Some(encrypted), Some(plain)) = (rate(Variant::Antre), rate(Variant::AntrePlain)) {
            let _ = writeln!(text, "  with encryption / without: {:.2}", encrypted / plain);
        }
        text
    }
}

impl Summary {
    fn new(variant: Variant, scenario: Scenario, rounds: Vec<Measurement>) -> Self {
        let median = |of: &dyn Fn(&Measurement) -> f64| median(rounds.iter().map(of).collect());
        Self {
            variant,
            orders_per_second: median(&|round| round.per_second(scenario)),
            times_best_direct: None,
            of_noop: None,
            p50_ms: median(&|round| f64::from(round.load.latency.p50_us) / 1000.0),
            p99_ms: median(&|round| f64::from(round.load.latency.p99_us) / 1000.0),
            memory: memory(&rounds),
            of_baseline: None,
            rounds,
        }
    }

    /// Processor time and pool of its last round, memory, and answers that are neither a verdict nor expected.
    fn notes(&self) -> String {
        let Some(last) = self.rounds.last() else { return String::new() };
        let used = |one: &ProcessUse| format!("{} {:.2}", one.name, one.cores);
        let mut notes = vec![last.processes.iter().map(used).collect::<Vec<_>>().join(" ")];
        notes.extend(self.memory.iter().map(|memory| {
            let Memory { process, loaded_mb, peak_mb, rested_mb } = memory;
            format!("{process} {loaded_mb:.0}/{peak_mb:.0}/{rested_mb:.0} MB")
        }));
        notes.extend(last.pool.map(|pool| format!("pool of {pool}")));
        let unexpected = |what: &str, of: &dyn Fn(&Measurement) -> u64| {
            let count: u64 = self.rounds.iter().map(of).sum();
            (count > 0).then(|| format!("{count} × {what}"))
        };
        notes.extend(unexpected("202", &|round| round.load.all.pending));
        notes.extend(unexpected("503", &|round| round.load.all.unavailable));
        notes.extend(unexpected("another status", &|round| round.load.all.failed));
        notes.extend(unexpected("no answer", &|round| round.load.all.unanswered));
        notes.join("; ")
    }
}

impl Ratio {
    fn of(ratios: Vec<f64>) -> Option<Self> {
        let least = ratios.iter().copied().reduce(f64::min)?;
        let greatest = ratios.iter().copied().reduce(f64::max)?;
        Some(Self { median: median(ratios), least, greatest })
    }
}

/// Of at least one value; of two, the mean.
fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    let middle = values.len() / 2;
    if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
}

fn memory(rounds: &[Measurement]) -> Vec<Memory> {
    let mut memory: Vec<Memory> = Vec::new();
    for process in rounds.iter().flat_map(|round| &round.processes) {
        let Some(rested_mb) = process.rested_mb else { continue };
        if !matches!(process.name.as_str(), "api" | "worker" | "serve") {
            continue;
        }
        let known = memory.iter().position(|one| one.process == process.name);
        let index = known.unwrap_or_else(|| {
            memory.push(Memory {
                process: process.name.clone(),
                loaded_mb: 0.0,
                peak_mb: 0.0,
                rested_mb: 0.0,
            });
            memory.len() - 1
        });
        let one = &mut memory[index];
        one.loaded_mb = one.loaded_mb.max(process.loaded_mb);
        one.peak_mb = one.peak_mb.max(process.peak_mb);
        one.rested_mb = one.rested_mb.max(rested_mb);
    }
    memory
}
