//! Undecidable commands: reported once, and kept for a person.

use crate::{
    domain::{command::Command, decide::Undecidable, order::ChangeKind},
    queue::Delivery,
    telemetry::is_first_report,
};

/// Logs which commands cannot be decided, each once, and returns those that go to the dead letters. An expiry does not: the
/// sweep submits it again.
pub(super) fn report_undecidable(decided: &[Delivery], undecidable: &[Undecidable]) -> Vec<Command> {
    let commands: Vec<_> = decided
        .iter()
        .flat_map(|delivery| delivery.commands.iter().map(|command| (&delivery.lane, command)))
        .collect();
    let mut dead = Vec::new();
    for Undecidable { index, cause } in undecidable {
        let Some((lane, command)) = commands.get(*index) else { continue };
        let (order_id, what) = (command.order_id(), command.what());
        if is_first_report(&format!("{what} {order_id}: {cause}")) {
            tracing::error!(
                %order_id,
                product_id = command.product_id().get(),
                %lane,
                request_id = command.origin().request_id.as_ref().map(display),
                what,
                %cause,
                "a command cannot be decided; put right what the cause names, then send it again (an order, a payment or a \
                 cancellation is in the dead letters, an expiry is tried again automatically)"
            );
        }
        if !matches!(command, Command::Change(change) if change.change.kind() == ChangeKind::Expire) {
            dead.push((*command).clone());
        }
    }
    dead
}
