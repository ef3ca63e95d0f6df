//! T15: bad TLS servers, three clocks, the plant's own root on and off: only the good pass, and each fault has its word.
//!
//! One daemon has all of them as uplinks; what it says about each is read from its status.

use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;

use holdfast::plant::Fault;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, date_time_ymd,
};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::Value;

use super::t11_clock::{clock_environment, library};
use crate::case::{Case, Effort, Outcome, Planted};
use crate::parts::gateway::{Gateway, Setup};
use crate::parts::http::chat;
use crate::parts::uplink::Uplink;
use crate::parts::{needs, tool, until};

pub const CASE: Case = Case {
    id: "T15",
    what: "bad TLS servers, three clocks, own root on and off",
    faults: &[Planted::In(Fault::VerifierSwitchedOff)],
    run,
};

/// What the status has to say about an uplink.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Word {
    /// Nothing: it passes.
    Good,
    /// Its certificate or its TLS is at fault.
    Tls,
    /// The clock is, or may be.
    Clock,
    /// It cannot be reached, whatever the words.
    Line,
}

struct Server {
    name: &'static str,
    port: u16,
    word: Word,
    /// Counts whole requests, where the rig itself serves.
    uplink: Option<Arc<Uplink>>,
}

/// A process that is ended with the test.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn run(_: &Effort) -> Outcome {
    let Some(library) = library() else {
        return Outcome::Missing("libfaketime: apt-get install faketime".to_owned());
    };
    if let Err(missing) = needs(&["openssl"], "openssl") {
        return missing;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut yard = Yard::new(folder.path());
    yard.servers_of_ours();
    yard.servers_of_openssl();
    yard.servers_that_are_none();
    let mut checks = 0;
    for clock in ["+0", "@2001-01-01 00:00:00", "@2060-01-01 00:00:00"] {
        for own_root in [true, false] {
            match yard.check(&library, clock, own_root) {
                Ok(()) => checks += yard.servers.len() as u64,
                Err(what) => {
                    return Outcome::Broken(format!("clock {clock}, own root {own_root}: {what}"));
                }
            }
        }
    }
    let bad = yard.servers.iter().filter(|server| server.word != Word::Good).count();
    Outcome::held(
        checks,
        "checks",
        format!("{bad} bad servers of {}, 3 clocks, own root on and off", yard.servers.len()),
    )
}

/// All servers, and the roots they hang from.
struct Yard<'a> {
    folder: &'a Path,
    root: Signer,
    servers: Vec<Server>,
    processes: Vec<Process>,
}

/// A certificate that signs others.
struct Signer {
    params: CertificateParams,
    key: KeyPair,
    der: CertificateDer<'static>,
    pem: String,
}

impl Signer {
    /// Signs itself, or is signed.
    fn new(params: CertificateParams, by: Option<&Signer>) -> Signer {
        let key = KeyPair::generate().unwrap();
        let cert = match by {
            None => params.self_signed(&key).unwrap(),
            Some(by) => params.signed_by(&key, &Issuer::from_params(&by.params, &by.key)).unwrap(),
        };
        Signer { params, key, der: cert.der().clone(), pem: cert.pem() }
    }

    fn copy(&self) -> Signer {
        let key = KeyPair::from_pem(&self.key.serialize_pem()).unwrap();
        Signer { params: self.params.clone(), key, der: self.der.clone(), pem: self.pem.clone() }
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = valid(&[]);
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params
}

fn valid(names: &[&str]) -> CertificateParams {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let mut params = CertificateParams::new(names).unwrap();
    params.not_before = date_time_ymd(2020, 1, 1);
    params.not_after = date_time_ymd(2050, 1, 1);
    params
}

fn changed(change: impl FnOnce(&mut CertificateParams)) -> CertificateParams {
    let mut params = valid(&["localhost"]);
    change(&mut params);
    params
}

impl<'a> Yard<'a> {
    fn new(folder: &'a Path) -> Yard<'a> {
        let root = Signer::new(authority("plant"), None);
        std::fs::write(folder.join("root.pem"), &root.pem).unwrap();
        std::fs::write(folder.join("root.key"), root.key.serialize_pem()).unwrap();
        Yard { folder, root, servers: Vec::new(), processes: Vec::new() }
    }

    fn serve(&mut self, name: &'static str, word: Word, leaf: &Signer, chain: &[&Signer]) {
        let certificates = std::iter::once(leaf.der.clone()).chain(chain.iter().map(|one| one.der.clone())).collect();
        self.serve_chain(name, word, certificates, &leaf.key);
    }

    fn serve_chain(&mut self, name: &'static str, word: Word, chain: Vec<CertificateDer<'static>>, key: &KeyPair) {
        let key = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let resolver = rustls::sign::CertifiedKey::from_der(chain, key, &provider);
        let Ok(certified) = resolver else { panic!("{name}: {resolver:?}") };
        let server = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(rustls::sign::SingleCertAndKey::from(certified)));
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let uplink = Uplink::serve(listener, Some(Arc::new(server)));
        self.servers.push(Server { name, port, word, uplink: Some(uplink) });
    }

    fn servers_of_ours(&mut self) {
        let root = self.root.copy();
        let leaf = |params| Signer::new(params, Some(&root));
        self.serve("good", Word::Good, &leaf(valid(&["localhost"])), &[]);
        let between = Signer::new(authority("between"), Some(&root));
        let behind = Signer::new(valid(&["localhost"]), Some(&between));
        self.serve("good-chain", Word::Good, &behind, &[&between]);

        self.serve("expired", Word::Tls, &leaf(changed(|p| p.not_after = date_time_ymd(2024, 1, 1))), &[]);
        self.serve("not-yet-valid", Word::Clock, &leaf(changed(|p| p.not_before = date_time_ymd(2045, 1, 1))), &[]);
        self.serve("wrong-name", Word::Tls, &leaf(valid(&["other.test"])), &[]);
        self.serve("wrong-address", Word::Tls, &leaf(valid(&["127.0.0.2"])), &[]);
        let mut nameless = valid(&[]);
        nameless.distinguished_name.push(DnType::CommonName, "localhost");
        self.serve("no-san", Word::Tls, &leaf(nameless), &[]);
        let stranger = Signer::new(authority("stranger"), None);
        self.serve("unknown-ca", Word::Tls, &Signer::new(valid(&["localhost"]), Some(&stranger)), &[&stranger]);
        let twin = Signer::new(authority("plant"), None);
        self.serve("same-name-ca", Word::Tls, &Signer::new(valid(&["localhost"]), Some(&twin)), &[&twin]);
        self.serve("self-signed", Word::Tls, &Signer::new(valid(&["localhost"]), None), &[]);
        let client_only = changed(|p| p.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
        self.serve("client-only", Word::Tls, &leaf(client_only), &[]);
        let is_ca = changed(|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained));
        self.serve("ca-as-leaf", Word::Tls, &leaf(is_ca), &[]);
        self.serve("chain-cut", Word::Tls, &behind, &[]);
        let no_ca = leaf(valid(&["no-ca.test"]));
        self.serve("signed-by-a-leaf", Word::Tls, &Signer::new(valid(&["localhost"]), Some(&no_ca)), &[&no_ca]);
        let mut old = authority("old");
        old.not_after = date_time_ymd(2024, 1, 1);
        let old = Signer::new(old, Some(&root));
        self.serve("expired-between", Word::Tls, &Signer::new(valid(&["localhost"]), Some(&old)), &[&old]);
        let signed = leaf(valid(&["localhost"]));
        let mut bytes = signed.der.to_vec();
        *bytes.last_mut().unwrap() ^= 1;
        self.serve_chain("bad-signature", Word::Tls, vec![CertificateDer::from(bytes)], &signed.key);
    }

    /// What rustls would not serve with.
    fn servers_of_openssl(&mut self) {
        let v1 = self.folder.join("v1");
        std::fs::create_dir_all(&v1).unwrap();
        let body = r#"{"object":"list","data":[]}"#;
        std::fs::write(
            v1.join("models"),
            format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n{body}"),
        )
        .unwrap();
        let weak = "ALL:@SECLEVEL=0";
        self.openssl("good-openssl", Word::Good, "rsa:2048", "-sha256", &[]);
        self.openssl("sha-1", Word::Tls, "rsa:2048", "-sha1", &["-cipher", weak]);
        self.openssl("rsa-1024", Word::Tls, "rsa:1024", "-sha256", &["-cipher", weak]);
        self.openssl("tls-1.0", Word::Tls, "rsa:2048", "-sha256", &["-tls1", "-cipher", weak]);
        self.openssl("tls-1.1", Word::Tls, "rsa:2048", "-sha256", &["-tls1_1", "-cipher", weak]);
    }

    fn openssl(&mut self, name: &'static str, word: Word, key: &str, digest: &str, server: &[&str]) {
        let file = |end: &str| self.folder.join(format!("{name}.{end}")).to_str().unwrap().to_owned();
        let (key_file, request, cert, names) = (file("key"), file("csr"), file("pem"), file("ext"));
        std::fs::write(&names, "subjectAltName=DNS:localhost\n").unwrap();
        let root = |end: &str| self.folder.join(format!("root.{end}")).to_str().unwrap().to_owned();
        let (ca, ca_key) = (root("pem"), root("key"));
        tool("openssl", &["req", "-newkey", key, "-nodes", "-subj", "/CN=x", "-keyout", &key_file, "-out", &request])
            .unwrap();
        let sign =
            ["x509", "-req", "-in", &request, "-CA", &ca, "-CAkey", &ca_key, "-set_serial", "7", "-days", "3650"];
        let sign = [&sign[..], &["-extfile", &names, digest, "-out", &cert]].concat();
        tool("openssl", &sign).unwrap();
        let port = free_port();
        let mut command = Command::new("openssl");
        command.args(["s_server", "-HTTP", "-accept", &port.to_string(), "-cert", &cert, "-key", &key_file]);
        command.args(server).current_dir(self.folder).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.processes.push(Process(command.spawn().unwrap()));
        self.servers.push(Server { name, port, word, uplink: None });
    }

    fn servers_that_are_none(&mut self) {
        // A probe's answer without TLS: nothing secret may follow it.
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let uplink = Uplink::serve(listener, None);
        self.servers.push(Server { name: "plain-http", port, word: Word::Line, uplink: Some(uplink) });
        self.bytes("says-nothing", None);
        self.bytes("closes-at-once", Some(b""));
        self.bytes("half-a-hello", Some(b"\x16\x03\x03\x00\x7a\x02\x00\x00\x76\x03\x03"));
        self.bytes("noise", Some(b"\xff\xfe\xfd\xfc\xfb\xfa\xf9\xf8\xf7\xf6"));
        self.bytes("alert", Some(b"\x15\x03\x03\x00\x02\x02\x28"));
    }

    /// Answers every hello with these bytes and the end, or with silence.
    fn bytes(&mut self, name: &'static str, bytes: Option<&'static [u8]>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        std::thread::spawn(move || {
            while let Ok((mut stream, _)) = listener.accept() {
                std::thread::spawn(move || {
                    let _ = stream.read(&mut [0u8; 1024]);
                    match bytes {
                        Some(bytes) => drop(stream.write_all(bytes)),
                        None => drop(stream.read_to_end(&mut Vec::new())),
                    }
                });
            }
        });
        self.servers.push(Server { name, port, word: Word::Line, uplink: None });
    }

    /// Starts a daemon with all of them and reads what it says.
    fn check(&self, library: &Path, clock: &str, own_root: bool) -> Result<(), String> {
        let at = self.folder.join("clock");
        std::fs::write(&at, clock).unwrap();
        let setup =
            Setup { config: self.config(own_root), environment: clock_environment(library, &at), wrap: Vec::new() };
        let gateway = Gateway::start(setup);
        let requests = || -> u64 { self.servers.iter().filter_map(|s| s.uplink.as_ref()).map(|u| u.requests()).sum() };
        let before = requests();
        let good = clock == "+0" && own_root;
        let settled = until(60, || {
            let status = gateway.get("/holdfast/v1/status");
            let list = status["uplinks"].as_array()?.clone();
            list.iter().zip(&self.servers).all(|(u, s)| is_settled(u, good && s.word == Word::Good)).then_some(list)
        });
        let list = settled
            .unwrap_or_else(|| gateway.get("/holdfast/v1/status")["uplinks"].as_array().cloned().unwrap_or_default());
        for (found, server) in list.iter().zip(&self.servers) {
            let mut word = server.word;
            if !good && word == Word::Good {
                word = if clock.starts_with("@2001") { Word::Clock } else { Word::Tls };
            }
            // What no clock could mend keeps no certain word under a wrong one.
            let any = clock != "+0" && word != Word::Line || (!own_root && word == Word::Clock);
            judge(found, server.name, word, any)?;
        }
        if !good {
            if requests() != before {
                return Err(format!("{} requests went to servers that are not to be believed", requests() - before));
            }
            let headers = [("x-holdfast-offline", "fail")];
            let reply =
                gateway.ask("POST", "/v1/chat/completions", &headers, &chat("secret")).map_err(|e| e.to_string())?;
            if reply.status != 503 {
                return Err(format!("somebody answered: {}", reply.text()));
            }
        }
        Ok(())
    }

    fn config(&self, own_root: bool) -> String {
        let mut text = "[gateway]\ndata_dir = \"@DIR@/data\"\n[http]\nsocket = \"@DIR@/hf.sock\"\n[local]\n\
                        base_url = \"\"\n[limits]\nrate = 0\n"
            .to_owned();
        let ca = if own_root { format!("ca_file = \"{}/root.pem\"\n", self.folder.display()) } else { String::new() };
        for Server { name, port, .. } in &self.servers {
            text += &format!(
                "[[uplink]]\nname = \"{name}\"\nbase_url = \"https://localhost:{port}/v1\"\n{ca}\
                 probe = {{ interval = \"500ms\", timeout = \"3s\", fall = 1, rise = 1 }}\n\
                 timeouts = {{ connect = \"2s\" }}\n"
            );
        }
        text
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

fn is_settled(uplink: &Value, good: bool) -> bool {
    let said = !uplink["reason"].is_null() || !uplink["paused"].is_null();
    if good { uplink["available"] == true } else { uplink["available"] == true || said }
}

fn judge(found: &Value, name: &str, word: Word, any: bool) -> Result<(), String> {
    let said = format!("{} {}", found["reason"], found["paused"]);
    let lower = said.to_lowercase();
    let right = match word {
        Word::Good => {
            return if found["available"] == true { Ok(()) } else { Err(format!("{name} is refused: {said}")) };
        }
        Word::Tls => lower.contains("tls") || lower.contains("certificate"),
        Word::Clock => lower.contains("clock") || lower.contains("time"),
        Word::Line => true,
    };
    if found["available"] == true {
        return Err(format!("{name} is believed"));
    }
    if right || any { Ok(()) } else { Err(format!("{name} should be called {word:?}: {said}")) }
}
