//! What passes between this process and the broker, counted for operators.

use std::{
    collections::BTreeMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use lapin::Confirmation;

/// What was published.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Commands,
    Replies,
    Events,
    DeadLetters,
}

/// What became of a message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum PublishOutcome {
    Confirmed,
    Refused,
    /// It found no queue.
    Returned,
    NotSent,
    /// Nobody knows whether the broker has it.
    Unknown,
}

impl PublishOutcome {
    pub(super) fn of(confirmation: &Confirmation) -> Self {
        match confirmation {
            Confirmation::Ack(None) => Self::Confirmed,
            Confirmation::Ack(Some(_)) => Self::Returned,
            Confirmation::Nack(_) => Self::Refused,
            Confirmation::NotRequested => Self::Unknown,
        }
    }
}

/// Why a worker rejected a message, so that it went to the dead letters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rejected {
    Undecodable,
    /// It is of another database.
    Foreign,
}

const MESSAGES: [&str; 4] = ["commands", "replies", "events", "dead_letters"];
const OUTCOMES: [&str; 5] = ["confirmed", "refused", "returned", "not_sent", "unknown"];
const REJECTED: [&str; 2] = ["undecodable", "foreign"];

/// Counts since the process started.
#[derive(Debug, Default)]
pub struct Traffic {
    publishes: [[AtomicU64; OUTCOMES.len()]; MESSAGES.len()],
    /// Delivered for the first time, and again.
    deliveries: [AtomicU64; 2],
    rejected: [AtomicU64; REJECTED.len()],
    /// By purpose and success.
    connections: Mutex<BTreeMap<(&'static str, bool), u64>>,
    /// Connections that the broker blocks now.
    blocked: AtomicU64,
}

impl Traffic {
    pub(super) fn published(&self, message: Message, outcome: PublishOutcome) {
        self.publishes[message as usize][outcome as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn delivered(&self, is_again: bool) {
        self.deliveries[usize::from(is_again)].fetch_add(1, Relaxed);
    }

    pub(super) fn rejected(&self, why: Rejected) {
        self.rejected[why as usize].fetch_add(1, Relaxed);
    }

    pub(super) fn connected(&self, purpose: &'static str, is_open: bool) {
        let mut connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        *connections.entry((purpose, is_open)).or_default() += 1;
    }

    pub(super) fn set_blocked(&self, is_blocked: bool) {
        match is_blocked {
            true => self.blocked.fetch_add(1, Relaxed),
            false => self.blocked.fetch_sub(1, Relaxed),
        };
    }

    /// Messages, by content and by what became of them.
    pub fn publishes(&self) -> Vec<([&'static str; 2], u64)> {
        let of = |(message, counts): (&'static str, &[AtomicU64; OUTCOMES.len()])| {
            let counts = OUTCOMES.iter().zip(counts);
            counts.map(|(outcome, count)| ([message, *outcome], count.load(Relaxed))).collect::<Vec<_>>()
        };
        MESSAGES.into_iter().zip(&self.publishes).flat_map(of).collect()
    }

    /// Messages of lanes that were received: for the first time, and again.
    pub fn deliveries(&self) -> [u64; 2] {
        self.deliveries.each_ref().map(|count| count.load(Relaxed))
    }

    /// Messages that workers rejected, by the reason.
    pub fn rejections(&self) -> Vec<(&'static str, u64)> {
        REJECTED.into_iter().zip(&self.rejected).map(|(why, count)| (why, count.load(Relaxed))).collect()
    }

    /// Attempts to connect: purpose, whether it is open, how many.
    pub fn connections(&self) -> Vec<(&'static str, bool, u64)> {
        let connections = self.connections.lock().unwrap_or_else(PoisonError::into_inner);
        connections.iter().map(|((purpose, is_open), count)| (*purpose, *is_open, *count)).collect()
    }

    /// Whether the broker blocks a connection of this process.
    pub fn is_blocked(&self) -> bool {
        self.blocked.load(Relaxed) > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_message_is_counted_under_its_content_and_outcome() {
        let traffic = Traffic::default();
        traffic.published(Message::Commands, PublishOutcome::Confirmed);
        traffic.published(Message::DeadLetters, PublishOutcome::Unknown);
        traffic.published(Message::DeadLetters, PublishOutcome::Unknown);
        let counted: Vec<_> = traffic.publishes().into_iter().filter(|(_, count)| *count > 0).collect();
        assert_eq!(counted, [(["commands", "confirmed"], 1), (["dead_letters", "unknown"], 2)]);
        assert_eq!(traffic.publishes().len(), MESSAGES.len() * OUTCOMES.len());
    }

    #[test]
    fn it_is_blocked_while_any_connection_is() {
        let traffic = Traffic::default();
        traffic.set_blocked(true);
        traffic.set_blocked(true);
        traffic.set_blocked(false);
        assert!(traffic.is_blocked());
        traffic.set_blocked(false);
        assert!(!traffic.is_blocked());
    }

    #[test]
    fn attempts_to_connect_are_counted_by_purpose() {
        let traffic = Traffic::default();
        for is_open in [false, true, false] {
            traffic.connected("a test", is_open);
        }
        assert_eq!(traffic.connections(), [("a test", false, 2), ("a test", true, 1)]);
    }
}
