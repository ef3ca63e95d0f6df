//! A prompt with `{names}`: read once, filled in one pass.
//!
//! What is filled in is never looked at again, so an argument cannot name another one.

use std::collections::BTreeMap;

/// Longest name of an argument.
const NAME_BYTES_MAX: usize = 32;

/// A prompt in pieces.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Template {
    pieces: Vec<Piece>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Piece {
    Text(String),
    Name(String),
}

impl Template {
    /// Reads a prompt; `{{` and `}}` stand for one brace.
    pub(super) fn parse(prompt: &str) -> Result<Template, String> {
        let (mut pieces, mut text) = (Vec::new(), String::new());
        let mut rest = prompt;
        while let Some(at) = rest.find(['{', '}']) {
            text.push_str(&rest[..at]);
            let brace = &rest[at..=at];
            let after = &rest[at + 1..];
            if let Some(more) = after.strip_prefix(brace) {
                text.push_str(brace);
                rest = more;
                continue;
            }
            if brace == "}" {
                return Err("a lone } ; write }} where a brace is meant".to_owned());
            }
            let end = after.find('}').ok_or("a { that nothing closes; write {{ where a brace is meant")?;
            let name = &after[..end];
            if !is_name(name) {
                return Err(
                    "between { and } stands an argument's name (letters, digits and _, a letter first); write \
                            {{ and }} where braces are meant"
                        .to_owned(),
                );
            }
            if !text.is_empty() {
                pieces.push(Piece::Text(std::mem::take(&mut text)));
            }
            pieces.push(Piece::Name(name.to_owned()));
            rest = &after[end + 1..];
        }
        text.push_str(rest);
        if !text.is_empty() {
            pieces.push(Piece::Text(text));
        }
        Ok(Template { pieces })
    }

    /// The names in the order in which they first stand.
    pub(super) fn names(&self) -> Vec<&str> {
        let mut names: Vec<&str> = Vec::new();
        for piece in &self.pieces {
            if let Piece::Name(name) = piece
                && !names.contains(&name.as_str())
            {
                names.push(name);
            }
        }
        names
    }

    /// The prompt with its values; a name without one is left out.
    pub(super) fn fill(&self, values: &BTreeMap<&str, &str>) -> String {
        let piece = |piece: &Piece| match piece {
            Piece::Text(text) => text.clone(),
            Piece::Name(name) => values.get(name.as_str()).copied().unwrap_or_default().to_owned(),
        };
        self.pieces.iter().map(piece).collect()
    }
}

/// Whether an argument may be called so.
pub(super) fn is_name(name: &str) -> bool {
    let starts = name.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_');
    starts && name.len() <= NAME_BYTES_MAX && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filled(prompt: &str, values: &[(&str, &str)]) -> String {
        Template::parse(prompt).unwrap().fill(&values.iter().copied().collect())
    }

    #[test]
    fn names_stand_in_the_order_of_their_first_use() {
        let template = Template::parse("{b} {a} {b} {{c}}").unwrap();
        assert_eq!(template.names(), ["b", "a"]);
        assert_eq!(filled("{b} {a} {b} {{c}}", &[("a", "1"), ("b", "2")]), "2 1 2 {c}");
    }

    #[test]
    fn what_is_filled_in_is_not_read_again() {
        assert_eq!(filled("{a}{b}", &[("a", "{b}"), ("b", "}{{a}")]), "{b}}{{a}");
    }

    #[test]
    fn braces_that_are_no_names_are_said() {
        for prompt in ["{", "}", "{a", "a}", "{a b}", "{}", "{1a}", "{\"code\": 1}", "{{{a}}"] {
            assert!(Template::parse(prompt).is_err(), "{prompt}");
        }
        assert_eq!(filled("{{{a}}}", &[("a", "x")]), "{x}");
        assert_eq!(filled("Größe {{}} ä", &[]), "Größe {} ä");
    }
}
