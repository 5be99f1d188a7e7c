//! One measurement after the other: fill the database, start the variant, load it, stop it, check the books.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use serde::Serialize;
use tokio::{process::Command, time::sleep};

use crate::{
    Result,
    books::{self, Books},
    load::{Counts, Load, Pace},
    plan::{Cell, Plan, Scenario, Timing, Variant},
    processes::{self, Process},
    reaper::{self, Reaper, Thing},
    servers::Servers,
};

/// How long antre rests after the load, before its memory is looked at again.
const REST: Duration = Duration::from_secs(1);
/// How often the processes are looked at under load.
const SAMPLING: Duration = Duration::from_millis(200);
/// A broker that uses less of the machine has nothing to do.
const QUIET_CORES: f64 = 0.05;
/// How long a variant may take to be ready.
const PATIENCE: Duration = Duration::from_secs(60);

/// What one variant did in one round.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Measurement {
    pub(crate) variant: Variant,
    pub(crate) load: Load,
    /// Connections to MySQL of a direct variant.
    pub(crate) pool: Option<u32>,
    /// Everything that took part, also the servers and the load generator.
    pub(crate) processes: Vec<ProcessUse>,
    pub(crate) books: Option<Books>,
}

/// What one process used.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct ProcessUse {
    pub(crate) name: &'static str,
    /// On average while the load was on.
    pub(crate) cores: f64,
    /// Resident memory: the last that was seen under load, the highest ever (VmHWM), and after a rest.
    pub(crate) loaded_mb: f64,
    pub(crate) peak_mb: f64,
    pub(crate) rested_mb: Option<f64>,
}

/// What is there throughout the run.
pub(crate) struct Stage {
    pub(crate) servers: Option<Servers>,
    reaper: Reaper,
    /// Where logs and the embedded mode's database lie. On a disk, not in memory, for that mode commits to it.
    directory: PathBuf,
    /// Queues are used again from run to run, unless one ended with orders that nobody heard of again: those could
    /// still stand in line and would be decided in the next run.
    generations: BTreeMap<Variant, u32>,
    pools: BTreeMap<(Variant, Scenario), u32>,
    /// By scenario, with what it decided in the trial.
    best_direct: BTreeMap<Scenario, (u64, Variant)>,
}

impl Stage {
    pub(crate) async fn set(plan: &Plan, directory: &Path) -> Result<Self> {
        let mut reaper = Reaper::start()?;
        Ok(Self {
            servers: if plan.needs_servers() { Some(Servers::start(&mut reaper).await?) } else { None },
            reaper,
            directory: directory.to_owned(),
            generations: BTreeMap::new(),
            pools: BTreeMap::new(),
            best_direct: BTreeMap::new(),
        })
    }

    /// Tries sizes of the pool for the direct variants: with few connections a hot row is waited for in the pool, with
    /// many in the database, and only trying tells which is better where.
    pub(crate) async fn tune(&mut self, plan: &Plan) -> Result<()> {
        let scenarios: BTreeSet<_> = plan.cells.iter().map(|cell| cell.scenario.tuned_as()).collect();
        for variant in plan.variants.iter().copied().filter(|variant| variant.is_direct()) {
            for &scenario in &scenarios {
                let cell = Cell { scenario, connections: 256, pace: Pace::Closed };
                let mut best = (0, plan.pools[0]);
                for &pool in plan.pools.iter().filter(|_| plan.pools.len() > 1) {
                    self.pools.insert((variant, scenario), pool);
                    let decided = self.measure(variant, cell, plan.tuning).await?.load.measured.decided();
                    best = best.max((decided, pool));
                }
                self.pools.insert((variant, scenario), best.1);
                let best_direct = self.best_direct.entry(scenario).or_insert((best.0, variant));
                *best_direct = (*best_direct).max((best.0, variant));
                eprintln!("{variant}, {scenario}: {} connections to MySQL", best.1);
            }
        }
        Ok(())
    }

    pub(crate) async fn measure(
        &mut self,
        variant: Variant,
        cell: Cell,
        timing: Timing,
    ) -> Result<Measurement> {
        let context = |error| format!("{variant}, {cell}: {error}").into();
        self.try_measure(variant, cell, timing).await.map_err(context)
    }

    async fn try_measure(&mut self, variant: Variant, cell: Cell, timing: Timing) -> Result<Measurement> {
        self.prepare(variant, cell.scenario, timing.total()).await?;
        let pool = self.pools.get(&(variant, cell.scenario.tuned_as())).copied();
        let (address, running) = self.start(variant, pool).await?;
        let (load, mut samples) =
            self.load(variant, address, cell, timing, &running).await.map_err(|error| {
                let said: Vec<_> = running.iter().map(|process| process.said()).collect();
                format!("{error}\n{}", said.join("\n"))
            })?;
        if variant.design().is_none() {
            sleep(REST).await;
            for sample in &mut samples {
                sample.rested_kb = processes::usage(sample.pid).map(|usage| usage.resident_kb);
            }
        }
        for process in running {
            match variant.design() {
                Some(_) => process.kill(&mut self.reaper).await?,
                None => process.stop(&mut self.reaper).await?,
            }
        }
        if variant.lanes().is_some() {
            self.clear_lanes(variant).await?;
        }
        let books = self.read_books(variant).await?;
        if let Some(books) = &books {
            books.check(cell.scenario, &load.all)?;
        }
        if load.all.unknown() > 0 {
            *self.generations.entry(variant).or_default() += 1;
        }
        let processes = samples.iter().filter_map(Sample::process_use).collect();
        Ok(Measurement { variant, load, pool, processes, books })
    }

    /// An empty database with the scenario's products.
    async fn prepare(&self, variant: Variant, scenario: Scenario, seconds: Duration) -> Result<()> {
        let stock = if scenario == Scenario::SoldOut { 0 } else { books::PLENTY };
        let migrate = async |url: &str| -> Result<()> {
            let output = self.antre("migrate", url, variant).output().await?;
            if output.status.success() {
                return Ok(());
            }
            Err(format!("antre migrate: {}", String::from_utf8_lossy(&output.stderr)).into())
        };
        if variant == Variant::AntreEmbedded {
            for suffix in ["", "-wal", "-shm"] {
                let _ = fs::remove_file(self.directory.join(format!("antre.db{suffix}")));
            }
            let url = self.sqlite_url();
            migrate(&url).await?;
            return books::fill_sqlite(&url, scenario, stock, seconds).await;
        }
        if !variant.needs_servers() {
            return Ok(());
        }
        let servers = self.servers()?;
        servers.empty_database().await?;
        let url = servers.database_url();
        migrate(&url).await?;
        books::fill_mysql(&url, variant, scenario, stock, seconds).await
    }

    /// Starts what the variant consists of; where its API listens, and its processes.
    async fn start(&mut self, variant: Variant, pool: Option<u32>) -> Result<(SocketAddr, Vec<Process>)> {
        if let Some(design) = variant.design() {
            let mut command = Command::new(env::current_exe()?);
            let design = clap::ValueEnum::to_possible_value(&design);
            command.arg("serve").arg(design.as_ref().map_or("", |value| value.get_name()));
            if variant.needs_servers() {
                command.env("DATABASE_URL", self.servers()?.database_url());
                command.args(["--pool", &pool.unwrap_or(1).to_string()]);
            }
            let mut server = Process::start("server", command, &self.directory, &mut self.reaper)?;
            return Ok((server.address().await?, vec![server]));
        }
        let (url, roles): (_, &[&'static str]) = match variant {
            Variant::AntreEmbedded => (self.sqlite_url(), &["serve"]),
            Variant::AntrePlain => (self.servers()?.plain_database_url(), &["worker", "api"]),
            _ => (self.servers()?.database_url(), &["worker", "api"]),
        };
        if variant.needs_servers() {
            let (prefix, servers) = (self.queue_prefix(variant)?, self.servers()?);
            if !servers.is_ours() {
                let url = servers.amqp_url.clone();
                self.reaper.made(Thing::Queues { url, prefix })?;
            }
        }
        let mut running = Vec::new();
        let mut api = None;
        for role in roles {
            let command = self.antre(role, &url, variant);
            let mut process = Process::start(role, command, &self.directory, &mut self.reaper)?;
            let address = process.address().await?;
            ready(address).await.map_err(|error| format!("{role}: {error}\n{}", process.said()))?;
            running.push(process);
            api = Some(address);
        }
        Ok((api.ok_or("no role that listens")?, running))
    }

    /// The real thing: the binary that cargo has built beside this one, in the same profile. Every setting is given, so
    /// that no `.env` of a developer changes what is measured.
    fn antre(&self, role: &str, database_url: &str, variant: Variant) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_antre"));
        let amqp_url = match &self.servers {
            Some(servers) if variant != Variant::AntreEmbedded => servers.amqp_url.as_str(),
            _ => "",
        };
        command
            .arg(role)
            .current_dir(&self.directory)
            .env("DATABASE_URL", database_url)
            .env("AMQP_URL", amqp_url)
            .env("QUEUE_PREFIX", self.queue_prefix(variant).unwrap_or_default())
            .env("LANES", variant.lanes().unwrap_or("product"))
            .env("LISTEN_ADDR", "127.0.0.1:0")
            .env("ORDER_TIMEOUT", "10s")
            .env("RESERVATION_TTL", "15m")
            .env("EVENTS", if variant == Variant::AntreNoEvents { "off" } else { "on" })
            .env("RUST_LOG", "warn")
            .env("LOG_FORMAT", "text");
        command
    }

    /// Runs the load generator, and looks at everything that takes part meanwhile.
    async fn load(
        &mut self,
        variant: Variant,
        target: SocketAddr,
        cell: Cell,
        timing: Timing,
        running: &[Process],
    ) -> Result<(Load, Vec<Sample>)> {
        let generator = Command::new(env::current_exe()?)
            .args(["load", "--target", &target.to_string(), "--connections", &cell.connections.to_string()])
            .args(["--products", &cell.scenario.products().to_string(), "--pace", &cell.pace.to_string()])
            .args(["--payments", &books::payments(cell.scenario, timing.total()).to_string()])
            .args(["--warm-up-seconds", &timing.warm_up_seconds.to_string()])
            .args(["--seconds", &timing.seconds.to_string()])
            .args((variant == Variant::AntreKeys).then_some("--keys"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let process = generator.id().map(Thing::Process);
        process.iter().try_for_each(|process| self.reaper.made(process.clone()))?;
        let mut samples: Vec<_> =
            running.iter().filter_map(|process| Sample::of(process.name, process.pid()?)).collect();
        if let Some(servers) = &self.servers {
            samples.extend(servers.pids().into_iter().filter_map(|(name, pid)| Sample::of(name, pid)));
        }
        samples.extend(generator.id().and_then(|pid| Sample::of("load", pid)));
        let output = generator.wait_with_output();
        tokio::pin!(output);
        let output = loop {
            tokio::select! {
                output = &mut output => break output?,
                () = sleep(SAMPLING) => samples.iter_mut().for_each(Sample::look),
            }
        };
        process.into_iter().try_for_each(|process| self.reaper.gone(process))?;
        if !output.status.success() {
            return Err("the load generator failed".into());
        }
        Ok((serde_json::from_slice(&output.stdout)?, samples))
    }

    /// Deletes the lanes of a run, and waits until the broker is done with it: a thousand quorum queues that nobody needs
    /// any more would cost whatever is measured next a sixth of a core.
    async fn clear_lanes(&self, variant: Variant) -> Result<()> {
        let servers = self.servers()?;
        reaper::delete_queues(&servers.amqp_url, &self.queue_prefix(variant)?).await?;
        let Some((name, pid)) = servers.pids().into_iter().find(|(name, _)| *name == "rabbitmq") else {
            return Ok(()); // somebody else's: nobody knows what it does besides
        };
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            let mut sample = Sample::of(name, pid).ok_or("the broker is gone")?;
            sleep(SAMPLING * 5).await;
            sample.look();
            if sample.process_use().is_none_or(|used| used.cores < QUIET_CORES) {
                return Ok(());
            }
        }
        Err("the broker does not come to rest".into())
    }

    async fn read_books(&self, variant: Variant) -> Result<Option<Books>> {
        Ok(match variant {
            Variant::Noop => None,
            Variant::AntreEmbedded => Some(books::read_sqlite(&self.sqlite_url()).await?),
            _ => Some(books::read_mysql(&self.servers()?.database_url(), variant).await?),
        })
    }

    /// Ends it; returns an error when something is left behind.
    pub(crate) fn strike(self) -> Result<()> {
        self.reaper.finish()
    }

    /// The direct variant that was best in the trials.
    pub(crate) fn best_direct(&self, scenario: Scenario) -> Option<Variant> {
        // Nothing was tried when the size of the pool was given.
        self.best_direct
            .get(&scenario.tuned_as())
            .filter(|(decided, _)| *decided > 0)
            .map(|(_, variant)| *variant)
    }

    pub(crate) fn pools(&self) -> &BTreeMap<(Variant, Scenario), u32> {
        &self.pools
    }

    fn servers(&self) -> Result<&Servers> {
        self.servers.as_ref().ok_or_else(|| "this variant needs servers".into())
    }

    fn sqlite_url(&self) -> String {
        format!("sqlite://{}", self.directory.join("antre.db").display())
    }

    fn queue_prefix(&self, variant: Variant) -> Result<String> {
        let generation = self.generations.get(&variant).copied().unwrap_or_default();
        Ok(format!("{}{variant}.{generation}.", self.servers()?.queue_prefix()))
    }
}

async fn ready(address: SocketAddr) -> Result<()> {
    let url = format!("http://{address}/health/ready");
    let deadline = Instant::now() + PATIENCE;
    loop {
        match reqwest::get(&url).await.and_then(reqwest::Response::error_for_status) {
            Ok(_) => return Ok(()),
            Err(error) if Instant::now() > deadline => return Err(error.into()),
            Err(_) => sleep(Duration::from_millis(50)).await,
        }
    }
}

/// A process under load: how it was at first, and how it was last seen.
struct Sample {
    name: &'static str,
    pid: u32,
    first: (Instant, processes::Usage),
    last: (Instant, processes::Usage),
    rested_kb: Option<u64>,
}

impl Sample {
    fn of(name: &'static str, pid: u32) -> Option<Self> {
        let now = (Instant::now(), processes::usage(pid)?);
        Some(Self { name, pid, first: now, last: now, rested_kb: None })
    }

    fn look(&mut self) {
        if let Some(usage) = processes::usage(self.pid) {
            self.last = (Instant::now(), usage);
        }
    }

    fn process_use(&self) -> Option<ProcessUse> {
        let megabytes = |kilobytes: u64| (kilobytes as f64 / 1024.0 * 10.0).round() / 10.0;
        let elapsed = self.last.0.duration_since(self.first.0).as_secs_f64();
        let cpu = self.last.1.cpu.saturating_sub(self.first.1.cpu).as_secs_f64();
        (elapsed > 0.0).then(|| ProcessUse {
            name: self.name,
            cores: (cpu / elapsed * 100.0).round() / 100.0,
            loaded_mb: megabytes(self.last.1.resident_kb),
            peak_mb: megabytes(self.last.1.peak_kb),
            rested_mb: self.rested_kb.map(megabytes),
        })
    }
}

impl Measurement {
    /// Orders a second: those that were accepted, or, where there is nothing to be had, those that were refused.
    pub(crate) fn per_second(&self, scenario: Scenario) -> f64 {
        let Counts { accepted, refused, .. } = self.load.measured;
        let counted = match (scenario, self.variant) {
            (Scenario::SoldOut, Variant::Noop) => accepted, // it says 201 to everything
            (Scenario::SoldOut, _) => refused,
            _ => accepted,
        };
        counted as f64 / self.load.seconds
    }
}
