"""Installing and upgrading on the booted system, as an owner does: dpkg, and nothing by hand.

Owns the first boot, with a writable root that is kept: all later boots start from what it leaves.
"""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import image
from bench import Bench, Failed, configure

# Added to the packaged configuration before the upgrade: dpkg has to keep it.
OWN_LINE = "# changed by its owner"


def packages_disk(files: list[Path], work: Path) -> Path:
    """The packages on a small disk of their own; the first is the older one where there are two."""
    tree = work / "packages"
    shutil.rmtree(tree, ignore_errors=True)
    tree.mkdir(parents=True)
    for n, path in enumerate(files):
        shutil.copy(path, tree / f"{n}.deb")
    disk = work / "packages.ext4"
    size = sum(path.stat().st_size for path in files) >> 20
    image.ext4(disk, size * 2 + 16, "packages", tree)
    return disk


def version(path: Path) -> str:
    done = subprocess.run(["dpkg-deb", "-f", str(path), "Version"], capture_output=True, text=True)
    return done.stdout.strip() or path.name


def install(b: Bench, uplink_port: int, files: list[Path]) -> str:
    """The older package where there is one, else the new one, on a system that never had it."""
    b.run("mount -o ro LABEL=packages /packages")
    configure(b.machine, uplink_port)
    b.run("systemctl daemon-reload")
    b.run("DEBIAN_FRONTEND=noninteractive dpkg -i --force-confold /packages/0.deb", 600)
    b.run("systemctl is-enabled holdfast.service holdfast.socket")
    # Whether a package starts its service at once is the distribution's custom; here it has to run by then.
    b.run("systemctl start holdfast.socket holdfast.service")
    b.ready()
    b.online()
    if b.gateway.ask("installed", b.slow(30))[0] != 200:
        raise Failed("no answer after the installation")
    owner = b.run("stat -c '%U:%G %a' /run/holdfast/holdfast.sock /var/lib/holdfast").split("\n")
    return f"{version(files[0])}: active and enabled; socket {owner[0]}, data {owner[1]}"


def upgrade(b: Bench, files: list[Path]) -> str:
    """From the previous package to this one, with a backlog that waits and a configuration that its owner changed."""
    b.run(f"echo '{OWN_LINE}' >> /etc/holdfast/holdfast.toml")
    b.uplink.down()
    names = []
    try:
        for n in range(5):
            status, value, _ = b.gateway.ask(f"before the upgrade {n}", b.slow(60), Prefer="respond-async")
            if status != 202:
                raise Failed(f"{status} {value}")
            names.append(value["id"])
        before = b.run("holdfast --version").strip(), b.show("MainPID")
        cursor = b.mark()
        b.run("DEBIAN_FRONTEND=noninteractive dpkg -i --force-confdef --force-confold /packages/1.deb", 600)
        b.ready()
    finally:
        b.uplink.rise()
    b.incidents["upgrade by dpkg -i"] = b.since(cursor)
    if b.show("MainPID") == before[1]:
        raise Failed("the upgrade left the old process running")
    if OWN_LINE not in b.run("cat /etc/holdfast/holdfast.toml"):
        raise Failed("the upgrade overwrote a configuration that its owner changed")
    b.online()
    for name in names:
        b.until(f"{name} to be answered", lambda: (b.gateway.record(name) or {}).get("state") == "answered", 120)
    after = b.run("dpkg-query -W -f '${Version}' holdfast")
    return f"{version(files[0])} to {after}: restarted, configuration kept, {len(names)} waiting requests kept and answered"


def remove(b: Bench) -> str:
    """Removed, then purged; what was stored is its owner's until he purges."""
    b.run("DEBIAN_FRONTEND=noninteractive dpkg -r holdfast", 300)
    if b.machine.tell("systemctl is-active holdfast.service holdfast.socket").text.count("inactive") != 2:
        raise Failed("something of it still runs")
    kept = b.run("ls /var/lib/holdfast | wc -l").strip()
    configured = b.machine.tell("test -e /etc/holdfast/holdfast.toml").code == 0
    b.run("DEBIAN_FRONTEND=noninteractive dpkg -P holdfast", 300)
    left = b.run("ls -A /var/lib/holdfast 2>/dev/null; ls -A /etc/holdfast 2>/dev/null; true").split()
    if kept == "0" or not configured:
        raise Failed(f"removing took data or configuration with it ({kept} files, configuration {configured})")
    return f"removed: data ({kept} entries) and configuration stay; purged: {' '.join(left) or 'nothing'} left"
