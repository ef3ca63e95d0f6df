//! Bearer tokens of the TCP listener: who a token belongs to.
//!
//! Keeps digests, not tokens, so that comparing takes the same time whatever is right about a guess.

use std::path::Path;

use sha2::{Digest, Sha256};

/// Largest token file that is read.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// All tokens.
pub struct Tokens(Vec<(String, [u8; 32])>);

impl Tokens {
    /// Reads a file with one `name token` per line; `#` begins a comment.
    pub fn read(path: &Path) -> Result<Tokens, String> {
        let fault = |what: String| format!("token_file {}: {what}", path.display());
        let length = std::fs::metadata(path).map_err(|e| fault(e.to_string()))?.len();
        if length > FILE_BYTES_MAX {
            return Err(fault(format!("larger than {FILE_BYTES_MAX} bytes")));
        }
        let text = std::fs::read_to_string(path).map_err(|e| fault(e.to_string()))?;
        Self::parse(&text).map_err(fault)
    }

    /// The tokens in a file's text; says what is wrong with a line of it.
    pub fn parse(text: &str) -> Result<Tokens, String> {
        let mut tokens = Vec::new();
        for (number, line) in text.lines().enumerate() {
            let line = line.trim();
            if line.is_empty() || line.starts_with('#') {
                continue;
            }
            let Some((name, token)) = line.split_once(char::is_whitespace) else {
                return Err(format!("line {}: write a name, a space and the token", number + 1));
            };
            tokens.push((name.to_owned(), Sha256::digest(token.trim()).into()));
        }
        if tokens.is_empty() { Err("there is no token in it".to_owned()) } else { Ok(Tokens(tokens)) }
    }

    /// The name that goes with a token.
    pub fn name_of(&self, token: &str) -> Option<&str> {
        let digest: [u8; 32] = Sha256::digest(token).into();
        self.0.iter().find(|(_, known)| *known == digest).map(|(name, _)| name.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_names_and_tokens() {
        let tokens = Tokens::parse("# plant\nplc1 abc\n\ncam  x y\n").unwrap();
        assert_eq!(tokens.name_of("abc"), Some("plc1"));
        assert_eq!(tokens.name_of("x y"), Some("cam"));
        assert_eq!(tokens.name_of("abcd"), None);
        assert!(Tokens::parse("lonely").err().unwrap().contains("line 1"));
        assert!(Tokens::parse("").is_err());
    }
}
