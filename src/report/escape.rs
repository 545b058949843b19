/// Text as it stands in HTML and SVG, in an element or a quoted attribute. What XML allows nowhere is replaced.
pub(super) fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            '\t' | '\n' => out.push(' '),
            '\u{0}'..='\u{1f}'
            | '\u{7f}'..='\u{9f}'
            | '\u{fffe}'
            | '\u{ffff}'
            // these turn around the text that follows
            | '\u{202a}'..='\u{202e}'
            | '\u{2066}'..='\u{2069}' => out.push('\u{fffd}'),
            letter => out.push(letter),
        }
    }
    out
}

/// JSON that can stand in a `<script>` element: a `<` is only ever in a string, where it may be written so.
pub(super) fn json_in_html(json: &str) -> String {
    json.replace('<', "\\u003c")
}

/// The first letters of a text, if it has more than `most`.
pub(super) fn shorten(text: &str, most: usize) -> String {
    if text.chars().count() <= most {
        return text.to_owned();
    }
    text.chars().take(most.saturating_sub(1)).chain(['…']).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_place() {
        assert_eq!(
            escape("<script>alert('1')</script> & \"x\"\u{1}\u{202e}"),
            "&lt;script&gt;alert(&#39;1&#39;)&lt;/script&gt; &amp; &quot;x&quot;\u{fffd}\u{fffd}"
        );
        let json = serde_json::json!({"name": "</script><!-- <script>"});
        let text = json_in_html(&json.to_string());
        assert!(!text.contains('<'));
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), json);
        assert_eq!([shorten("four", 4), shorten("fünfe", 4)], ["four", "fün…"]);
    }
}
