//! Two network namespaces and a line between them: the gateway's and the uplink's, removed when dropped.

use std::fs::File;
use std::net::{TcpListener, UdpSocket};
use std::os::fd::AsFd;

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::tool;

/// The uplink's address on the line.
pub const UPLINK: &str = "10.9.0.1";
/// The gateway's.
const GATEWAY: &str = "10.9.0.2";
/// The name that the gateway's resolver asks the uplink's side for.
pub const NAME: &str = "uplink.test";

/// A line between two namespaces.
pub struct Line {
    /// Where the daemon runs.
    pub gateway: String,
    /// Where the uplink runs.
    pub uplink: String,
}

impl Line {
    /// Makes both ends; `number` keeps several lines of this process apart.
    pub fn new(number: usize) -> Result<Line, String> {
        remove_left_over();
        let id = std::process::id();
        let line = Line { gateway: format!("hfg{id}-{number}"), uplink: format!("hfu{id}-{number}") };
        line.make()?;
        Ok(line)
    }

    fn make(&self) -> Result<(), String> {
        let (gateway, uplink) = (self.gateway.as_str(), self.uplink.as_str());
        for name in [gateway, uplink] {
            tool("ip", &["netns", "add", name])?;
            tool("ip", &["-n", name, "link", "set", "lo", "up"])?;
        }
        tool("ip", &["-n", gateway, "link", "add", "line", "type", "veth", "peer", "name", "line", "netns", uplink])?;
        for (name, address) in [(gateway, GATEWAY), (uplink, UPLINK)] {
            tool("ip", &["-n", name, "addr", "add", &format!("{address}/24"), "dev", "line"])?;
            tool("ip", &["-n", name, "link", "set", "line", "up"])?;
        }
        // `ip netns exec` puts this over /etc/resolv.conf.
        let folder = format!("/etc/netns/{gateway}");
        std::fs::create_dir_all(&folder).map_err(|e| e.to_string())?;
        let text = format!("nameserver {UPLINK}\noptions timeout:1 attempts:1\n");
        std::fs::write(format!("{folder}/resolv.conf"), text).map_err(|e| e.to_string())
    }

    /// Words that start a program at the gateway's end.
    pub fn wrap(&self) -> Vec<String> {
        ["ip", "netns", "exec", &self.gateway].map(str::to_owned).to_vec()
    }

    /// Listens at the uplink's end: a socket stays where it was made.
    pub fn listen(&self, port: u16) -> TcpListener {
        self.there(move || TcpListener::bind((UPLINK, port)).unwrap())
    }

    /// Answers every question for a name with the uplink's address.
    pub fn serve_names(&self) {
        let socket = self.there(|| UdpSocket::bind((UPLINK, 53)).unwrap());
        std::thread::spawn(move || {
            let mut question = [0u8; 512];
            while let Ok((length, from)) = socket.recv_from(&mut question) {
                let _ = socket.send_to(&name_answer(&question[..length]), from);
            }
        });
    }

    fn there<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> T {
        let space = File::open(format!("/var/run/netns/{}", self.uplink)).unwrap();
        let thread = std::thread::spawn(move || {
            move_into_link_name_space(space.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        });
        thread.join().unwrap()
    }

    /// Runs a command at one end; the first word says which: `gateway` or `uplink`.
    pub fn run(&self, end: &str, command: &str) -> Result<(), String> {
        let name = if end == "gateway" { &self.gateway } else { &self.uplink };
        let mut words = vec!["netns", "exec", name];
        words.extend(command.split(' '));
        tool("ip", &words).map(drop)
    }

    /// The line works again, whatever was done to it.
    pub fn heal(&self) -> Result<(), String> {
        for name in [&self.gateway, &self.uplink] {
            tool("ip", &["netns", "exec", name, "iptables", "-F"])?;
            tool("ip", &["-n", name, "link", "set", "line", "up"])?;
            // Fails where nothing slows the line.
            let _ = tool("ip", &["netns", "exec", name, "tc", "qdisc", "del", "dev", "line", "root"]);
        }
        Ok(())
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        for name in [&self.gateway, &self.uplink] {
            let _ = tool("ip", &["netns", "del", name]);
        }
        let _ = std::fs::remove_dir_all(format!("/etc/netns/{}", self.gateway));
    }
}

/// What a run that was killed left behind.
fn remove_left_over() {
    for name in tool("ip", &["netns", "list"]).unwrap_or_default().lines().filter_map(|line| line.split(' ').next()) {
        let rest = name.strip_prefix("hfg").or(name.strip_prefix("hfu"));
        let pid = rest.and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse::<u32>().ok());
        if pid.is_some_and(|pid| !std::path::Path::new(&format!("/proc/{pid}")).exists()) {
            let _ = tool("ip", &["netns", "del", name]);
            let _ = std::fs::remove_dir_all(format!("/etc/netns/{name}"));
        }
    }
}

/// The question again, with one address where it asked for one.
fn name_answer(question: &[u8]) -> Vec<u8> {
    let mut answer = question.to_vec();
    if answer.len() < 17 {
        return answer;
    }
    let name_end = 12 + answer[12..].iter().position(|b| *b == 0).unwrap_or(0);
    let asks_for_v4 = answer.get(name_end + 1..name_end + 3) == Some(&[0, 1]);
    answer.truncate(name_end + 5);
    // A response without additional records; recursion is available.
    answer[2] = 0x81;
    answer[3] = 0x80;
    answer[6..12].copy_from_slice(&[0, u8::from(asks_for_v4), 0, 0, 0, 0]);
    if asks_for_v4 {
        let octets: Vec<u8> = UPLINK.split('.').map(|part| part.parse().unwrap()).collect();
        answer.extend_from_slice(&[0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 0, 0, 4]);
        answer.extend_from_slice(&octets);
    }
    answer
}
