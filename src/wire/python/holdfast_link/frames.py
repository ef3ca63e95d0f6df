"""Frames: `00 | COBS(header + payload + CRC-32) | 00`.

Owns framing, checksums and the header. What is damaged is counted and dropped; the sender repeats it.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Iterator, Optional, Tuple

VERSION = 1
HEADER_BYTES = 5
CRC_BYTES = 4
BROADCAST = 255


@dataclass(frozen=True)
class Header:
    """What stands before every payload."""

    kind: int
    session: int
    tag: int
    from_gateway: bool = False
    repeat: bool = False
    addr: int = 0


def stuff(data: bytes) -> bytes:
    """COBS: the same bytes without any zero."""
    out = bytearray()
    for at, run in enumerate(data.split(b"\0")):
        # A run of 254 is full: it ends without a zero of its own.
        while len(run) >= 254:
            out += b"\xff" + run[:254]
            run = run[254:]
        out.append(len(run) + 1)
        out += run
    return bytes(out)


def unstuff(data: bytes) -> Optional[bytes]:
    """The way back; `None` where the stuffing is broken."""
    out = bytearray()
    at = 0
    while at < len(data):
        code = data[at]
        end = at + code
        if code == 0 or end > len(data):
            return None
        out += data[at + 1 : end]
        at = end
        if code != 0xFF and at < len(data):
            out.append(0)
    return bytes(out)


def encode(header: Header, payload: bytes) -> bytes:
    """One whole frame, delimiters included."""
    first = VERSION << 4 | header.from_gateway << 3 | header.repeat << 2
    body = bytes((first, header.addr, header.kind, header.session, header.tag)) + payload
    return b"\0" + stuff(body + zlib.crc32(body).to_bytes(4, "little")) + b"\0"


def decode(stuffed: bytes) -> Optional[Tuple[Header, bytes]]:
    """What stands between two delimiters; `None` where it is no frame."""
    frame = unstuff(stuffed)
    if frame is None or len(frame) < HEADER_BYTES + CRC_BYTES:
        return None
    body, crc = frame[:-CRC_BYTES], frame[-CRC_BYTES:]
    if zlib.crc32(body) != int.from_bytes(crc, "little") or body[0] >> 4 != VERSION or body[0] & 3:
        return None
    first, addr, kind, session, tag = body[:HEADER_BYTES]
    header = Header(kind, session, tag, bool(first & 8), bool(first & 4), addr)
    return header, body[HEADER_BYTES:]


class Deframer:
    """Finds frames in a stream of bytes; keeps at most one stuffed frame of `room` bytes."""

    def __init__(self, room: int) -> None:
        self.damaged = 0
        self._room = room
        self._buffer = bytearray()
        self._too_long = False

    def push(self, data: bytes) -> Iterator[Tuple[Header, bytes]]:
        """Takes what came; yields the frames that are whole now."""
        *ended, rest = data.split(b"\0")
        for piece in ended:
            self._take(piece)
            stuffed, too_long = bytes(self._buffer), self._too_long
            self.forget()
            if not stuffed and not too_long:
                continue
            frame = None if too_long else decode(stuffed)
            if frame is None:
                self.damaged += 1
            else:
                yield frame
        self._take(rest)

    def forget(self) -> None:
        """Drops what has come of a frame."""
        self._buffer.clear()
        self._too_long = False

    def _take(self, piece: bytes) -> None:
        if len(self._buffer) + len(piece) > self._room:
            self._too_long = True
            self._buffer.clear()
        elif not self._too_long:
            self._buffer += piece
