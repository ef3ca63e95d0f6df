//! The secret that a device shows.
//!
//! Owns the comparison; never shows or logs it.

use sha2::{Digest, Sha256};

/// A secret; its hash is enough.
#[derive(Clone, PartialEq, Eq)]
pub struct Token([u8; 32]);

impl std::fmt::Debug for Token {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Of these bytes.
    pub fn new(secret: &[u8]) -> Token {
        Token(Sha256::digest(secret).into())
    }

    /// Whether a device showed this secret. Hashes are compared, so that time tells nothing of the secret.
    pub fn is(&self, shown: Option<&[u8]>) -> bool {
        shown.is_some_and(|shown| Token::new(shown) == *self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_secret_itself_opens() {
        let token = Token::new(b"open");
        assert!(token.is(Some(b"open")));
        assert!(!token.is(Some(b"opem")) && !token.is(Some(b"")) && !token.is(None));
        assert!(!format!("{token:?}").contains("open"));
    }
}
