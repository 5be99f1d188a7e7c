//! Measures one variant under one load: fill the database, start the variant, load it, stop it, check the database.

use std::{
    collections::{BTreeMap, BTreeSet},
    env, fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, Instant},
};

use antre_testkit::{error::Result, processes::Process, reaper};
use tokio::{process::Command, time::sleep};

use crate::{
    builds::Builds,
    database::{self, Totals},
    load::Load,
    measurement::{Measurement, Samples},
    plan::{Plan, Timing},
    scenario::{Cell, Pace, Scenario},
    servers::Servers,
    variant::Variant,
};

/// Between the end of the load and the last sample of antre's memory.
const REST: Duration = Duration::from_secs(1);
/// Between two samples of the processes under load.
const SAMPLE_INTERVAL: Duration = Duration::from_millis(200);
/// A broker that uses less is idle.
const IDLE_CORES: f64 = 0.05;
/// The time in which the broker must become idle.
const IDLE_TIMEOUT: Duration = Duration::from_secs(60);

/// What lasts throughout the run.
pub(crate) struct Runner {
    pub(crate) servers: Option<Servers>,
    builds: Builds,
    /// For logs and the database of the embedded mode.
    directory: PathBuf,
    /// Queue prefixes are used again, unless a measurement ended with orders without an answer: those could still be queued
    /// and would be decided in the next one.
    generations: BTreeMap<Variant, u32>,
    pools: BTreeMap<(Variant, Scenario), u32>,
    /// With the number of orders that it decided in the trial.
    best_direct: BTreeMap<Scenario, (u64, Variant)>,
}

impl Runner {
    pub(crate) async fn start(plan: &Plan, builds: Builds, directory: &Path) -> Result<Self> {
        Ok(Self {
            servers: if plan.needs_servers() { Some(Servers::start().await?) } else { None },
            builds,
            directory: directory.to_owned(),
            generations: BTreeMap::new(),
            pools: BTreeMap::new(),
            best_direct: BTreeMap::new(),
        })
    }

    /// Tries sizes of the pool for the direct variants. With few connections orders wait for a hot row in the pool, with
    /// many in the database; only a trial shows which is better where.
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
        let (address, running) = self.start_variant(variant, pool).await?;
        let loaded = self.load(variant, address, cell, timing, &running).await;
        let (load, mut samples) = loaded.map_err(|error| {
            let logs: Vec<_> = running.iter().map(Process::log_tail).collect();
            format!("{error}\n{}", logs.join("\n"))
        })?;
        if variant.design().is_none() {
            sleep(REST).await;
            samples.iter_mut().for_each(Samples::sample_rested);
        }
        for mut process in running {
            match variant.design() {
                Some(_) => process.kill().await?,
                None => process.stop().await?,
            }
        }
        if variant.lanes().is_some() {
            self.clear_lanes(variant).await?;
        }
        let totals = self.totals(variant).await?;
        if let Some(totals) = &totals {
            totals.check(cell.scenario, &load.all)?;
        }
        if load.all.unknown() > 0 {
            *self.generations.entry(variant).or_default() += 1;
        }
        let processes = samples.iter().filter_map(Samples::process_use).collect();
        Ok(Measurement { variant, load, pool, processes, totals })
    }

    /// An empty database with the scenario's products.
    async fn prepare(&self, variant: Variant, scenario: Scenario, seconds: Duration) -> Result<()> {
        let stock = if scenario == Scenario::SoldOut { 0 } else { database::PLENTY };
        let migrate = async |url: &str| -> Result<()> {
            let output = self.antre("migrate", url, variant).output().await?;
            if output.status.success() {
                return Ok(());
            }
            Err(format!("antre migrate: {}", String::from_utf8_lossy(&output.stderr)).into())
        };
        if variant.is_embedded() {
            for suffix in ["", "-wal", "-shm"] {
                let _ = fs::remove_file(self.directory.join(format!("antre.db{suffix}")));
            }
            let url = self.sqlite_url();
            migrate(&url).await?;
            return database::fill_sqlite(&url, scenario, stock, seconds).await;
        }
        if !variant.needs_servers() {
            return Ok(());
        }
        let servers = self.servers()?;
        servers.empty_database().await?;
        let url = servers.database_url();
        migrate(&url).await?;
        database::fill_mysql(&url, variant, scenario, stock, seconds).await
    }

    /// Starts the processes of the variant. Returns them and the address of the API.
    async fn start_variant(&self, variant: Variant, pool: Option<u32>) -> Result<(SocketAddr, Vec<Process>)> {
        if let Some(design) = variant.design() {
            let mut command = Command::new(env::current_exe()?);
            let design = clap::ValueEnum::to_possible_value(&design);
            command.arg("serve").arg(design.as_ref().map_or("", |value| value.get_name()));
            if variant.needs_servers() {
                command.env("DATABASE_URL", self.servers()?.database_url());
                command.args(["--pool", &pool.unwrap_or(1).to_string()]);
            }
            let mut server = Process::start("server", command, &self.directory)?;
            return Ok((address(&server.url().await?)?, vec![server]));
        }
        let (url, roles): (_, &[_]) = match variant {
            _ if variant.is_embedded() => (self.sqlite_url(), &["serve"]),
            Variant::AntrePlain => (self.servers()?.plain_database_url(), &["worker", "api"]),
            _ => (self.servers()?.database_url(), &["worker", "api"]),
        };
        if variant.needs_servers() {
            self.servers()?.delete_queues_at_end(&self.queue_prefix(variant)?)?;
        }
        let mut running = Vec::new();
        let mut api = String::new();
        for role in roles {
            let mut process = Process::start(role, self.antre(role, &url, variant), &self.directory)?;
            api = process.ready().await?;
            running.push(process);
        }
        Ok((address(&api)?, running))
    }

    /// Every setting is given, so that no developer's `.env` changes what is measured.
    fn antre(&self, role: &str, database_url: &str, variant: Variant) -> Command {
        let mut command = Command::new(self.builds.of(variant));
        let amqp_url = match &self.servers {
            Some(servers) if variant.needs_servers() => servers.amqp_url(),
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

    /// Runs the load generator, and samples all processes under load.
    async fn load(
        &self,
        variant: Variant,
        target: SocketAddr,
        cell: Cell,
        timing: Timing,
        running: &[Process],
    ) -> Result<(Load, Vec<Samples>)> {
        let generator = Command::new(env::current_exe()?)
            .args(["load", "--target", &target.to_string(), "--connections", &cell.connections.to_string()])
            .args(["--products", &cell.scenario.products().to_string(), "--pace", &cell.pace.to_string()])
            .args(["--payments", &cell.scenario.payments(timing.total()).to_string()])
            .args(["--warm-up-seconds", &timing.warm_up_seconds.to_string()])
            .args(["--seconds", &timing.seconds.to_string()])
            .args((variant == Variant::AntreKeys).then_some("--keys"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()?;
        let killing = generator.id().map(reaper::kill_at_end).transpose()?;
        let mut samples: Vec<_> =
            running.iter().filter_map(|process| Samples::begin(process.name(), process.pid()?)).collect();
        if let Some(servers) = &self.servers {
            samples
                .extend(servers.pids().await.into_iter().filter_map(|(name, pid)| Samples::begin(name, pid)));
        }
        samples.extend(generator.id().and_then(|pid| Samples::begin("load", pid)));
        let output = generator.wait_with_output();
        tokio::pin!(output);
        let output = loop {
            tokio::select! {
                output = &mut output => break output?,
                () = sleep(SAMPLE_INTERVAL) => samples.iter_mut().for_each(Samples::sample),
            }
        };
        if let Some(killing) = killing {
            killing.cancel();
        }
        if !output.status.success() {
            return Err("the load generator failed".into());
        }
        Ok((serde_json::from_slice(&output.stdout)?, samples))
    }

    /// Deletes the lanes, and waits until the broker is idle: a thousand unused quorum queues would take a sixth of a core
    /// from the next measurement.
    async fn clear_lanes(&self, variant: Variant) -> Result<()> {
        let servers = self.servers()?;
        servers.delete_queues(&self.queue_prefix(variant)?).await?;
        let Some((name, pid)) = servers.pids().await.into_iter().find(|(name, _)| *name == "rabbitmq") else {
            return Ok(()); // not ours: it may have other work
        };
        let deadline = Instant::now() + IDLE_TIMEOUT;
        while Instant::now() < deadline {
            let mut samples = Samples::begin(name, pid).ok_or("the broker has ended")?;
            sleep(SAMPLE_INTERVAL * 5).await;
            samples.sample();
            if samples.process_use().is_none_or(|used| used.cores < IDLE_CORES) {
                return Ok(());
            }
        }
        Err("the broker does not become idle".into())
    }

    async fn totals(&self, variant: Variant) -> Result<Option<Totals>> {
        Ok(match variant {
            Variant::Noop => None,
            _ if variant.is_embedded() => Some(database::totals_in_sqlite(&self.sqlite_url()).await?),
            _ => Some(database::totals_in_mysql(&self.servers()?.database_url(), variant).await?),
        })
    }

    /// The direct variant that was best in the trials.
    pub(crate) fn best_direct(&self, scenario: Scenario) -> Option<Variant> {
        // There are no trials when the size of the pool is given.
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

/// Of `http://address`.
fn address(url: &str) -> Result<SocketAddr> {
    Ok(url.trim_start_matches("http://").parse()?)
}
