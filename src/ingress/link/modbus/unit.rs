//! The register map: four mailboxes to write requests into and to read results from.
//!
//! Pure state: questions in, answers and deeds out. Nothing here waits for a disk, so an answer never does either.

use holdfast_wire::message::state;

use crate::ingress::link::WordOrder;
use crate::ingress::link::lines::line::ascii;

/// Mailboxes of one unit.
pub const SLOTS: usize = 4;
/// Registers from one mailbox to the next.
const STRIDE: u16 = 256;
/// Where the input registers of the mailboxes begin.
const INPUT_BASE: u16 = 1000;
/// Where the unit says how the gateway stands.
const STATUS_BASE: u16 = 900;
/// The version of this map.
const MAP_VERSION: u16 = 0x0100;
/// Holding registers of a mailbox.
const HOLDING: usize = 121;
/// Input registers of a mailbox.
const INPUT: usize = 124;
/// Most registers one question reads and one writes.
const READ_MAX: u16 = 125;
const WRITE_MAX: u16 = 123;
/// Places in the holding registers.
const TASK: usize = 1;
const PRIO: usize = 2;
const TTL: usize = 3;
const FLAGS: usize = 5;
const NARGS: usize = 6;
const TEXT_LEN: usize = 7;
const ARGS: usize = 8;
const TEXT: usize = 40;
const RES_ACK: usize = 120;
/// Numbers a mailbox holds.
const ARGS_MAX: u16 = 16;
/// Bytes of a request's text.
const TEXT_MAX: u16 = 160;
/// Bytes of a result's text.
pub const RESULT_TEXT_MAX: usize = 220;
/// Places in the input registers.
const RES_TEXT: usize = 14;
/// Codes of refusals that are told before the link's rules are asked.
const BAD_PAYLOAD: u16 = 1;
const BAD_ARGUMENTS: u16 = 10;
const OK: u8 = 0;
const TRUNCATED: u8 = 4;
/// States of what is over: done and all that follow.
const DONE: u16 = state::DONE as u16;
const QUEUED: u16 = state::QUEUED as u16;

/// Why a question is not answered with data.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Exception {
    Function = 1,
    Address = 2,
    Value = 3,
    Busy = 6,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq)]
pub enum Deed {
    /// Store this; told by [`Unit::stored`].
    Store(Order),
    /// The device has the result of this request.
    Taken(u64),
}

/// A mailbox as it was when its bell rang.
#[derive(Debug, Clone, PartialEq)]
pub struct Order {
    /// Which mailbox.
    pub slot: u8,
    /// The number it was written with.
    pub seq: u16,
    /// The task.
    pub task: u16,
    /// 0 critical to 3 low.
    pub prio: u8,
    /// Seconds; 0 for the default.
    pub ttl_s: u32,
    /// As in the message Submit.
    pub flags: u8,
    /// The numbers, then the text where there is one.
    pub args: Vec<String>,
}

/// A result as a mailbox shows it.
#[derive(Debug, Clone, PartialEq)]
pub struct Shown {
    /// The number its mailbox was written with.
    pub seq: u16,
    /// The gateway's number of the request.
    pub request: u64,
    /// As on the link.
    pub status: u8,
    /// As on the link.
    pub source: u8,
    /// The task's number for the answer.
    pub code: i32,
    /// The task's value.
    pub value: f32,
    /// Its text.
    pub text: String,
}

struct Mailbox {
    holding: [u16; HOLDING],
    /// The last number that is durably stored.
    acked: u16,
    code: u16,
    request: u64,
    /// The number that is on its way to the disk.
    storing: Option<u16>,
    state: u16,
    position: u16,
    /// The oldest that is not taken; it may belong to an earlier request than the last one stored.
    result: Option<Shown>,
    /// That the result shown was taken is being noted down: it is shown until that is durable.
    taking: bool,
    /// The last one that the master took.
    taken: u64,
}

impl Default for Mailbox {
    fn default() -> Mailbox {
        Mailbox {
            holding: [0; HOLDING],
            acked: 0,
            code: 0,
            request: 0,
            storing: None,
            state: 0,
            position: 0,
            result: None,
            taking: false,
            taken: 0,
        }
    }
}

/// One unit on a bus.
pub struct Unit {
    order: WordOrder,
    mailboxes: [Mailbox; SLOTS],
    /// What was stored before this start is not known yet: everything that writes is told to wait.
    is_restored: bool,
    status: [u16; 6],
}

impl Unit {
    /// Knows nothing yet.
    pub fn new(order: WordOrder) -> Unit {
        Unit { order, mailboxes: Default::default(), is_restored: false, status: [MAP_VERSION, 0, 0, 0, 0, 0] }
    }

    /// What the mailboxes were last written with: slot, number, request.
    pub fn restore(&mut self, latest: &[(u8, u16, u64)]) {
        for (slot, seq, request) in latest {
            if let Some(mailbox) = self.mailboxes.get_mut(usize::from(*slot)) {
                (mailbox.acked, mailbox.request, mailbox.state) = (*seq, *request, QUEUED);
            }
        }
        self.is_restored = true;
    }

    /// How the gateway stands.
    pub fn status(&mut self, uplink: u8, backlog: u64, boot: u32, unix_s: u64) {
        let backlog = u16::try_from(backlog).unwrap_or(u16::MAX);
        let [first, second] = self.pair(unix_s as u32);
        self.status = [MAP_VERSION, uplink.into(), backlog, boot as u16, first, second];
    }

    /// Requests that are not over.
    pub fn open(&self) -> Vec<(u8, u64)> {
        let open = self.mailboxes.iter().enumerate().filter(|(_, m)| m.request != 0 && m.state < DONE);
        open.map(|(slot, mailbox)| (slot as u8, mailbox.request)).collect()
    }

    /// Where a request stands.
    pub fn progress(&mut self, slot: u8, request: u64, state: u8, position: u64) {
        let mailbox = self.mailboxes.get_mut(usize::from(slot)).filter(|mailbox| mailbox.request == request);
        if let Some(mailbox) = mailbox {
            (mailbox.state, mailbox.position) = (state.into(), u16::try_from(position).unwrap_or(u16::MAX));
        }
    }

    /// All results that wait to be taken, oldest first. Each mailbox shows one until it is taken.
    pub fn results(&mut self, waiting: Vec<(u8, Shown)>) {
        for (slot, shown) in waiting {
            let Some(mailbox) = self.mailboxes.get_mut(usize::from(slot)) else { continue };
            if mailbox.result.is_some() {
                continue;
            }
            // Numbers come again: an acknowledgement that stands there from an earlier result says nothing of this one.
            if mailbox.holding[RES_ACK] == shown.seq && shown.request != mailbox.taken {
                mailbox.holding[RES_ACK] = 0;
            }
            let text = ascii(&shown.text);
            let is_cut = text.len() > RESULT_TEXT_MAX;
            let status = if is_cut && shown.status == OK { TRUNCATED } else { shown.status };
            mailbox.result = Some(Shown { status, text: text.chars().take(RESULT_TEXT_MAX).collect(), ..shown });
        }
    }

    /// Results that the master has taken and of which that could not be noted down: to be tried again. A master writes
    /// its acknowledgement once.
    pub fn taken(&mut self) -> Vec<u64> {
        let again = |mailbox: &mut Mailbox| {
            let shown =
                mailbox.result.as_ref().filter(|shown| shown.seq == mailbox.holding[RES_ACK] && !mailbox.taking)?;
            mailbox.taking = true;
            Some(shown.request)
        };
        self.mailboxes.iter_mut().filter_map(again).collect()
    }

    /// That a result was taken is durably noted down, or could not be: then it stays, and may be taken again.
    pub fn noted(&mut self, request: u64, is_durable: bool) {
        let shows = |mailbox: &&mut Mailbox| mailbox.result.as_ref().is_some_and(|shown| shown.request == request);
        if let Some(mailbox) = self.mailboxes.iter_mut().find(shows) {
            mailbox.taking = false;
            mailbox.result.take_if(|_| is_durable);
        }
    }

    /// A mailbox' order is durable as this request, or refused with a code.
    pub fn stored(&mut self, slot: u8, seq: u16, outcome: Result<u64, u16>) {
        let Some(mailbox) = self.mailboxes.get_mut(usize::from(slot)) else { return };
        if mailbox.storing != Some(seq) {
            return;
        }
        mailbox.storing = None;
        match outcome {
            Ok(request) => {
                (mailbox.acked, mailbox.code, mailbox.request) = (seq, 0, request);
                (mailbox.state, mailbox.position) = (QUEUED, 0);
            }
            Err(code) => mailbox.code = code,
        }
    }

    /// Answers a question; function and data in, function and data out.
    pub fn ask(&mut self, pdu: &[u8], deeds: &mut Vec<Deed>) -> Vec<u8> {
        let function = pdu.first().copied().unwrap_or(0);
        let answer = match pdu {
            [3, a, b, c, d] => self.read(word(*a, *b), word(*c, *d), false),
            [4, a, b, c, d] => self.read(word(*a, *b), word(*c, *d), true),
            [6, a, b, c, d] => self.write(word(*a, *b), &[word(*c, *d)], deeds).map(|()| pdu[1..].to_vec()),
            [16, a, b, c, d, count, data @ ..] => self.write_many((*a, *b), (*c, *d), *count, data, deeds),
            [3 | 4 | 6 | 16, ..] => Err(Exception::Value),
            _ => Err(Exception::Function),
        };
        match answer {
            Ok(data) => [&[function], data.as_slice()].concat(),
            Err(exception) => vec![function | 0x80, exception as u8],
        }
    }

    fn read(&self, from: u16, count: u16, is_input: bool) -> Result<Vec<u8>, Exception> {
        if !(1..=READ_MAX).contains(&count) {
            return Err(Exception::Value);
        }
        let mut data = vec![count as u8 * 2];
        for address in from..=from.checked_add(count - 1).ok_or(Exception::Address)? {
            let register = if is_input { self.input(address) } else { self.holding(address) };
            data.extend_from_slice(&register.ok_or(Exception::Address)?.to_be_bytes());
        }
        Ok(data)
    }

    fn holding(&self, address: u16) -> Option<u16> {
        let mailbox = self.mailboxes.get(usize::from(address / STRIDE))?;
        mailbox.holding.get(usize::from(address % STRIDE)).copied()
    }

    fn input(&self, address: u16) -> Option<u16> {
        if (STATUS_BASE..INPUT_BASE).contains(&address) {
            return self.status.get(usize::from(address - STATUS_BASE)).copied();
        }
        let address = address.checked_sub(INPUT_BASE)?;
        let mailbox = self.mailboxes.get(usize::from(address / STRIDE))?;
        let at = usize::from(address % STRIDE);
        (at < INPUT).then(|| self.shown(mailbox, at))
    }

    fn shown(&self, mailbox: &Mailbox, at: usize) -> u16 {
        let half = |value: u32, second: usize| self.pair(value)[second];
        let result = mailbox.result.as_ref();
        match at {
            0 => mailbox.acked,
            1 => mailbox.code,
            2 | 3 => half(mailbox.request as u32, at - 2),
            4 => mailbox.state,
            5 => mailbox.position,
            6 => result.map_or(0, |r| r.seq),
            7 => result.map_or(0, |r| r.status.into()),
            8 => result.map_or(0, |r| r.source.into()),
            9 | 10 => result.map_or(0, |r| half(r.code.cast_unsigned(), at - 9)),
            11 | 12 => result.map_or(0, |r| half(r.value.to_bits(), at - 11)),
            13 => result.map_or(0, |r| r.text.len() as u16),
            _ => {
                let byte = |index: usize| result.and_then(|r| r.text.as_bytes().get(index)).copied().unwrap_or(0);
                let first = (at - RES_TEXT) * 2;
                word(byte(first), byte(first + 1))
            }
        }
    }

    fn write_many(
        &mut self,
        from: (u8, u8),
        count: (u8, u8),
        bytes: u8,
        data: &[u8],
        deeds: &mut Vec<Deed>,
    ) -> Result<Vec<u8>, Exception> {
        let registers = word(count.0, count.1);
        let is_whole = usize::from(bytes) == data.len() && data.len() == usize::from(registers) * 2;
        if !(1..=WRITE_MAX).contains(&registers) || !is_whole {
            return Err(Exception::Value);
        }
        let values: Vec<u16> = data.chunks_exact(2).map(|pair| word(pair[0], pair[1])).collect();
        self.write(word(from.0, from.1), &values, deeds)?;
        Ok(vec![from.0, from.1, count.0, count.1])
    }

    /// All of it or nothing; then the bell and the acknowledgement, where they were written.
    fn write(&mut self, from: u16, values: &[u16], deeds: &mut Vec<Deed>) -> Result<(), Exception> {
        let (slot, at) = (usize::from(from / STRIDE), usize::from(from % STRIDE));
        let order = self.order;
        let mailbox = self.mailboxes.get_mut(slot).ok_or(Exception::Address)?;
        if at + values.len() > HOLDING {
            return Err(Exception::Address);
        }
        let bell = values.first().copied().filter(|seq| at == 0 && *seq != 0 && *seq != mailbox.acked);
        if !self.is_restored || bell.is_some_and(|seq| mailbox.storing.is_some_and(|storing| storing != seq)) {
            return Err(Exception::Busy);
        }
        mailbox.holding[at..at + values.len()].copy_from_slice(values);
        // One that is on its way already is the same one again.
        if let Some(seq) = bell.filter(|_| mailbox.storing.is_none()) {
            mailbox.code = 0;
            match order_of(slot as u8, seq, &mailbox.holding, order) {
                Ok(order) => {
                    mailbox.storing = Some(seq);
                    deeds.push(Deed::Store(order));
                }
                Err(code) => mailbox.code = code,
            }
        }
        let acked = (at..at + values.len()).contains(&RES_ACK).then(|| mailbox.holding[RES_ACK]);
        let taken = mailbox.result.as_ref().filter(|result| acked == Some(result.seq) && !mailbox.taking);
        if let Some(request) = taken.map(|result| result.request) {
            (mailbox.taking, mailbox.taken) = (true, request);
            deeds.push(Deed::Taken(request));
        }
        Ok(())
    }

    fn pair(&self, value: u32) -> [u16; 2] {
        let (high, low) = ((value >> 16) as u16, value as u16);
        match self.order {
            WordOrder::HighFirst => [high, low],
            WordOrder::LowFirst => [low, high],
        }
    }
}

fn word(high: u8, low: u8) -> u16 {
    u16::from_be_bytes([high, low])
}

fn order_of(slot: u8, seq: u16, registers: &[u16; HOLDING], order: WordOrder) -> Result<Order, u16> {
    let double = |at: usize| {
        let (first, second) = (u32::from(registers[at]), u32::from(registers[at + 1]));
        match order {
            WordOrder::HighFirst => first << 16 | second,
            WordOrder::LowFirst => second << 16 | first,
        }
    };
    let small = |at: usize| u8::try_from(registers[at]).map_err(|_| BAD_PAYLOAD);
    let (numbers, bytes) = (registers[NARGS], registers[TEXT_LEN]);
    if numbers > ARGS_MAX || bytes > TEXT_MAX {
        return Err(BAD_PAYLOAD);
    }
    let mut args = Vec::new();
    for index in 0..usize::from(numbers) {
        let number = f32::from_bits(double(ARGS + index * 2));
        if !number.is_finite() {
            return Err(BAD_ARGUMENTS);
        }
        args.push(number.to_string());
    }
    if bytes > 0 {
        let text: Vec<u8> =
            registers[TEXT..TEXT + usize::from(TEXT_MAX) / 2].iter().flat_map(|r| r.to_be_bytes()).collect();
        args.push(text_of(&text[..usize::from(bytes)]));
    }
    Ok(Order { slot, seq, task: registers[TASK], prio: small(PRIO)?, ttl_s: double(TTL), flags: small(FLAGS)?, args })
}

/// UTF-8 where it is some, else Latin-1, as PLCs write it.
fn text_of(bytes: &[u8]) -> String {
    let text =
        String::from_utf8(bytes.to_vec()).unwrap_or_else(|_| bytes.iter().map(|byte| char::from(*byte)).collect());
    text.trim_end_matches('\0').to_owned()
}
