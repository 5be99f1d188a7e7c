//! What a worker takes from its lanes. While a decision lasts for long, what arrives is taken too: it is the next batch, and
//! operators see every lane in which commands wait, not only those of the batch in hand.

use std::{mem, pin::pin, sync::Arc, time::Duration};

use tokio::time::{Instant, sleep_until, timeout_at};

use super::batch::MAX_BATCH;
use crate::{
    monitor::undecided::Undecided,
    queue::{Consumer, Delivery, QueueError},
};

/// How long a decision lasts before something is taken meanwhile. Most batches take a few milliseconds, and then more commands are
/// in the next one.
const BEGIN: Duration = Duration::from_secs(1);
/// After this time nothing more is taken. The broker takes back what is not acknowledged for 60 s: taken again and again, it would
/// count as more than it is.
const END: Duration = Duration::from_secs(30);

pub(super) struct Intake {
    pub(super) consumer: Box<dyn Consumer>,
    /// Knows of all that is taken.
    undecided: Arc<Undecided>,
    /// The next batch, as far as it was taken while the last one was decided.
    ahead: Vec<Delivery>,
    /// Why nothing can be taken any more, found while a batch was decided.
    lost: Option<QueueError>,
}

impl Intake {
    pub(super) fn new(consumer: Box<dyn Consumer>, undecided: Arc<Undecided>) -> Self {
        Self { consumer, undecided, ahead: Vec::new(), lost: None }
    }

    /// The next batch: waits until something has arrived. Cancel safe, as [`Consumer::take`] is.
    pub(super) async fn next(&mut self) -> Result<Vec<Delivery>, QueueError> {
        if let Some(error) = self.lost.take() {
            return Err(error);
        }
        if !self.ahead.is_empty() {
            return Ok(mem::take(&mut self.ahead));
        }
        self.take(MAX_BATCH).await
    }

    /// Does `work`, a part of the decision that began at `began`. If that lasts for long, takes what arrives meanwhile.
    pub(super) async fn during<T>(&mut self, began: Instant, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        if let Ok(done) = timeout_at(began + BEGIN, &mut work).await {
            return done;
        }
        while began.elapsed() < END && self.lost.is_none() {
            let room = MAX_BATCH.saturating_sub(self.ahead.iter().map(|one| one.commands.len()).sum());
            if room == 0 {
                break;
            }
            tokio::select! {
                biased;
                done = &mut work => return done,
                taken = self.take(room) => match taken {
                    Ok(taken) => self.ahead.extend(taken),
                    Err(error) => self.lost = Some(error),
                },
                () = sleep_until(began + END) => {}
            }
        }
        work.await
    }

    async fn take(&mut self, max_commands: usize) -> Result<Vec<Delivery>, QueueError> {
        let taken = self.consumer.take(max_commands).await?;
        self.undecided.take(&taken);
        Ok(taken)
    }
}

#[cfg(test)]
mod tests {
    use async_trait::async_trait;
    use tokio::time::{sleep, timeout};

    use super::*;
    use crate::{
        clock::{Clock, SystemClock},
        domain::{
            command::{Command, NewOrder, ReplyMode},
            ids::{CommandId, ProductId},
            lines::Lines,
            order::Quantity,
            origin::Origin,
        },
        queue::{Completion, NothingArchived, Outcome, Queue, ReplySink, Submitter, memory::MemoryQueue},
    };

    const SECOND: Duration = Duration::from_secs(1);

    struct Nobody;

    impl ReplySink for Nobody {
        fn deliver(&self, _: Vec<(CommandId, Outcome)>) {}
    }

    /// A queue in memory with an API, and what a worker takes from it.
    async fn open() -> (Arc<dyn Submitter>, Intake) {
        let queue = MemoryQueue::new(10_000, SystemClock.now());
        let submitter = queue.submitter(Arc::new(Nobody), Arc::new(NothingArchived)).await.unwrap();
        (submitter, Intake::new(queue.consumer().await.unwrap(), Arc::default()))
    }

    fn order(product: u64) -> Command {
        Command::from(NewOrder {
            id: SystemClock.order_id(),
            lines: Lines::one(ProductId::new(product).unwrap(), Quantity::new(1).unwrap()),
            buyer: None,
            reply: ReplyMode::Until(SystemClock.now()),
            key: None,
            origin: Origin::default(),
        })
    }

    /// The products in which commands are known to wait.
    fn waiting(intake: &Intake) -> Vec<u64> {
        let mut lanes: Vec<_> =
            intake.undecided.lanes(0).into_iter().map(|lane| lane.product_id.get()).collect();
        lanes.sort_unstable();
        lanes
    }

    fn products(batch: &[Delivery]) -> Vec<u64> {
        batch.iter().flat_map(|one| &one.commands).map(|command| command.product_id().get()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn what_arrives_during_a_long_decision_is_known_and_is_the_next_batch() {
        let (submitter, mut intake) = open().await;
        submitter.submit(order(1));
        assert_eq!(products(&intake.next().await.unwrap()), [1]);
        let (began, others) = (Instant::now(), [2, 3, 4]);
        others.iter().for_each(|product| submitter.submit(order(*product)));
        intake.during(began, sleep(SECOND / 2)).await;
        assert_eq!(waiting(&intake), [1], "it does not last for long yet");
        // The next try of the same decision.
        intake.during(began, sleep(SECOND)).await;
        assert_eq!(waiting(&intake), [1, 2, 3, 4]);
        assert_eq!(products(&intake.next().await.unwrap()), others);
        timeout(SECOND, intake.next()).await.unwrap_err();
    }

    #[tokio::test(start_paused = true)]
    async fn no_more_is_taken_than_a_batch_may_have_and_nothing_for_ever() {
        let (submitter, mut intake) = open().await;
        (0..=MAX_BATCH).for_each(|_| submitter.submit(order(1)));
        submitter.submit(order(2));
        let began = Instant::now();
        intake.during(began, sleep(2 * SECOND)).await;
        assert_eq!(
            intake.next().await.unwrap().iter().map(|one| one.commands.len()).sum::<usize>(),
            MAX_BATCH
        );
        intake.during(began - END, sleep(SECOND)).await;
        assert_eq!(waiting(&intake), [1], "the broker may take them back");
        assert_eq!(products(&intake.next().await.unwrap()), [2]);
    }

    /// A consumer whose connection ends after a while.
    struct Ending;

    #[async_trait]
    impl Consumer for Ending {
        async fn serve(&mut self, _: &[ProductId]) -> Result<(), QueueError> {
            Ok(())
        }

        async fn retire(&mut self, _: &[ProductId]) -> Result<(), QueueError> {
            Ok(())
        }

        async fn take(&mut self, _: usize) -> Result<Vec<Delivery>, QueueError> {
            sleep(SECOND).await;
            Err(QueueError("the connection has ended".to_owned()))
        }

        async fn settle(&mut self, _: Vec<Delivery>, _: Completion) -> Result<(), QueueError> {
            Ok(())
        }

        async fn drain(&mut self) -> Result<(), QueueError> {
            Ok(())
        }

        async fn requeue(&mut self, _: Vec<Delivery>) -> Result<(), QueueError> {
            Ok(())
        }

        async fn dead_letter(&mut self, _: Vec<Command>) -> Result<(), QueueError> {
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_consumer_that_ends_during_a_decision_does_not_end_the_decision() {
        let mut intake = Intake::new(Box::new(Ending), Arc::default());
        let decide = async {
            sleep(20 * SECOND).await;
            "decided"
        };
        assert_eq!(intake.during(Instant::now(), decide).await, "decided");
        let error = timeout(SECOND / 2, intake.next()).await.unwrap().unwrap_err();
        assert!(error.to_string().contains("has ended"), "{error}");
    }
}
