//! Messages: the fields of every type, in the order of the wire.
//!
//! Fields are only ever appended. A reader takes what it knows, ignores the rest, and reads a missing tail as
//! defaults, so devices and gateways of different age understand each other. Numbers whose meaning may grow (a
//! status, a state) stay numbers here; who reads them decides about unknown ones.

use heapless::Vec;
use postcard::ser_flavors::Flavor;
use serde::{Deserialize, Serialize};

/// Most arguments of a task.
pub const ARGS_MAX: usize = 16;
/// Longest argument, in bytes.
pub const ARG_BYTES_MAX: usize = 240;
/// Most pictures of one request.
pub const BLOBS_MAX: usize = 4;
/// Largest picture, in bytes.
pub const BLOB_BYTES_MAX: u32 = 8 << 20;
/// Longest text of a result, in bytes.
pub const TEXT_BYTES_MAX: u32 = 8 << 10;
/// Most unfinished requests of one device.
pub const OPEN_MAX: usize = 32;

/// `flags` of a Submit: the device wants no result.
pub const NO_RESULT: u8 = 1;
/// `flags` of a Submit: only the local model may answer.
pub const LOCAL_ONLY: u8 = 2;
/// `flags` of a Submit: only an uplink may answer.
pub const UPLINK_ONLY: u8 = 4;

/// Why a payload is no message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MessageError {
    /// The bytes are not such fields.
    Malformed,
    /// A type or a variant that this version does not know.
    Unknown,
    /// More elements than a list may have.
    TooMany,
}

/// A list of at most `N`; read without a heap.
pub type List<T, const N: usize> = Vec<T, N>;

/// Reads fields one after the other.
struct Fields<'a> {
    rest: &'a [u8],
}

impl<'a> Fields<'a> {
    /// The next field, or its default where the payload ends before it.
    fn next<T: Deserialize<'a> + Default>(&mut self) -> Result<T, MessageError> {
        if self.rest.is_empty() {
            return Ok(T::default());
        }
        let (value, rest) = postcard::take_from_bytes(self.rest).map_err(|_| MessageError::Malformed)?;
        self.rest = rest;
        Ok(value)
    }

    /// A list; its length is judged before its elements are read.
    fn list<T: Deserialize<'a>, const N: usize>(&mut self) -> Result<List<T, N>, MessageError> {
        let length: u32 = self.next()?;
        let mut list = List::new();
        for _ in 0..length {
            let (value, rest) = postcard::take_from_bytes(self.rest).map_err(|_| MessageError::Malformed)?;
            self.rest = rest;
            list.push(value).map_err(|_| MessageError::TooMany)?;
        }
        Ok(list)
    }
}

/// Where fields are written to.
type Out<F> = postcard::Serializer<F>;

/// A message's own reading and writing.
trait Wire<'a>: Sized {
    fn read(fields: &mut Fields<'a>) -> Result<Self, MessageError>;
    fn write<F: Flavor>(&self, out: &mut Out<F>) -> postcard::Result<()>;
}

/// A message whose fields are plain.
macro_rules! message {
    ($(#[$doc:meta])* $name:ident $(<$life:lifetime>)? { $($(#[$field_doc:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Default)]
        pub struct $name $(<$life>)? { $($(#[$field_doc])* pub $field: $type,)* }

        message!(@wire $name $(<$life>)? { $($field,)* });
    };
    (@wire $name:ident { $($field:ident,)* }) => {
        impl<'a> Wire<'a> for $name { message!(@body { $($field,)* }); }
    };
    (@wire $name:ident <$life:lifetime> { $($field:ident,)* }) => {
        impl<$life> Wire<$life> for $name<$life> { message!(@body_of $life { $($field,)* }); }
    };
    (@body { $($field:ident,)* }) => { message!(@body_of 'a { $($field,)* }); };
    (@body_of $life:lifetime { $($field:ident,)* }) => {
        #[allow(unused_variables, reason = "a message without fields")]
        fn read(fields: &mut Fields<$life>) -> Result<Self, MessageError> {
            Ok(Self { $($field: fields.next()?,)* })
        }
        #[allow(unused_variables, reason = "a message without fields")]
        fn write<F: Flavor>(&self, out: &mut Out<F>) -> postcard::Result<()> {
            $(self.$field.serialize(&mut *out)?;)*
            Ok(())
        }
    };
}

message! {
    /// A device says who it is.
    Hello<'a> {
        /// Oldest version it speaks.
        proto_min: u8,
        /// Newest version it speaks.
        proto_max: u8,
        /// Its own name for ever: 4 to 16 bytes.
        uid: &'a [u8],
        /// Another number after each of its starts.
        boot_id: u32,
        /// Largest frame it takes.
        max_frame: u16,
        /// Bytes it can take before it has to be asked again.
        rx_credit: u16,
        /// What it can do, as bits.
        caps: u32,
        /// What it is.
        model: &'a str,
        /// Its firmware.
        fw: &'a str,
        /// A shared secret, where the gateway asks for one.
        token: Option<&'a [u8]>,
    }
}

message! {
    /// The gateway's limits and state.
    HelloAck<'a> {
        /// The version both speak.
        proto: u8,
        /// Another number after each start of the gateway.
        gw_boot: u32,
        /// Largest frame from now on.
        max_frame: u16,
        /// Picture bytes in one Chunk.
        chunk: u16,
        /// Picture bytes on the way before an acknowledgement.
        credit: u16,
        /// Largest request with its pictures.
        max_body: u32,
        /// Unfinished requests at once.
        max_open: u16,
        /// 0 offline, 1 degraded, 2 online.
        uplink: u8,
        /// Unix time in milliseconds; 0 where the gateway does not know it.
        time_ms: u64,
        /// Results that wait for this device.
        pending: u16,
        /// The gateway's name.
        gw: &'a str,
    }
}

message! {
    /// The gateway has, or wants more.
    SubmitAck {
        /// Whose.
        key: u64,
        /// 0 stored durably, 1 a picture is missing, 2 already stored, 3 already finished.
        outcome: u8,
        /// The gateway's own number.
        req: u64,
        /// How many stand before it.
        queue_pos: u16,
        /// The picture that is missing, and from which byte.
        need: Option<(u32, u32)>,
    }
}

message! {
    /// The gateway says no.
    Nack<'a> {
        /// The refused message's type.
        re_type: u8,
        /// The refused request, or 0.
        key: u64,
        /// See [`crate::Code`].
        code: u16,
        /// Milliseconds until it makes sense again; 0 where it does not.
        retry_ms: u32,
        /// For people; at most 64 bytes.
        detail: &'a str,
    }
}

message! {
    /// A piece of a picture.
    Chunk<'a> {
        /// Which picture.
        blob: u32,
        /// Where the piece begins.
        off: u32,
        /// Its bytes.
        data: &'a [u8],
    }
}

message! {
    /// How far the gateway has a picture.
    ChunkAck {
        /// Which picture.
        blob: u32,
        /// The first byte it wants; may go back.
        next: u32,
        /// Bytes that may be on the way.
        credit: u16,
    }
}

message! {
    /// The message Result: an answer, or a part of it. (`Result` is Rust's own word.)
    Answer<'a> {
        /// The gateway's own number.
        req: u64,
        /// Whose.
        key: u64,
        /// 0 ok, 1 failed, 2 expired, 3 cancelled, 4 truncated, 5 refused.
        status: u8,
        /// 1 uplink, 2 local, 3 cache.
        source: u8,
        /// The task's number for the answer.
        code: i32,
        /// The task's value.
        value: f32,
        /// Where this part of the text begins.
        off: u32,
        /// Length of the whole text.
        total: u32,
        /// This part.
        text: &'a [u8],
    }
}

message! {
    /// The device has an answer so far.
    ResultAck {
        /// Whose.
        key: u64,
        /// The first byte it wants; all of it when this is `total`.
        next: u32,
    }
}

/// Where a request stands, as [`Progress::state`] says it. From [`DONE`](state::DONE) on it is over.
pub mod state {
    /// Its pictures are on their way.
    pub const UPLOADING: u8 = 1;
    /// It waits for an uplink.
    pub const QUEUED: u8 = 2;
    /// It is being answered.
    pub const IN_FLIGHT: u8 = 3;
    /// It was answered.
    pub const DONE: u8 = 4;
    /// It was not, and will not be.
    pub const FAILED: u8 = 5;
    /// Its time to live was over.
    pub const EXPIRED: u8 = 6;
    /// It was cancelled.
    pub const CANCELLED: u8 = 7;
}

message! {
    /// Where a request stands.
    Progress {
        /// Whose.
        key: u64,
        /// One of [`state`].
        state: u8,
        /// How many stand before it.
        queue_pos: u16,
        /// Seconds until an answer may be expected.
        eta_s: u16,
    }
}

message! {
    /// Asks where a request stands.
    Query {
        /// Whose.
        key: u64,
    }
}

message! {
    /// Asks that a request not be answered.
    Cancel {
        /// Whose.
        key: u64,
    }
}

message! {
    /// What became of a Cancel.
    CancelAck {
        /// Whose.
        key: u64,
        /// 0 cancelled, 1 too late, 2 unknown.
        outcome: u8,
    }
}

message! {
    /// Are you there?
    Ping {
        /// Comes back.
        nonce: u32,
    }
}

message! {
    /// Here.
    Pong {
        /// The question's own.
        nonce: u32,
        /// A device that sees another number says Hello.
        gw_boot: u32,
        /// 0 offline, 1 degraded, 2 online.
        uplink: u8,
        /// Results that wait for this device.
        pending: u16,
    }
}

message! {
    /// What time is it?
    TimeReq {
        /// The device's time when it asked, µs.
        t0_us: u64,
    }
}

message! {
    /// The gateway's time.
    TimeResp {
        /// The question's own.
        t0: u64,
        /// When the question came, Unix µs.
        t1: u64,
        /// When the answer left, Unix µs.
        t2: u64,
        /// 0 unsynced, 1 NTP, 2 PPS.
        quality: u8,
    }
}

message! {
    /// RS-485: this device may speak.
    Poll {
        /// Bytes it may send.
        credit: u16,
    }
}

message! {
    /// RS-485: nothing to say.
    Idle {}
}

/// A picture that belongs to a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct BlobRef {
    /// The device's number for it.
    pub blob: u32,
    /// Its length in bytes.
    pub len: u32,
    /// CRC-32 of all of it.
    pub crc32: u32,
    /// 1 JPEG, 2 PNG, 3 WebP.
    pub mime: u8,
}

/// What is asked.
#[derive(Debug, Clone, PartialEq)]
#[allow(clippy::large_enum_variant, reason = "one lives at a time, on the stack; there is no heap to box it in")]
pub enum Op<'a> {
    /// A canned prompt of the gateway's configuration.
    Task {
        /// Its number.
        id: u16,
        /// Its arguments, in order.
        args: List<&'a str, ARGS_MAX>,
        /// Its pictures.
        blobs: List<BlobRef, BLOBS_MAX>,
    },
    /// A prompt of the device's own.
    Chat {
        /// The model; empty for the gateway's choice.
        model: &'a str,
        /// What the model is told to be; may be empty.
        system: &'a str,
        /// The question.
        user: &'a str,
        /// Longest answer in tokens; 0 for the model's own limit.
        max_tokens: u16,
        /// Its pictures.
        blobs: List<BlobRef, BLOBS_MAX>,
    },
    /// A whole request in JSON.
    Raw {
        /// 0 chat completions, 1 completions, 2 embeddings.
        endpoint: u8,
        /// Its body.
        json: &'a [u8],
    },
    /// A whole request in JSON, too long for a frame: uploaded as a picture is.
    RawBlob {
        /// As in `Raw`.
        endpoint: u8,
        /// Its body.
        body: BlobRef,
    },
}

impl Default for Op<'_> {
    fn default() -> Self {
        Op::Task { id: 0, args: List::new(), blobs: List::new() }
    }
}

impl<'a> Wire<'a> for Op<'a> {
    fn read(f: &mut Fields<'a>) -> Result<Self, MessageError> {
        match f.next::<u32>()? {
            0 => Ok(Op::Task { id: f.next()?, args: f.list()?, blobs: f.list()? }),
            1 => Ok(Op::Chat {
                model: f.next()?,
                system: f.next()?,
                user: f.next()?,
                max_tokens: f.next()?,
                blobs: f.list()?,
            }),
            2 => Ok(Op::Raw { endpoint: f.next()?, json: f.next()? }),
            3 => Ok(Op::RawBlob { endpoint: f.next()?, body: f.next()? }),
            _ => Err(MessageError::Unknown),
        }
    }

    fn write<F: Flavor>(&self, out: &mut Out<F>) -> postcard::Result<()> {
        match self {
            Op::Task { id, args, blobs } => (0u32, id, args, blobs).serialize(out),
            Op::Chat { model, system, user, max_tokens, blobs } => {
                (1u32, model, system, user, max_tokens, blobs).serialize(out)
            }
            Op::Raw { endpoint, json } => (2u32, endpoint, json).serialize(out),
            Op::RawBlob { endpoint, body } => (3u32, endpoint, body).serialize(out),
        }
    }
}

/// A device hands over a request.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Submit<'a> {
    /// Names this request for ever; never used again with other content.
    pub key: u64,
    /// 0 critical to 3 low.
    pub prio: u8,
    /// Seconds until nobody wants the answer any more; 0 for the gateway's default.
    pub ttl_s: u32,
    /// [`NO_RESULT`], [`LOCAL_ONLY`], [`UPLINK_ONLY`].
    pub flags: u8,
    /// Longest text of the result; 0 for the gateway's limit.
    pub max_reply: u16,
    /// What is asked.
    pub op: Op<'a>,
}

impl Submit<'_> {
    /// The pictures that have to arrive before the request is whole.
    #[must_use]
    pub fn blobs(&self) -> &[BlobRef] {
        match &self.op {
            Op::Task { blobs, .. } | Op::Chat { blobs, .. } => blobs,
            Op::RawBlob { body, .. } => core::slice::from_ref(body),
            Op::Raw { .. } => &[],
        }
    }
}

impl<'a> Wire<'a> for Submit<'a> {
    fn read(f: &mut Fields<'a>) -> Result<Self, MessageError> {
        let (key, prio, ttl_s, flags, max_reply) = (f.next()?, f.next()?, f.next()?, f.next()?, f.next()?);
        Ok(Submit { key, prio, ttl_s, flags, max_reply, op: Op::read(f)? })
    }

    fn write<F: Flavor>(&self, out: &mut Out<F>) -> postcard::Result<()> {
        (self.key, self.prio, self.ttl_s, self.flags, self.max_reply).serialize(&mut *out)?;
        self.op.write(out)
    }
}

/// The list of types: number, name, direction.
macro_rules! messages {
    ($($(#[$doc:meta])* $kind:literal $name:ident($type:ty),)*) => {
        /// Any message.
        #[derive(Debug, Clone, PartialEq)]
        #[allow(clippy::large_enum_variant, reason = "one lives at a time, on the stack of whoever reads a frame")]
        pub enum Message<'a> { $($(#[$doc])* $name($type),)* }

        impl<'a> Message<'a> {
            /// Its number on the wire.
            #[must_use]
            pub fn kind(&self) -> u8 {
                match self { $(Message::$name(_) => $kind,)* }
            }

            /// Reads the fields of a message of this type.
            pub fn read(kind: u8, payload: &'a [u8]) -> Result<Message<'a>, MessageError> {
                let mut fields = Fields { rest: payload };
                match kind {
                    $($kind => Wire::read(&mut fields).map(Message::$name),)*
                    _ => Err(MessageError::Unknown),
                }
            }

            pub(crate) fn write<F: Flavor>(&self, out: &mut Out<F>) -> postcard::Result<()> {
                match self { $(Message::$name(message) => Wire::write(message, out),)* }
            }
        }
    };
}

messages! {
    /// Device: who I am.
    0x01 Hello(Hello<'a>),
    /// Gateway: limits and state.
    0x02 HelloAck(HelloAck<'a>),
    /// Device: a request.
    0x10 Submit(Submit<'a>),
    /// Gateway: taken, or a picture is missing.
    0x11 SubmitAck(SubmitAck),
    /// Gateway: no.
    0x12 Nack(Nack<'a>),
    /// Device: a piece of a picture.
    0x20 Chunk(Chunk<'a>),
    /// Gateway: how far the picture came.
    0x21 ChunkAck(ChunkAck),
    /// Gateway: an answer.
    0x30 Result(Answer<'a>),
    /// Device: the answer came.
    0x31 ResultAck(ResultAck),
    /// Gateway: where a request stands.
    0x32 Progress(Progress),
    /// Device: where does it stand?
    0x33 Query(Query),
    /// Device: not wanted any more.
    0x40 Cancel(Cancel),
    /// Gateway: what became of that.
    0x41 CancelAck(CancelAck),
    /// Both: are you there?
    0x50 Ping(Ping),
    /// Both: here.
    0x51 Pong(Pong),
    /// Device: what time is it?
    0x52 TimeReq(TimeReq),
    /// Gateway: the time.
    0x53 TimeResp(TimeResp),
    /// Gateway, RS-485: speak.
    0x60 Poll(Poll),
    /// Device, RS-485: nothing to say.
    0x61 Idle(Idle),
}
