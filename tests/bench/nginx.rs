//! nginx as a careful operator sets it up in front of one uplink: connections kept, answers passed on as they come.
//!
//! Owns its configuration and its processes; a row of the tables where Debian's `nginx-light` is installed.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use tempfile::TempDir;

use crate::daemon::Memory;
use crate::mock::Mock;
use crate::wait;

/// Debian's place of it: no user has it in the path.
const PROGRAM: &str = "/usr/sbin/nginx";

/// One that runs; ended when dropped.
pub(crate) struct Nginx {
    child: Child,
    dir: TempDir,
}

impl Nginx {
    /// `None` where it is not installed.
    pub(crate) async fn start(mock: &Mock, over_tls: bool) -> Option<Nginx> {
        if !Path::new(PROGRAM).exists() {
            return None;
        }
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("ca.pem"), &mock.certificate).unwrap();
        std::fs::write(dir.path().join("nginx.conf"), config(dir.path(), mock, over_tls)).unwrap();
        let child = Command::new(PROGRAM)
            .arg("-c")
            .arg(dir.path().join("nginx.conf"))
            .stdin(Stdio::null())
            .stderr(std::fs::File::create(dir.path().join("log")).unwrap())
            .spawn()
            .unwrap();
        let nginx = Nginx { child, dir };
        let log = || std::fs::read_to_string(nginx.dir.path().join("log")).unwrap_or_default();
        assert!(wait::until_listening(&nginx.socket()).await, "nginx does not start: {}", log());
        Some(nginx)
    }

    pub(crate) fn socket(&self) -> PathBuf {
        self.dir.path().join("nginx.sock")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Of the master and all workers.
    pub(crate) fn memory(&self) -> Memory {
        Memory::of_family(self.child.id())
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        // The master takes its workers with it where it is asked, not where it is killed.
        if let Some(pid) = rustix::process::Pid::from_raw(self.child.id() as i32) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.child.wait();
    }
}

fn config(dir: &Path, mock: &Mock, over_tls: bool) -> String {
    let (scheme, address) = if over_tls { ("https", mock.tls) } else { ("http", mock.tcp) };
    let user = if rustix::process::geteuid().is_root() { "user root;" } else { "" };
    let dir = dir.display();
    format!(
        "{user}
daemon off;
worker_processes auto;
error_log stderr;
pid {dir}/nginx.pid;
events {{ worker_connections 1024; }}
http {{
    access_log off;
    client_body_temp_path {dir}/body;
    proxy_temp_path {dir}/proxy;
    fastcgi_temp_path {dir}/fastcgi;
    uwsgi_temp_path {dir}/uwsgi;
    scgi_temp_path {dir}/scgi;
    client_max_body_size 32m;
    keepalive_requests 1000000000;
    upstream mock {{ server {address}; keepalive 128; keepalive_requests 1000000000; }}
    server {{
        listen unix:{dir}/nginx.sock;
        location / {{
            proxy_pass {scheme}://mock;
            proxy_http_version 1.1;
            proxy_set_header Connection \"\";
            proxy_set_header Authorization \"Bearer key\";
            proxy_buffering off;
            proxy_ssl_name localhost;
            proxy_ssl_server_name on;
            proxy_ssl_verify on;
            proxy_ssl_trusted_certificate {dir}/ca.pem;
            proxy_ssl_protocols TLSv1.2 TLSv1.3;
        }}
    }}
}}
"
    )
}
