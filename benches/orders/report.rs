//! The results: medians of the rounds, set against each other; as a table and as JSON.

use std::{fmt::Write as _, fs, path::Path};

use serde::Serialize;

use crate::{
    Result,
    load::Pace,
    machine::Machine,
    plan::{Cell, Plan, Scenario, Timing, Variant},
    run::{Measurement, ProcessUse, Stage},
};

#[derive(Serialize)]
pub(crate) struct Report {
    pub(crate) machine: Machine,
    pub(crate) timing: Timing,
    pub(crate) rounds: usize,
    /// Tried beforehand: the best number of connections to MySQL.
    pub(crate) pools: Vec<Pool>,
    pub(crate) comparisons: Vec<Comparison>,
}

#[derive(Serialize)]
pub(crate) struct Pool {
    variant: Variant,
    scenario: Scenario,
    connections: u32,
}

/// What all variants did under the same load.
#[derive(Serialize)]
pub(crate) struct Comparison {
    title: String,
    pub(crate) scenario: Scenario,
    pub(crate) connections: usize,
    pace: String,
    pub(crate) results: Vec<Summary>,
}

/// One variant, medians of all rounds.
#[derive(Serialize)]
pub(crate) struct Summary {
    pub(crate) variant: Variant,
    /// Accepted ones; when sold out, refused ones.
    pub(crate) orders_per_second: f64,
    /// Beside the best of the direct variants.
    times_best_direct: Option<f64>,
    /// Beside the HTTP server that does nothing.
    of_noop: Option<f64>,
    p50_ms: f64,
    p99_ms: f64,
    /// Largest resident memory of each of antre's processes in any round: under load, peak, after a rest.
    memory: Vec<Memory>,
    rounds: Vec<Measurement>,
}

#[derive(Serialize)]
pub(crate) struct Memory {
    process: &'static str,
    loaded_mb: f64,
    peak_mb: f64,
    rested_mb: f64,
}

impl Report {
    pub(crate) fn new(
        machine: Machine,
        plan: &Plan,
        stage: &Stage,
        measured: Vec<(Cell, Vec<Measurement>)>,
    ) -> Self {
        let pools = stage.pools().iter().map(|(&(variant, scenario), &connections)| Pool {
            variant,
            scenario,
            connections,
        });
        Self {
            machine,
            timing: plan.timing,
            rounds: plan.rounds,
            pools: pools.collect(),
            comparisons: measured
                .into_iter()
                .map(|(cell, all)| Comparison::new(cell, &plan.variants, all))
                .collect(),
        }
    }

    pub(crate) fn save(&self, path: &Path) -> Result<()> {
        if let Some(directory) = path.parent() {
            fs::create_dir_all(directory)?;
        }
        Ok(fs::write(path, serde_json::to_string_pretty(self)? + "\n")?)
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
             write and fdatasync of 4 KiB: {} µs; antre {}; {}\n",
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
    fn new(cell: Cell, variants: &[Variant], measurements: Vec<Measurement>) -> Self {
        let mut results: Vec<_> = variants
            .iter()
            .filter_map(|variant| {
                let rounds: Vec<_> =
                    measurements.iter().filter(|one| one.variant == *variant).cloned().collect();
                (!rounds.is_empty()).then(|| Summary::new(*variant, cell.scenario, rounds))
            })
            .collect();
        // How much faster only means something where the server decides how fast it goes.
        if cell.pace == Pace::Closed {
            let best = |of: &dyn Fn(Variant) -> bool| {
                let rates = results.iter().filter(|one| of(one.variant)).map(|one| one.orders_per_second);
                rates.reduce(f64::max).filter(|rate| *rate > 0.0)
            };
            let (direct, noop) = (best(&Variant::is_direct), best(&|variant| variant == Variant::Noop));
            for result in &mut results {
                result.times_best_direct = direct.map(|direct| result.orders_per_second / direct);
                result.of_noop = noop.map(|noop| result.orders_per_second / noop);
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
            "{}\n  {:<20}{counted:>11}{:>10}{:>9}{:>10}{:>10}  {}\n",
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
                "  {:<20}{:>11.0}{:>10}{:>9}{:>10.2}{:>10.2}  {}",
                result.variant,
                result.orders_per_second,
                ratio(result.times_best_direct, 1),
                ratio(result.of_noop, 2),
                result.p50_ms,
                result.p99_ms,
                result.notes(),
            );
        }
        let rate =
            |variant| self.results.iter().find(|one| one.variant == variant).map(|one| one.orders_per_second);
        if let (Some(encrypted), Some(plain)) = (rate(Variant::Antre), rate(Variant::AntrePlain)) {
            let _ = writeln!(text, "  with encryption {:.2} of without", encrypted / plain);
        }
        text
    }
}

impl Summary {
    fn new(variant: Variant, scenario: Scenario, rounds: Vec<Measurement>) -> Self {
        let median = |of: &dyn Fn(&Measurement) -> f64| {
            let mut values: Vec<_> = rounds.iter().map(of).collect();
            values.sort_unstable_by(f64::total_cmp);
            let middle = values.len() / 2;
            if values.len() % 2 == 1 { values[middle] } else { (values[middle - 1] + values[middle]) / 2.0 }
        };
        Self {
            variant,
            orders_per_second: median(&|round| round.per_second(scenario)),
            times_best_direct: None,
            of_noop: None,
            p50_ms: median(&|round| f64::from(round.load.latency.p50_us) / 1000.0),
            p99_ms: median(&|round| f64::from(round.load.latency.p99_us) / 1000.0),
            memory: memory(&rounds),
            rounds,
        }
    }

    /// What else there is to know of it, of its last round.
    fn notes(&self) -> String {
        let Some(last) = self.rounds.last() else { return String::new() };
        let used = |one: &ProcessUse| format!("{} {:.2}", one.name, one.cores);
        let mut notes = vec![last.processes.iter().map(used).collect::<Vec<_>>().join(" ")];
        notes.extend(self.memory.iter().map(|memory| {
            let Memory { process, loaded_mb, peak_mb, rested_mb } = memory;
            format!("{process} {loaded_mb:.0}/{peak_mb:.0}/{rested_mb:.0} MB")
        }));
        notes.extend(last.pool.map(|pool| format!("pool of {pool}")));
        let strange = |what: &str, of: &dyn Fn(&Measurement) -> u64| {
            let count: u64 = self.rounds.iter().map(of).sum();
            (count > 0).then(|| format!("{count} × {what}"))
        };
        notes.extend(strange("202", &|round| round.load.all.pending));
        notes.extend(strange("503", &|round| round.load.all.unavailable));
        notes.extend(strange("another status", &|round| round.load.all.failed));
        notes.extend(strange("no answer", &|round| round.load.all.unanswered));
        notes.join("; ")
    }
}

fn memory(rounds: &[Measurement]) -> Vec<Memory> {
    let mut memory: Vec<Memory> = Vec::new();
    for process in rounds.iter().flat_map(|round| &round.processes) {
        let Some(rested_mb) = process.rested_mb else { continue };
        if !matches!(process.name, "api" | "worker" | "serve") {
            continue;
        }
        let known = memory.iter().position(|one| one.process == process.name);
        let index = known.unwrap_or_else(|| {
            memory.push(Memory { process: process.name, loaded_mb: 0.0, peak_mb: 0.0, rested_mb: 0.0 });
            memory.len() - 1
        });
        let one = &mut memory[index];
        one.loaded_mb = one.loaded_mb.max(process.loaded_mb);
        one.peak_mb = one.peak_mb.max(process.peak_mb);
        one.rested_mb = one.rested_mb.max(rested_mb);
    }
    memory
}
