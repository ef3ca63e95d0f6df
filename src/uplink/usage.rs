//! What an answer says about itself: which model really answered, and how many tokens it took.

use std::io::{BufReader, Read};

use memchr::memchr2_iter;
use serde::Deserialize;

use crate::body::scan::JSON_DEPTH_MAX;
use crate::control::price::Usage;

/// As far as an answer says.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// The model that answered.
    pub model: Option<String>,
    /// Its tokens.
    pub usage: Option<Usage>,
}

#[derive(Deserialize)]
struct Said {
    #[serde(default)]
    model: Option<String>,
    #[serde(default)]
    usage: Option<Tokens>,
}

impl Said {
    fn summary(self) -> Summary {
        Summary { model: self.model, usage: self.usage.and_then(|tokens| tokens.usage()) }
    }
}

/// Under the names that chats and answers of other kinds have for them.
#[derive(Deserialize)]
struct Tokens {
    #[serde(rename = "prompt_tokens")]
    prompt: Option<u64>,
    #[serde(rename = "completion_tokens")]
    completion: Option<u64>,
    #[serde(rename = "input_tokens")]
    input: Option<u64>,
    #[serde(rename = "output_tokens")]
    output: Option<u64>,
}

impl Tokens {
    /// `None` where it says nothing.
    fn usage(&self) -> Option<Usage> {
        let (input, output) = (self.prompt.or(self.input), self.completion.or(self.output));
        input.or(output)?;
        Some(Usage { prompt_tokens: input.unwrap_or(0), completion_tokens: output.unwrap_or(0) })
    }
}

/// Reads an answer, or an event of one; empty where it is none.
pub fn read(body: &[u8]) -> Summary {
    parsed(body).unwrap_or_default()
}

/// The same, where the answer is whole; `None` where it is cut, is no JSON, or may be deeper than [`JSON_DEPTH_MAX`].
pub fn read_whole(body: &[u8]) -> Option<Summary> {
    // serde_json bounds no depth of what it skips. Brackets in texts count too: such an answer goes the long way.
    let opened = memchr2_iter(b'{', b'[', body).count();
    if opened <= JSON_DEPTH_MAX { parsed(body) } else { None }
}

fn parsed(body: &[u8]) -> Option<Summary> {
    serde_json::from_slice(body).ok().map(Said::summary)
}

/// The same of a long answer, which need not be in memory. Blocks where it is a file.
pub fn read_from(body: impl Read) -> Summary {
    serde_json::from_reader(BufReader::new(body)).map(Said::summary).unwrap_or_default()
}

/// So much of a long answer's end is looked at: its tokens stand there, after everything that was said.
pub const TAIL_BYTES: usize = 1024;

/// The tokens, out of the last bytes of an answer.
pub fn in_tail(tail: &[u8]) -> Option<Usage> {
    const NAME: &[u8] = b"\"usage\"";
    let at = tail.windows(NAME.len()).rposition(|window| window == NAME)?;
    let after = tail[at + NAME.len()..].trim_ascii_start().strip_prefix(b":")?;
    let tokens = serde_json::Deserializer::from_slice(after).into_iter::<Tokens>().next()?.ok()?;
    tokens.usage()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_whole_answer_is_told_from_half_of_one_and_from_a_deep_one() {
        let nested = |deep: usize| format!(r#"{{"a":{}1{}}}"#, "[".repeat(deep - 1), "]".repeat(deep - 1));
        assert_eq!(read_whole(nested(JSON_DEPTH_MAX).as_bytes()), Some(Summary::default()));
        assert_eq!(read_whole(nested(JSON_DEPTH_MAX + 1).as_bytes()), None);
        for other in [r#"{"a":1"#, r#"{"a":"b"#, r#"{"a":1}}"#, "", "ok"] {
            assert_eq!(read_whole(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn model_and_tokens_are_found_where_they_are_said() {
        let chat = br#"{"model":"m","choices":[],"usage":{"prompt_tokens":3,"completion_tokens":5,"total_tokens":8}}"#;
        let usage = Some(Usage { prompt_tokens: 3, completion_tokens: 5 });
        assert_eq!(read(chat), Summary { model: Some("m".to_owned()), usage });
        let embedding = br#"{"data":[],"usage":{"prompt_tokens":3,"total_tokens":3}}"#;
        assert_eq!(read(embedding).usage, Some(Usage { prompt_tokens: 3, completion_tokens: 0 }));
        let cut = br#"ges":"",1.5]}],"model":"m", "usage" : {"prompt_tokens":7,"x":{"y":1}} , "z":[]}"#;
        assert_eq!(in_tail(cut), Some(Usage { prompt_tokens: 7, completion_tokens: 0 }));
        assert_eq!((in_tail(b"\"usage\":null}"), in_tail(b"usage: 3"), in_tail(b"")), (None, None, None));
        assert_eq!(read(br#"{"usage":null}"#), Summary::default());
        assert_eq!(read(b"half of it"), Summary::default());
        assert_eq!(read_from(&chat[..]), read(chat));
        assert_eq!(read_whole(chat), Some(read(chat)));
    }
}
