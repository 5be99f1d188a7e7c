//! What is measured: the command line, the variants, the scenarios.

use std::{fmt, time::Duration};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::Serialize;

use crate::{
    direct::{Design, ServeArgs},
    load::{LoadArgs, Pace},
};

/// Measures antre beside other ways to take an order, in one run, on the same servers.
#[derive(Parser, Debug)]
#[command(bin_name = "cargo bench --bench orders --", args_conflicts_with_subcommands = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) part: Option<Part>,
    #[command(flatten)]
    pub(crate) plan: PlanArgs,
    /// What cargo bench adds
    #[arg(long, hide = true)]
    bench: bool,
}

/// What this program is when it starts itself.
#[derive(Subcommand, Debug)]
pub(crate) enum Part {
    #[command(hide = true)]
    Serve(ServeArgs),
    #[command(hide = true)]
    Load(LoadArgs),
    #[command(hide = true)]
    Reap,
}

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
    /// How often everything is measured; the medians count [default: 2]
    #[arg(long)]
    rounds: Option<usize>,
    /// Orders a second of the open loops
    #[arg(long, value_delimiter = ',', default_value = "1000")]
    rates: Vec<f64>,
    /// Connections of the direct variants to MySQL, instead of trying what is best for each
    #[arg(long)]
    pool: Option<u32>,
    /// One short round of the essential: a look, not a measurement
    #[arg(long)]
    quick: bool,
    /// Only the embedded mode beside the no-op, which needs no servers
    #[arg(long)]
    embedded_only: bool,
}

/// A way to take an order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Variant {
    Noop,
    DirectUpdate,
    DirectForUpdate,
    DirectSkipLocked,
    Antre,
    #[value(name = "antre-hash16")]
    AntreHash16,
    AntrePlain,
    AntreNoEvents,
    AntreKeys,
    AntreEmbedded,
}

impl Variant {
    /// How it decides, when it is one of the servers here.
    pub(crate) fn design(self) -> Option<Design> {
        match self {
            Self::Noop => Some(Design::Noop),
            Self::DirectUpdate => Some(Design::Update),
            Self::DirectForUpdate => Some(Design::ForUpdate),
            Self::DirectSkipLocked => Some(Design::SkipLocked),
            Self::Antre
            | Self::AntreHash16
            | Self::AntrePlain
            | Self::AntreNoEvents
            | Self::AntreKeys
            | Self::AntreEmbedded => None,
        }
    }

    pub(crate) fn is_direct(self) -> bool {
        self.needs_servers() && self.design().is_some()
    }

    pub(crate) fn needs_servers(self) -> bool {
        !matches!(self, Self::Noop | Self::AntreEmbedded)
    }

    /// What `LANES` says, when it is antre on servers.
    pub(crate) fn lanes(self) -> Option<&'static str> {
        match self {
            Self::Antre | Self::AntrePlain | Self::AntreNoEvents | Self::AntreKeys => Some("product"),
            Self::AntreHash16 => Some("hash:16"),
            _ => None,
        }
    }
}

/// What buyers do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Scenario {
    /// All want one product, of which there is plenty
    Hot,
    /// 100 products, evenly
    #[value(name = "products-100")]
    Products100,
    /// 1,000 products, evenly
    #[value(name = "products-1000")]
    Products1000,
    /// All want one product, of which there is none
    SoldOut,
    /// Orders of one product, reserved before, are paid
    Pay,
    /// One product, orders at a fixed rate
    Open,
    /// One product, one order at a time, nothing else going on
    Lone,
}

impl Scenario {
    pub(crate) fn products(self) -> u64 {
        match self {
            Self::Products100 => 100,
            Self::Products1000 => 1_000,
            _ => 1,
        }
    }

    fn is_spread(self) -> bool {
        self.products() > 1
    }

    /// The scenario whose best size of the pool is used: that of the same product and stock.
    pub(crate) fn tuned_as(self) -> Self {
        match self {
            Self::Pay | Self::Open | Self::Lone => Self::Hot,
            other => other,
        }
    }
}

macro_rules! display_as_on_the_command_line {
    ($($type:ty),*) => {$(
        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.pad(self.to_possible_value().as_ref().map_or("", |value| value.get_name()))
            }
        }

        impl Serialize for $type {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    )*};
}
display_as_on_the_command_line!(Variant, Scenario);

/// One comparison: all variants meet the same load.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cell {
    pub(crate) scenario: Scenario,
    pub(crate) connections: usize,
    pub(crate) pace: Pace,
}

impl Cell {
    /// Whether the comparison means anything for this variant.
    fn is_for(self, variant: Variant) -> bool {
        match (self.scenario, variant) {
            // Nobody else has payments.
            (Scenario::Pay, variant) => matches!(variant, Variant::Antre | Variant::AntreEmbedded),
            // With one product there is one lane, whatever it is called.
            (scenario, Variant::AntreHash16) => scenario.is_spread(),
            // The longest statements, which suffer most where encryption breaks them into several packets.
            (scenario, Variant::AntrePlain) => scenario == Scenario::Hot,
            // Most events, and the dearest ones, are those of a hot product.
            (scenario, Variant::AntreNoEvents) => scenario == Scenario::Hot,
            // What keys cost where most of them come together, and where they are kept from the gate.
            (scenario, Variant::AntreKeys) => matches!(scenario, Scenario::Hot | Scenario::SoldOut),
            _ => true,
        }
    }

    /// At 1,024 connections, direct variants do what they did at 256; so only the best is measured again, except in
    /// the comparison that everything is about. And the embedded mode does not care how many products there are.
    fn says_nothing_new(self, variant: Variant, best_direct: Option<Variant>) -> bool {
        let many = self.connections > OPEN_CONNECTIONS && self.scenario != Scenario::Hot;
        let beaten = variant.is_direct() && best_direct.is_some_and(|best| best != variant);
        (many && beaten) || (variant == Variant::AntreEmbedded && self.scenario.is_spread())
    }
}

impl fmt::Display for Cell {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let what = match self.scenario {
            Scenario::Hot | Scenario::Open => "one hot product",
            Scenario::Products100 => "100 products evenly",
            Scenario::Products1000 => "1,000 products evenly",
            Scenario::SoldOut => "one product, sold out",
            Scenario::Pay => "payments of one product",
            Scenario::Lone => "a lone order at a time, idle system",
        };
        match self.pace {
            Pace::Closed => write!(f, "{what}, closed loop, {} connections", self.connections),
            Pace::Open { per_second } => {
                write!(f, "{what}, open loop, {per_second} orders/s due, {} connections", self.connections)
            }
            Pace::Pausing { milliseconds } => write!(f, "{what}, {milliseconds} ms apart"),
        }
    }
}

/// How long for.
#[derive(Clone, Copy, Debug, Serialize)]
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
    /// Whether variants stay away from comparisons in which they say nothing new. Those that were asked for do not.
    leaves_out: bool,
    /// Nothing left out and nothing cut short: what the project publishes.
    pub(crate) is_complete: bool,
}

/// Connections of an open loop: more than can be needed unless the server stalls.
const OPEN_CONNECTIONS: usize = 256;
const LONE_PAUSE_MS: u64 = 20;

impl PlanArgs {
    pub(crate) fn plan(&self) -> Plan {
        let variants = match (&self.variants[..], self.embedded_only) {
            ([], true) => vec![Variant::Noop, Variant::AntreEmbedded],
            ([], false) => Variant::value_variants().to_vec(),
            (given, false) => given.to_vec(),
            (given, true) => given.iter().copied().filter(|variant| !variant.needs_servers()).collect(),
        };
        let scenarios = match (&self.scenarios[..], self.embedded_only) {
            ([], true) => vec![Scenario::Hot, Scenario::SoldOut],
            ([], false) => Scenario::value_variants().to_vec(),
            (given, _) => given.to_vec(),
        };
        let connections = match &self.connections[..] {
            [] if self.embedded_only => vec![256],
            [] => vec![256, 1024],
            given => given.to_vec(),
        };
        let quick = |usual: f64, quick: f64| if self.quick { quick } else { usual };
        let timing = Timing {
            warm_up_seconds: self.warm_up_seconds.unwrap_or(1.0),
            seconds: self.seconds.unwrap_or(quick(5.0, 2.0)),
        };
        Plan {
            is_complete: self.is_complete(),
            variants,
            cells: self.cells(&scenarios, &connections),
            timing,
            rounds: self.rounds.unwrap_or(if self.quick { 1 } else { 2 }).max(1),
            pools: match (self.pool, self.quick) {
                (Some(pool), _) => vec![pool],
                (None, true) => vec![8, 32],
                (None, false) => vec![4, 16, 64],
            },
            tuning: Timing { warm_up_seconds: 0.5, seconds: quick(1.5, 1.0) },
            leaves_out: self.variants.is_empty(),
        }
    }

    /// More rounds and longer ones are welcome.
    fn is_complete(&self) -> bool {
        !self.quick
            && !self.embedded_only
            && self.variants.is_empty()
            && self.scenarios.is_empty()
            && self.connections.is_empty()
            && self.pool.is_none()
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
    /// The variants that take part in a comparison, in the order of a round: every round begins with another one, so
    /// that whatever drifts on the machine hits all alike. `best_direct` is the direct variant that was best in the
    /// trials of this scenario.
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
