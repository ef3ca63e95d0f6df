#!/usr/bin/env python3
"""The booted test: Debian with systemd in an emulator, the package installed on it, everything that an appliance promises.

    python3 tests/boot/run.py --arch amd64 --package holdfast_amd64.deb [--previous old.deb] [--cuts 30]
                              [--report docs/booted.md] [--journal FILE]

Owns the order of the boots and the exit code: 0 all held, 1 something did not, 2 a tool is missing. README.md has the rest.
"""

from __future__ import annotations

import argparse
import http.client
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

import checks
import cuts
import image
import install
import report
from bench import KEY, Bench, Failed
from machine import Board, Hung, free_port, kvm_works
from uplink import Uplink

HERE = Path(__file__).resolve().parent
DATA_MIB = 400
FAULTS = (Failed, Hung, OSError, http.client.HTTPException, KeyError, ValueError, IndexError, TimeoutError)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Boots the package in an emulator and checks what it promises.")
    parser.add_argument("--arch", choices=["amd64", "arm64"], required=True)
    parser.add_argument("--package", type=Path, required=True, help="the .deb")
    parser.add_argument("--previous", type=Path, help="an older .deb, to be upgraded")
    parser.add_argument("--cuts", type=int, default=30, help="power cuts under load; 0 for none")
    parser.add_argument("--cut-minutes", type=float, default=600, help="fewer cuts where they take longer than this")
    parser.add_argument("--minutes", type=float, default=600, help="no cut begins later than this after the run's own begin")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--only", default="", help="checks by name or part of it, comma-separated")
    parser.add_argument("--cache", type=Path, default=HERE.parents[1] / "target/boot")
    parser.add_argument("--accel", choices=["auto", "tcg", "kvm"], default="auto")
    parser.add_argument("--patience", type=float, default=1.0, help="all waits so many times longer, on a busy machine")
    parser.add_argument("--report", type=Path, help="the table of the last run, for docs/")
    parser.add_argument("--journal", type=Path, help="what systemd and the journal said at each incident")
    return parser.parse_args()


class Run:
    """One run over all boots; a check that fails does not stop those that can still be made."""

    def __init__(self, options: argparse.Namespace, work: Path) -> None:
        self.options, self.work = options, work
        self.began = time.monotonic()
        self.rows: list[report.Row] = []
        self.boots: list[float] = []
        self.cuts: cuts.Cuts | None = None
        built = image.build(options.arch, options.cache, self.say)
        accel = options.accel
        if accel == "auto":
            accel = "kvm" if options.arch == "amd64" and kvm_works(built) else "tcg"
        self.files = [path for path in (options.previous, options.package) if path]
        root, data = work / "root.ext4", work / "data.ext4"
        self.say(f"emulator: {accel}")
        _copy(built.root, root)
        _empty_data(work, data)
        board = Board(options.arch, built, root, data, work, accel, gateway_port=free_port(), patience=options.patience)
        self.uplink = Uplink(free_port(), KEY)
        self.bench = Bench(board, self.uplink, self.say)

    def say(self, text: str) -> None:
        print(f"[{time.monotonic() - self.began:6.0f} s] {text}", flush=True)

    def wanted(self, name: str) -> bool:
        only = [part for part in self.options.only.split(",") if part]
        return not only or any(part in name for part in only)

    def check(self, name: str, work, always: bool = False) -> bool:
        """Makes one check; whether it held."""
        if not always and not self.wanted(name):
            return True
        began = time.monotonic()
        try:
            note, held = str(work()), True
        except FAULTS as fault:
            note, held = f"{type(fault).__name__}: {fault}", False
            traceback.print_exc()
        self.rows.append(report.Row(name, held, time.monotonic() - began, note))
        self.say(f"{'held  ' if held else 'BROKEN'} {name} ({self.rows[-1].seconds:.0f} s): {note}")
        return held

    def boot(self) -> str:
        self.boots.append(self.bench.on())
        return f"the channel answered after {self.boots[-1]:.0f} s"

    def all(self) -> None:
        if not self._installed():
            return
        try:
            if self.check("boot, read-only root", self.boot, always=True):
                self._running()
        finally:
            self._dark()
        if self.wanted("no clock at boot"):
            self._no_clock()
        if self.options.cuts and self.wanted("power cuts"):
            try:
                self.check("power cuts under load", self._cuts)
            finally:
                self._dark()
        if self.wanted("remove and purge"):
            self._removed()

    def _installed(self) -> bool:
        board = self.bench.board
        board.root_rw, board.keeps_root = True, True
        board.packages = install.packages_disk(self.files, self.work)
        try:
            if not self.check("boot, writable root", self.boot, always=True):
                return False
            port = self.uplink.port
            if not self.check("install by dpkg", lambda: install.install(self.bench, port, self.files), always=True):
                self._show_journal()
                return False
            if len(self.files) == 2:
                upgraded = self.check("upgrade from the previous package", lambda: install.upgrade(self.bench, self.files), True)
                if not upgraded:
                    self._show_journal()
                    return False
            self.bench.off()
            return True
        finally:
            self._dark()
            board.root_rw, board.keeps_root = False, False

    def _running(self) -> None:
        for name, work in checks.RUNNING:
            if not self.check(name, lambda: work(self.bench)):
                self._show_journal()
                if self.bench.machine.qemu.poll() is not None:
                    self.boot()
                self._mend()

    def _mend(self) -> None:
        """After a check that broke, the next one begins with a gateway that runs."""
        try:
            self.uplink.rise()
            self.bench.run("systemctl reset-failed holdfast.service; systemctl restart holdfast.service")
            self.bench.ready()
        except FAULTS as fault:
            self.say(f"it does not run after that: {fault}; another boot")
            self._dark()
            self.boot()
            self.bench.ready()

    def _no_clock(self) -> None:
        self.bench.board.clock = "1970-01-01T00:00:10"
        try:
            self.check("no clock at boot", lambda: (self.boot(), checks.no_clock(self.bench))[1])
        finally:
            self.bench.board.clock = ""
            self._dark()

    def _cuts(self) -> str:
        # A disk of its own: what earlier checks left is not in this ledger.
        _empty_data(self.work, self.bench.board.data)
        c = self.cuts = cuts.Cuts()
        left_s = self.options.minutes * 60 - (time.monotonic() - self.began)
        limit_s = min(self.options.cut_minutes * 60, left_s)
        if limit_s <= 0:
            raise Failed("the checks before took all the time there was")
        cuts.run(self.bench, self.options.cuts, limit_s, self.options.seed, self.say, c)
        return (
            f"{c.cuts} cuts ({c.starting} while starting), {c.acknowledged} acknowledged over HTTP and {c.on_line} over the "
            f"serial line, {len(c.lost)} lost, {c.labelled} labelled as maybe billed, {c.unsure} given up as unknown; {sum(c.seconds) / len(c.seconds):.0f} s a cut"
        )

    def _removed(self) -> None:
        self.bench.board.root_rw = True
        try:
            self.check("remove and purge", lambda: (self.boot(), self.bench.ready(), install.remove(self.bench))[2])
        finally:
            self._dark()
            self.bench.board.root_rw = False

    def _show_journal(self) -> None:
        try:
            self.say(self.bench.machine.tell("journalctl -b --no-pager -n 60 -o short; systemctl --failed --no-pager").text)
        except FAULTS as fault:
            self.say(f"no journal: {fault}")

    def _dark(self) -> None:
        machine = getattr(self.bench, "machine", None)
        if machine is not None:
            self.bench.cut()


def _copy(source: Path, target: Path) -> None:
    subprocess.run(["cp", "--sparse=always", "--reflink=auto", str(source), str(target)], check=True)


def _empty_data(work: Path, disk: Path) -> None:
    tree = work / "data"
    for name in ("holdfast", "journal"):
        (tree / name).mkdir(parents=True, exist_ok=True)
    image.ext4(disk, DATA_MIB, "data", tree)
    shutil.rmtree(tree)


def main() -> int:
    options = arguments()
    for path in (options.package, options.previous):
        if path and not path.is_file():
            print(f"{path} is not there", file=sys.stderr)
            return 2
    options.cache.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix="run-", dir=options.cache))
    try:
        run = Run(options, work)
        # A run that is stopped says what it saw.
        signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            run.all()
        except KeyboardInterrupt:
            run.rows.append(report.Row("the rest", False, 0.0, "stopped from outside"))
        finally:
            run.uplink.down()
        report.write(options, run)
        return 0 if run.rows and all(row.held for row in run.rows) else 1
    except image.Missing as missing:
        print(f"missing: {missing}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
