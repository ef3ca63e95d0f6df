//! The plainest proxy that can be written with the same HTTP library: everything passed on, nothing looked at.
//!
//! Owns a process of its own, this very program started with [`FLAG`]; what the daemon costs beyond it are its promises.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Uri};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tempfile::TempDir;
use tokio::net::UnixListener;

use crate::daemon::Memory;
use crate::wait;

/// Followed by the socket to listen at and the address to pass on to.
pub(crate) const FLAG: &str = "--plain-proxy";

/// One that runs; killed when dropped.
pub(crate) struct Proxy {
    child: Child,
    dir: TempDir,
}

impl Proxy {
    pub(crate) async fn start(to: SocketAddr) -> Proxy {
        Proxy::start_under(&[], to).await
    }

    /// The same under another program, whose command line goes before its own.
    pub(crate) async fn start_under(under: &[String], to: SocketAddr) -> Proxy {
        let dir = tempfile::tempdir().unwrap();
        let program = std::env::current_exe().unwrap();
        let child = wait::command(under, &program)
            .arg(FLAG)
            .arg(dir.path().join("proxy.sock"))
            .arg(to.to_string())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let proxy = Proxy { child, dir };
        assert!(wait::until_listening(&proxy.socket()).await, "the plain proxy does not start");
        proxy
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("proxy.sock")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn memory(&self) -> Memory {
        Memory::of_family(self.child.id())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The proxy itself, until it is killed.
pub(crate) async fn run(socket: &Path, to: &str) {
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client: Client<_, Incoming> = Client::builder(TokioExecutor::new()).build(connector);
    let listener = UnixListener::bind(socket).unwrap();
    let to: std::sync::Arc<str> = to.into();
    while let Ok((stream, _)) = listener.accept().await {
        let (client, to) = (client.clone(), to.clone());
        let service = service_fn(move |mut request: Request<Incoming>| {
            let path = request.uri().path_and_query().map_or("/", |path| path.as_str());
            let uri: Uri = format!("http://{to}{path}").parse().unwrap();
            *request.uri_mut() = uri;
            client.request(request)
        });
        tokio::spawn(async move {
            let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
        });
    }
}
