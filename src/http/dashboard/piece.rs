//! The parts of a page that change while it is shown, and what changes of them from one second to the next.

use std::collections::HashMap;

use maud::Markup;
use serde::Serialize;

/// An element with an id.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Piece {
    pub(super) id: String,
    /// The element with everything in it.
    pub(super) html: String,
    /// The elements directly in it, if it has them only: a change of one of them is not a change of all.
    pub(super) rows: Vec<Piece>,
}

impl Piece {
    pub(super) fn new(id: impl Into<String>, markup: Markup) -> Self {
        Self { id: id.into(), html: markup.into_string(), rows: Vec::new() }
    }
}

/// What one event tells a page.
#[derive(Serialize)]
struct Update<'a> {
    /// A page of another release cannot show it, and loads itself again.
    release: &'static str,
    /// Ids with the elements that they are now.
    changed: Vec<(&'a str, &'a str)>,
}

/// An event with all pieces.
pub(super) fn whole(pieces: &[Piece]) -> String {
    event(pieces.iter().map(|piece| (&*piece.id, &*piece.html)).collect())
}

/// An event with what has changed. Without any change it says that the server is there.
pub(super) fn changes(old: &[Piece], new: &[Piece]) -> String {
    event(changed(old, new))
}

fn event(changed: Vec<(&str, &str)>) -> String {
    let update = Update { release: env!("CARGO_PKG_VERSION"), changed };
    // JSON has no line breaks of its own, which would end the data.
    format!("data: {}\n\n", serde_json::to_string(&update).unwrap_or_default())
}

fn changed<'a>(old: &[Piece], new: &'a [Piece]) -> Vec<(&'a str, &'a str)> {
    let old: HashMap<_, _> = old.iter().map(|piece| (&*piece.id, piece)).collect();
    let mut all = Vec::new();
    for piece in new {
        match old.get(&*piece.id) {
            Some(known) if known.html == piece.html => {}
            Some(known) if has_same_rows(known, piece) => all.extend(changed(&known.rows, &piece.rows)),
            _ => all.push((&*piece.id, &*piece.html)),
        }
    }
    all
}

fn has_same_rows(old: &Piece, new: &Piece) -> bool {
    !new.rows.is_empty() && old.rows.iter().map(|row| &row.id).eq(new.rows.iter().map(|row| &row.id))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn piece(id: &str, html: &str) -> Piece {
        Piece { id: id.to_owned(), html: html.to_owned(), rows: Vec::new() }
    }

    fn table(rows: &[(&str, &str)]) -> Piece {
        let html = rows.iter().map(|(_, html)| *html).collect::<String>();
        Piece { rows: rows.iter().map(|(id, html)| piece(id, html)).collect(), ..piece("rows", &html) }
    }

    #[test]
    fn only_what_has_changed_is_told() {
        let old = [piece("a", "1"), table(&[("r1", "x"), ("r2", "y")])];
        let told = |new: [Piece; 2]| {
            changed(&old, &new)
                .into_iter()
                .map(|(id, html)| format!("{id}={html}"))
                .collect::<Vec<_>>()
                .join(" ")
        };
        assert_eq!(told(old.clone()), "");
        assert_eq!(told([piece("a", "2"), old[1].clone()]), "a=2");
        assert_eq!(told([piece("a", "1"), table(&[("r1", "x"), ("r2", "z")])]), "r2=z");
        assert_eq!(told([piece("a", "1"), table(&[("r2", "y"), ("r1", "x")])]), "rows=yx");
        assert_eq!(told([piece("a", "1"), table(&[])]), "rows=");
    }

    #[test]
    fn an_event_is_one_line_of_json() {
        let text = changes(&[], &[piece("a", "<p>\n\"x\"\r\n</p>")]);
        let json = text.strip_prefix("data: ").unwrap().strip_suffix("\n\n").unwrap();
        assert!(!json.contains(['\n', '\r']));
        let update: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(update["changed"], serde_json::json!([["a", "<p>\n\"x\"\r\n</p>"]]));
        assert_eq!(
            changes(&[], &[]),
            format!("data: {{\"release\":\"{}\",\"changed\":[]}}\n\n", env!("CARGO_PKG_VERSION"))
        );
    }
}
