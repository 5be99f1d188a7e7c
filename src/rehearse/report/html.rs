//! Text in HTML.

/// Text as it may stand between tags and in quoted attributes.
pub(super) fn escaped(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => escaped.push_str("&amp;"),
            '<' => escaped.push_str("&lt;"),
            '>' => escaped.push_str("&gt;"),
            '"' => escaped.push_str("&quot;"),
            '\'' => escaped.push_str("&#39;"),
            other => escaped.push(other),
        }
    }
    escaped
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn markup_becomes_text() {
        let text = r#"<script>alert("1 & 2", '3')</script>"#;
        assert_eq!(escaped(text), "&lt;script&gt;alert(&quot;1 &amp; 2&quot;, &#39;3&#39;)&lt;/script&gt;");
        assert_eq!(escaped("Kaos Polos · 1.000"), "Kaos Polos · 1.000");
    }
}
