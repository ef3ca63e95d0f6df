//! How a connection comes about: name, TCP and, where the address says so, TLS, all under one time-out.
//!
//! Owns the one kind of connection that both clients have, the cloud's and the local one: the HTTP library is compiled
//! once for each kind. Sends nothing.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::Uri;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder, MaybeHttpsStream};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tower::Service;

use crate::clock::Floor;

type Error = Box<dyn std::error::Error + Send + Sync>;
type Connection = MaybeHttpsStream<TokioIo<TcpStream>>;

/// Makes connections; clones are alike.
#[derive(Clone)]
pub(super) struct Dial {
    way: Way,
    limit: Duration,
    /// Told of good times, where a connection proves one.
    floor: Option<Arc<Floor>>,
}

#[derive(Clone)]
enum Way {
    Plain(HttpConnector),
    Tls(HttpsConnector<HttpConnector>),
}

impl Dial {
    /// Plain TCP only; an https address is refused.
    pub(super) fn plain(limit: Duration) -> Dial {
        Dial { way: Way::Plain(tcp(limit)), limit, floor: None }
    }

    /// With TLS where the address is https. What has been sent and is not acknowledged for `dead` ends a connection.
    pub(super) fn over_tls(tls: ClientConfig, limit: Duration, dead: Duration, floor: Option<Arc<Floor>>) -> Dial {
        let mut tcp = tcp(limit);
        tcp.enforce_http(false);
        // A request that was given up in the middle of its body leaves a connection that nobody waits for any more:
        // without this the kernel keeps it, and a piece of the body, for a quarter of an hour.
        tcp.set_tcp_user_timeout(Some(dead));
        let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_or_http().enable_all_versions();
        Dial { way: Way::Tls(builder.wrap_connector(tcp)), limit, floor }
    }
}

fn tcp(limit: Duration) -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.set_connect_timeout(Some(limit));
    tcp.set_nodelay(true);
    tcp
}

impl Service<Uri> for Dial {
    type Response = Connection;
    type Error = Error;
    type Future = Pin<Box<dyn Future<Output = Result<Connection, Error>> + Send>>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Error>> {
        match &mut self.way {
            Way::Plain(tcp) => tcp.poll_ready(cx).map_err(Into::into),
            Way::Tls(tls) => tls.poll_ready(cx),
        }
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let (limit, floor) = (self.limit, self.floor.clone());
        let connecting: Self::Future = match &mut self.way {
            Way::Tls(tls) => tls.call(uri),
            Way::Plain(tcp) => {
                let connecting = tcp.call(uri);
                Box::pin(async move { Ok(MaybeHttpsStream::Http(connecting.await?)) })
            }
        };
        Box::pin(async move {
            match timeout(limit, connecting).await {
                Ok(connected) => {
                    if let Some(floor) = floor.filter(|_| connected.is_ok()) {
                        floor.good();
                    }
                    connected
                }
                Err(_) => Err(io::Error::from(io::ErrorKind::TimedOut).into()),
            }
        })
    }
}
