"""What all checks share: the run's parts, waits for the gateway, and the journal's words.

Owns the configuration that the machine gets; never owns a judgement.
"""

from __future__ import annotations

import http.client
import json
import time
from pathlib import Path
from typing import Callable

from gateway import Gateway, Plc
from machine import USB_PORT, Board, Hung, Machine
from uplink import Uplink

KEY = "sk-booted-stand-in-4711"
CONFIG = "/etc/holdfast/conf.d/50-boot.toml"
DROP_IN = "/etc/systemd/system/holdfast.service.d/50-boot.conf"
READY_MAX_S = 90


class Failed(Exception):
    """What was promised did not happen."""


class Bench:
    """A machine with the gateway on it, the stand-in uplink, and the PLC at the other end of the serial line."""

    def __init__(self, board: Board, uplink: Uplink, say: Callable[[str], None]) -> None:
        self.board, self.uplink, self.say = board, uplink, say
        self.gateway = Gateway(board.gateway_port)
        self.incidents: dict[str, str] = {}
        self.machine: Machine
        self.plc: Plc

    # ---- the machine ----

    def on(self) -> float:
        """Switches the machine on; the seconds until its channel answered."""
        began = time.monotonic()
        self.machine = Machine(self.board)
        try:
            self.plc = Plc(self.machine.sockets / "line")
            self.machine.up()
        except BaseException:
            self.machine.cut()
            raise
        return time.monotonic() - began

    def cut(self) -> None:
        self.machine.cut()
        self.plc.close()

    def off(self) -> None:
        self.machine.off()
        self.plc.close()

    def slow(self, seconds: float) -> float:
        return seconds * self.machine.slower

    # ---- the gateway ----

    def ready(self, limit_s: float = READY_MAX_S) -> None:
        """Waits until the service is active and answers."""
        self.machine.until("the service to be active", "systemctl is-active holdfast.service; true", "active\n", limit_s)
        # 503 is an answer too: a full disk, for one, accepts nothing and serves all the same.
        self.until("an answer on the socket", lambda: self.gateway.call("GET", "/health", limit_s=20)[0] in (200, 503), limit_s)

    def online(self, limit_s: float = 60) -> None:
        def up() -> bool:
            return self.gateway.call("GET", "/v1/health")[1]["providers"]["standin"]["status"] in ("healthy", "degraded")

        self.until("the uplink to be available", up, limit_s)

    def until(self, what: str, holds: Callable[[], bool], limit_s: float) -> None:
        end = time.monotonic() + self.slow(limit_s)
        said = ""
        while True:
            try:
                if holds():
                    return
            except (OSError, http.client.HTTPException, KeyError, ValueError) as fault:
                said = f" ({fault!r})"
            if time.monotonic() > end:
                raise Hung(f"waited {self.slow(limit_s):.0f} s for {what}{said}")
            time.sleep(0.2)

    def show(self, name: str, unit: str = "holdfast.service") -> str:
        return self.machine.tell(f"systemctl show -P {name} {unit}").text.strip()

    def run(self, command: str, limit_s: float = 120) -> str:
        """A command that has to succeed."""
        said = self.machine.tell(command, limit_s)
        if said.code:
            raise Failed(f"`{command}` ended with {said.code}: {said.text.strip()[-600:]}")
        return said.text

    def writable(self, command: str) -> None:
        """Changes something on the read-only root, as a technician does."""
        self.run(f"mount -o remount,rw / && {{ {command}; }} && sync && mount -o remount,ro /")

    # ---- its journal ----

    def mark(self) -> str:
        """Where the journal ends now."""
        text = self.machine.tell("journalctl -n 0 --show-cursor --no-pager").text
        return text.rsplit("cursor:", 1)[-1].strip()

    def since(self, cursor: str) -> str:
        """What systemd and the gateway said about it since then, as a technician reads it."""
        command = f"journalctl --no-pager -o short --no-hostname --after-cursor='{cursor}' -u holdfast.service -u holdfast.socket"
        return self.machine.tell(command).text.strip()

    def incident(self, name: str, cursor: str, extra: str = "") -> str:
        text = self.since(cursor)
        self.incidents[name] = (text + ("\n" + extra if extra else "")).strip()
        return text

    def entries(self, *matches: str) -> list[dict]:
        text = self.machine.tell("journalctl -u holdfast.service -o json --no-pager " + " ".join(matches)).text
        return [json.loads(line) for line in text.splitlines() if line.startswith("{")]


def configure(machine: Machine, uplink_port: int) -> None:
    """The configuration, and the key as a credential, put there before the package comes."""
    machine.put(CONFIG, config(uplink_port))
    machine.put(DROP_IN, "[Service]\nLoadCredential=standin:/etc/holdfast/credentials/standin\n")
    machine.put("/etc/holdfast/credentials/standin", KEY)
    machine.tell("chmod 700 /etc/holdfast/credentials && chmod 600 /etc/holdfast/credentials/standin")


def config(uplink_port: int) -> str:
    return f"""# The booted test's own.
[gateway]
device_id = "boot"

[[uplink]]
name = "standin"
base_url = "http://10.0.2.2:{uplink_port}/v1"
api_keys = [{{ credential = "standin" }}]
probe = {{ path = "/models", interval = "1s", timeout = "10s" }}

[local]
base_url = ""

[drain]
start_jitter = "0s"

[limits]
rate = 0

[[task]]
id = 1
name = "line"
model = "stand-in"
prompt = "line {{text}}"

[[link]]
name = "line1"
device = "{USB_PORT}"
protocol = "lines"
"""


def save(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
