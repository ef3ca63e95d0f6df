//! The most that one request can cost, from its bytes and before it is sent.
//!
//! Input: a token is at least one byte of the body. A picture's base64 says nothing about its tokens, so each picture
//! has a bound of its own, and so has what the body only refers to. Output: what the request allows, else the model's
//! longest answer, for each of the answers it asks for. Parses no tree and decodes nothing.

use std::io::{self, Read};

use crate::body::scan::{Layout, Member};
use crate::body::{Body, PIECE_BYTES};
use crate::control::money::Nano;
use crate::control::price::{Price, Usage};

/// Tokens of one picture at most: the dearest known count is 48,169 (gpt-4o-mini, 2048 by 768, high detail).
pub const PICTURE_TOKENS_MAX: u64 = 50_000;
/// Tokens of what a body only refers to (a stored file, an earlier response) at most: the longest context there is.
pub const REFERRED_TOKENS_MAX: u64 = 1_048_576;
/// What a service adds by itself around what it was given.
pub const ADDED_TOKENS_MAX: u64 = 256;
/// Answers asked for where `n` cannot be read: the most that services allow.
const ANSWERS_MAX: u64 = 128;

/// Fields whose values are in the service's hands and not in the body.
const REFERENCES: [&[u8]; 7] = [
    b"\"file_id\"",
    b"\"file_ids\"",
    b"\"file_url\"",
    b"\"previous_response_id\"",
    b"\"conversation\"",
    b"\"vector_store_ids\"",
    b"\"web_search_options\"",
];
/// Beginnings of the types of tools that a service works with by itself: each may bring in as much as fits.
const TOOLS: [&[u8]; 7] = [
    b"\"web_search",
    b"\"file_search",
    b"\"code_interpreter",
    b"\"computer",
    b"\"image_generation",
    b"\"mcp",
    b"\"tool_search",
];
const TYPE_FIELD: &[u8] = b"\"type\"";
/// What names a file in a form.
const FORM_FILE: &[u8] = b"filename";
const PICTURE_FIELD: &[u8] = b"\"image_url\"";
const PICTURE_DATA: &[u8] = b"data:image/";
/// Looked ahead behind a byte: a field's name, blanks and the byte after its colon.
const AHEAD_BYTES: usize = 64;

/// The tokens that a request can take at most.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TokensMax {
    input: u64,
    /// Of one answer; `None` where the request sets no limit.
    output: Option<u64>,
    answers: u64,
}

impl TokensMax {
    /// What it costs at most at this price, in billionths of a US dollar.
    pub fn nano_max(&self, price: &Price) -> Nano {
        let output = self.output.unwrap_or(price.max_output_tokens);
        let completion_tokens = output.saturating_mul(self.answers);
        price.nano(Usage { prompt_tokens: self.input, completion_tokens })
    }
}

/// Whether what is asked for at this path is worked off later, out of sight: nothing bounds what it costs.
pub fn is_boundless(path: &str) -> bool {
    let is_word = |part: &&str| !part.is_empty();
    let is_ended = path.split('/').rfind(is_word).is_some_and(|last| matches!(last, "cancel" | "pause"));
    !is_ended && path.split('/').any(|part| matches!(part, "batches" | "fine_tuning" | "fine-tunes" | "evals"))
}

/// Reads a request's bounds. Blocks where its body is a file.
pub fn tokens_max(endpoint: &str, body: &Body) -> io::Result<TokensMax> {
    let layout = body.layout().as_ref().ok();
    let mut counted = Counted { responses: endpoint == "/v1/responses", ..Counted::default() };
    let mut reader = body.reader();
    let mut piece = vec![0; PIECE_BYTES.min(usize::try_from(body.len()).unwrap_or(PIECE_BYTES)).max(1)];
    loop {
        let read = reader.read(&mut piece)?;
        counted.feed(&piece[..read], read == 0);
        if read == 0 {
            break;
        }
    }
    let Some(layout) = layout else { return Ok(of_upload(body, counted.files)) };
    let pictures = counted.pictures.max(counted.picture_fields).saturating_mul(PICTURE_TOKENS_MAX);
    // A prompt template lies at the service; elsewhere the word means the prompt itself.
    let templates = u64::from(counted.responses && given(layout, "prompt").is_some());
    let references = counted.references.saturating_add(templates);
    let referred = references.saturating_mul(REFERRED_TOKENS_MAX);
    let input = counted.text_bytes.saturating_add(pictures).saturating_add(referred).saturating_add(ADDED_TOKENS_MAX);
    let lists = if endpoint == "/v1/completions" && is_list(layout, "prompt") { counted.commas + 1 } else { 1 };
    // Another path's word is none here: a service that passes it over answers at full length.
    let limits: &[&str] =
        if endpoint == "/v1/responses" { &["max_output_tokens"] } else { &["max_tokens", "max_completion_tokens"] };
    // A limit that cannot be read limits nothing.
    let limits = limits.iter().map(|name| given(layout, name).and_then(number));
    let answers = ["n", "best_of"].map(|name| given(layout, name).map_or(1, |n| number(n).unwrap_or(ANSWERS_MAX)));
    let answers = answers.into_iter().max().unwrap_or(1).max(1).saturating_mul(lists);
    Ok(TokensMax { input, output: limits.flatten().max(), answers })
}

/// A body that is no JSON, such as a form with sound or pictures: each byte may be a token, each file a picture.
fn of_upload(body: &Body, files: u64) -> TokensMax {
    let pictures = files.saturating_mul(PICTURE_TOKENS_MAX);
    let input = body.len().saturating_add(pictures).saturating_add(ADDED_TOKENS_MAX);
    TokensMax { input, output: None, answers: 1 }
}

/// A member that is there and not null.
fn given<'a>(layout: &'a Layout, name: &str) -> Option<&'a Member> {
    layout.get(name).filter(|member| member.start.first() != Some(&b'n'))
}

/// A number rounded up; `None` where it is none.
fn number(member: &Member) -> Option<u64> {
    let number: f64 = member.is_whole().then(|| serde_json::from_slice(&member.start).ok()).flatten()?;
    (number >= 0.0).then(|| number.ceil() as u64)
}

fn is_list(layout: &Layout, name: &str) -> bool {
    given(layout, name).is_some_and(|member| member.start.first() == Some(&b'['))
}

/// What stands in the bytes, piece by piece.
#[derive(Debug, Default)]
struct Counted {
    /// Everything but pictures.
    text_bytes: u64,
    pictures: u64,
    picture_fields: u64,
    references: u64,
    commas: u64,
    /// Files in a form.
    files: u64,
    /// It is a request for a response, whose tools may be the service's own.
    responses: bool,
    in_picture: bool,
    /// Bytes that were too near the end of a piece to be looked at.
    rest: Vec<u8>,
}

impl Counted {
    fn feed(&mut self, piece: &[u8], is_end: bool) {
        let mut bytes = std::mem::take(&mut self.rest);
        bytes.extend_from_slice(piece);
        let stop = if is_end { bytes.len() } else { bytes.len().saturating_sub(AHEAD_BYTES) };
        let mut at = 0;
        while at < stop {
            at += if self.in_picture { self.skip(&bytes[at..], stop - at) } else { self.look(&bytes[at..]) };
        }
        self.rest = bytes.split_off(at.min(bytes.len()));
    }

    /// Up to the end of a picture's text, or as far as is to be looked at.
    fn skip(&mut self, bytes: &[u8], most: usize) -> usize {
        match bytes[..most].iter().position(|b| *b == b'"' || *b == b'\\') {
            // A slash written as an escape belongs to the picture.
            Some(at) if bytes[at..].starts_with(b"\\/") => at + 2,
            Some(at) => {
                self.in_picture = false;
                at
            }
            None => most,
        }
    }

    /// One byte outside of pictures.
    fn look(&mut self, bytes: &[u8]) -> usize {
        self.text_bytes += 1;
        match bytes[0] {
            b',' => self.commas += 1,
            b'f' => self.files += u64::from(bytes.starts_with(FORM_FILE)),
            b'd' if bytes.starts_with(PICTURE_DATA) => {
                self.pictures += 1;
                self.in_picture = true;
                return PICTURE_DATA.len();
            }
            b'"' => {
                self.picture_fields += u64::from(is_field(bytes, PICTURE_FIELD));
                self.references += u64::from(REFERENCES.iter().any(|name| is_field(bytes, name)));
                self.references += u64::from(self.responses && is_tool(bytes));
            }
            _ => {}
        }
        1
    }
}

/// Whether the type of one of the service's own tools begins here.
fn is_tool(bytes: &[u8]) -> bool {
    if !is_field(bytes, TYPE_FIELD) {
        return false;
    }
    let after = bytes[TYPE_FIELD.len()..bytes.len().min(AHEAD_BYTES)].trim_ascii_start();
    let value = after.strip_prefix(b":").unwrap_or_default().trim_ascii_start();
    // One that begins out of sight counts.
    value.is_empty() || TOOLS.iter().any(|tool| value.starts_with(tool))
}

/// Whether a field of this name begins here whose value is not null. One whose colon is out of sight counts.
fn is_field(bytes: &[u8], name: &[u8]) -> bool {
    let Some(after) = bytes.strip_prefix(name) else { return false };
    let after = after[..after.len().min(AHEAD_BYTES - name.len())].trim_ascii_start();
    match after.first() {
        None => true,
        Some(b':') => after[1..].trim_ascii_start().first() != Some(&b'n'),
        Some(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    const CHAT: &str = "/v1/chat/completions";
    const PRICE: Price = Price { usd_per_mtok_in: 1.0, usd_per_mtok_out: 10.0, max_output_tokens: 1_000 };

    fn of(endpoint: &str, text: &str) -> TokensMax {
        tokens_max(endpoint, &Body::from(Bytes::copy_from_slice(text.as_bytes()))).unwrap()
    }

    #[test]
    fn bytes_bound_the_input_and_limits_the_output() {
        let text = r#"{"model":"m","messages":[{"role":"user","content":"hi"}],"max_tokens":20,"n":3}"#;
        let most = of(CHAT, text);
        assert_eq!(most, TokensMax { input: text.len() as u64 + ADDED_TOKENS_MAX, output: Some(20), answers: 3 });
        assert_eq!(most.nano_max(&PRICE), (most.input + 600) * 1_000);
        let open = of(CHAT, r#"{"model":"m","messages":[1]}"#);
        assert_eq!((open.output, open.answers), (None, 1));
        assert_eq!(open.nano_max(&PRICE), (open.input + 10_000) * 1_000);
        let both = of(CHAT, r#"{"max_tokens":5,"max_completion_tokens":7.5,"n":null}"#);
        assert_eq!((both.output, both.answers), (Some(8), 1));
        assert_eq!(of(CHAT, r#"{"n":"many","max_tokens":"5"}"#).answers, ANSWERS_MAX);
        assert_eq!(of("/v1/completions", r#"{"prompt":["a","b","c"],"n":2}"#).answers, 2 * 4);
        let limit = |endpoint: &str, name: &str| of(endpoint, &format!(r#"{{"input":"x","{name}":1}}"#)).output;
        assert_eq!(
            (limit("/v1/responses", "max_output_tokens"), limit("/v1/responses", "max_tokens")),
            (Some(1), None)
        );
        assert_eq!((limit(CHAT, "max_tokens"), limit(CHAT, "max_output_tokens")), (Some(1), None));
    }

    /// The text of a prompt template is the service's, and so is what its own tools find.
    #[test]
    fn what_a_response_only_names_is_bounded_by_the_longest_context() {
        let input = |endpoint: &str, text: &str| of(endpoint, text).input;
        let template = r#"{"model":"m","prompt":{"id":"pmpt_1","variables":{"a":"b"}},"max_output_tokens":5}"#;
        assert!(input("/v1/responses", template) > REFERRED_TOKENS_MAX);
        assert!(input("/v1/responses", r#"{"input":"x","prompt":null}"#) < 1_000);
        assert!(input("/v1/completions", r#"{"prompt":"x"}"#) < 1_000, "elsewhere it is the prompt itself");
        let tools = r#"{"input":"x","tools":[{"type": "web_search_preview"},{"type":"function","name":"web_search"}]}"#;
        let bound = input("/v1/responses", tools);
        assert!((REFERRED_TOKENS_MAX..2 * REFERRED_TOKENS_MAX).contains(&bound), "{bound}");
        assert!(input(CHAT, tools) < 1_000);
        assert!(input(CHAT, r#"{"messages":[1],"web_search_options":{}}"#) > REFERRED_TOKENS_MAX);
    }

    #[test]
    fn what_is_no_json_is_bounded_by_its_bytes_and_files() {
        let form = "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.ogg\"\r\n\r\nOggS\r\n--x--\r\n";
        let most = of("/v1/audio/transcriptions", form);
        let wanted = form.len() as u64 + PICTURE_TOKENS_MAX + ADDED_TOKENS_MAX;
        assert_eq!(most, TokensMax { input: wanted, output: None, answers: 1 });
        assert!(of("/v1/images/edits", &form.repeat(3)).input > 3 * PICTURE_TOKENS_MAX);
        for (path, boundless) in [
            ("/v1/batches", true),
            ("/v1//batches/", true),
            ("/v1/fine_tuning/jobs", true),
            ("/v1/batches/b/cancel", false),
            ("/v1/audio/speech", false),
        ] {
            assert_eq!(is_boundless(path), boundless, "{path}");
        }
    }

    #[test]
    fn a_picture_counts_as_one_however_large_and_wherever_it_lies() {
        let picture = "iVBORw0KG\\/go".repeat(30_000);
        let inline = format!(
            r#"{{"model":"m","messages":[{{"content":[{{"type":"image_url","image_url":{{"url":"data:image/png;base64,{picture}"}}}}]}}]}}"#
        );
        let counted = of(CHAT, &inline).input;
        let around = inline.len() as u64 - picture.len() as u64;
        assert!((PICTURE_TOKENS_MAX..=PICTURE_TOKENS_MAX + around + ADDED_TOKENS_MAX).contains(&counted), "{counted}");
        let far =
            of(CHAT, r#"{"m":[{"image_url" : {"url":"https://a/b"}},{"image_url":"https://c"},{"image_url":null}]}"#);
        assert!((2 * PICTURE_TOKENS_MAX..2 * PICTURE_TOKENS_MAX + 1_000).contains(&far.input));
        assert!(of(CHAT, r#"{"content":"say \"image_url\": and \"file_id\": x"}"#).input < 1_000);
        assert!(of(CHAT, r#"{"file":{"file_id":"f"},"previous_response_id":null}"#).input < 2 * REFERRED_TOKENS_MAX);
        assert!(of(CHAT, r#"{"previous_response_id":"r"}"#).input > REFERRED_TOKENS_MAX);
    }

    #[test]
    fn pieces_of_any_size_count_alike() {
        let text = format!(
            r#"{{"a":[{{"image_url":"data:image/png;base64,{}"}}, {{"image_url"  : 1}},"b,c"],"file_id":"x"}}"#,
            "AAAA\\/".repeat(500)
        );
        let count = |size: usize| {
            let mut counted = Counted::default();
            text.as_bytes().chunks(size).for_each(|piece| counted.feed(piece, false));
            counted.feed(b"", true);
            (counted.text_bytes, counted.pictures, counted.picture_fields, counted.references, counted.commas)
        };
        let whole = count(text.len());
        assert_eq!((whole.1, whole.2, whole.3), (1, 2, 1));
        for size in [1, 2, 3, 7, 63, 64, 65, 1000] {
            assert_eq!(count(size), whole, "{size}");
        }
    }
}
