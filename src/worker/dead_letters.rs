//! Undecidable commands: reported once, and kept for a person.

use crate::{
    domain::{command::Command, decide::Undecidable, order::Change},
    telemetry::is_first_report,
};

/// Logs which commands cannot be decided, each once, and returns those that go to the dead letters. An expiry does not: the
/// sweep submits it again.
pub(super) fn report_undecidable(commands: &[Command], undecidable: &[Undecidable]) -> Vec<Command> {
    let mut dead = Vec::new();
    for Undecidable { index, cause } in undecidable {
        let Some(command) = commands.get(*index) else { continue };
        let (order_id, what) = (command.order_id(), command.what());
        if is_first_report(&format!("{what} {order_id}: {cause}")) {
            let product_id = command.product_id();
            tracing::error!(
                %order_id, %product_id, what, %cause,
                "a command cannot be decided; put right what the cause names, then send it again (an order, a payment or a \
                 cancellation is in the dead letters, an expiry is tried again automatically)"
            );
        }
        if !matches!(command, Command::Change(change) if change.change == Change::Expire) {
            dead.push(command.clone());
        }
    }
    dead
}
