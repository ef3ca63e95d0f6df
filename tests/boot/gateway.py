"""The gateway as a caller sees it: HTTP to its UNIX socket, and lines on its serial port.

Owns the two clients; never decides what an answer should be.
"""

from __future__ import annotations

import http.client
import json
import select
import socket
import time
from pathlib import Path

CALL_MAX_S = 60.0


class Gateway:
    """HTTP through the machine's proxy to the gateway's UNIX socket; one connection a call, as after a power cut."""

    def __init__(self, port: int) -> None:
        self.port = port

    def call(self, method: str, path: str, body: object = None, limit_s: float = CALL_MAX_S, **headers: str) -> tuple[int, dict, dict]:
        """Status, JSON and headers; `OSError` or `http.client.HTTPException` where none came."""
        line = http.client.HTTPConnection("127.0.0.1", self.port, timeout=limit_s)
        try:
            text = None if body is None else json.dumps(body)
            named = {name.replace("_", "-"): value for name, value in headers.items()}
            line.request(method, path, text, {"Content-Type": "application/json", **named})
            answer = line.getresponse()
            data = answer.read()
            value = json.loads(data) if data[:1] in (b"{", b"[") else {"text": data.decode(errors="replace")}
            return answer.status, value, {k.lower(): v for k, v in answer.getheaders()}
        finally:
            line.close()

    def ask(self, prompt: str, limit_s: float = CALL_MAX_S, **headers: str) -> tuple[int, dict, dict]:
        body = {"model": "stand-in", "messages": [{"role": "user", "content": prompt}]}
        return self.call("POST", "/v1/chat/completions", body, limit_s, **headers)

    def record(self, name: str) -> dict | None:
        status, value, _ = self.call("GET", f"/holdfast/v1/requests/{name}")
        return value if status == 200 else None

    def status(self) -> dict:
        return self.call("GET", "/holdfast/v1/status")[1]

    def records(self) -> list[dict]:
        """All of them, page by page."""
        found, after = [], ""
        while True:
            _, page, _ = self.call("GET", f"/holdfast/v1/requests?limit=500{after}")
            found += page["data"]
            if not page.get("has_more"):
                return found
            after = f"&after={page['next']}"


class Plc:
    """A PLC that can build text, at the other end of the serial line."""

    def __init__(self, path: Path) -> None:
        self.line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.line.connect(str(path))
        self.heard = b""

    def close(self) -> None:
        self.line.close()

    def say(self, text: str) -> None:
        self.line.sendall(f"${text}*{crc16(text.encode()):04X}\r\n".encode())

    def hear(self, limit_s: float) -> str | None:
        """The next whole line without its checksum, or nothing in this time."""
        end = time.monotonic() + limit_s
        while True:
            while b"\n" in self.heard:
                line, _, self.heard = self.heard.partition(b"\n")
                text = line.strip(b"\0\r \n")
                start = text.rfind(b"$")
                words, star, total = text[start + 1 :].rpartition(b"*")
                if start >= 0 and star and total.decode(errors="replace") == f"{crc16(words):04X}":
                    return words.decode()
            left = end - time.monotonic()
            if left <= 0 or not select.select([self.line], [], [], left)[0]:
                return None
            more = self.line.recv(4096)
            if not more:
                return None
            self.heard += more

    def wants(self, verb: str, key: str, limit_s: float) -> list[str] | None:
        end = time.monotonic() + limit_s
        while (left := end - time.monotonic()) > 0:
            line = self.hear(left)
            if line is None:
                continue
            fields = line.split(",")
            if fields[0] == verb and fields[1] == key:
                return fields
            if fields[0] == "RES":
                # A result of an earlier request: taken, or it is offered for ever and keeps its place.
                self.say(f"RAK,{fields[1]},{fields[5].partition('/')[0]}")
        return None

    def submit(self, key: str, text: str, limit_s: float) -> list[str]:
        """Says it until it is answered, as a PLC does; the acknowledgement's fields."""
        end = time.monotonic() + limit_s
        while time.monotonic() < end:
            self.say(f"SUB,{key},1,86400,1,{text}")
            fields = self.wants("ACK", key, 3.0)
            if fields:
                return fields
        raise TimeoutError(f"no ACK for {key} on the serial line in {limit_s:.0f} s")

    def result(self, key: str, limit_s: float) -> list[str]:
        fields = self.wants("RES", key, limit_s)
        if not fields:
            raise TimeoutError(f"no RES for {key} on the serial line in {limit_s:.0f} s")
        self.say(f"RAK,{key},1")
        return fields


def crc16(data: bytes) -> int:
    """CRC-16 of Modbus."""
    total = 0xFFFF
    for byte in data:
        total ^= byte
        for _ in range(8):
            total = (total >> 1) ^ 0xA001 if total & 1 else total >> 1
    return total
