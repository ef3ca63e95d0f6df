//! TLS to an uplink: a plant's own root certificate, HTTP/2 where the uplink offers it, and no way around a bad one.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rustls::pki_types::PrivateKeyDer;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

use crate::support::{Ask, Daemon, until};

/// An uplink behind TLS whose answers say which HTTP version they were asked in; its port and its certificate. While it
/// is mute, a connection is taken and nothing is said on it, not even TLS.
async fn tls_uplink(protocols: &[&[u8]], mute: Arc<AtomicBool>) -> (u16, String) {
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    let pem = made.cert.pem();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut server = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    server.alpn_protocols = protocols.iter().map(|p| p.to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(server));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let (acceptor, mute) = (acceptor.clone(), mute.clone());
            tokio::spawn(async move {
                while mute.load(Ordering::Relaxed) {
                    tokio::time::sleep(Duration::from_millis(20)).await;
                }
                // A client that does not trust the certificate hangs up in the handshake.
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let mut server = auto::Builder::new(TokioExecutor::new());
                server.http1().keep_alive(false);
                let _ = server.serve_connection(TokioIo::new(stream), service_fn(answer)).await;
            });
        }
    });
    (port, pem)
}

async fn answer(request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let version = format!("{:?}", request.version());
    request.into_body().collect().await?;
    let body = json!({
        "id": "c", "object": "chat.completion", "created": 1, "model": "m", "data": [],
        "choices": [{"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": version}}],
    });
    Ok(Response::new(Full::from(body.to_string())))
}

fn config(port: u16, ca_file: &str) -> String {
    format!(
        r#"
[gateway]
data_dir = "@DIR@/data"
[http]
socket = "@DIR@/hf.sock"
[[uplink]]
name = "tls"
base_url = "https://localhost:{port}/v1"
ca_file = "{ca_file}"
probe = {{ interval = "100ms", timeout = "1s", fall = 2, rise = 1 }}
[local]
base_url = ""
"#
    )
}

async fn with_own_root(protocols: &[&[u8]]) -> serde_json::Value {
    let (port, pem) = tls_uplink(protocols, Arc::default()).await;
    let folder = tempfile::tempdir().unwrap();
    let ca_file: PathBuf = folder.path().join("plant.pem");
    std::fs::write(&ca_file, pem).unwrap();
    let daemon = Daemon::start(&config(port, ca_file.to_str().unwrap())).await;
    let reply = daemon.send(Ask::chat("which version?").header("x-holdfast-offline", "fail")).await;
    assert_eq!(reply.status, 200, "{}", reply.json());
    reply.json()
}

#[tokio::test]
async fn http_2_is_spoken_where_the_uplink_offers_it() {
    let answer = with_own_root(&[b"h2", b"http/1.1"]).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "HTTP/2.0");
}

#[tokio::test]
async fn http_1_is_spoken_where_it_does_not() {
    let answer = with_own_root(&[b"http/1.1"]).await;
    assert_eq!(answer["choices"][0]["message"]["content"], "HTTP/1.1");
}

#[tokio::test]
async fn an_unknown_certificate_is_an_outage_that_says_so() {
    let (port, _) = tls_uplink(&[b"h2"], Arc::default()).await;
    let daemon = Daemon::start(&config(port, "")).await;
    let reason = until("the uplink to be found untrusted", 10, || async {
        let uplink = daemon.status().await["uplinks"][0].clone();
        (uplink["health"] == "unhealthy").then(|| uplink["reason"].to_string())
    })
    .await;
    assert!(reason.contains("TLS failed"), "{reason}");
    let rung = until("the ladder to be climbed", 10, || async {
        let rung = daemon.status().await["uplinks"][0]["rung"].clone();
        rung.is_object().then_some(rung)
    })
    .await;
    assert!(rung["rung"] == "tls" && rung["detail"].to_string().contains("ca_file"), "{rung}");
    let reply = daemon.send(Ask::chat("hello").header("x-holdfast-offline", "fail")).await;
    reply.assert_error(503, "uplink_unavailable");
}

/// The name is resolved and the connection stands, but TLS does not come up before the grace is over.
#[tokio::test]
async fn a_stop_before_anything_left_labels_nothing_and_costs_no_attempt() {
    let mute = Arc::new(AtomicBool::new(false));
    let (port, pem) = tls_uplink(&[b"http/1.1"], mute.clone()).await;
    let folder = tempfile::tempdir().unwrap();
    let ca_file = folder.path().join("plant.pem");
    std::fs::write(&ca_file, pem).unwrap();
    let patient = "timeouts = { connect = \"30s\", first_byte = \"30s\", idle = \"30s\", total = \"60s\" }";
    let config = config(port, ca_file.to_str().unwrap())
        .replace("[http]", "stop_grace = \"300ms\"\n[http]")
        .replace("[local]", &format!("{patient}\n[drain]\nstart_jitter = \"0s\"\n[local]"));
    let mut daemon = Daemon::start(&config).await;
    let available = || async { (daemon.status().await["uplinks"][0]["available"] == true).then_some(()) };
    until("the uplink to be seen", 10, available).await;
    mute.store(true, Ordering::Relaxed);
    let id = daemon.send(Ask::chat("wait for it").header("prefer", "respond-async")).await.id();
    until("the attempt", 10, || async { (daemon.record(&id).await["state"] == "sending").then_some(()) }).await;
    assert!(daemon.stop().await.success());
    mute.store(false, Ordering::Relaxed);
    daemon.restart().await;
    let answered = || async { Some(daemon.record(&id).await).filter(|record| record["state"] == "answered") };
    let record = until("the answer", 20, answered).await;
    assert_eq!((&record["maybe_billed"], &record["attempts"]), (&false.into(), &1.into()), "{record}");
}
