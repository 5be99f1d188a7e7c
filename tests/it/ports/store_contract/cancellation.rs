//! Decisions whose future is dropped while they run.

use super::*;

suite! {
    every_store: [
        concurrent_decisions_that_are_cancelled_keep_the_books_balanced,
    ],
    sql_only: [
        a_decision_cancelled_at_any_point_keeps_the_books_balanced,
    ],
}

/// Polls the future `polls` times and then drops it. `None`, unless it was ready before. A future that is polled only when
/// it was woken gets one poll for each point at which it waits, so counting `polls` up cancels it at every one of them.
async fn cancelled_after<F: Future>(polls: usize, future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    let mut left = polls;
    poll_fn(|context| {
        if left == 0 {
            return Poll::Ready(None);
        }
        left -= 1;
        match future.as_mut().poll(context) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending if left == 0 => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

async fn a_decision_cancelled_at_any_point_keeps_the_books_balanced(database: Database) {
    const PIECES: u32 = 100_000;
    let (shirt, hat) = (database.product_of(PIECES).await, database.product_of(PIECES).await);
    let mut sent = Vec::new();
    let mut cancelled = 0;
    for redelivered in [false, true] {
        for polls in 0.. {
            let batch = [order(hat, 1), order(shirt, 2), detached_order(hat, PIECES + 1)];
            sent.extend(batch.clone());
            if redelivered {
                database.decide(&batch[..1]).await;
            }
            match cancelled_after(polls, database.store.decide(&commands(&batch), TTL)).await {
                Some(decided) => {
                    assert_eq!(accepted(&decided.unwrap().verdicts), [true, true, false]);
                    break;
                }
                None => cancelled += 1,
            }
            // Half of them are redelivered, as after the death of a worker.
            if polls % 2 == 0 {
                assert_eq!(accepted(&database.decide(&batch).await), [true, true, false]);
                database.assert_balanced().await;
            }
        }
    }
    assert!(cancelled > 4, "cancelled {cancelled} times");
    // This batch locks the same rows as all of them: once it is decided, they have ended.
    database.decide(&[order(shirt, 1), order(hat, 1)]).await;
    database.assert_balanced().await;
    assert_eq!(accepted(&database.decide(&sent).await), [true, true, false].repeat(sent.len() / 3));
    database.assert_balanced().await;
}

async fn concurrent_decisions_that_are_cancelled_keep_the_books_balanced(database: Database) {
    let (shirt, hat) = (database.product_of(10_000).await, database.product_of(10_000).await);
    let mut sent = Vec::new();
    for _ in 0..12 {
        let mut workers = JoinSet::new();
        for worker in 0..6 {
            let mut batch = vec![order(shirt, 1), order(hat, 1), order(shirt, 1)];
            if worker % 2 == 1 {
                batch.reverse();
            }
            sent.extend(batch.clone());
            let store = database.store.clone();
            workers.spawn(async move { decide(&*store, &batch).await });
        }
        // The first one that is decided is the signal; the others are at any point.
        let first = workers.join_next().await.unwrap().unwrap();
        assert_eq!(accepted(&first), [true; 3]);
        workers.abort_all();
        while let Some(ended) = workers.join_next().await {
            assert!(ended.is_ok() || ended.is_err_and(|error| error.is_cancelled()));
        }
    }
    database.decide(&[order(shirt, 1), order(hat, 1)]).await;
    database.assert_balanced().await;
    assert_eq!(accepted(&database.decide(&sent).await), vec![true; sent.len()]);
    database.assert_balanced().await;
}
