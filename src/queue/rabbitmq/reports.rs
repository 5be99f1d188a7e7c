//! What processes tell each other for operators, and what waits in the broker's queues.
//!
//! Connections of its own, opened when they are first needed: what operators look at must not hold up an order, and a passive
//! declaration of a queue that does not exist closes its channel.

use std::{sync::Arc, time::Duration};

use futures_util::{StreamExt, future, stream::BoxStream};
use lapin::{
    BasicProperties, Channel, Connection,
    options::{BasicConsumeOptions, BasicPublishOptions, QueueDeclareOptions},
    types::{FieldTable, ShortString},
};
use tokio::{sync::Mutex, time::timeout};

use super::{
    connection::{failed, no_answer, with_timeout},
    declarer::Declarer,
    topology::Topology,
};
use crate::{
    domain::ids::ProductId,
    queue::{LaneDepth, QueueError},
};

/// How long a report may take until it is written. A broker that is short of memory takes none.
const TELL_TIMEOUT: Duration = Duration::from_secs(1);

/// One process's way to tell, to listen, and to ask.
pub(super) struct ReportChannel {
    topology: Arc<Topology>,
    connections: Declarer,
    /// To publish on.
    channel: Mutex<Option<Channel>>,
    asking: Declarer,
}

impl ReportChannel {
    pub(super) fn new(topology: Arc<Topology>) -> Self {
        let connections = Declarer::new(topology.clone(), "reports");
        let asking = Declarer::new(topology.clone(), "depths");
        Self { topology, connections, channel: Mutex::default(), asking }
    }

    /// Publishes without a confirm: one that is lost is missing on a page, and the next one comes in a second.
    pub(super) async fn tell(&self, report: Vec<u8>) -> Result<(), QueueError> {
        let mut current = self.channel.lock().await;
        let channel = match current.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => self.connections.channel().await?.1,
        };
        let exchange = self.topology.reports_name();
        let (options, properties) = (BasicPublishOptions::default(), BasicProperties::default());
        let published = channel.basic_publish(exchange, "".into(), options, &report, properties);
        let published = timeout(TELL_TIMEOUT, published).await;
        published.map_err(|_| no_answer(TELL_TIMEOUT))?.map_err(failed)?;
        *current = Some(channel);
        Ok(())
    }

    pub(super) async fn listen(&self) -> Result<BoxStream<'static, Vec<u8>>, QueueError> {
        let connection = self.topology.broker().connect("listens to reports").await?;
        let channel = with_timeout(connection.create_channel()).await?;
        with_timeout(self.topology.declare_shared(&channel)).await?;
        let name = self.topology.report_queue_name();
        with_timeout(self.topology.declare_report_queue(&channel, name.clone())).await?;
        let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
        let consuming = channel.basic_consume(name, "reports".into(), options, FieldTable::default());
        let reports = with_timeout(consuming).await?;
        let open = Open { _connection: connection, _channel: channel };
        let reports = reports.map(move |delivery| {
            let _ = &open; // closed with the stream
            delivery.map(|delivery| delivery.data)
        });
        Ok(reports
            .take_while(|report| future::ready(report.is_ok()))
            .filter_map(async |report| report.ok())
            .boxed())
    }

    pub(super) async fn dead_letters(&self) -> Result<u64, QueueError> {
        Ok(self.ask(self.topology.dead_name()).await?.messages)
    }

    /// In all lanes in which commands of this product may wait. A lane that does not exist has none.
    pub(super) async fn depth(&self, product_id: ProductId) -> Result<LaneDepth, QueueError> {
        let mut sum = LaneDepth::default();
        for lane in self.topology.lanes_of(product_id) {
            let depth = self.ask(lane.name()).await?;
            sum.messages += depth.messages;
            sum.workers = sum.workers.max(depth.workers);
        }
        Ok(sum)
    }

    async fn ask(&self, queue: ShortString) -> Result<LaneDepth, QueueError> {
        let (connection, channel) = self.asking.channel().await?;
        let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        match with_timeout(channel.queue_declare(queue, passive, FieldTable::default())).await {
            Ok(queue) => {
                Ok(LaneDepth { messages: queue.message_count().into(), workers: queue.consumer_count() })
            }
            // Most likely there is no such queue: the broker closes the channel, and the connection stays.
            Err(_) if connection.status().connected() => Ok(LaneDepth::default()),
            Err(error) => Err(error),
        }
    }
}

/// What a listener needs for as long as it listens.
struct Open {
    _connection: Connection,
    _channel: Channel,
}
