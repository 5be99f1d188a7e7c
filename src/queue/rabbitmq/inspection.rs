//! What a broker says of itself, for `antre check`: its version, and whether a message can be queued and taken.

use std::time::Duration;

use lapin::{
    Channel, Confirmation,
    options::{
        BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueDeclareOptions, QueueDeleteOptions,
    },
    types::{FieldTable, ShortString},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::{Instant, timeout},
};
use url::Url;
use uuid::Uuid;

use super::connection::{BROKER_TIMEOUT, Broker, with_timeout};
use crate::queue::QueueError;

/// A broker, as its user sees it.
#[derive(Clone, Debug)]
pub struct BrokerInspection {
    /// As the broker says it before anybody logs in. `None`: it is not read over TLS.
    pub version: Option<String>,
    /// How long one message took from its publish to its ack; an error when that was not possible.
    pub round_trip: Result<Duration, String>,
    /// How many messages are in the dead letters. `None`: there is no such queue yet.
    pub dead_letters: Option<u32>,
}

/// Asks the broker of an `amqp://` URL. The queue that it makes for this is gone afterwards.
pub async fn inspect(url: &str, queue_prefix: &str) -> Result<BrokerInspection, QueueError> {
    let version = match url.starts_with("amqp://") {
        true => version(url).await,
        false => None,
    };
    let connection = Broker::new(url)?.connect("check").await?;
    let channel = with_timeout(connection.create_channel()).await?;
    let began = Instant::now();
    let tried = timeout(BROKER_TIMEOUT, round_trip(&channel, queue_prefix)).await;
    let round_trip = match tried {
        Ok(Ok(())) => Ok(began.elapsed()),
        Ok(Err(error)) => Err(error),
        Err(_) => Err(format!("no confirm within {BROKER_TIMEOUT:?}: it may be short of memory or disk")),
    };
    // On its own channel: the broker closes it where the queue does not exist.
    let channel = with_timeout(connection.create_channel()).await?;
    let passive = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
    let name: ShortString = format!("{queue_prefix}orders.dead").into();
    let dead_letters = with_timeout(channel.queue_declare(name, passive, FieldTable::default())).await;
    let dead_letters = dead_letters.ok().map(|queue| queue.message_count());
    let _ = timeout(BROKER_TIMEOUT, connection.close(200, "checked".into())).await; // it is gone with the process
    Ok(BrokerInspection { version, round_trip, dead_letters })
}

/// A queue that only this connection sees, a message to it and back.
async fn round_trip(channel: &Channel, queue_prefix: &str) -> Result<(), String> {
    let name: ShortString = format!("{queue_prefix}replies.check.{}", Uuid::new_v4()).into();
    let exclusive = QueueDeclareOptions { exclusive: true, ..QueueDeclareOptions::default() };
    let text = |what: &'static str| move |error: lapin::Error| format!("{what}: {error}");
    channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(text("confirm mode"))?;
    let declared = channel.queue_declare(name.clone(), exclusive, FieldTable::default()).await;
    declared.map_err(text("it may not declare queues"))?;
    let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
    let published =
        channel.basic_publish("".into(), name.clone(), options, b"check", Default::default()).await;
    let confirm = published.map_err(text("it may not publish"))?.await.map_err(text("it may not publish"))?;
    if !matches!(confirm, Confirmation::Ack(None)) {
        return Err("the broker did not take a message".to_owned());
    }
    let taken = channel.basic_get(name.clone(), BasicGetOptions { no_ack: true }).await;
    if taken.map_err(text("it may not consume"))?.is_none() {
        return Err("a message that the broker confirmed is not in its queue".to_owned());
    }
    channel.queue_delete(name, QueueDeleteOptions::default()).await.map_err(text("it may not delete"))?;
    Ok(())
}

/// The broker introduces itself to everybody who names the protocol: lapin reads that, and does not tell it.
async fn version(url: &str) -> Option<String> {
    let url = Url::parse(url).ok()?;
    let (host, port) = (url.host_str().unwrap_or("localhost"), url.port().unwrap_or(5672));
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let introduction = async {
        let mut stream = TcpStream::connect((host, port)).await.ok()?;
        stream.write_all(b"AMQP\x00\x00\x09\x01").await.ok()?;
        let mut head = [0; 7];
        stream.read_exact(&mut head).await.ok()?;
        let size = u32::from_be_bytes([head[3], head[4], head[5], head[6]]);
        let mut frame = vec![0; usize::try_from(size).ok()?.min(65_536)];
        stream.read_exact(&mut frame).await.ok()?;
        version_in(&frame)
    };
    timeout(BROKER_TIMEOUT, introduction).await.ok()?
}

/// The long string `version` of the server's properties.
fn version_in(start: &[u8]) -> Option<String> {
    const NAME: &[u8] = b"\x07versionS";
    let at = start.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
    let length = u32::from_be_bytes(start.get(at..at + 4)?.try_into().ok()?) as usize;
    String::from_utf8(start.get(at + 4..at + 4 + length)?.to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_read_from_the_introduction() {
        let start = b"\x00\x0a\x00\x0a\x00\x09\x00\x00\x00\x20\x07productS\x00\x00\x00\x08RabbitMQ\x07versionS\x00\x00\x00\x054.3.6\x08";
        assert_eq!(version_in(start).as_deref(), Some("4.3.6"));
        assert_eq!(version_in(&start[..start.len() - 4]), None);
        assert_eq!(version_in(b""), None);
    }
}
