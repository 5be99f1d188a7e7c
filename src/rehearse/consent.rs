//! Whether the user really means this target: a rehearsal creates a product and sells it.

use std::io::{self, BufRead, IsTerminal, Write};

use super::load::target::Target;

/// A target on this machine needs no more than its name on the command line. Any other needs `--yes`, or its host typed at the
/// terminal. The error says what to do.
pub(super) fn obtain(target: &Target, yes: bool) -> Result<(), String> {
    if yes || target.is_loopback() {
        return Ok(());
    }
    if !(io::stdin().is_terminal() && io::stderr().is_terminal()) {
        return Err(format!(
            "--target {target} is not on this machine, and a rehearsal creates a product there and sells it: add --yes if you \
             mean it"
        ));
    }
    ask(target, &mut io::stdin().lock(), &mut io::stderr())
}

fn ask(target: &Target, answers: &mut impl BufRead, terminal: &mut impl Write) -> Result<(), String> {
    let host = target.host();
    let question = format!(
        "{target} is not on this machine. The rehearsal creates a product there and sells it; its orders and events are real.\n\
         Type the host ({host}) to go on: "
    );
    let mut answer = String::new();
    let asked = terminal.write_all(question.as_bytes()).and_then(|()| terminal.flush());
    asked.and_then(|()| answers.read_line(&mut answer)).map_err(|error| format!("cannot ask: {error}"))?;
    if answer.trim().eq_ignore_ascii_case(host) {
        Ok(())
    } else {
        Err("that is not the host; nothing was done".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn typed(answer: &str) -> Result<(), String> {
        let target = "https://shop.example/antre".parse().unwrap();
        ask(&target, &mut answer.as_bytes(), &mut Vec::new())
    }

    #[test]
    fn another_machine_is_confirmed_by_its_host() {
        assert!(typed("shop.example\n").is_ok());
        for answer in ["", "\n", "y\n", "yes\n", "shop\n"] {
            assert!(typed(answer).unwrap_err().contains("nothing was done"), "{answer:?}");
        }
    }

    #[test]
    fn this_machine_needs_no_confirmation() {
        assert!(obtain(&"http://localhost:3000".parse().unwrap(), false).is_ok());
        assert!(obtain(&"https://shop.example".parse().unwrap(), true).is_ok());
    }
}
