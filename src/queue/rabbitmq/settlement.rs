//! Lets go of a batch: once the broker has all that was said of it, its deliveries are acknowledged.

use std::{collections::HashSet, future::pending, sync::Arc};

use futures_util::future::try_join_all;
use lapin::{Acker, Confirmation, PublisherConfirm, options::BasicAckOptions};
use tokio::task::JoinHandle;

use super::{consumer::End, failed, topology::Lane, within, within_unless_blocked};
use crate::queue::{Delivery, QueueError};

/// A delivery and the way to acknowledge it.
pub(super) struct Held {
    pub(super) delivery: Delivery,
    pub(super) lane: Lane,
    pub(super) acker: Acker,
}

/// What was said of a batch, and what is to be acknowledged once the broker has it all.
pub(super) struct Settlement {
    pub(super) end: Arc<End>,
    pub(super) to_apis: Vec<PublisherConfirm>,
    pub(super) to_services: Vec<PublisherConfirm>,
    pub(super) held: Vec<Held>,
}

impl Settlement {
    /// Acknowledges what is settled. What comes back is not: the API that should have heard of it is gone.
    pub(super) async fn finish(self) -> Result<Vec<Held>, QueueError> {
        let status = self.end.publishing.status();
        let (mut gone, mut refused) = (HashSet::new(), 0);
        for confirm in self.to_apis {
            // lapin hands a returned message out with whichever confirm comes next, so what it says about itself counts.
            match within_unless_blocked(status, confirm).await? {
                Confirmation::Ack(Some(returned)) | Confirmation::Nack(Some(returned)) => {
                    gone.insert(returned.routing_key.clone());
                }
                // Its queue went while the broker was putting the message into it.
                Confirmation::Nack(None) => {
                    tracing::debug!("verdicts for an API that is gone")
                }
                Confirmation::Ack(None) | Confirmation::NotRequested => {}
            }
        }
        for confirm in self.to_services {
            refused +=
                usize::from(matches!(within_unless_blocked(status, confirm).await?, Confirmation::Nack(_)));
        }
        if refused > 0 {
            // A queue that somebody bound to the exchange is full and refuses. Its owner chose to lose what comes then;
            // the shop goes on selling.
            tracing::error!(refused, "a queue bound to the exchange of events refused messages: it is full");
        }
        let (unheard, heard): (Vec<_>, Vec<_>) =
            self.held.into_iter().partition(|held| gone.contains(&*held.delivery.reply_to));
        // Each by itself: tags of several lanes interleave, and "multiple" would cover what is not done yet. All at
        // once: to wait until one is written before the next would take as long as many lanes have orders.
        let acks = heard.iter().map(|held| held.acker.ack(BasicAckOptions::default()));
        if within(try_join_all(acks)).await?.contains(&false) {
            return Err(QueueError("the channel was gone before the ack".to_owned()));
        }
        Ok(unheard)
    }
}

/// Waits for the batch that is being settled; for ever if there is none. Cancel safe.
pub(super) async fn settled(
    settling: &mut Option<JoinHandle<Result<Vec<Held>, QueueError>>>,
) -> Result<Vec<Held>, QueueError> {
    let Some(handle) = settling else { return pending().await };
    let result = handle.await.map_err(failed);
    *settling = None;
    result?
}
