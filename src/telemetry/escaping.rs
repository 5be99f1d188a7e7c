//! Log lines for people, in which no value can look like another line.

use std::io::{self, Write};

use tracing_subscriber::fmt::MakeWriter;

/// Writes to stderr, and escapes characters that could make a line look like another one: clients choose URIs, and error
/// texts of libraries repeat what they send. JSON needs no escaping here.
#[derive(Clone, Copy)]
pub(super) struct EscapingStderr;

impl MakeWriter<'_> for EscapingStderr {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

impl Write for EscapingStderr {
    /// One event, as the formatter writes it: in one piece, with a line feed at its end.
    fn write(&mut self, event: &[u8]) -> io::Result<usize> {
        match std::str::from_utf8(event).ok().and_then(escaped) {
            Some(text) => io::stderr().write_all(text.as_bytes())?,
            None => io::stderr().write_all(event)?,
        }
        Ok(event.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

/// The event with deceptive characters escaped; `None` if it has none.
fn escaped(event: &str) -> Option<String> {
    let line = event.strip_suffix('\n').unwrap_or(event);
    if !line.contains(is_deceptive) {
        return None;
    }
    let mut text = String::with_capacity(event.len() + 16);
    for character in line.chars() {
        match character {
            deceptive if is_deceptive(deceptive) => text.extend(deceptive.escape_default()),
            plain => text.push(plain),
        }
    }
    text.push_str(&event[line.len()..]);
    Some(text)
}

/// Control characters except ESC, which colours lines on terminals (the formatter escapes those of values), and the invisible
/// characters and those that reverse text.
fn is_deceptive(character: char) -> bool {
    (character.is_control() && character != '\x1b')
        || matches!(
            character,
            '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_event_is_one_line_without_deceptive_characters() {
        assert_eq!(escaped("\x1b[32m INFO\x1b[0m caf\u{e9} \u{1f455}\n"), None);
        assert_eq!(escaped("a\nb\r\n").as_deref(), Some("a\\nb\\r\n"));
        assert_eq!(
            escaped("/\u{202e}txt\u{200b}\u{85}\n").as_deref(),
            Some("/\\u{202e}txt\\u{200b}\\u{85}\n")
        );
        assert_eq!(escaped("a\0b").as_deref(), Some("a\\u{0}b"));
    }
}
