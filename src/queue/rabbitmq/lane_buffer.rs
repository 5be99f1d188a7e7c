//! Where an API's commands gather, lane by lane, while the message before them is in flight. A buffer leaves as one
//! message, so a lone command never waits, and a flood becomes few messages. One publish at a time keeps the order of a lane.
//! Nothing here waits or talks to the broker: [`super::lane_publisher`] empties the buffers.

use std::{
    collections::HashMap,
    mem,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::Notify, time::Instant};

use crate::{
    domain::{command::Command, lane_set::LaneNumber},
    queue::Refusal,
};

/// How many commands one message carries at most: some 170 kB, two frames, and as many as a worker decides at a time. The cost of a message for the broker depends little on its content.
const MAX_COMMANDS_PER_MESSAGE: usize = 1_000;

/// So many commands are a message that need not wait for the verdicts on the one before.
const FULL_MESSAGE: usize = 128;

/// How long a lane that does not work is left alone at first, and at most.
pub(super) const RETRY_DELAYS: [Duration; 2] = [Duration::from_millis(250), Duration::from_secs(10)];

/// A command on its way into its lane.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    pub(super) command: Command,
    /// Since when it is parked rather than refused; `None` if it may be refused.
    pub(super) parkable_since: Option<Instant>,
}

impl Entry {
    /// A client waits, and learns of a refusal.
    pub(super) fn new(command: Command) -> Self {
        Self { command, parkable_since: None }
    }

    pub(super) fn is_parkable(&self) -> bool {
        self.parkable_since.is_some()
    }
}

/// The buffers of one API.
pub(super) struct LaneBuffers {
    /// How many commands one buffer takes.
    capacity: usize,
    /// Lanes with a publish in flight, or with an open circuit.
    lanes: Mutex<HashMap<LaneNumber, LaneBuffer>>,
}

#[derive(Default)]
struct LaneBuffer {
    entries: Vec<Entry>,
    is_publishing: bool,
    /// Nobody knows whether the broker has the message in flight. The lane takes no commands until that is known.
    is_unknown: bool,
    circuit: Option<OpenCircuit>,
    is_full: Arc<Notify>,
}

/// The lane does not work: its commands are refused at once, until it is time to try again.
struct OpenCircuit {
    retry_at: Instant,
    delay: Duration,
}

/// A command is in its lane's buffer.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Buffered {
    /// Nothing is in flight: publish the lane.
    Idle,
    /// It leaves after the message in flight.
    Publishing,
}

impl LaneBuffers {
    pub(super) fn new(capacity: usize) -> Self {
        Self { capacity, lanes: Mutex::default() }
    }

    fn lanes(&self) -> MutexGuard<'_, HashMap<LaneNumber, LaneBuffer>> {
        self.lanes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds a command, or returns it with the reason why not.
    pub(super) fn push(&self, lane: LaneNumber, entry: Entry) -> Result<Buffered, (Vec<Entry>, Refusal)> {
        let mut lanes = self.lanes();
        let buffer = lanes.entry(lane).or_default();
        let is_open = buffer.circuit.as_ref().is_some_and(|circuit| circuit.retry_at > Instant::now());
        if buffer.is_unknown || is_open {
            return Err((vec![entry], Refusal::QueueUnavailable));
        }
        if buffer.entries.len() >= self.capacity {
            return Err((vec![entry], Refusal::LaneFull));
        }
        buffer.entries.push(entry);
        if !mem::replace(&mut buffer.is_publishing, true) {
            return Ok(Buffered::Idle);
        }
        if buffer.entries.len() == FULL_MESSAGE {
            buffer.is_full.notify_one();
        }
        Ok(Buffered::Publishing)
    }

    /// The commands of the next message. `None` when there are none: then the lane is idle.
    pub(super) fn next_message(&self, lane: LaneNumber) -> Option<Vec<Entry>> {
        let mut lanes = self.lanes();
        let buffer = lanes.get_mut(&lane)?;
        if buffer.entries.is_empty() {
            buffer.is_publishing = false;
            if buffer.circuit.is_none() {
                lanes.remove(&lane);
            }
            return None;
        }
        let count = buffer.entries.len().min(MAX_COMMANDS_PER_MESSAGE);
        let rest = buffer.entries.split_off(count);
        Some(mem::replace(&mut buffer.entries, rest))
    }

    /// Waits until a [full message](FULL_MESSAGE) has gathered.
    pub(super) async fn full(&self, lane: LaneNumber) {
        let is_full = {
            let mut lanes = self.lanes();
            let buffer = lanes.entry(lane).or_default();
            if buffer.entries.len() >= FULL_MESSAGE {
                return;
            }
            buffer.is_full.clone()
        };
        is_full.notified().await;
    }

    /// Empties all buffers.
    pub(super) fn take_all(&self) -> Vec<Entry> {
        self.lanes().values_mut().flat_map(|buffer| mem::take(&mut buffer.entries)).collect()
    }

    /// The lane takes no commands until [`LaneBuffers::set_known`]. Returns those that are in its buffer.
    pub(super) fn set_unknown(&self, lane: LaneNumber) -> Vec<Entry> {
        let mut lanes = self.lanes();
        let Some(buffer) = lanes.get_mut(&lane) else { return Vec::new() };
        buffer.is_unknown = true;
        mem::take(&mut buffer.entries)
    }

    /// It is known what became of the message in flight.
    pub(super) fn set_known(&self, lane: LaneNumber) {
        if let Some(buffer) = self.lanes().get_mut(&lane) {
            buffer.is_unknown = false;
        }
    }

    /// The lane does not work. Returns whether it worked before.
    pub(super) fn open_circuit(&self, lane: LaneNumber) -> bool {
        let [min_delay, max_delay] = RETRY_DELAYS;
        let mut lanes = self.lanes();
        let buffer = lanes.entry(lane).or_default();
        let before = buffer.circuit.as_ref();
        let delay = before.map_or(min_delay, |circuit| (circuit.delay * 2).min(max_delay));
        let worked = before.is_none();
        buffer.circuit = Some(OpenCircuit { retry_at: Instant::now() + delay, delay });
        worked
    }

    /// The lane works. Returns whether it did not before.
    pub(super) fn close_circuit(&self, lane: LaneNumber) -> bool {
        self.lanes().get_mut(&lane).and_then(|buffer| buffer.circuit.take()).is_some()
    }

    pub(super) fn has_open_circuit(&self, lane: LaneNumber) -> bool {
        self.lanes().get(&lane).is_some_and(|buffer| buffer.circuit.is_some())
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;
    use tokio::time::advance;

    use super::*;
    use crate::clock::{Clock, SystemClock};
    use crate::domain::{
        command::{NewOrder, ReplyMode},
        ids::ProductId,
        lines::Lines,
        order::Quantity,
        origin::Origin,
    };

    const LANE: LaneNumber = 1;

    fn entry() -> Entry {
        let (product_id, total) = (ProductId::new(1).unwrap(), Quantity::new(1).unwrap());
        let id = SystemClock.order_id();
        Entry::new(
            NewOrder {
                id,
                lines: Lines::one(product_id, total),
                buyer: None,
                reply: ReplyMode::Detached,
                key: None,
                origin: Origin::default(),
            }
            .into(),
        )
    }

    fn push(buffers: &LaneBuffers) -> Result<Buffered, Refusal> {
        buffers.push(LANE, entry()).map_err(|(_, refusal)| refusal)
    }

    #[test]
    fn commands_gather_behind_the_message_in_flight() {
        let buffers = LaneBuffers::new(3_000);
        assert_eq!(push(&buffers), Ok(Buffered::Idle));
        assert_eq!(buffers.next_message(LANE).unwrap().len(), 1);
        for _ in 0..1_001 {
            assert_eq!(push(&buffers), Ok(Buffered::Publishing));
        }
        assert_eq!(buffers.next_message(LANE).unwrap().len(), MAX_COMMANDS_PER_MESSAGE);
        assert_eq!(buffers.next_message(LANE).unwrap().len(), 1);
        assert!(buffers.next_message(LANE).is_none());
        assert_eq!(push(&buffers), Ok(Buffered::Idle), "it is idle again");
    }

    #[test]
    fn a_full_buffer_refuses() {
        let buffers = LaneBuffers::new(2);
        assert!(push(&buffers).is_ok() && push(&buffers).is_ok());
        assert_eq!(push(&buffers), Err(Refusal::LaneFull));
        assert!(buffers.push(2, entry()).is_ok(), "another lane");
        assert_eq!(buffers.take_all().len(), 3);
        assert!(push(&buffers).is_ok());
    }

    #[test]
    fn a_full_message_ends_the_wait() {
        let buffers = LaneBuffers::new(1_000);
        let mut full = Box::pin(buffers.full(LANE));
        assert_eq!(full.as_mut().now_or_never(), None);
        for _ in 0..FULL_MESSAGE - 1 {
            push(&buffers).unwrap();
            assert_eq!(full.as_mut().now_or_never(), None);
        }
        push(&buffers).unwrap();
        assert_eq!(full.now_or_never(), Some(()));
        assert_eq!(buffers.full(LANE).now_or_never(), Some(()), "it still is");
    }

    #[test]
    fn a_lane_takes_nothing_while_a_message_is_unknown() {
        let buffers = LaneBuffers::new(10);
        push(&buffers).unwrap();
        assert_eq!(buffers.set_unknown(LANE).len(), 1);
        assert_eq!(push(&buffers), Err(Refusal::QueueUnavailable));
        buffers.set_known(LANE);
        assert_eq!(push(&buffers), Ok(Buffered::Publishing));
    }

    #[tokio::test(start_paused = true)]
    async fn a_lane_that_does_not_work_is_tried_after_growing_delays() {
        let buffers = LaneBuffers::new(10);
        for (n, delay_ms) in [250, 500, 1_000, 2_000, 4_000, 8_000, 10_000, 10_000].into_iter().enumerate() {
            assert_eq!(buffers.open_circuit(LANE), n == 0);
            advance(Duration::from_millis(delay_ms - 1)).await;
            assert_eq!(push(&buffers), Err(Refusal::QueueUnavailable));
            advance(Duration::from_millis(1)).await;
            assert!(push(&buffers).is_ok(), "after {delay_ms} ms");
            assert_eq!(buffers.next_message(LANE).unwrap().len(), 1);
            assert!(buffers.next_message(LANE).is_none());
            assert!(buffers.has_open_circuit(LANE), "until a publish says that it works");
        }
        assert!(buffers.close_circuit(LANE));
        assert!(!buffers.close_circuit(LANE) && !buffers.has_open_circuit(LANE));
    }
}
