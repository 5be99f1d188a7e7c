//! What counts and measures. Each instrument is made once from its [`Definition`], so that using it is an atomic operation
//! without a lookup.

use std::fmt;

use prometheus::{
    Error, Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, IntGauge, IntGaugeVec, Opts,
    Registry,
    core::{Collector, Desc},
    proto::{self, MetricFamily, MetricType},
};

use super::table::{Definition, Kind, Of};

/// What a process has, and so which metrics it shows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parts {
    pub has_api: bool,
    pub has_worker: bool,
    /// Whether it uses MySQL and RabbitMQ.
    pub is_on_servers: bool,
}

/// Makes instruments, and registers those that the process has.
pub(super) struct Maker<'a> {
    pub(super) registry: &'a Registry,
    pub(super) parts: Parts,
}

/// A closed set of label values.
pub(super) trait Label: Copy + PartialEq + 'static {
    /// All of them, with the texts of their labels.
    fn all() -> Vec<(Self, Vec<&'static str>)>;
}

/// A counter for each value of a [`Label`].
#[derive(Debug)]
pub(super) struct Counters<L>(Vec<(L, IntCounter)>);

impl<L: Label> Counters<L> {
    /// Ignores a value that is not among the label's.
    pub(super) fn add(&self, label: L, count: u64) {
        // A handful of values: comparing them is faster than hashing one.
        if let Some((_, counter)) = self.0.iter().find(|(known, _)| *known == label) {
            counter.inc_by(count);
        }
    }

    #[cfg(test)]
    pub(super) fn get(&self, label: L) -> u64 {
        self.0.iter().find(|(known, _)| *known == label).map_or(0, |(_, counter)| counter.get())
    }
}

impl Maker<'_> {
    fn register<C: Collector + Clone + 'static>(
        &self,
        definition: &Definition,
        collector: C,
    ) -> Result<C, Error> {
        if self.parts.have(definition.of) {
            self.registry.register(Box::new(collector.clone()))?;
        }
        Ok(collector)
    }

    pub(super) fn counter(&self, definition: &Definition) -> Result<IntCounter, Error> {
        self.register(definition, IntCounter::with_opts(opts(definition))?)
    }

    pub(super) fn gauge(&self, definition: &Definition) -> Result<IntGauge, Error> {
        self.register(definition, IntGauge::with_opts(opts(definition))?)
    }

    pub(super) fn histogram(&self, definition: &Definition) -> Result<Histogram, Error> {
        self.register(definition, Histogram::with_opts(histogram_opts(definition))?)
    }

    pub(super) fn counters<L: Label>(&self, definition: &Definition) -> Result<Counters<L>, Error> {
        let family = self.counter_family(definition)?;
        let counter =
            |(label, texts): (L, Vec<&str>)| Ok((label, family.get_metric_with_label_values(&texts)?));
        L::all().into_iter().map(counter).collect::<Result<_, Error>>().map(Counters)
    }

    pub(super) fn counter_family(&self, definition: &Definition) -> Result<IntCounterVec, Error> {
        self.register(definition, IntCounterVec::new(opts(definition), definition.labels)?)
    }

    pub(super) fn gauge_family(&self, definition: &Definition) -> Result<IntGaugeVec, Error> {
        self.register(definition, IntGaugeVec::new(opts(definition), definition.labels)?)
    }

    pub(super) fn histogram_family(&self, definition: &Definition) -> Result<HistogramVec, Error> {
        self.register(definition, HistogramVec::new(histogram_opts(definition), definition.labels)?)
    }

    /// A metric whose values are read when somebody asks for them.
    pub(super) fn pulled(
        &self,
        definition: &'static Definition,
        read: impl Fn() -> Vec<Sample> + Send + Sync + 'static,
    ) -> Result<(), Error> {
        if !self.parts.have(definition.of) {
            return Ok(());
        }
        let labels = definition.labels.iter().map(|label| (*label).to_owned()).collect();
        let desc =
            Desc::new(definition.name.to_owned(), definition.help.to_owned(), labels, Default::default())?;
        self.registry.register(Box::new(Pulled { definition, desc, read: Box::new(read) }))
    }
}

impl Parts {
    fn have(self, of: Of) -> bool {
        match of {
            Of::Api => self.has_api,
            Of::Worker => self.has_worker,
            Of::Both => true,
            Of::Servers => self.is_on_servers,
        }
    }
}

fn opts(definition: &Definition) -> Opts {
    Opts::new(definition.name, definition.help)
}

fn histogram_opts(definition: &Definition) -> HistogramOpts {
    let bounds = match definition.kind {
        Kind::Histogram(buckets) => buckets.bounds().to_vec(),
        Kind::Counter | Kind::Gauge => Vec::new(),
    };
    HistogramOpts::new(definition.name, definition.help).buckets(bounds)
}

/// A value, with the texts of its labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Sample {
    pub labels: Vec<&'static str>,
    pub value: f64,
}

impl Sample {
    /// Of a metric without labels.
    pub fn of(value: f64) -> Vec<Self> {
        vec![Self { labels: Vec::new(), value }]
    }
}

struct Pulled {
    definition: &'static Definition,
    desc: Desc,
    read: Box<dyn Fn() -> Vec<Sample> + Send + Sync>,
}

impl fmt::Debug for Pulled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pulled").field("definition", &self.definition).finish_non_exhaustive()
    }
}

impl Collector for Pulled {
    fn desc(&self) -> Vec<&Desc> {
        vec![&self.desc]
    }

    fn collect(&self) -> Vec<MetricFamily> {
        let metrics: Vec<_> = (self.read)().into_iter().map(|sample| self.metric(sample)).collect();
        if metrics.is_empty() {
            return Vec::new();
        }
        let mut family = MetricFamily::default();
        family.set_name(self.definition.name.to_owned());
        family.set_help(self.definition.help.to_owned());
        family.set_field_type(match self.definition.kind {
            Kind::Counter => MetricType::COUNTER,
            Kind::Gauge | Kind::Histogram(_) => MetricType::GAUGE,
        });
        family.set_metric(metrics);
        vec![family]
    }
}

impl Pulled {
    fn metric(&self, Sample { labels, value }: Sample) -> proto::Metric {
        let pairs = self.definition.labels.iter().zip(labels).map(|(name, value)| {
            let mut pair = proto::LabelPair::default();
            pair.set_name((*name).to_owned());
            pair.set_value(value.to_owned());
            pair
        });
        let mut metric = proto::Metric::from_label(pairs.collect());
        match self.definition.kind {
            Kind::Counter => {
                let mut counter = proto::Counter::default();
                counter.set_value(value);
                metric.set_counter(counter);
            }
            Kind::Gauge | Kind::Histogram(_) => {
                let mut gauge = proto::Gauge::default();
                gauge.set_value(value);
                metric.set_gauge(gauge);
            }
        }
        metric
    }
}
