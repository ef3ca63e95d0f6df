"""Messages: the fields of every type, in the order of the wire (postcard 1.x).

Fields are only ever appended: a missing tail reads as defaults, what is longer is ignored.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass, fields
from typing import Any, Callable, ClassVar, Dict, List, Optional, Tuple, Type, Union

NO_RESULT, LOCAL_ONLY, UPLINK_ONLY = 1, 2, 4
"""Flags of a Submit."""

JPEG, PNG, WEBP = 1, 2, 3
"""Kinds of a picture."""

ARGS_MAX, ARG_BYTES_MAX, BLOBS_MAX, BLOB_BYTES_MAX, OPEN_MAX = 16, 240, 4, 8 << 20, 32
"""Limits of version 1."""


class Malformed(ValueError):
    """The bytes are not such fields."""


class Reader:
    """Reads fields one after the other; past the end everything is its default."""

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    def ended(self) -> bool:
        return self._at >= len(self._data)

    def take(self, length: int) -> bytes:
        end = self._at + length
        if end > len(self._data):
            raise Malformed("a field ends too early")
        taken, self._at = self._data[self._at : end], end
        return taken

    def varint(self) -> int:
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1)[0]
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise Malformed("a number is too long")


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


@dataclass(frozen=True)
class Kind:
    """How one kind of field is read and written, and what stands for a missing one."""

    read: Callable[[Reader], Any]
    write: Callable[[Any], bytes]
    missing: Any


def _signed(r: Reader) -> int:
    zigzag = r.varint()
    return (zigzag >> 1) ^ -(zigzag & 1)


def _option(inner: Kind) -> Kind:
    return Kind(
        lambda r: inner.read(r) if r.take(1) == b"\1" else None,
        lambda value: b"\0" if value is None else b"\1" + inner.write(value),
        None,
    )


def _list(inner: Kind, most: int) -> Kind:
    def read(r: Reader) -> List[Any]:
        count = r.varint()
        if count > most:
            raise Malformed("a list is too long")
        return [inner.read(r) for _ in range(count)]

    return Kind(read, lambda items: varint(len(items)) + b"".join(map(inner.write, items)), ())


U8 = Kind(lambda r: r.take(1)[0], lambda value: bytes((value,)), 0)
UINT = Kind(Reader.varint, varint, 0)
INT = Kind(_signed, lambda value: varint(value << 1 if value >= 0 else (-value << 1) - 1), 0)
F32 = Kind(lambda r: struct.unpack("<f", r.take(4))[0], lambda value: struct.pack("<f", value), 0.0)
BYTES = Kind(lambda r: r.take(r.varint()), lambda value: varint(len(value)) + value, b"")
TEXT = Kind(lambda r: str(BYTES.read(r), "utf-8"), lambda value: BYTES.write(value.encode()), "")
PAIR = Kind(lambda r: (r.varint(), r.varint()), lambda pair: varint(pair[0]) + varint(pair[1]), None)


class Message:
    """What all messages share: `KIND` is the number on the wire, `WIRE` the kind of each field, in order."""

    KIND: ClassVar[int]
    WIRE: ClassVar[Tuple[Kind, ...]]

    def write(self) -> bytes:
        values = (getattr(self, field.name) for field in fields(self))  # type: ignore[arg-type]
        return b"".join(kind.write(value) for kind, value in zip(self.WIRE, values))

    @classmethod
    def read_from(cls, r: Reader) -> Any:
        return cls(*(kind.missing if r.ended() else kind.read(r) for kind in cls.WIRE))


@dataclass(frozen=True)
class BlobRef(Message):
    """A picture (or a long body) that is uploaded beside its request."""

    blob: int
    length: int
    crc32: int
    mime: int
    WIRE: ClassVar[Tuple[Kind, ...]] = (UINT, UINT, UINT, U8)


BLOB = Kind(BlobRef.read_from, BlobRef.write, None)
BLOBS = _list(BLOB, BLOBS_MAX)


@dataclass(frozen=True)
class Task(Message):
    """A canned prompt of the gateway's configuration."""

    id: int
    args: Tuple[str, ...] = ()
    blobs: Tuple[BlobRef, ...] = ()
    WIRE: ClassVar[Tuple[Kind, ...]] = (UINT, _list(TEXT, ARGS_MAX), BLOBS)


@dataclass(frozen=True)
class Chat(Message):
    """A prompt of the device's own; an empty model is the gateway's choice."""

    model: str
    system: str
    user: str
    max_tokens: int = 0
    blobs: Tuple[BlobRef, ...] = ()
    WIRE: ClassVar[Tuple[Kind, ...]] = (TEXT, TEXT, TEXT, UINT, BLOBS)


@dataclass(frozen=True)
class Raw(Message):
    """A whole request in JSON; endpoint 0 chat completions, 1 completions, 2 embeddings."""

    endpoint: int
    json: bytes
    WIRE: ClassVar[Tuple[Kind, ...]] = (U8, BYTES)


@dataclass(frozen=True)
class RawBlob(Message):
    """The same, too long for a frame: uploaded as a picture is."""

    endpoint: int
    body: BlobRef
    WIRE: ClassVar[Tuple[Kind, ...]] = (U8, BLOB)


Op = Union[Task, Chat, Raw, RawBlob]
OPS: Tuple[Type[Message], ...] = (Task, Chat, Raw, RawBlob)


def _read_op(r: Reader) -> Op:
    number = r.varint()
    if number >= len(OPS):
        raise Malformed("an operation that this version does not know")
    op: Op = OPS[number].read_from(r)
    return op


OP = Kind(_read_op, lambda op: varint(OPS.index(type(op))) + op.write(), Task(0))


@dataclass(frozen=True)
class Hello(Message):
    proto_min: int
    proto_max: int
    uid: bytes
    boot_id: int
    max_frame: int
    rx_credit: int
    caps: int
    model: str
    fw: str
    token: Optional[bytes] = None
    KIND: ClassVar[int] = 0x01
    WIRE: ClassVar[Tuple[Kind, ...]] = (U8, U8, BYTES, UINT, UINT, UINT, UINT, TEXT, TEXT, _option(BYTES))


@dataclass(frozen=True)
class HelloAck(Message):
    proto: int
    gw_boot: int
    max_frame: int
    chunk: int
    credit: int
    max_body: int
    max_open: int
    uplink: int
    time_ms: int
    pending: int
    gw: str
    KIND: ClassVar[int] = 0x02
    WIRE: ClassVar[Tuple[Kind, ...]] = (U8, UINT, UINT, UINT, UINT, UINT, UINT, U8, UINT, UINT, TEXT)


@dataclass(frozen=True)
class Submit(Message):
    key: int
    prio: int
    ttl_s: int
    flags: int
    max_reply: int
    op: Op
    KIND: ClassVar[int] = 0x10
    WIRE: ClassVar[Tuple[Kind, ...]] = (UINT, U8, UINT, U8, UINT, OP)

    def blobs(self) -> Tuple[BlobRef, ...]:
        """The pictures that have to arrive before the request is whole."""
        if isinstance(self.op, RawBlob):
            return (self.op.body,)
        return () if isinstance(self.op, Raw) else tuple(self.op.blobs)


@dataclass(frozen=True)
class SubmitAck(Message):
    key: int
    outcome: int
    req: int
    queue_pos: int
    need: Optional[Tuple[int, int]] = None
    KIND: ClassVar[int] = 0x11
    WIRE: ClassVar[Tuple[Kind, ...]] = (UINT, U8, UINT, UINT, _option(PAIR))


@dataclass(frozen=True)
class Nack(Message):
    re_type: int
    key: int
    code: int
    retry_ms: int
    detail: str
    KIND: ClassVar[int] = 0x12
    WIRE: ClassVar[Tuple[Kind, ...]] = (U8, UINT, UINT, UINT, TEXT)


@dataclass(frozen=True)
class Chunk(Message):
    blob: int
    off: int
    data: bytes
    KIND: ClassVar[int] = 0x20
    WIRE: ClassVar[Tuple[Kind, ...]] = (UINT, UINT, BYTES)


@dataclass(frozen=True)
class ChunkAck(Message):
    blob: int
    next: int
    credit: int
    KIND: ClassVar[int] = 0x21
    WIRE: ClassVar[Tuple[Kind, ...]] = (UINT, UINT, UINT)


@dataclass(frozen=True)
class Result(Message):
    req: int
    key: int
    status: int
    source: int
    code: int
    value: float
    off: int
    total: int
    text: bytes
    KIND: ClassVar[int] = 0x30
    WIRE: ClassVar[Tuple[Kind, ...]] = (UINT, UINT, U8, U8, INT, F32, UINT, UINT, BYTES)


@dataclass(frozen=True)
class ResultAck(Message):
    key: int
    next: int
    KIND: ClassVar[int] = 0x31
    WIRE: ClassVar[Tuple[Kind, ...]] = (UINT, UINT)


@dataclass(frozen=True)
class Progress(Message):
    key: int
    state: int
    queue_pos: int
    eta_s: int
    KIND: ClassVar[int] = 0x32
    WIRE: ClassVar[Tuple[Kind, ...]] = (UINT, U8, UINT, UINT)


@dataclass(frozen=True)
class Query(Message):
    key: int
    KIND: ClassVar[int] = 0x33
    WIRE: ClassVar[Tuple[Kind, ...]] = (UINT,)


@dataclass(frozen=True)
class Cancel(Message):
    key: int
    KIND: ClassVar[int] = 0x40
    WIRE: ClassVar[Tuple[Kind, ...]] = (UINT,)


@dataclass(frozen=True)
class CancelAck(Message):
    key: int
    outcome: int
    KIND: ClassVar[int] = 0x41
    WIRE: ClassVar[Tuple[Kind, ...]] = (UINT, U8)


@dataclass(frozen=True)
class Ping(Message):
    nonce: int
    KIND: ClassVar[int] = 0x50
    WIRE: ClassVar[Tuple[Kind, ...]] = (UINT,)


@dataclass(frozen=True)
class Pong(Message):
    nonce: int
    gw_boot: int
    uplink: int
    pending: int
    KIND: ClassVar[int] = 0x51
    WIRE: ClassVar[Tuple[Kind, ...]] = (UINT, UINT, U8, UINT)


_ALL: Tuple[Type[Message], ...] = (
    Hello, HelloAck, Submit, SubmitAck, Nack, Chunk, ChunkAck, Result, ResultAck, Progress, Query, Cancel, CancelAck,
    Ping, Pong,
)  # fmt: skip
BY_KIND: Dict[int, Type[Message]] = {message.KIND: message for message in _ALL}


def read(kind: int, payload: bytes) -> Message:
    """The message of this type; `Malformed` where it is none."""
    try:
        message: Message = BY_KIND[kind].read_from(Reader(payload))
    except KeyError:
        raise Malformed("a type that this version does not know") from None
    except UnicodeDecodeError:
        raise Malformed("a text that is none") from None
    return message
