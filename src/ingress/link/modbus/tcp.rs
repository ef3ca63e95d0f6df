//! Modbus TCP: connections of masters, all of them asking the same registers.
//!
//! Owns the listener and its bounds. A connection that says nothing for long makes room for others.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{sleep, timeout};

use super::frame::{HEADER_BYTES, header, tcp};
use super::serve::Registers;
use crate::ingress::link::Link;
use crate::ingress::link::state::{Count, State};

/// Masters at once: a PLC, its spare, a panel and a technician.
const CONNECTIONS_MAX: usize = 8;
/// A master polls; one that is silent for so long has gone without a word.
const IDLE: Duration = Duration::from_mins(5);
/// The rest of a question that has begun.
const QUESTION: Duration = Duration::from_secs(2);
/// A master that takes no answer for so long is gone.
const ANSWER: Duration = Duration::from_secs(10);
/// An address that is taken, or not there yet, is tried again after this.
const AGAIN: Duration = Duration::from_secs(2);

/// Listens until the process ends.
pub(in crate::ingress::link) async fn listen(link: &Link, address: SocketAddr, tell: impl Fn(State)) {
    let registers = Registers::start(link.clone());
    let room = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        match TcpListener::bind(address).await {
            Ok(listener) => {
                tell(State::Open);
                accept(link, &listener, &registers, &room).await;
            }
            Err(error) => tell(State::Failed(format!("{address}: {error}"))),
        }
        sleep(AGAIN).await;
    }
}

async fn accept(link: &Link, listener: &TcpListener, registers: &Registers, room: &Arc<Semaphore>) {
    while let Ok((stream, _)) = listener.accept().await {
        // One too many is closed at once: a master sees that better than silence.
        let Ok(place) = room.clone().try_acquire_owned() else { continue };
        let (link, registers) = (link.clone(), registers.clone());
        tokio::spawn(async move {
            let mut stop = link.stop.clone();
            tokio::select! {
                _ = answer(&link, stream, &registers) => {}
                _ = stop.wait_for(|stop| *stop) => {}
            }
            link.account.add(Count::Lost, 1);
            drop(place);
        });
    }
}

/// Until the master goes, or says what is no Modbus: nobody knows where the next question would begin then.
async fn answer(link: &Link, mut stream: TcpStream, registers: &Registers) -> Option<()> {
    let _ = stream.set_nodelay(true);
    loop {
        let mut bytes = [0; HEADER_BYTES];
        timeout(IDLE, stream.read_exact(&mut bytes)).await.ok()?.ok()?;
        let Some((transaction, unit, length)) = header(bytes) else {
            link.account.add(Count::Damaged, 1);
            return None;
        };
        let mut pdu = vec![0; length];
        timeout(QUESTION, stream.read_exact(&mut pdu)).await.ok()?.ok()?;
        link.account.add(Count::FramesIn, 1);
        link.account.add(Count::BytesIn, (HEADER_BYTES + length) as u64);
        // Many masters leave the unit at 0 or 255 where there is only one.
        if ![0, 255, link.options.unit].contains(&unit) {
            continue;
        }
        let reply = tcp(transaction, unit, &registers.ask(pdu).await?);
        timeout(ANSWER, stream.write_all(&reply)).await.ok()?.ok()?;
        link.account.add(Count::FramesOut, 1);
        link.account.add(Count::BytesOut, reply.len() as u64);
    }
}
