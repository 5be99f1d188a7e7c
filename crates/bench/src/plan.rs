//! What a run measures: which variants meet which loads, for how long, how often.

use std::{path::PathBuf, time::Duration};

use clap::{Args, ValueEnum};
use serde::{Deserialize, Serialize};

use crate::{
    scenario::{Cell, OPEN_CONNECTIONS, Pace, Scenario},
    variant::Variant,
};

const LONE_PAUSE_MS: u64 = 20;

#[derive(Args, Clone, Debug)]
pub(crate) struct PlanArgs {
    /// Only these variants
    #[arg(long, value_enum, value_delimiter = ',')]
    variants: Vec<Variant>,
    /// Only these scenarios
    #[arg(long, value_enum, value_delimiter = ',')]
    scenarios: Vec<Scenario>,
    /// Connections of the closed loops [default: 256,1024]
    #[arg(long, value_delimiter = ',')]
    connections: Vec<usize>,
    /// How long each variant is measured in each round [default: 5]
    #[arg(long)]
    seconds: Option<f64>,
    /// How long each runs before that [default: 1]
    #[arg(long)]
    warm_up_seconds: Option<f64>,
    /// How often everything is measured; the medians count [default: 2, with --baseline 6]
    #[arg(long)]
    rounds: Option<usize>,
    /// Orders a second of the open loops
    #[arg(long, value_delimiter = ',', default_value = "1000")]
    rates: Vec<f64>,
    /// Connections of the direct variants to MySQL, instead of the best size by trial
    #[arg(long)]
    pool: Option<u32>,
    /// One short round of the essential: a look, not a measurement
    #[arg(long)]
    quick: bool,
    /// Only the embedded mode and the no-op, which need no servers
    #[arg(long)]
    embedded_only: bool,
    /// The antre to measure, instead of a release build of this checkout
    #[arg(long, value_name = "BINARY")]
    antre: Option<PathBuf>,
    /// Another build of antre: measures the two in turn (antre-baseline, antre-embedded-baseline), in the scenarios hot,
    /// products-1000, sold-out and pay at 256 connections unless others are given
    #[arg(long, value_name = "BINARY")]
    baseline: Option<PathBuf>,
}

/// How long one measurement takes.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(crate) struct Timing {
    pub(crate) warm_up_seconds: f64,
    pub(crate) seconds: f64,
}

impl Timing {
    pub(crate) fn total(self) -> Duration {
        Duration::from_secs_f64(self.warm_up_seconds + self.seconds)
    }
}

/// The whole run.
#[derive(Clone, Debug)]
pub(crate) struct Plan {
    pub(crate) variants: Vec<Variant>,
    pub(crate) cells: Vec<Cell>,
    pub(crate) timing: Timing,
    pub(crate) rounds: usize,
    /// Sizes of the pool to try.
    pub(crate) pools: Vec<u32>,
    pub(crate) tuning: Timing,
    pub(crate) antre: Option<PathBuf>,
    pub(crate) baseline: Option<PathBuf>,
    /// Whether variants are left out of comparisons in which they say nothing new. Those that were asked for are not.
    leaves_out: bool,
    /// Nothing left out and nothing cut short: what the project publishes.
    pub(crate) is_complete: bool,
}

impl PlanArgs {
    pub(crate) fn plan(&self) -> Plan {
        let scenarios = match (&self.scenarios[..], self.embedded_only) {
            ([], true) => vec![Scenario::Hot, Scenario::SoldOut],
            ([], false) if self.baseline.is_some() => {
                vec![Scenario::Hot, Scenario::Products1000, Scenario::SoldOut, Scenario::Pay]
            }
            ([], false) => Scenario::value_variants().to_vec(),
            (given, _) => given.to_vec(),
        };
        let connections = match &self.connections[..] {
            [] if self.embedded_only || self.baseline.is_some() => vec![256],
            [] => vec![256, 1024],
            given => given.to_vec(),
        };
        let quick = |usual: f64, quick: f64| if self.quick { quick } else { usual };
        let timing = Timing {
            warm_up_seconds: self.warm_up_seconds.unwrap_or(1.0),
            seconds: self.seconds.unwrap_or(quick(5.0, 2.0)),
        };
        let usual_rounds = match (self.quick, &self.baseline) {
            (true, _) => 1,
            (false, None) => 2,
            (false, Some(_)) => 6,
        };
        Plan {
            is_complete: self.is_complete(),
            variants: self.variants(),
            cells: self.cells(&scenarios, &connections),
            timing,
            rounds: self.rounds.unwrap_or(usual_rounds).max(1),
            pools: match (self.pool, self.quick) {
                (Some(pool), _) => vec![pool],
                (None, true) => vec![8, 32],
                (None, false) => vec![4, 16, 64],
            },
            tuning: Timing { warm_up_seconds: 0.5, seconds: quick(1.5, 1.0) },
            antre: self.antre.clone(),
            baseline: self.baseline.clone(),
            leaves_out: self.variants.is_empty(),
        }
    }

    fn variants(&self) -> Vec<Variant> {
        let all = Variant::value_variants().iter().copied();
        let mut variants: Vec<_> = match &self.variants[..] {
            [] if self.baseline.is_some() => {
                all.filter(|variant| variant.is_baseline() || variant.baseline().is_some()).collect()
            }
            [] => all.filter(|variant| !variant.is_baseline()).collect(),
            given => given.to_vec(),
        };
        if self.embedded_only {
            variants.retain(|variant| !variant.needs_servers());
        }
        variants
    }

    /// More rounds and longer ones are welcome.
    fn is_complete(&self) -> bool {
        !self.quick
            && !self.embedded_only
            && self.variants.is_empty()
            && self.scenarios.is_empty()
            && self.connections.is_empty()
            && self.pool.is_none()
            && self.antre.is_none()
            && self.baseline.is_none()
            && self.seconds.is_none_or(|seconds| seconds >= 5.0)
            && self.warm_up_seconds.is_none_or(|seconds| seconds >= 1.0)
            && self.rounds.is_none_or(|rounds| rounds >= 2)
    }

    fn cells(&self, scenarios: &[Scenario], connections: &[usize]) -> Vec<Cell> {
        let mut cells = Vec::new();
        for &scenario in scenarios {
            let cell = |connections, pace| Cell { scenario, connections, pace };
            match scenario {
                Scenario::Open => cells.extend(
                    self.rates.iter().map(|&per_second| cell(OPEN_CONNECTIONS, Pace::Open { per_second })),
                ),
                Scenario::Lone => cells.push(cell(1, Pace::Pausing { milliseconds: LONE_PAUSE_MS })),
                _ => cells.extend(connections.iter().map(|&connections| cell(connections, Pace::Closed))),
            }
        }
        if self.quick && self.connections.is_empty() && self.scenarios.is_empty() {
            // The claims are about the hot product at both, the others at 256 are enough for a look.
            cells.retain(|cell| cell.scenario == Scenario::Hot || cell.connections <= OPEN_CONNECTIONS);
            cells.retain(|cell| cell.scenario != Scenario::Products100);
        }
        cells
    }
}

impl Plan {
    /// The variants that take part in a comparison, in the order of a round. Every round begins with another one, so that
    /// drift of the machine affects all alike. `best_direct` is the direct variant that was best in the trials of this
    /// scenario.
    pub(crate) fn variants(&self, cell: Cell, round: usize, best_direct: Option<Variant>) -> Vec<Variant> {
        let takes_part = |variant: Variant| {
            cell.is_for(variant) && !(self.leaves_out && cell.says_nothing_new(variant, best_direct))
        };
        let mut variants: Vec<_> =
            self.variants.iter().copied().filter(|variant| takes_part(*variant)).collect();
        let shift = round % variants.len().max(1);
        variants.rotate_left(shift);
        variants
    }

    pub(crate) fn needs_servers(&self) -> bool {
        self.variants.iter().any(|variant| variant.needs_servers())
    }
}
