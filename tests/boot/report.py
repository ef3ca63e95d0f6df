"""The run on paper: a table for docs/, one section for each architecture, and what the journal said.

Owns the words of the report; never changes a figure.
"""

from __future__ import annotations

import datetime
import re
from dataclasses import dataclass
from pathlib import Path

import install

HEAD = """# The booted test, last runs

Written by `tests/boot/run.py`; what it does and how to run it stands in [tests/boot](../tests/boot/README.md). Debian 12 with its
own kernel and systemd, the package installed by `dpkg -i` on the booted system, QEMU.
"""


@dataclass
class Row:
    name: str
    held: bool
    seconds: float
    note: str


def write(options, run) -> None:
    section = _section(options, run)
    print(section)
    if options.report:
        old = options.report.read_text() if options.report.exists() else HEAD
        options.report.write_text(_replaced(old, options.arch, section))
    if options.journal:
        _journal(options.journal, options.arch, run.bench.incidents)


def _section(options, run) -> str:
    import time

    whole = time.monotonic() - run.began
    held = sum(row.held for row in run.rows)
    today = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d")
    boots = f"{min(run.boots):.0f} to {max(run.boots):.0f} s" if run.boots else "none"
    c = run.cuts
    cuts = f"{c.cuts} | {c.acknowledged + c.on_line} | {len(c.lost)}" if c else "0 | 0 | 0"
    accel = run.bench.board.accel
    how = "KVM" if accel == "kvm" else "software emulation"
    lines = [
        f"## {options.arch}",
        "",
        "| run | package | machine | checks held | power cuts | acknowledged | lost | a boot | whole run |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- |",
        f"| {today} | {install.version(options.package)} | {how} | {held} of {len(run.rows)} | {cuts} | {boots} | {whole / 60:.0f} min |",
        "",
        "| check | result | seconds | what was seen |",
        "| --- | --- | --- | --- |",
    ]
    for row in run.rows:
        note = re.sub(r"\s+", " ", row.note).replace("|", "\\|")
        lines.append(f"| {row.name} | {'held' if row.held else '**broken**'} | {row.seconds:.0f} | {note[:600]} |")
    return "\n".join(lines) + "\n"


def _replaced(old: str, arch: str, section: str) -> str:
    """The other architecture's section stays."""
    parts = re.split(r"(?m)^(?=## )", old)
    head, rest = parts[0], [part for part in parts[1:] if not part.startswith(f"## {arch}\n")]
    return head.rstrip() + "\n\n" + "\n".join(part.rstrip() + "\n" for part in sorted([*rest, section]))


def _journal(path: Path, arch: str, incidents: dict[str, str]) -> None:
    text = [f"# What the journal says, {arch}", ""]
    for name, said in incidents.items():
        text += [f"## {name}", "", "```text", said, "```", ""]
    path.write_text("\n".join(text))
