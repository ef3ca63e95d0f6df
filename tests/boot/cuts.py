"""Power cuts under load, with a ledger on the host of all that was acknowledged.

Owns when the power goes and the ledger; the judgement is three questions: is each acknowledged request there, has it one
outcome, and was it sent more than once without a label.
"""

from __future__ import annotations

import http.client
import random
import threading
import time
from dataclasses import dataclass, field

from bench import Bench, Failed
from machine import Hung

CALLERS = 3
# Each fourth cut meets a start, the others the load.
STARTING_EVERY = 4
ACKS_MAX = 60
LOAD_MAX_S = 60
DRAIN_MAX_S = 600


@dataclass
class Ledger:
    """What the host was told."""

    # By prompt: the name that came with the acknowledgement.
    acknowledged: dict[str, str] = field(default_factory=dict)
    # By prompt: the number that an acknowledgement on the serial line carried.
    on_line: dict[str, int] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self) -> int:
        with self.lock:
            return len(self.acknowledged) + len(self.on_line)


@dataclass
class Cuts:
    cuts: int = 0
    starting: int = 0
    acknowledged: int = 0
    on_line: int = 0
    lost: list[str] = field(default_factory=list)
    labelled: int = 0
    # A cut in the middle of both sends that are permitted: given up, with a record that says so.
    unsure: int = 0
    seconds: list[float] = field(default_factory=list)


def run(b: Bench, cuts: int, limit_s: float, seed: int, say, tally: Cuts) -> None:
    """So many cuts, or as many as this time allows; then the judgement of them all."""
    chance = random.Random(seed)
    ledger = Ledger()
    fresh: dict[str, str] = {}
    end = time.monotonic() + limit_s
    for n in range(cuts):
        began = time.monotonic()
        if began > end:
            break
        b.on()
        # The stand-in is away at times, and slow: cuts then meet a backlog, and requests on their way.
        b.uplink.delay_s = chance.choice([0.0, 0.1, 0.5])
        b.uplink.down() if n % 3 == 2 else b.uplink.rise()
        known = ledger.count()
        if n % STARTING_EVERY == STARTING_EVERY - 1:
            time.sleep(chance.uniform(0.0, b.slow(4)))
            tally.starting += 1
        else:
            b.ready()
            _still_there(b, fresh)
            before = dict(ledger.acknowledged)
            _load_until_cut(b, ledger, f"c{n}", chance)
            fresh = {prompt: name for prompt, name in ledger.acknowledged.items() if prompt not in before}
        b.cut()
        tally.cuts += 1
        tally.seconds.append(time.monotonic() - began)
        say(f"cut {n + 1} of {cuts}: {ledger.count() - known} acknowledged, {tally.seconds[-1]:.0f} s")
    b.uplink.delay_s = 0.0
    b.uplink.rise()
    b.on()
    b.ready()
    _judge(b, ledger, tally)


def _still_there(b: Bench, fresh: dict[str, str]) -> None:
    """What the last machine acknowledged is what this one has to know."""
    for prompt, name in fresh.items():
        if b.gateway.record(name) is None:
            raise Failed(f"{name} ({prompt}) was acknowledged before the cut and is gone")


def _load_until_cut(b: Bench, ledger: Ledger, prefix: str, chance: random.Random) -> None:
    """Callers and the PLC hand in until so many are acknowledged; the power goes in the middle of it."""
    stop = threading.Event()
    enough = ledger.count() + chance.randint(1, ACKS_MAX)
    workers = [threading.Thread(target=_caller, args=(b, ledger, f"{prefix}-{w}", stop)) for w in range(CALLERS)]
    workers.append(threading.Thread(target=_plc, args=(b, ledger, prefix, stop)))
    for worker in workers:
        worker.start()
    end = time.monotonic() + b.slow(LOAD_MAX_S)
    begun = ledger.count()
    while ledger.count() < enough and time.monotonic() < end:
        time.sleep(0.001)
    if ledger.count() == begun:
        stop.set()
        b.cut()
        raise Hung(f"nothing was acknowledged in {b.slow(LOAD_MAX_S):.0f} s")
    time.sleep(chance.choice([0.0, 0.0, chance.uniform(0.0, 1.0)]))
    # First the power, then the word to the callers: what they hear in between is an acknowledgement all the same.
    b.machine.qemu.kill()
    b.machine.qemu.wait()
    stop.set()
    for worker in workers:
        worker.join()


def _caller(b: Bench, ledger: Ledger, prefix: str, stop: threading.Event) -> None:
    n = 0
    while not stop.is_set():
        n += 1
        prompt = f"{prefix}-{n}"
        try:
            status, value, _ = b.gateway.ask(prompt, 20, Prefer="respond-async", Idempotency_Key=prompt)
        except (OSError, http.client.HTTPException, ValueError):
            time.sleep(0.05)
            continue
        if status == 202:
            with ledger.lock:
                ledger.acknowledged[prompt] = value["id"]


def _plc(b: Bench, ledger: Ledger, prefix: str, stop: threading.Event) -> None:
    n = 0
    while not stop.is_set():
        n += 1
        key = f"{prefix}-{n}"
        try:
            fields = b.plc.submit(key, key, 10)
        except (OSError, TimeoutError):
            continue
        with ledger.lock:
            ledger.on_line[f"line {key}"] = int(fields[2])


def _judge(b: Bench, ledger: Ledger, tally: Cuts) -> None:
    final = ("answered", "expired", "cancelled", "evicted", "dead")
    b.online()

    def drained() -> bool:
        return all(record["state"] in final for record in b.gateway.records())

    b.until("the backlog to drain", drained, DRAIN_MAX_S)
    records = b.gateway.records()
    by_name = {record["id"]: record for record in records}
    by_number = {record["seq"]: record for record in records}
    if len(by_name) != len(records) or len(by_number) != len(records):
        raise Failed("one request has two records")
    tally.acknowledged, tally.on_line = len(ledger.acknowledged), len(ledger.on_line)
    told = [(prompt, by_name.get(name)) for prompt, name in ledger.acknowledged.items()]
    told += [(prompt, by_number.get(number)) for prompt, number in ledger.on_line.items()]
    sends = b.uplink.sends()
    wrong = []
    for prompt, record in told:
        if record is None:
            tally.lost.append(prompt)
            continue
        sent, labelled = sends.get(prompt, 0), bool(record["maybe_billed"])
        unsure = (record["state"], record["reason"]) == ("dead", "unknown")
        tally.labelled += labelled
        tally.unsure += unsure
        if record["state"] != "answered" and not unsure:
            wrong.append(f"{prompt} ended as {record['state']}: {record['reason']} {record['last_error']}")
        # Of one that was given up the uplink may have seen nothing: the power went between the record and the wire.
        if not (0 if unsure else 1) <= sent <= (2 if labelled else 1):
            wrong.append(f"{prompt} was sent {sent} times, labelled: {labelled}")
    if tally.lost:
        raise Failed(f"{len(tally.lost)} acknowledged requests are lost: {tally.lost[:5]}")
    if wrong:
        raise Failed(f"{len(wrong)} of {len(told)}: {'; '.join(wrong[:5])}")
