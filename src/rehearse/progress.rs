//! What a rehearsal shows on stderr while it runs: a bar on a terminal, a line every two seconds elsewhere.

use std::{
    io::{self, IsTerminal},
    time::Duration,
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{MissedTickBehavior, interval};

use super::journal::{Journal, Live};
use crate::digits::thousands;

/// Shows how it goes until it is dropped.
pub(super) async fn show(journal: &Journal, buyers: u64) {
    if io::stderr().is_terminal() { bar(journal, buyers).await } else { lines(journal, buyers).await }
}

async fn bar(journal: &Journal, buyers: u64) {
    let bar = ProgressBar::with_draw_target(Some(buyers), ProgressDrawTarget::stderr());
    if let Ok(style) = ProgressStyle::with_template("{bar:24} {pos}/{len} {elapsed} {wide_msg}") {
        bar.set_style(style.progress_chars("━╸ "));
    }
    let cleared = Cleared(bar);
    let mut ticks = ticks(Duration::from_millis(100));
    loop {
        ticks.tick().await;
        let live = journal.live();
        cleared.0.set_position(live.done);
        cleared.0.set_message(figures(live));
    }
}

/// The verdict comes to where the bar was.
struct Cleared(ProgressBar);

impl Drop for Cleared {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

async fn lines(journal: &Journal, buyers: u64) {
    let mut ticks = ticks(Duration::from_secs(2));
    ticks.tick().await; // the first one is due at once
    loop {
        ticks.tick().await;
        eprintln!("{}", line(journal.live(), buyers));
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
    ticks
}

fn line(live: Live, buyers: u64) -> String {
    format!("{} of {} buyers: {}", thousands(live.done), thousands(buyers), figures(live))
}

fn figures(live: Live) -> String {
    let mut text = format!(
        "{} accepted, {} refused, {} paid, {} waiting",
        thousands(live.accepted),
        thousands(live.refused),
        thousands(live.paid),
        thousands(live.entered - live.done)
    );
    if live.failed > 0 {
        text += &format!(", {} errors", thousands(live.failed));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_how_far_it_is() {
        let live = Live { entered: 1_500, done: 1_200, accepted: 100, refused: 1_099, failed: 1, paid: 80 };
        assert_eq!(
            line(live, 3_000),
            "1,200 of 3,000 buyers: 100 accepted, 1,099 refused, 80 paid, 300 waiting, 1 errors"
        );
    }
}
