//! At `debug` the log has a line for each command that is decided.

use tracing::{Level, enabled};

use crate::{domain::verdict::Verdict, queue::Delivery};

pub(super) fn log_decided(decided: &[Delivery], verdicts: &[Verdict]) {
    if !enabled!(Level::DEBUG) {
        return;
    }
    let commands =
        decided.iter().flat_map(|delivery| delivery.commands.iter().map(|command| (&delivery.lane, command)));
    for ((lane, command), verdict) in commands.zip(verdicts) {
        tracing::debug!(
            order_id = %command.order_id(),
            product_id = command.product_id().get(),
            %lane,
            request_id = command.origin().request_id.as_ref().map(display),
            what = command.what(),
            verdict = verdict.as_str(),
            "decided"
        );
    }
}
