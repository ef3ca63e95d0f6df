//! The keys of one uplink: their names for people, their fingerprints, and the headers that carry them.
//!
//! Never chooses one (control does) and never shows one.

use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use sha2::{Digest, Sha256};

use super::{Auth, Cloud, CloudError, Options};
use crate::control::event::KeyIndex;

/// The keys of an uplink.
#[derive(Clone)]
pub enum Keys {
    /// None is configured: nothing is presented.
    None,
    /// These, in the order in which they are used.
    Some(Vec<ApiKey>),
    /// Some are configured, but none could be read; nothing is sent. The words say what is wrong with which.
    Missing(String),
}

/// One key that could be read.
#[derive(Clone)]
pub struct ApiKey {
    /// Its place in the configuration, counted from 1.
    pub number: usize,
    /// Where it is kept, such as `env HOLYSHEEP_API_KEY`.
    pub source: String,
    /// Itself.
    pub value: String,
    /// How many requests are given to it at once; `None` where only the uplink's own number counts.
    pub max_in_flight: Option<u32>,
}

impl Cloud {
    /// The keys that could be read.
    pub fn keys(&self) -> &[ApiKey] {
        match &self.options.keys {
            Keys::Some(keys) => keys,
            Keys::None | Keys::Missing(_) => &[],
        }
    }

    /// Why none of its keys could be read, where that is so.
    pub fn missing_keys(&self) -> Option<&str> {
        match &self.options.keys {
            Keys::Missing(why) => Some(why),
            Keys::None | Keys::Some(_) => None,
        }
    }

    /// What people call a key, such as `key 2 (env HOLYSHEEP_API_KEY_2)`.
    pub fn key_name(&self, key: KeyIndex) -> String {
        let named = self.keys().get(key).map(|key| format!("key {} ({})", key.number, key.source));
        named.unwrap_or_else(|| "its key".to_owned())
    }

    /// A name for keys and address as they are configured: other ones deserve a new trial. Tells nothing about a key.
    pub fn fingerprint(&self) -> String {
        let keys: Vec<&str> = self.keys().iter().map(|key| key.value.as_str()).collect();
        self.digest(&keys.join("\n"))
    }

    /// The same for one of several keys, whatever place it has among them.
    pub fn key_fingerprint(&self, key: KeyIndex) -> Option<String> {
        self.keys().get(key).map(|key| self.digest(&key.value))
    }

    fn digest(&self, keys: &str) -> String {
        let mut digest = Sha256::new();
        let auth = format!("{:?} {:?}", self.options.auth, self.options.ca_file);
        for part in [self.base.as_str(), keys, &auth] {
            digest.update(part);
            digest.update([0]);
        }
        for (model, name) in &self.options.models {
            digest.update(format!("{model}\0{name}\0"));
        }
        let mut first = [0u8; 8];
        first.copy_from_slice(&digest.finalize()[..8]);
        format!("{:016x}", u64::from_be_bytes(first))
    }
}

/// As they are sent, one for each key.
pub(super) fn credentials(options: &Options) -> Result<Vec<(HeaderName, HeaderValue)>, CloudError> {
    let Keys::Some(keys) = &options.keys else { return Ok(Vec::new()) };
    let one = |key: &ApiKey| {
        let (name, text) = match options.auth {
            Auth::Bearer => (AUTHORIZATION, format!("Bearer {}", key.value)),
            Auth::ApiKey => (HeaderName::from_static("api-key"), key.value.clone()),
        };
        let mut value = HeaderValue::from_str(&text).map_err(|_| CloudError::Key(options.name.clone()))?;
        value.set_sensitive(true);
        Ok((name, value))
    };
    keys.iter().map(one).collect()
}
