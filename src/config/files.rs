//! The files that the settings name: whether a start could use what is in them.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use super::{Fault, Loaded, Origin, token};
use crate::ingress::http::Tokens;

/// Says why a file's bytes are of no use.
type Judge = fn(&[u8]) -> Result<(), String>;

impl Loaded {
    /// Files that a start needs and that cannot be read from here or hold something else, as faults of the keys that name them.
    pub fn unusable_files(&self) -> Vec<(Fault, io::ErrorKind)> {
        let http = &self.settings.http;
        let own: [(&str, &Option<PathBuf>, Judge); 3] = [
            ("token_file", &http.token_file, tokens),
            ("tls_cert", &http.tls_cert, certificates),
            ("tls_key", &http.tls_key, key),
        ];
        let named = own.map(|(name, file, judge)| (format!("http.{name}"), file, judge)).into_iter();
        let uplinks = self.settings.uplinks.iter().enumerate();
        let roots = uplinks.map(|(n, uplink)| (format!("uplink[{n}].ca_file"), &uplink.ca_file, certificates as Judge));
        let links = self.settings.links.iter().enumerate();
        let devices = links.map(|(n, link)| (format!("link[{n}].token_file"), &link.token_file, device as Judge));
        let all = named.chain(roots).chain(devices);
        all.filter_map(|(key, file, judge)| self.unusable(key, file.as_deref()?, judge)).collect()
    }

    fn unusable(&self, key: String, file: &Path, judge: Judge) -> Option<(Fault, io::ErrorKind)> {
        let (kind, why) = match fs::read(file) {
            Err(error) => (error.kind(), format!("cannot be read: {}", error.kind())),
            Ok(bytes) => (ErrorKind::InvalidData, judge(&bytes).err()?),
        };
        let origin = self.origins.iter().find(|shown| shown.key == key).map(|shown| shown.origin.clone());
        let message = format!("{} {why}", file.display());
        Some((Fault { origin: origin.unwrap_or(Origin::Default), column: None, key, message }, kind))
    }
}

fn tokens(bytes: &[u8]) -> Result<(), String> {
    let text = str::from_utf8(bytes).map_err(|_| "holds no text".to_owned())?;
    Tokens::parse(text).map(drop).map_err(|why| format!("holds no tokens: {why}"))
}

fn device(bytes: &[u8]) -> Result<(), String> {
    token(bytes).map(drop)
}

fn certificates(bytes: &[u8]) -> Result<(), String> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(bytes).collect();
    if all.is_ok_and(|all| !all.is_empty()) { Ok(()) } else { Err("holds no certificate in PEM form".to_owned()) }
}

fn key(bytes: &[u8]) -> Result<(), String> {
    PrivateKeyDer::from_pem_slice(bytes).map(drop).map_err(|_| "holds no private key in PEM form".to_owned())
}
