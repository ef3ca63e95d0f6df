"""One virtual machine in the emulator: its parts, its power, and the channel into it.

Owns the emulator's process, its arguments and its sockets; never judges what happens inside.
"""

from __future__ import annotations

import base64
import json
import os
import random
import select
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from image import Image, Missing

MEMORY_MIB = 640
# Time inside is counted in instructions, eight nanoseconds each, and idle time passes as usual: on a busy host the board is
# a slow one and not one whose clock jumps, and no wait inside ends because something else ran outside. One processor,
# for that is what it works with.
TIME = "shift=3,sleep=on"
# A cold boot in software emulation on a busy machine; what takes longer hangs.
BOOT_MAX_S = 240
# An emulated board is slower than a real one by about this, and so are all waits for what happens on it.
SLOWER = {"amd64": 1, "arm64": 3}
COMMAND_MAX_S = 120
USB_PORT = "/dev/serial/by-id/usb-QEMU_QEMU_USB_SERIAL_line1-if00-port0"


class Hung(Exception):
    """A named wait came to its end."""


@dataclass
class Said:
    code: int
    text: str


@dataclass
class Board:
    """What a machine is made of; the disks outlive each power cut, what is written to `root` only where `keeps_root`."""

    arch: str
    image: Image
    root: Path
    data: Path
    work: Path
    accel: str = "tcg"
    packages: Path | None = None
    root_rw: bool = False
    keeps_root: bool = False
    clock: str = ""
    gateway_port: int = 0
    # All waits are this many times longer, for a host that has other work.
    patience: float = 1.0
    extra: list[str] = field(default_factory=list)


class Machine:
    """A running machine. `cut` pulls its plug."""

    def __init__(self, board: Board) -> None:
        self.board = board
        self.slower = SLOWER[board.arch] * board.patience
        self.folder = Path(tempfile.mkdtemp(prefix="vm", dir=board.work))
        self.console = self.folder / "console"
        # Socket addresses are short: the work folder's may not be.
        self.sockets = Path(tempfile.mkdtemp(prefix="hfboot"))
        self.began = time.monotonic()
        self.number = 0
        self.heard = b""
        self.boot_id = ""
        self.events: list[dict] = []
        self.qmp_heard = b""
        self.errors = (self.folder / "qemu.err").open("wb")
        self.agent_door = _door(self.sockets / "agent")
        self.qmp_door = _door(self.sockets / "qmp")
        self.qemu = subprocess.Popen(self._command(), stdin=subprocess.DEVNULL, stdout=self.errors, stderr=self.errors)
        try:
            self.agent = self._take(self.agent_door, "the emulator's control port")
            self.qmp = self._take(self.qmp_door, "the emulator's own control")
            self._monitor_begin()
        except BaseException:
            self.cut()
            raise

    def _command(self) -> list[str]:
        b = self.board
        program = {"amd64": "qemu-system-x86_64", "arm64": "qemu-system-aarch64"}[b.arch]
        if not shutil.which(program):
            raise Missing(f"{program}: apt-get install qemu-system-x86 qemu-system-arm")
        console = {"amd64": "ttyS0", "arm64": "ttyAMA0"}[b.arch]
        line = f"root=LABEL=root {'rw' if b.root_rw else 'ro'} console={console} quiet panic=0 systemd.unit=multi-user.target systemd.show_status=1"
        if b.arch == "amd64":
            # A starved emulator fails the kernel's test of its timers, which a board's hardware passes.
            line += " no_timer_check"
        kind = ["-M", "q35", "-cpu", "qemu64,+rdrand,-svm"] if b.arch == "amd64" else ["-M", "virt", "-cpu", "cortex-a72"]
        if b.accel == "kvm":
            kind = ["-M", "q35" if b.arch == "amd64" else "virt", "-cpu", "host"]
        root = f"file={b.root},format=raw,if=none,id=root" + ("" if b.keeps_root else ",snapshot=on")
        command = [program, "-accel", b.accel, *kind, "-m", str(MEMORY_MIB)]
        if b.accel == "tcg":
            command += ["-icount", TIME]
        command += ["-nodefaults", "-no-user-config", "-display", "none", "-action", "watchdog=reset"]
        command += ["-kernel", str(b.image.kernel), "-initrd", str(b.image.initrd), "-append", line]
        command += ["-drive", root, "-device", "virtio-blk-pci,drive=root"]
        # Written through: what the host has answered for survives the emulator's death, and nothing else does.
        data = f"file={b.data},format=raw,if=none,id=data,cache=writethrough"
        command += ["-drive", data, "-device", "virtio-blk-pci,drive=data"]
        if b.packages:
            drive = f"file={b.packages},format=raw,if=none,id=packages,readonly=on"
            command += ["-drive", drive, "-device", "virtio-blk-pci,drive=packages"]
        command += ["-serial", f"file:{self.console}"]
        command += ["-device", "virtio-serial-pci", "-chardev", f"socket,id=agent,path={self.sockets}/agent"]
        command += ["-device", "virtserialport,chardev=agent,name=boot"]
        command += ["-chardev", f"socket,id=line,path={self.sockets}/line,server=on,wait=off"]
        command += ["-device", "qemu-xhci", "-device", "usb-serial,id=cable,chardev=line,serial=line1"]
        command += ["-device", "i6300esb", "-device", "virtio-rng-pci"]
        forward = f"hostfwd=tcp:127.0.0.1:{b.gateway_port}-:8080"
        command += ["-netdev", f"user,id=net,{forward}", "-device", "virtio-net-pci,netdev=net,romfile="]
        command += ["-chardev", f"socket,id=qmp,path={self.sockets}/qmp", "-mon", "chardev=qmp,mode=control"]
        if b.clock:
            command += ["-rtc", f"base={b.clock}"]
        return command + b.extra

    # ---- its power ----

    def cut(self) -> None:
        """Pulls the plug: nothing that the guest holds in memory is written any more."""
        if self.qemu.poll() is None:
            self.qemu.send_signal(signal.SIGKILL)
        self.qemu.wait()
        for door in (self.agent_door, self.qmp_door, getattr(self, "agent", None), getattr(self, "qmp", None)):
            if door:
                door.close()
        self.errors.close()
        shutil.rmtree(self.sockets, ignore_errors=True)

    def off(self) -> None:
        """Switches off in order."""
        self.throw("systemctl poweroff")
        end = time.monotonic() + 90 * self.slower
        while self.qemu.poll() is None and time.monotonic() < end:
            time.sleep(0.1)
        over = self.qemu.poll() is not None
        self.cut()
        if not over:
            raise Hung(f"the machine does not switch itself off: {self.last_words()}")

    # ---- the channel ----

    def up(self) -> str:
        """Waits until the channel answers, which is at the end of a boot; gives the boot's identity."""
        end = time.monotonic() + BOOT_MAX_S * self.slower
        while True:
            line = self._line(end, "the machine to boot")
            if line.startswith("hello "):
                self.boot_id = line.split()[1]
                return self.boot_id

    def tell(self, command: str, limit_s: float = COMMAND_MAX_S) -> Said:
        """Runs a command inside as root; its exit code and what it said."""
        self.number += 1
        limit = int(limit_s * self.slower)
        word = base64.b64encode(command.encode()).decode()
        self.agent.sendall(f"{self.number} {limit} {word}\n".encode())
        end = time.monotonic() + limit + 30 * self.slower
        while True:
            line = self._line(end, f"an answer to {command[:60]!r}")
            parts = line.split(" ")
            if parts[0] == "hello":
                raise Hung(f"the machine began anew during {command[:60]!r}")
            if parts[0] == str(self.number):
                return Said(int(parts[1]), base64.b64decode(parts[2] if len(parts) > 2 else "").decode(errors="replace"))

    def throw(self, command: str) -> None:
        """Says a command and waits for nothing: it may be the machine's last."""
        self.number += 1
        word = base64.b64encode(command.encode()).decode()
        self.agent.sendall(f"{self.number} 60 {word}\n".encode())

    def until(self, what: str, command: str, wanted: str, limit_s: float) -> str:
        """Waits until what the command says has this in it."""
        end = time.monotonic() + limit_s * self.slower
        while True:
            said = self.tell(command)
            if wanted in said.text:
                return said.text
            if time.monotonic() > end:
                raise Hung(f"waited {limit_s * self.slower:.0f} s for {what}: {said.text.strip()[-400:]}")
            time.sleep(0.3)

    def put(self, path: str, text: str) -> None:
        word = base64.b64encode(text.encode()).decode()
        said = self.tell(f"mkdir -p $(dirname {path}) && echo {word} | base64 -d > {path}")
        if said.code:
            raise Hung(f"{path} cannot be written: {said.text}")

    def last_words(self) -> str:
        text = self.console.read_bytes().decode(errors="replace") if self.console.exists() else ""
        errors = (self.folder / "qemu.err").read_text(errors="replace")
        lines = [line.strip() for line in (text + errors).splitlines() if line.strip()]
        return " / ".join(lines[-5:])

    def _line(self, end: float, what: str) -> str:
        while b"\n" not in self.heard:
            self._wait(self.agent, end, what)
            more = self.agent.recv(65536)
            if not more:
                raise Hung(f"the machine went away before {what}: {self.last_words()}")
            self.heard += more
        line, _, self.heard = self.heard.partition(b"\n")
        return line.decode(errors="replace").strip("\0\r ")

    def _wait(self, door: socket.socket, end: float, what: str) -> None:
        while not select.select([door], [], [], 0.5)[0]:
            if self.qemu.poll() is not None:
                raise Hung(f"the machine is off before {what}: {self.last_words()}")
            if time.monotonic() > end:
                raise Hung(f"no end of the wait for {what}: {self.last_words()}")

    def _take(self, door: socket.socket, what: str) -> socket.socket:
        self._wait(door, time.monotonic() + 30, what)
        return door.accept()[0]

    # ---- the emulator itself ----

    def _monitor_begin(self) -> None:
        self._message(time.monotonic() + 30)
        self.monitor("qmp_capabilities")

    def monitor(self, command: str, **arguments: object) -> object:
        """One command to the emulator, as plugging and unplugging."""
        self.qmp.sendall(json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n")
        end = time.monotonic() + 30
        while True:
            message = self._message(end)
            if "return" in message:
                return message["return"]
            if "error" in message:
                raise Hung(f"the emulator refuses {command}: {message['error']}")

    def event(self, name: str, limit_s: float) -> dict:
        """Waits for what the emulator itself reports, such as its watchdog's end."""
        end = time.monotonic() + limit_s * self.slower
        while True:
            for event in self.events:
                if event["event"] == name:
                    self.events.remove(event)
                    return event
            self._message(end, f"the event {name}")

    def _message(self, end: float, what: str = "the emulator's answer") -> dict:
        while b"\n" not in self.qmp_heard:
            self._wait(self.qmp, end, what)
            more = self.qmp.recv(65536)
            if not more:
                raise Hung(f"the emulator ended before {what}: {self.last_words()}")
            self.qmp_heard += more
        line, _, self.qmp_heard = self.qmp_heard.partition(b"\n")
        message = json.loads(line)
        if "event" in message:
            self.events.append(message)
        return message


def _door(path: Path) -> socket.socket:
    door = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    door.bind(str(path))
    door.listen(1)
    return door


def free_port() -> int:
    """Below those that this system gives to callers: it stays ours while a machine is off, beside another run too."""
    for port in random.SystemRandom().sample(range(20_000, 32_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise Missing("a free port between 20000 and 32000")


def kvm_works(image: Image) -> bool:
    """Whether KVM runs this kernel: the device may be there and a plain kernel hang on it all the same."""
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        return False
    with tempfile.NamedTemporaryFile() as console:
        command = ["qemu-system-x86_64", "-accel", "kvm", "-cpu", "host", "-m", "256", "-nodefaults", "-display", "none"]
        command += ["-no-reboot", "-serial", f"file:{console.name}", "-kernel", str(image.kernel)]
        command += ["-append", "console=ttyS0 panic=-1"]
        probe = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            probe.wait(timeout=15)
        except subprocess.TimeoutExpired:
            probe.kill()
            probe.wait()
        return b"Linux version" in Path(console.name).read_bytes()
