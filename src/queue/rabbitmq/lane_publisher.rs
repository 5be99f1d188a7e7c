//! Publishes what gathers in a lane's [buffer](super::lane_buffer), message by message, and follows each message until it
//! is known what became of it. The next message leaves when the verdicts on the last one arrive, or earlier when enough
//! has gathered.

use std::{sync::Arc, time::Duration};

use lapin::message::BasicReturnMessage;
use tokio::{
    task::yield_now,
    time::{Instant, sleep},
};

use super::{
    connection::backoff,
    lane_buffer::{Buffered, Entry, LaneBuffers, RETRY_DELAYS},
    outcomes::Outcomes,
    publisher::{Published, Publisher},
    replies::Replies,
    topology::{MAX_AGE, Topology},
    wire,
};
use crate::{
    domain::{command::Command, lane_set::LaneNumber},
    queue::{Address, Archive, QueueError, Refusal},
    telemetry::{LogLimiter, ms},
};

/// How long commands gather at most behind a message that is queued and not decided. A worker that is slow, or that serves
/// many lanes, needs longer; then new commands must be queued too, so that they outlive this process.
///
/// Measured against a next message at the broker's confirm of the last one, which is earlier: at 1,000 orders a second,
/// where messages of one or two orders made the broker do most of the work, waiting for the verdicts needs two thirds of the
/// time for them, and half of them are answered in 3.9 instead of 5.2 ms. At full speed a message is full at once.
const MAX_LINGER: Duration = Duration::from_millis(20);

/// How long a publish may take, from the look at its product to the broker's confirm. One that takes longer counts as unknown
/// and is sent again, because its lane may have been removed in between: see [`crate::queue::RETIRE_AFTER`].
const MAX_PUBLISH: Duration = Duration::from_secs(10);

pub(super) struct LanePublisher {
    pub(super) topology: Arc<Topology>,
    pub(super) publisher: Publisher,
    pub(super) replies: Replies,
    pub(super) buffers: LaneBuffers,
    pub(super) outcomes: Outcomes,
    pub(super) archive: Arc<dyn Archive>,
    pub(super) not_sent: LogLimiter,
}

impl LanePublisher {
    /// Puts a command into its lane's buffer, or refuses it.
    pub(super) fn submit(self: &Arc<Self>, entry: Entry) {
        if self.replies.address().is_none() || self.publisher.is_blocked() {
            return self.outcomes.refuse(vec![entry], Refusal::QueueUnavailable);
        }
        self.enqueue(self.topology.lane_of(entry.command.product_id()), entry);
    }

    fn enqueue(self: &Arc<Self>, lane: LaneNumber, entry: Entry) {
        match self.buffers.push(lane, entry) {
            Ok(Buffered::Idle) => drop(tokio::spawn(self.clone().publish_lane(lane))),
            Ok(Buffered::Publishing) => {}
            Err((entries, refusal)) => self.outcomes.refuse(entries, refusal),
        }
    }

    /// Publishes what gathers for one lane until nothing does.
    async fn publish_lane(self: Arc<Self>, lane: LaneNumber) {
        loop {
            // Requests that have arrived together leave together: their handlers run first. A lone one does not wait.
            yield_now().await;
            let Some(entries) = self.buffers.next_message(lane) else { return };
            let Some(reply_to) = self.replies.address() else {
                self.outcomes.refuse(entries, Refusal::QueueUnavailable);
                continue;
            };
            let looked_at = Instant::now();
            if self.is_of_archived(lane).await {
                self.move_to_archived(entries);
                continue;
            }
            let Some(last) = entries.last().map(|entry| entry.command.id()) else { continue };
            let is_decided = self.outcomes.decided(last);
            if self.publish(lane, entries, reply_to, looked_at).await {
                tokio::select! {
                    biased;
                    () = self.buffers.full(lane) => {}
                    _ = is_decided => {}
                    () = sleep(MAX_LINGER) => {}
                }
            }
            self.outcomes.forget(last);
        }
    }

    /// Whether the product of this lane is archived: then the lane may be gone at any time. Lanes of several products stay.
    async fn is_of_archived(&self, lane: LaneNumber) -> bool {
        match self.topology.product_of(lane) {
            Some(product_id) => self.archive.is_archived(product_id).await,
            None => false,
        }
    }

    /// These commands are of an archived product, and not queued.
    fn move_to_archived(self: &Arc<Self>, entries: Vec<Entry>) {
        if let Some(lane) = self.topology.archived_lane() {
            entries.into_iter().for_each(|entry| self.enqueue(lane, entry));
        }
    }

    /// Publishes one message until it is known what became of it. Returns whether it is queued.
    async fn publish(
        self: &Arc<Self>,
        lane: LaneNumber,
        entries: Vec<Entry>,
        reply_to: Address,
        looked_at: Instant,
    ) -> bool {
        let began = Instant::now();
        let payload = wire::encode_commands(entries.iter().map(|entry| &entry.command));
        let had_open_circuit = self.buffers.has_open_circuit(lane);
        let published = match had_open_circuit {
            true => self.publisher.publish_isolated(lane, &payload, &reply_to).await,
            false => self.publisher.publish(lane, &payload, &reply_to).await,
        };
        match in_time(published, looked_at) {
            Published::Confirmed => {
                self.outcomes.confirm(&entries);
                self.close_circuit(lane);
                tracing::debug!(
                    lane = %self.topology.lane(lane),
                    commands = entries.len(),
                    elapsed_ms = ms(began.elapsed()),
                    "commands are queued"
                );
                true
            }
            Published::Nacked => {
                if had_open_circuit {
                    self.open_circuit(lane, &nacked());
                }
                self.outcomes.refuse(entries, Refusal::LaneFull);
                false
            }
            Published::Returned(returned) => self.handle_return(lane, entries, &returned).await,
            Published::NoLane(error) => {
                self.open_circuit(lane, &error);
                self.outcomes.refuse(entries, Refusal::QueueUnavailable);
                false
            }
            Published::NotSent(error) => {
                if let Some(suppressed) = self.not_sent.due() {
                    let (lane, commands) = (self.topology.lane(lane), entries.len());
                    tracing::warn!(%error, %lane, commands, suppressed, "commands were not queued");
                }
                self.outcomes.refuse(entries, Refusal::QueueUnavailable);
                false
            }
            Published::Unknown(error) => self.publish_again(lane, entries, payload, error).await,
        }
    }

    /// Nobody knows whether the broker has the message. It is published until that is known, and until then the lane takes
    /// nothing else. A second copy does no harm: a command that is decided twice gets the stored verdict.
    async fn publish_again(
        self: &Arc<Self>,
        lane: LaneNumber,
        entries: Vec<Entry>,
        payload: Vec<u8>,
        error: QueueError,
    ) -> bool {
        self.outcomes.refuse(self.buffers.set_unknown(lane), Refusal::QueueUnavailable);
        let (name, commands) = (self.topology.lane(lane), entries.len());
        if let Some(suppressed) = self.not_sent.due() {
            let what = "not known whether commands are queued; they are sent again, and the lane takes no others until then";
            tracing::warn!(%error, lane = %name, commands, suppressed, "{what}");
        }
        let [min_delay, max_delay] = RETRY_DELAYS;
        let (began, mut delays) = (Instant::now(), backoff(max_delay));
        let is_queued = loop {
            sleep(delays.next().unwrap_or(max_delay).max(min_delay)).await;
            let Some(reply_to) = self.replies.address() else { continue };
            let looked_at = Instant::now();
            if self.is_of_archived(lane).await {
                self.buffers.set_known(lane);
                self.move_to_archived(entries);
                return false;
            }
            let published = self.publisher.publish_isolated(lane, &payload, &reply_to).await;
            match in_time(published, looked_at) {
                Published::Confirmed => {
                    self.outcomes.confirm(&entries);
                    break true;
                }
                // Says nothing of the first copy, which may be queued: clients that wait are answered 202.
                Published::Nacked | Published::Returned(_) => {
                    self.open_circuit(lane, &nacked());
                    self.outcomes.parked.park(entries.into_iter().filter(Entry::is_parkable).collect());
                    break false;
                }
                Published::NoLane(error) | Published::NotSent(error) | Published::Unknown(error) => {
                    tracing::debug!(%error, lane = %name, commands, "sending again");
                }
            }
            // No client looks for its commands any more.
            if began.elapsed() > MAX_AGE {
                self.outcomes.parked.park(entries.into_iter().filter(Entry::is_parkable).collect());
                break false;
            }
        };
        self.buffers.set_known(lane);
        is_queued
    }

    /// A message found no queue. lapin attaches it to whichever confirm comes next, so its content says which one it is, not
    /// the confirm. Returns whether the published entries are queued.
    async fn handle_return(
        self: &Arc<Self>,
        lane: LaneNumber,
        entries: Vec<Entry>,
        returned: &BasicReturnMessage,
    ) -> bool {
        let kind = wire::kind_of(&returned.delivery.properties);
        let commands = match wire::decode_commands(&returned.delivery.data, kind) {
            Ok(commands) => commands,
            Err(error) => {
                tracing::error!(%error, "a returned message");
                Vec::new()
            }
        };
        let is_own = commands.first().map(Command::id) == entries.first().map(|entry| entry.command.id());
        if is_own {
            if let Some(product_id) = self.topology.product_of(lane) {
                self.archive.forget(product_id);
            }
            if self.is_of_archived(lane).await {
                self.move_to_archived(entries);
                return false;
            }
            self.report_deleted(returned);
            self.outcomes.refuse(entries, Refusal::QueueUnavailable);
            return false;
        }
        self.report_deleted(returned);
        self.outcomes.confirm(&entries);
        self.close_circuit(lane);
        // The commands of the other message were reported as queued. Clients that wait learn of a refusal; detached commands
        // must be queued now.
        let (detached, waiting): (Vec<_>, Vec<_>) = commands.into_iter().partition(Command::is_detached);
        let parked = &self.outcomes.parked;
        self.outcomes.refuse(waiting.into_iter().map(Entry::new).collect(), Refusal::QueueUnavailable);
        parked.park(detached.into_iter().filter_map(|command| parked.admit(command)).collect());
        true
    }

    fn report_deleted(&self, returned: &BasicReturnMessage) {
        tracing::warn!(lane = returned.routing_key.as_str(), "a lane was deleted; it will be declared again");
    }

    fn open_circuit(&self, lane: LaneNumber, error: &QueueError) {
        if self.buffers.open_circuit(lane) {
            let lane = self.topology.lane(lane);
            tracing::error!(%lane, %error, "a lane does not work; its orders are refused, others are not concerned");
        }
    }

    fn close_circuit(&self, lane: LaneNumber) {
        if self.buffers.close_circuit(lane) {
            tracing::info!(lane = %self.topology.lane(lane), "the lane takes orders again");
        }
    }
}

/// What is known of a publish whose product was looked at then.
fn in_time(published: Published, looked_at: Instant) -> Published {
    match published {
        Published::Confirmed if looked_at.elapsed() > MAX_PUBLISH => {
            Published::Unknown(QueueError(format!("confirmed after more than {MAX_PUBLISH:?}")))
        }
        published => published,
    }
}

fn nacked() -> QueueError {
    QueueError("its queue takes nothing".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::queue::{KNOWN_FOR, RETIRE_AFTER};

    #[tokio::test(start_paused = true)]
    async fn no_lane_is_removed_to_which_a_publish_may_still_be_confirmed() {
        const TRANSACTION: Duration = Duration::from_secs(10);
        assert!(TRANSACTION + KNOWN_FOR + MAX_PUBLISH < RETIRE_AFTER);
        let looked_at = Instant::now();
        tokio::time::advance(MAX_PUBLISH).await;
        assert!(matches!(in_time(Published::Confirmed, looked_at), Published::Confirmed));
        tokio::time::advance(Duration::from_millis(1)).await;
        assert!(matches!(in_time(Published::Confirmed, looked_at), Published::Unknown(_)));
        assert!(matches!(in_time(Published::Nacked, looked_at), Published::Nacked));
    }
}
