"""The checks on a machine that runs: each does one thing and says what it saw, or fails with why.

Owns the order of the checks on one boot with a read-only root; never installs and never cuts the power.
"""

from __future__ import annotations

import json
import time

from bench import CONFIG, KEY, Bench, Failed
from machine import Hung


def ready(b: Bench) -> str:
    b.ready()
    if b.show("Type") not in ("notify", "notify-reload"):
        raise Failed(f"Type={b.show('Type')}")
    b.online()
    # The status line is said again every few seconds, with what is true by then.
    b.machine.until("a STATUS line", "systemctl show -P StatusText holdfast.service", "1 of 1 uplinks", 60)
    return f"active; STATUS={b.show('StatusText')!r}; restarts {b.show('NRestarts')}"


def read_only_root(b: Bench) -> str:
    mounted = b.run("findmnt -no OPTIONS /")
    if "ro" not in mounted.strip().split(","):
        raise Failed(f"the root is mounted {mounted}")
    if b.machine.tell("touch /etc/holdfast/x /usr/bin/x").code == 0:
        raise Failed("the root can be written")
    where = b.run("findmnt -no SOURCE -T /var/lib/holdfast").strip()
    failed = b.run("systemctl --failed --no-legend --plain || true")
    if "holdfast" in failed:
        raise Failed(f"failed units: {failed}")
    return f"/ is ro, data on {where}"


def socket_activation(b: Bench) -> str:
    b.run("systemctl stop holdfast.service")
    if b.machine.tell("systemctl is-active holdfast.service").text.strip() != "inactive":
        raise Failed("the service did not stop")
    if b.run("systemctl is-active holdfast.socket").strip() != "active":
        raise Failed("the socket went with its service")
    began = time.monotonic()
    status, _, _ = b.gateway.call("GET", "/health", limit_s=b.slow(60))
    took = time.monotonic() - began
    if status != 200:
        raise Failed(f"the first call got {status}")
    if b.run("systemctl is-active holdfast.service").strip() != "active":
        raise Failed("the call was answered, but the service is not active")
    return f"the first call started it and was answered after {took:.1f} s"


def request_on_socket(b: Bench) -> str:
    b.online()
    status, value, headers = b.gateway.ask("on the socket", b.slow(30))
    if status != 200 or value["choices"][0]["message"]["content"] != "answer to on the socket":
        raise Failed(f"{status} {value}")
    said = b.run("holdfast ask 'from a shell' --model stand-in")
    if "answer to from a shell" not in said:
        raise Failed(f"holdfast ask said {said!r}")
    return f"200, {headers.get('x-holdfast-route')}; `holdfast ask` on the machine too"


def request_on_serial(b: Bench) -> str:
    began = time.monotonic()
    acknowledged = b.plc.submit("1-1", "weld", b.slow(60))
    took = time.monotonic() - began
    result = b.plc.result("1-1", b.slow(60))
    if result[2] != "0" or "answer to line weld" not in result[-1]:
        raise Failed(f"RES {result}")
    return f"ACK {acknowledged[2]} after {took:.1f} s, RES {result[-1]!r}"


def journal_fields(b: Bench) -> str:
    status, value, _ = b.gateway.ask("Quittengelee", b.slow(30), Prefer="respond-async")
    if status != 202:
        raise Failed(f"{status} {value}")
    name = value["id"]
    b.until("the answer", lambda: (b.gateway.record(name) or {}).get("state") == "answered", 60)
    # Written to the journal a moment after it was true.
    b.until("the journal's last line of it", lambda: len(story(b, name)) >= 2, 20)
    entries = story(b, name)
    states = [entry.get("HOLDFAST_STATE", "") for entry in entries]
    if states[-1] != "answered" or not any("standin" in entry.get("HOLDFAST_ROUTE", "") for entry in entries):
        raise Failed(f"the story of {name} is {[_fields(entry) for entry in entries]}")
    for entry in entries:
        if entry.get("SYSLOG_IDENTIFIER") != "holdfast" or not 3 <= int(entry["PRIORITY"]) <= 7:
            raise Failed(f"{entry}")
        if "Quittengelee" in json.dumps(entry) or KEY in json.dumps(entry):
            raise Failed(f"a prompt or a key in the journal: {entry['MESSAGE']}")
    return "; ".join(" ".join(f"{k}={v}" for k, v in _fields(entry).items()) for entry in entries)


def story(b: Bench, name: str) -> list[dict]:
    return b.entries(f"HOLDFAST_REQUEST_ID={name}")


def _fields(entry: dict) -> dict:
    return {k.removeprefix("HOLDFAST_"): v for k, v in sorted(entry.items()) if k.startswith("HOLDFAST_") and k != "HOLDFAST_REQUEST_ID"}


def reload(b: Bench) -> str:
    before = b.show("MainPID")
    b.writable("printf '[log]\\nlevel = \"debug\"\\n' > /etc/holdfast/conf.d/60-reload.toml")
    cursor = b.mark()
    began = time.monotonic()
    # In the machine's own time, which a starved emulator stretches: what a board of that speed would need.
    up = b.run("cut -d' ' -f1 /proc/uptime; systemctl reload holdfast || exit 1; cut -d' ' -f1 /proc/uptime").split()
    took = f"{float(up[1]) - float(up[0]):.1f} s of its own time, {time.monotonic() - began:.0f} s of the host's"
    good = b.since(cursor)
    b.writable("echo 'nonsense = 1' > /etc/holdfast/conf.d/60-reload.toml")
    cursor = b.mark()
    bad = b.machine.tell("systemctl reload holdfast")
    b.incident("a faulty configuration, systemctl reload", cursor)
    b.writable("rm /etc/holdfast/conf.d/60-reload.toml")
    b.run("systemctl reload holdfast")
    if bad.code == 0:
        raise Failed("a faulty file was taken without a word")
    if b.show("MainPID") != before:
        raise Failed("another process")
    if b.gateway.ask("after the reload", b.slow(30))[0] != 200:
        raise Failed("no answer after the reload")
    last = good.splitlines()[-1] if good else ""
    return f"same process {before}; a good file ({took}): {last[-110:]!r}; a faulty one was refused and nothing changed"


def key_from_credential(b: Bench) -> str:
    pid = b.show("MainPID")
    environment = b.run(f"tr '\\0' '\\n' < /proc/{pid}/environ")
    if KEY in environment or "CREDENTIALS_DIRECTORY=" not in environment:
        raise Failed(environment)
    if KEY in b.machine.tell("journalctl --no-pager -o cat").text:
        raise Failed("the key is in the journal")
    refused = b.uplink.refused_keys
    if refused:
        raise Failed(f"the uplink saw {refused} wrong keys")
    mode = b.run("stat -c '%a %U' /etc/holdfast/credentials/standin").strip()
    return f"the uplink took the key; the file is {mode}; it is in no environment and in no line of the journal"


def hang(b: Bench) -> str:
    pid, restarts = b.show("MainPID"), int(b.show("NRestarts"))
    cursor = b.mark()
    began = time.monotonic()
    b.run(f"kill -STOP {pid}")
    _anew(b, pid, restarts, 180)
    took = time.monotonic() - began
    text = b.incident("hang (SIGSTOP to the daemon)", cursor)
    if "watchdog" not in text.lower():
        raise Failed(f"the journal does not speak of the watchdog: {text}")
    return f"restarted {took:.0f} s after the hang (WatchdogSec={b.show('WatchdogUSec')})"


def crash(b: Bench) -> str:
    pid, restarts = b.show("MainPID"), int(b.show("NRestarts"))
    cursor = b.mark()
    began = time.monotonic()
    b.run(f"kill -KILL {pid}")
    _anew(b, pid, restarts, 60)
    b.incident("crash (SIGKILL to the daemon)", cursor)
    return f"answered again after {time.monotonic() - began:.1f} s"


def out_of_memory(b: Bench) -> str:
    pid, restarts = b.show("MainPID"), int(b.show("NRestarts"))
    before = b.show("MemoryMax"), b.show("MemoryHigh")
    cursor = b.mark()
    b.run("systemctl set-property --runtime holdfast.service MemoryHigh=infinity MemorySwapMax=0 MemoryMax=1M")
    try:
        _killed(b, cursor)
    finally:
        b.run(f"systemctl set-property --runtime holdfast.service MemoryHigh={before[1]} MemoryMax={before[0]}")
    _anew(b, pid, restarts, 90)
    b.incident("out of memory (MemoryMax=1M)", cursor)
    return "killed by the kernel alone in its group, started again"


def _killed(b: Bench, cursor: str) -> None:
    b.until("the kernel's kill", lambda: "oom" in b.since(cursor).lower(), 60)


def _anew(b: Bench, pid: str, restarts: int, limit_s: float) -> None:
    """Waits for another process that answers, started by systemd itself."""

    def another() -> bool:
        return b.show("MainPID") not in ("0", pid) and b.show("ActiveState") == "active"

    b.until("another process", another, limit_s)
    b.ready()
    if int(b.show("NRestarts")) <= restarts:
        raise Failed(f"NRestarts stayed at {restarts}: somebody else started it")


def missing_serial_port(b: Bench) -> str:
    cursor = b.mark()
    b.machine.monitor("device_del", id="cable")
    b.until("the link to notice", lambda: _line_state(b) in ("waiting", "failed"), 60)
    state = _line_state(b)
    if b.gateway.ask("without the cable", b.slow(30))[0] != 200:
        raise Failed("an unplugged cable stops the gateway")
    b.run("systemctl restart holdfast.service")
    b.ready()
    b.online()
    b.machine.monitor("device_add", driver="usb-serial", id="cable", chardev="line", serial="line1")
    b.until("the link to come back", lambda: _line_state(b) not in ("waiting", "failed"), 60)
    b.plc.submit("1-2", "plugged again", b.slow(60))
    b.plc.result("1-2", b.slow(60))
    b.incident("missing serial port (unplugged, service restarted without it, plugged in again)", cursor)
    return f"state {state!r} while unplugged, everything else served; a request over it after it came back"


def _line_state(b: Bench) -> str:
    links = b.gateway.status()["links"]
    return next(link["state"] for link in links if link["name"] == "line1")


def full_partition(b: Bench) -> str:
    b.uplink.down()
    cursor = b.mark()
    try:
        b.run("free=$(df -B1M --output=avail /data | tail -1); fallocate -l $((free - 1))M /data/filler")
        b.until("a refusal", lambda: b.gateway.ask("full", b.slow(30), Prefer="respond-async")[0] == 507, 60)
        status, value, _ = b.gateway.ask("full again", b.slow(30), Prefer="respond-async")
        b.run("dd if=/dev/zero of=/data/filler2 bs=4k 2>/dev/null; sync; df -h /data")
        b.run("systemctl restart holdfast.service")
        b.ready()
        code = (value.get("error") or {}).get("code")
    finally:
        b.run("rm -f /data/filler /data/filler2; sync")
        b.uplink.rise()
    b.until("accepting again", lambda: b.gateway.ask("room again", b.slow(30), Prefer="respond-async")[0] == 202, 90)
    b.incident("full data partition", cursor)
    if status != 507:
        raise Failed(f"{status} {value}")
    return f"507 {code}; started with 0 bytes free; accepts again once there is room"


def missing_key(b: Bench) -> str:
    where = "/etc/holdfast/credentials/standin"
    b.writable(f"mv {where} {where}.away")
    cursor = b.mark()
    b.machine.tell("systemctl restart holdfast.service")
    b.until("systemd's word", lambda: "CREDENTIALS" in b.since(cursor), 60)
    b.incident("missing key: LoadCredential= names a file that is not there", cursor)
    b.writable(f"mv {where}.away {where}; sed -i 's/credential = \"standin\"/env = \"NO_SUCH_KEY\"/' {CONFIG}")
    cursor = b.mark()
    b.run("systemctl reset-failed holdfast.service; systemctl restart holdfast.service")
    b.ready()
    status, value, _ = b.gateway.ask("no key", b.slow(40), Prefer="respond-async")
    if status != 202:
        raise Failed(f"without a key nothing is accepted: {status} {value}")
    time.sleep(b.slow(3))
    shown = b.run("holdfast status")
    b.incident("missing key: api_keys names a variable that is not set", cursor, "$ holdfast status\n" + shown)
    b.writable(f"sed -i 's/env = \"NO_SUCH_KEY\"/credential = \"standin\"/' {CONFIG}")
    b.run("systemctl restart holdfast.service")
    b.ready()
    b.online()
    b.until("the stored one to be answered", lambda: (b.gateway.record(value["id"]) or {}).get("state") == "answered", 90)
    return "without the file systemd says CREDENTIALS; without the variable requests are stored and sent once there is a key"


def demo(b: Bench) -> str:
    """By somebody who may do nothing here, in a /tmp of 64 MiB: daemon, simulators, a serial line, a kill -9."""
    said = b.machine.tell("cd /tmp && setpriv --reuid=65534 --regid=65534 --clear-groups env -i PATH=/usr/bin:/bin holdfast demo", 300)
    b.incidents["holdfast demo"] = said.text
    lines = [line for line in said.text.splitlines() if line.strip()]
    if said.code or "the ledger balances" not in said.text:
        raise Failed(f"exit code {said.code}: {lines[-3:]}")
    return " ".join(lines[-2:])


def board_watchdog_systemd(b: Bench) -> str:
    """PID 1 freezes itself after its own crash: nothing pets the board's watchdog any more."""
    found = b.run("cat /sys/class/watchdog/watchdog0/identity /sys/class/watchdog/watchdog0/state").split("\n")
    return f"{found[0]} ({found[1]}); " + _reset(b, "kill -SEGV 1")


def board_watchdog_kernel(b: Bench) -> str:
    """The kernel stops in a panic and stays there (panic=0)."""
    # A kernel in a panic spins, and an emulator takes minutes for seconds of that: the watchdog is set shorter before.
    manager = "org.freedesktop.systemd1 /org/freedesktop/systemd1 org.freedesktop.systemd1.Manager"
    b.run(f"busctl set-property {manager} RuntimeWatchdogUSec t 6000000")
    return _reset(b, "sysctl -q kernel.panic=0; echo c > /proc/sysrq-trigger")


def _reset(b: Bench, command: str) -> str:
    before = b.machine.boot_id
    status, value, _ = b.gateway.ask("before the reset", b.slow(30), Prefer="respond-async")
    if status != 202:
        raise Failed(f"{status} {value}")
    began = time.monotonic()
    b.machine.events.clear()
    b.machine.throw(command)
    event = b.machine.event("WATCHDOG", 180)
    fired = time.monotonic() - began
    if event["data"]["action"] != "reset":
        raise Failed(f"the watchdog did {event}")
    if b.machine.up() == before:
        raise Failed("the same boot")
    b.ready()
    took = time.monotonic() - began
    if b.gateway.record(value["id"]) is None:
        raise Failed(f"{value['id']} was acknowledged before the reset and is gone")
    b.online()
    return f"the board reset {fired:.0f} s later, ready {took:.0f} s later, the request before it is kept"


def stop_in_order(b: Bench) -> str:
    b.run("systemctl stop holdfast.service")
    result, code = b.show("Result"), b.show("ExecMainStatus")
    if (result, code) != ("success", "0"):
        raise Failed(f"Result={result}, exit code {code}")
    b.off()
    return "exit code 0, the machine is off"


RUNNING = [
    ("ready", ready), ("read-only root", read_only_root), ("socket activation", socket_activation),
    ("request over the UNIX socket", request_on_socket), ("request over the serial port", request_on_serial),
    ("journal fields", journal_fields), ("systemctl reload", reload), ("key from a credential", key_from_credential),
    ("crash", crash), ("hang, WatchdogSec", hang), ("out of memory", out_of_memory),
    ("missing serial port", missing_serial_port), ("full data partition", full_partition), ("missing key", missing_key), ("demo", demo),
    ("board watchdog, systemd frozen", board_watchdog_systemd), ("board watchdog, kernel stopped", board_watchdog_kernel),
    ("stop in order", stop_in_order),
]  # fmt: skip


def no_clock(b: Bench) -> str:
    """A board without a clock battery: 1970 at boot."""
    b.ready()
    cursor = b.run("journalctl -b -n 1 -o json --no-pager --output-fields=__CURSOR >/dev/null; date -u +%Y-%m-%d").strip()
    status, value, _ = b.gateway.ask("in 1970", b.slow(30), Prefer="respond-async")
    if status != 202:
        raise Failed(f"{status} {value}")
    time.sleep(b.slow(3))
    command = "journalctl -b --no-pager -o short --no-hostname -u holdfast.service -u holdfast.socket"
    b.incidents["no clock at boot (1970)"] = b.machine.tell(command).text + "$ holdfast status\n" + b.run("holdfast status")
    b.run("date -s '2026-12-01 12:00:00' >/dev/null")
    b.until("its answer", lambda: (b.gateway.record(value["id"]) or {}).get("state") == "answered", 120)
    b.off()
    return f"accepted at {cursor}, answered, and nothing expired"


__all__ = ["RUNNING", "no_clock", "Hung"]
