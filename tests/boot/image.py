"""The system that is booted: a Debian root with systemd and a kernel, as one ext4 file.

Owns the packages, what of them is left out, and the folder that keeps what was built, by its content. Never installs
the product: that is done on the booted system, as its owner would.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

SUITE = "bookworm"
PACKAGES = "systemd systemd-sysv udev dbus kmod initramfs-tools e2fsprogs"
# The kernel is Debian's own; the cloud variant has no i6300esb. What no virtual board has would be most of the image.
NO_DRIVERS = """gpu net/wireless net/ethernet net/usb net/can net/wwan media infiniband staging scsi iio isdn mtd hid input
bluetooth hwmon ata md target nvme thunderbolt comedi soundwire crypto platform edac nfc parport firewire perf phy mfd leds
video usb/gadget usb/storage usb/misc w1 xen regulator power interconnect""".split()
NO_MODULES = ["sound", "net/bluetooth", "net/mac80211", "net/sctp", "net/tipc", "net/openvswitch", "net/netfilter"] + [
    f"fs/{name}" for name in ("xfs", "btrfs", "ocfs2", "gfs2", "nfs", "nfsd", "ceph", "smb", "f2fs")
]
# Into the first file system: the disk, the control channel, chance, the network.
FIRST = ["virtio_pci", "virtio_blk", "virtio_console", "virtio_rng", "virtio_net", "ext4"]
# Room for the package and for what is written while the root is writable.
ROOT_SPARE_MIB = 256
BUILD_MAX_S = 1800
GUEST = Path(__file__).parent / "guest"
# What an appliance does not have either, and what costs seconds of emulated time at each boot.
UNITS_OFF = """apt-daily.timer apt-daily-upgrade.timer e2scrub_all.timer e2scrub_reap.service fstrim.timer dpkg-db-backup.timer
systemd-logind.service getty.target getty@tty1.service systemd-rfkill.socket systemd-update-utmp.service
systemd-update-utmp-runlevel.service""".split()


class Missing(Exception):
    """A tool or a package that this machine does not have."""


@dataclass(frozen=True)
class Image:
    """What a machine starts from."""

    root: Path
    kernel: Path
    initrd: Path
    built_s: float


def build(arch: str, cache: Path, say) -> Image:
    """The image for this architecture, from the cache where its content did not change."""
    for tool, package in (("mmdebstrap", "mmdebstrap"), ("mke2fs", "e2fsprogs"), ("debugfs", "e2fsprogs")):
        if not shutil.which(tool, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin"):
            raise Missing(f"{tool}: apt-get install {package}")
    if os.geteuid() != 0:
        raise Missing("root, to unpack a system with its owners (or run this under `fakeroot` with a cached root)")
    cache.mkdir(parents=True, exist_ok=True)
    tar = root_tar(arch, cache, say)
    key = digest(tar.name.encode(), *(p.read_bytes() + str(p.relative_to(GUEST)).encode() for p in guest_files()))
    folder = cache / f"image-{arch}-{key}"
    if not (folder / "done").exists():
        say(f"making the image {folder.name}")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _assemble(tar, folder)
        (folder / "done").touch()
    return Image(folder / "root.ext4", folder / "vmlinuz", folder / "initrd", 0.0)


def root_tar(arch: str, cache: Path, say) -> Path:
    """A Debian root by mmdebstrap, without anything of ours."""
    command = _mmdebstrap(arch)
    tar = cache / f"root-{arch}-{digest(' '.join(command).encode())}.tar"
    if tar.exists():
        return tar
    foreign(arch)
    say(f"making a Debian root for {arch}: some minutes")
    part = tar.with_suffix(".part")
    done = subprocess.run(command + [SUITE, str(part), "--format=tar"], capture_output=True, timeout=BUILD_MAX_S)
    if done.returncode != 0:
        raise Missing("mmdebstrap: " + done.stderr.decode(errors="replace")[-2000:])
    part.rename(tar)
    return tar


def _mmdebstrap(arch: str) -> list[str]:
    left_out = [f"/lib/modules/*/kernel/drivers/{name}/*" for name in NO_DRIVERS]
    left_out += [f"/lib/modules/*/kernel/{name}/*" for name in NO_MODULES]
    left_out += ["/usr/share/doc/*", "/usr/share/locale/*", "/usr/share/man/*", "/usr/share/info/*"]
    first = "\\n".join(FIRST)
    hook = (
        'mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d" && '
        'printf "MODULES=list\\nCOMPRESS=gzip\\n" > "$1/etc/initramfs-tools/conf.d/boot" && '
        f'printf "{first}\\n" > "$1/usr/share/initramfs-tools/modules.d/boot"'
    )
    packages = ",".join([*PACKAGES.split(), f"linux-image-{arch}"])
    command = ["mmdebstrap", f"--architectures={arch}", "--variant=minbase", f"--include={packages}"]
    return command + [f"--dpkgopt=path-exclude={path}" for path in left_out] + [f"--essential-hook={hook}"]


def foreign(arch: str) -> None:
    """Lets this kernel run the other architecture's programs, which the packages' scripts are."""
    own = subprocess.run(["dpkg", "--print-architecture"], capture_output=True, text=True).stdout.strip()
    if arch == own:
        return
    handlers = Path("/proc/sys/fs/binfmt_misc")
    name = {"arm64": "qemu-aarch64", "amd64": "qemu-x86_64"}[arch]
    if (handlers / name).exists():
        return
    rule = Path(f"/usr/lib/binfmt.d/{name}.conf")
    if not rule.exists():
        raise Missing(f"programs of {arch} cannot be run here: apt-get install qemu-user-static arch-test")
    if not (handlers / "register").exists():
        subprocess.run(["mount", "-t", "binfmt_misc", "binfmt_misc", str(handlers)], check=True)
    (handlers / "register").write_text(rule.read_text())


def guest_files() -> list[Path]:
    return sorted(path for path in GUEST.rglob("*") if path.is_file())


def digest(*parts: bytes) -> str:
    total = hashlib.sha256()
    for part in parts:
        total.update(hashlib.sha256(part).digest())
    return total.hexdigest()[:12]


def _assemble(tar: Path, folder: Path) -> None:
    tree = folder / "tree"
    tree.mkdir()
    try:
        subprocess.run(["tar", "-C", str(tree), "--numeric-owner", "-xpf", str(tar)], check=True)
        _place_guest(tree)
        shutil.copy(_only(tree / "boot", "vmlinuz-*"), folder / "vmlinuz")
        shutil.copy(_only(tree / "boot", "initrd.img-*"), folder / "initrd")
        used = subprocess.run(["du", "-sm", str(tree)], capture_output=True, text=True, check=True).stdout
        ext4(folder / "root.ext4", int(int(used.split()[0]) * 1.15) + ROOT_SPARE_MIB, "root", tree)
    finally:
        shutil.rmtree(tree, ignore_errors=True)


def _only(folder: Path, pattern: str) -> Path:
    found = sorted(folder.glob(pattern))
    if not found:
        raise Missing(f"no {pattern} in the root")
    return found[-1]


def _place_guest(tree: Path) -> None:
    for path in guest_files():
        target = tree / path.relative_to(GUEST)
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)
        target.chmod(0o755 if target.parent.name == "sbin" else 0o644)
    for place in ("data", "packages", "var/log/journal", "var/lib/holdfast"):
        (tree / place).mkdir(parents=True, exist_ok=True)
    # A read-only root keeps what it was given: no machine makes itself a new identity.
    (tree / "etc/machine-id").write_text("b0071e57b0071e57b0071e57b0071e57\n")
    (tree / "etc/hostname").write_text("boot\n")
    wants = tree / "etc/systemd/system"
    for unit, target in (
        ("boot-agent.service", "multi-user.target.wants"),
        ("boot-proxy.socket", "sockets.target.wants"),
    ):
        (wants / target).mkdir(parents=True, exist_ok=True)
        (wants / target / unit).symlink_to(f"/etc/systemd/system/{unit}")
    (wants / "multi-user.target.wants/systemd-networkd.service").symlink_to("/lib/systemd/system/systemd-networkd.service")
    for unit in UNITS_OFF:
        (wants / unit).symlink_to("/dev/null")


def ext4(path: Path, mib: int, label: str, tree: Path) -> None:
    """An ext4 file of this size with this content; needs no loop device."""
    path.unlink(missing_ok=True)
    command = ["mke2fs", "-q", "-F", "-t", "ext4", "-m", "0", "-L", label, "-d", str(tree), str(path), f"{mib}M"]
    env = dict(os.environ, PATH=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    done = subprocess.run(command, capture_output=True, text=True, env=env)
    if done.returncode != 0:
        raise Missing(f"mke2fs: {done.stderr.strip()}")
