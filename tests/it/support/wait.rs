//! Waiting for what a test needs, with a limit.

use std::time::Duration;

use tokio::time::{Instant, sleep};

/// After this long a test gives up. Far more than anything takes, so that a slow machine fails nothing.
pub(crate) const TIMEOUT: Duration = Duration::from_secs(60);

/// Asks until there is an answer.
pub(crate) async fn eventually<T>(complaint: &str, mut ask: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + TIMEOUT;
    loop {
        if let Some(answer) = ask().await {
            return answer;
        }
        assert!(Instant::now() < deadline, "{complaint}");
        sleep(Duration::from_millis(2)).await;
    }
}
