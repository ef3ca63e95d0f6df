"""The line: a serial port, a UNIX socket, or TCP (a serial server, or the gateway itself).

Owns opening, reading with a time-out and writing; a line that is gone is an `OSError`, whatever it was.
"""

from __future__ import annotations

import os
import select
import socket
from typing import Optional, Protocol


class Port(Protocol):
    """A line that is open."""

    def read(self, timeout_s: float) -> bytes:
        """What came, at most after so long; empty for nothing. `OSError` when the line is gone."""

    def write(self, data: bytes) -> None:
        """All of it."""

    def close(self) -> None: ...


WRITE_S = 20.0
"""A peer that takes nothing for so long is gone."""


def open_port(address: str, baud: int = 115_200) -> Port:
    """`/dev/ttyUSB0` or `COM3` (serial), `unix:/run/holdfast/link.sock`, `tcp:192.168.1.20:4000`."""
    scheme, _, rest = address.partition(":")
    if scheme == "unix":
        return Socket(_connected(socket.AF_UNIX, rest))
    if scheme == "tcp":
        host, _, port = rest.rpartition(":")
        return Socket(socket.create_connection((host.strip("[]"), int(port)), timeout=WRITE_S))
    return Serial(address, baud)


def _connected(family: int, address: str) -> socket.socket:
    line = socket.socket(family, socket.SOCK_STREAM)
    try:
        line.settimeout(WRITE_S)
        line.connect(address)
    except OSError:
        line.close()
        raise
    return line


class Socket:
    def __init__(self, line: socket.socket) -> None:
        self._line = line

    def read(self, timeout_s: float) -> bytes:
        ready, _, _ = select.select([self._line], [], [], timeout_s)
        if not ready:
            return b""
        data = self._line.recv(4096)
        if not data:
            raise ConnectionError("the gateway closed the line")
        return data

    def write(self, data: bytes) -> None:
        self._line.sendall(data)

    def close(self) -> None:
        self._line.close()


class Serial:
    def __init__(self, path: str, baud: int) -> None:
        import serial  # only here: sockets need no package

        # No XON/XOFF: frames contain those bytes. Exclusive: two programs on one line tear each other's frames.
        exclusive: Optional[bool] = True if os.name == "posix" else None
        self._line = serial.Serial(path, baud, timeout=0, write_timeout=WRITE_S, exclusive=exclusive)

    def read(self, timeout_s: float) -> bytes:
        self._line.timeout = timeout_s
        first: bytes = self._line.read(1)
        return first + self._line.read(min(self._line.in_waiting, 4096)) if first else b""

    def write(self, data: bytes) -> None:
        self._line.write(data)
        self._line.flush()

    def close(self) -> None:
        self._line.close()
