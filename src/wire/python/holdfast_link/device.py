"""The device's side of the rules, as a state machine with explicit time.

Bytes from the port go into `receive`, what it wants to send comes out of `poll`. Owns sessions, repeats, uploads and
acknowledgements; reads no clock and touches no port. It says exactly what the Rust crate's device says: a test holds
them side by side.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Deque, Dict, List, Optional, Protocol, Tuple, Union

from . import messages as m
from .frames import BROADCAST, VERSION, Deframer, Header, encode

WAIT_MAX_MS = 8_000
PING_EVERY_MS = 30_000
PINGS_MAX = 3
ROUNDS_MAX = 4
ANSWER_MS = 300
STORE_MS = 2_000
BUSY_MS = 2_000
QUERIES_MAX = 3
"""Queries for the result of a finished request after which "finished" is all that is to be had."""
STATE_DONE = 4
ACKS_MAX = 4

VERSION_CODE, NO_SESSION, UNKNOWN_KEY, FORBIDDEN = 2, 4, 8, 14
COME_BACK = (6, 7, 13, 16, 15)
"""Busy, storage full, rate limited, internal, a picture's checksum: the same request may be taken later."""


class Keeper(Protocol):
    """What the program holds."""

    def request(self, key: int) -> Optional[m.Submit]:
        """The request of this key, the same each time."""

    def picture(self, key: int, blob: int, off: int, length: int) -> bytes:
        """A piece of a picture."""


@dataclass(frozen=True)
class Identity:
    """Who the device is, and its line."""

    uid: bytes
    boot_id: int
    model: str = "python"
    fw: str = "0.1.0"
    caps: int = 0
    token: Optional[bytes] = None
    addr: int = 0
    max_frame: int = 1024
    rx_credit: int = 4096
    frame_ms: int = 90


@dataclass(frozen=True)
class Online:
    """A session is open; uplink 0 offline, 1 degraded, 2 online."""

    uplink: int
    time_ms: int


@dataclass(frozen=True)
class Stored:
    """The request is on the gateway's disk."""

    ack: m.SubmitAck


@dataclass(frozen=True)
class Refusal:
    """The gateway does not take it and never will as it is; with key 0 the session itself."""

    nack: m.Nack


@dataclass(frozen=True)
class Part:
    """A part of the answer, in order, each part once."""

    part: m.Result
    last: bool


@dataclass(frozen=True)
class Gone:
    """The gateway finished this request, and its result is not kept any more: it may be forgotten."""

    key: int


Event = Union[Online, Stored, Refusal, Part, Gone, m.Progress, m.CancelAck]


class Chance:
    """Xorshift, 32 bits (G. Marsaglia, "Xorshift RNGs", 2003): repeats of two devices must differ, no more."""

    def __init__(self, seed: int) -> None:
        self._state = seed | 1

    def spread(self, wait_ms: int) -> int:
        """`wait_ms` with up to a quarter more or less."""
        x = self._state
        x ^= x << 13 & 0xFFFFFFFF
        x ^= x >> 17
        x ^= x << 5 & 0xFFFFFFFF
        self._state = x
        quarter = wait_ms // 4
        return wait_ms - quarter + (quarter * 2 * (x & 0xFFFF) >> 16)


@dataclass
class Repeat:
    """One message's timer."""

    due_ms: int
    wait_ms: int = 0
    sends: int = 0

    def is_due(self, now_ms: int) -> bool:
        return now_ms >= self.due_ms

    def sent(self, now_ms: int, first_ms: int, chance: Chance) -> None:
        self.wait_ms = min(self.wait_ms * 2, WAIT_MAX_MS) if self.wait_ms else first_ms
        self.due_ms = now_ms + chance.spread(self.wait_ms)
        self.sends = min(self.sends + 1, 255)


SUBMITTING, UPLOADING, STORED, ASKING = range(4)


@dataclass
class Open:
    """One unfinished request and what it waits for."""

    key: int
    wants_result: bool
    repeat: Repeat
    stage: int = SUBMITTING
    next: int = 0

    def enter(self, stage: int, now_ms: int) -> None:
        self.stage, self.repeat = stage, Repeat(now_ms)


@dataclass
class Upload:
    """One picture on its way."""

    key: int
    blob: int
    acked: int
    sent: int
    credit: int
    repeat: Repeat
    length: Optional[int] = None
    went_back: bool = False

    def is_waiting(self) -> bool:
        return self.sent > self.acked

    def is_complete(self) -> bool:
        return self.length is not None and self.acked >= self.length

    def confirmed(self, wanted: int, credit: int, now_ms: int) -> None:
        """The gateway tells how far it is; that may also be less than before."""
        wanted = wanted if self.length is None else min(wanted, self.length)
        self.credit = credit
        if wanted < self.acked:
            self.sent, self.went_back = wanted, False
        elif wanted > self.acked:
            self.sent, self.went_back = max(self.sent, wanted), False
        elif not self.went_back and self.sent > wanted:
            # The same byte once more: a piece was lost, and all behind it is of no use.
            self.sent, self.went_back = wanted, True
        self.acked, self.repeat = wanted, Repeat(now_ms)


@dataclass
class _Session:
    gw_boot: int
    chunk: int
    credit: int


@dataclass
class Device:
    """One device on one line."""

    identity: Identity
    now_ms: int
    open_max: int = m.OPEN_MAX
    session: Optional[_Session] = None
    open: Dict[int, Open] = field(default_factory=dict)
    upload: Optional[Upload] = None

    def __post_init__(self) -> None:
        self._deframer = Deframer(self.identity.max_frame + self.identity.max_frame // 254 + 3)
        self._hello = Repeat(self.now_ms)
        self._ping = Repeat(self.now_ms + PING_EVERY_MS)
        self._acks: Deque[Tuple[int, int, int]] = deque(maxlen=ACKS_MAX)
        self._cancel: Optional[Tuple[int, Repeat]] = None
        self._pong: Optional[Tuple[int, int]] = None
        self._places: List[Optional[int]] = [None] * self.open_max
        self._tag = 0
        self._chance = Chance(self.identity.boot_id)

    @property
    def damaged(self) -> int:
        """Frames that were dropped because they were damaged."""
        return self._deframer.damaged

    @property
    def is_online(self) -> bool:
        return self.session is not None

    def submit(self, key: int, wants_result: bool, now_ms: int) -> bool:
        """Takes over a request; false: no place, wait until one is finished."""
        if key in self.open:
            return True
        if None not in self._places:
            return False
        self._places[self._places.index(None)] = key
        self.open[key] = Open(key, wants_result, Repeat(now_ms))
        return True

    def cancel(self, key: int, now_ms: int) -> bool:
        """Asks the gateway not to answer; one at a time."""
        if self._cancel is not None and self._cancel[0] != key:
            return False
        self._cancel = (key, Repeat(now_ms))
        return True

    def line_lost(self, now_ms: int) -> None:
        """The line was closed or fell silent in the middle of a frame."""
        self._deframer.forget()
        self._lose_session(now_ms)

    def receive(self, data: bytes, now_ms: int) -> List[Event]:
        """Takes bytes from the port."""
        events = (self._frame(header, payload, now_ms) for header, payload in self._deframer.push(data))
        return [event for event in events if event is not None]

    def poll(self, keeper: Keeper, now_ms: int) -> bytes:
        """The next frame to send, empty for none. Call it until it is empty."""
        if self.session is None:
            return self._say_hello(now_ms)
        if self._acks:
            key, wanted, tag = self._acks.popleft()
            return self._out(m.ResultAck(key, wanted), reply_to=tag)
        if self._pong is not None:
            (nonce, tag), self._pong = self._pong, None
            return self._out(m.Pong(nonce, 0, 0, 0), reply_to=tag)
        if self._cancel is not None and self._cancel[1].is_due(now_ms):
            key, repeat = self._cancel
            return self._repeated(m.Cancel(key), repeat, self._wait_ms(), now_ms)
        return self._say_open(keeper, now_ms) or self._say_piece(keeper, now_ms) or self._say_ping(now_ms)

    # ---- what the gateway says ----

    def _frame(self, header: Header, payload: bytes, now_ms: int) -> Optional[Event]:
        mine = header.addr in (self.identity.addr, BROADCAST)
        # Its own echo, somebody else's, or an answer to what it was before its last start.
        if not header.from_gateway or not mine or header.session != self.identity.boot_id & 0xFF:
            return None
        try:
            message = m.read(header.kind, payload)
        except m.Malformed:
            return None
        self._ping = Repeat(now_ms + PING_EVERY_MS)
        if isinstance(message, m.HelloAck):
            return self._agreed(message, now_ms)
        if isinstance(message, m.SubmitAck):
            return self._submitted(message, now_ms)
        if isinstance(message, m.Nack):
            return self._refused(message, now_ms)
        if isinstance(message, m.ChunkAck):
            self._chunk_acked(message, now_ms)
        elif isinstance(message, m.Result):
            return self._answered(message, header.tag, now_ms)
        elif isinstance(message, m.Progress):
            return self._stands(message, now_ms)
        elif isinstance(message, m.CancelAck):
            if self._cancel is not None and self._cancel[0] == message.key:
                self._cancel = None
            return message
        elif isinstance(message, m.Ping):
            self._pong = (message.nonce, header.tag)
        elif isinstance(message, m.Pong):
            if self.session is not None and self.session.gw_boot != message.gw_boot:
                self._lose_session(now_ms)
        return None

    def _agreed(self, ack: m.HelloAck, now_ms: int) -> Event:
        """The session is open: everything unfinished is repeated, the gateway knows what it has."""
        self.session = _Session(ack.gw_boot, ack.chunk, ack.credit)
        self.upload = None
        for request in self.open.values():
            request.enter(SUBMITTING, now_ms)
        return Online(ack.uplink, ack.time_ms)

    def _submitted(self, ack: m.SubmitAck, now_ms: int) -> Optional[Event]:
        request = self.open.get(ack.key)
        if self.session is None or request is None or ack.outcome > 3:
            return None
        if ack.outcome == 1:
            if ack.need is not None:
                self._wanted(request, ack.need[0], ack.need[1], now_ms)
            return None
        stage = ASKING if ack.outcome == 3 else STORED
        is_news = request.stage != stage
        if is_news:
            request.enter(stage, now_ms)
        if not request.wants_result:
            self._finish(ack.key, now_ms)
        return Stored(ack) if is_news else None

    def _stands(self, progress: m.Progress, now_ms: int) -> Event:
        """Finished, and asked for often enough without a result: there is none any more."""
        request = self.open.get(progress.key)
        asked = request.repeat.sends if request is not None and request.stage == ASKING else 0
        if progress.state < STATE_DONE or asked < QUERIES_MAX:
            return progress
        self._finish(progress.key, now_ms)
        return Gone(progress.key)

    def _wanted(self, request: Open, blob: int, off: int, now_ms: int) -> None:
        """The gateway wants a picture from some byte on; one upload at a time."""
        up = self.upload
        busy = up is not None and (up.key != request.key or up.blob == blob and up.is_waiting())
        request.enter(UPLOADING, now_ms)
        if not busy and self.session is not None:
            self.upload = Upload(request.key, blob, off, off, self.session.credit, Repeat(now_ms))

    def _refused(self, nack: m.Nack, now_ms: int) -> Optional[Event]:
        if nack.code == NO_SESSION:
            self._lose_session(now_ms)
            return None
        if nack.code == VERSION_CODE or nack.code == FORBIDDEN and self.session is None:
            self._hello.due_ms, self._hello.wait_ms = now_ms + max(nack.retry_ms, BUSY_MS), 0
            return Refusal(nack)
        request = self.open.get(nack.key)
        if request is None:
            return None
        if nack.code == UNKNOWN_KEY:
            # What is being submitted already was asked for before: an answer that comes late.
            if request.stage in (STORED, ASKING):
                request.enter(SUBMITTING, now_ms)
            return None
        if nack.code in COME_BACK:
            request.enter(SUBMITTING, now_ms)
            request.repeat.due_ms = now_ms + (nack.retry_ms or BUSY_MS)
            if self.upload is not None and self.upload.key == nack.key:
                self._end_upload(now_ms)
            return None
        self._finish(nack.key, now_ms)
        return Refusal(nack)

    def _chunk_acked(self, ack: m.ChunkAck, now_ms: int) -> None:
        if self.upload is not None and self.upload.blob == ack.blob:
            self.upload.confirmed(ack.next, ack.credit, now_ms)
            if self.upload.is_complete():
                self._end_upload(now_ms)

    def _answered(self, part: m.Result, tag: int, now_ms: int) -> Optional[Event]:
        request = self.open.get(part.key)
        if request is None:
            # Handed over before, or never asked: it must not come again.
            self._acks.append((part.key, part.total, tag))
            return None
        if part.off != request.next:
            self._acks.append((part.key, request.next, tag))
            return None
        request.next = part.off + len(part.text)
        request.stage = STORED
        last = request.next >= part.total
        self._acks.append((part.key, min(request.next, part.total), tag))
        if last:
            self._finish(part.key, now_ms)
        return Part(part, last)

    # ---- what the device says ----

    def _say_hello(self, now_ms: int) -> bytes:
        if not self._hello.is_due(now_ms):
            return b""
        me = self.identity
        hello = m.Hello(
            VERSION, VERSION, me.uid, me.boot_id, me.max_frame, me.rx_credit, me.caps, me.model, me.fw, me.token
        )
        return self._repeated(hello, self._hello, self._wait_ms(), now_ms)

    def _say_open(self, keeper: Keeper, now_ms: int) -> bytes:
        """The first request whose repeat is due: submitted, or asked for."""
        for key in self._places:
            request = self.open.get(key) if key is not None else None
            if request is None or request.stage not in (SUBMITTING, ASKING) or not request.repeat.is_due(now_ms):
                continue
            if request.stage == ASKING:
                return self._repeated(m.Query(request.key), request.repeat, self._wait_ms(), now_ms)
            submit = keeper.request(request.key)
            if submit is None:
                # The program gave it up.
                request.repeat.sent(now_ms, self._wait_ms() + STORE_MS, self._chance)
                self._finish(request.key, now_ms)
                return b""
            return self._repeated(submit, request.repeat, self._wait_ms() + STORE_MS, now_ms)
        return b""

    def _say_piece(self, keeper: Keeper, now_ms: int) -> bytes:
        """The next piece of the picture on its way."""
        up = self.upload
        if up is None:
            return b""
        if up.length is None:
            submit = keeper.request(up.key)
            named = [ref.length for ref in submit.blobs() if ref.blob == up.blob] if submit is not None else []
            if not named:
                self._end_upload(now_ms)
                return b""
            up.length = named[0]
        again = up.repeat.sends > 0
        overdue = again and up.repeat.is_due(now_ms)
        if up.is_complete() or overdue and (up.repeat.sends >= ROUNDS_MAX or not up.is_waiting()):
            # The request's repeat tells where to go on, or brings the durable acknowledgement.
            self._end_upload(now_ms)
            return b""
        if overdue:
            up.sent, up.went_back = up.acked, False
        chunk = max(self.session.chunk, 1) if self.session is not None else 1
        length = min(min(up.acked + up.credit, up.length) - up.sent, chunk)
        if length <= 0:
            if not again:
                up.repeat.sent(now_ms, self._wait_ms(), self._chance)
            return b""
        data = keeper.picture(up.key, up.blob, up.sent, length)[:length]
        if not data:
            self._end_upload(now_ms)
            return b""
        if not again or overdue:
            up.repeat.sent(now_ms, self._wait_ms(), self._chance)
        off = up.sent
        up.sent += len(data)
        return self._out(m.Chunk(up.blob, off, data), repeat=overdue)

    def _say_ping(self, now_ms: int) -> bytes:
        if not self._ping.is_due(now_ms):
            return b""
        if self._ping.sends >= PINGS_MAX:
            self._ping = Repeat(now_ms + PING_EVERY_MS)
            self._lose_session(now_ms)
            return self._say_hello(now_ms)
        return self._repeated(m.Ping(now_ms & 0xFFFFFFFF), self._ping, self._wait_ms(), now_ms)

    def _wait_ms(self) -> int:
        """How long an answer may take that needs no disk."""
        return self.identity.frame_ms * 3 + ANSWER_MS

    def _repeated(self, message: m.Message, repeat: Repeat, first_ms: int, now_ms: int) -> bytes:
        again = repeat.sends > 0
        repeat.sent(now_ms, first_ms, self._chance)
        return self._out(message, repeat=again)

    def _out(self, message: m.Message, repeat: bool = False, reply_to: Optional[int] = None) -> bytes:
        if reply_to is None:
            self._tag = (self._tag + 1) & 0xFF
        tag = self._tag if reply_to is None else reply_to
        header = Header(message.KIND, self.identity.boot_id & 0xFF, tag, repeat=repeat, addr=self.identity.addr)
        return encode(header, message.write())

    # ---- state ----

    def _finish(self, key: int, now_ms: int) -> None:
        if self.open.pop(key, None) is not None:
            self._places[self._places.index(key)] = None
        if self.upload is not None and self.upload.key == key:
            self._end_upload(now_ms)

    def _end_upload(self, now_ms: int) -> None:
        """The line is free for the next picture: whoever waits for it asks again."""
        self.upload = None
        for request in self.open.values():
            if request.stage == UPLOADING:
                request.enter(SUBMITTING, now_ms)

    def _lose_session(self, now_ms: int) -> None:
        self.session, self._hello = None, Repeat(now_ms)
