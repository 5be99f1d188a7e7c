//! What a text of the seller may be: a name, a reason.

use unicode_properties::{GeneralCategory, GeneralCategoryGroup, UnicodeGeneralCategory};

/// The text without white space around it, if 1 to `max` characters (Unicode scalar values) are left.
pub(super) fn trimmed(text: &str, max: usize) -> Option<&str> {
    let text = text.trim();
    (1..=max).contains(&text.chars().take(max + 1).count()).then_some(text)
}

/// Whether a person can read it: something in it is visible, and nothing changes the direction of the text around it.
pub(super) fn is_readable(text: &str) -> bool {
    text.chars().any(is_visible) && !text.chars().any(is_forbidden)
}

/// Other programs end a text at NUL. Direction marks make a page show something other than what the text says.
fn is_forbidden(character: char) -> bool {
    matches!(
        character,
        '\0' | '\u{061c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}'
    )
}

/// Whether the character alone shows something. One that Unicode has not assigned counts as visible: a newer version may
/// make it a letter.
fn is_visible(character: char) -> bool {
    use GeneralCategoryGroup::{Letter, Number, Other, Punctuation, Symbol};
    let shows = match character.general_category_group() {
        Letter | Number | Punctuation | Symbol => true,
        Other => {
            matches!(character.general_category(), GeneralCategory::PrivateUse | GeneralCategory::Unassigned)
        }
        _ => false, // marks, which combine with another character, and separators
    };
    // Fillers and a blank that Unicode counts as letters and symbols, and ranges that it reserves for ignorable characters.
    let is_blank = matches!(
        character,
        '\u{115f}' | '\u{1160}' | '\u{2065}' | '\u{2800}' | '\u{3164}' | '\u{ffa0}' | '\u{fff0}'..='\u{fff8}'
            | '\u{e0000}'..='\u{e0fff}'
    );
    shows && !is_blank
}
