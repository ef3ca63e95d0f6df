#!/usr/bin/env python3
"""How much flash, RAM and stack a minimal device takes on a Cortex-M4, in Rust and in C.

    python3 src/wire/examples/minimal/measure.py

Needs rustup (the target thumbv7em-none-eabihf is installed by this script) and, for the stack, qemu-system-arm; the C
figures need arm-none-eabi-gcc. As root on Debian the script installs both itself, elsewhere it says what it left out.
The stack is measured, not estimated: it is painted at the start, the firmware runs one request with a picture, and
what lost its paint was used.
"""

import os
import pathlib
import shutil
import struct
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
WIRE = HERE.parents[1]
TARGET = "thumbv7em-none-eabihf"
PAINT = 0xCCCCCCCC
RAM, RAM_BYTES = 0x20000000, 32 * 1024


def run(*command, **more):
    return subprocess.run(command, check=True, **more)


def tool(name, package):
    """Whether a tool is there, installing it where that is possible."""
    if not shutil.which(name) and os.geteuid() == 0 and shutil.which("apt-get"):
        command = ("apt-get", "install", "-y", "-q", "--no-install-recommends", *package.split())
        subprocess.run(command, stdout=subprocess.DEVNULL, check=False)
    if shutil.which(name):
        return True
    print(f"LEFT OUT: no {name} on this machine (Debian: apt-get install {package})")
    return False


def build(*features):
    environment = dict(os.environ, RUSTFLAGS="-C link-arg=-Tlink.x", CARGO_TARGET_DIR=str(WIRE.parents[1] / "target/minimal"))
    command = ("cargo", "build", "--release", "--quiet", "--target", TARGET, *features)
    run(*command, cwd=HERE, env=environment)
    return pathlib.Path(environment["CARGO_TARGET_DIR"]) / TARGET / "release" / "minimal"


class Elf:
    """Sections and symbols of a 32-bit little-endian file: no tool for it is needed."""

    def __init__(self, path):
        self.data = path.read_bytes()
        at, = struct.unpack_from("<I", self.data, 0x20)
        size, count = struct.unpack_from("<HH", self.data, 0x2E)
        raw = [struct.unpack_from("<10I", self.data, at + n * size) for n in range(count)]
        self.sections = [dict(zip("name type flags addr off size link info align entry".split(), s)) for s in raw]

    def text(self, table, at):
        return self.data[table + at : self.data.index(b"\0", table + at)].decode()

    def sizes(self):
        """Flash and RAM: what is loaded, what is written to."""
        used = [s for s in self.sections if s["flags"] & 2 and s["size"]]
        flash = sum(s["size"] for s in used if s["type"] != 8)
        ram = sum(s["size"] for s in used if s["flags"] & 1)
        return flash, ram

    def symbols(self):
        table = next(s for s in self.sections if s["type"] == 2)
        strings = self.sections[table["link"]]["off"]
        for n in range(table["size"] // 16):
            name, value, size, _ = struct.unpack_from("<IIII", self.data, table["off"] + 16 * n)
            yield self.text(strings, name), value, size


def stack(elf_path):
    """Bytes of stack at the deepest point of the conversation."""
    elf = Elf(elf_path)
    done = next(value for name, value, _ in elf.symbols() if name == "DONE")
    with tempfile.TemporaryDirectory() as folder:
        dump = pathlib.Path(folder) / "ram"
        command = ("qemu-system-arm", "-M", "mps2-an386", "-display", "none", "-serial", "null", "-monitor", "stdio")
        machine = subprocess.Popen(
            (*command, "-kernel", str(elf_path)), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
        )
        try:
            for _ in range(200):
                machine.stdin.write(f"pmemsave {RAM:#x} {RAM_BYTES} \"{dump}\"\n")
                machine.stdin.flush()
                time.sleep(0.05)
                ram = dump.read_bytes() if dump.exists() else b""
                if len(ram) == RAM_BYTES and struct.unpack_from("<I", ram, done - RAM)[0]:
                    break
            else:
                raise SystemExit("the firmware did not come to its end")
        finally:
            machine.kill()
            machine.wait()
    if struct.unpack_from("<I", ram, done - RAM)[0] != 1:
        raise SystemExit("the conversation did not go as it must")
    words = struct.unpack(f"<{RAM_BYTES // 4}I", ram)
    # From the lowest free word up: paint that was never touched.
    first = (max(s["addr"] + s["size"] for s in elf.sections if s["flags"] & 1 and s["addr"] >= RAM) - RAM + 3) // 4
    touched = next(n for n in range(first + 1, len(words)) if words[n] != PAINT)
    return RAM_BYTES - 4 * touched


def rust():
    if shutil.which("rustup"):
        run("rustup", "target", "add", TARGET, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    figures = {}
    qemu = tool("qemu-system-arm", "qemu-system-arm")
    for name, features in (("empty", ("--features", "empty")), ("device", ())):
        path = build(*features)
        flash, ram = Elf(path).sizes()
        figures[name] = (flash, ram, stack(path) if qemu else 0)
        if name == "device":
            state = [size for symbol, _, size in Elf(path).symbols() if "conversation" in symbol and "VAR" in symbol]
            print("static variables:", ", ".join(map(str, sorted(state, reverse=True))), "bytes")
    for name, (flash, ram, deep) in figures.items():
        print(f"Rust {name:8} flash {flash:6}  static RAM {ram:6}  stack {deep or '?':>6}")
    flash, ram, deep = (figures["device"][n] - figures["empty"][n] for n in range(3))
    print(f"Rust the link flash {flash:6}  static RAM {ram:6}  stack {deep if qemu else '?':>6}")


def c():
    if not tool("arm-none-eabi-gcc", "gcc-arm-none-eabi libnewlib-arm-none-eabi"):
        return
    with tempfile.TemporaryDirectory() as folder:
        source, unit = pathlib.Path(folder) / "link.c", pathlib.Path(folder) / "link.o"
        source.write_text('#define HOLDFAST_LINK_IMPLEMENTATION\n#include "holdfast_link.h"\nhf_device a_device;\n')
        flags = ("-mcpu=cortex-m4", "-mthumb", "-mfloat-abi=hard", "-mfpu=fpv4-sp-d16", "-Os", "-ffunction-sections")
        run("arm-none-eabi-gcc", "-std=c99", *flags, "-fstack-usage", "-I", str(WIRE / "c"), "-c", str(source), "-o", str(unit))
        elf = Elf(unit)
        flash = sum(s["size"] for s in elf.sections if s["flags"] & 2 and s["type"] == 1)
        state = next(size for name, _, size in elf.symbols() if name == "a_device")
        usage = [line.split("\t") for line in unit.with_suffix(".su").read_text().splitlines()]
        deepest = sorted(((int(bytes_), name.rsplit(":", 1)[1]) for name, bytes_, _ in usage), reverse=True)[:3]
        print(f"C    the link flash {flash:6}  state {state} bytes beside its buffers")
        print("C    largest stack frames: " + ", ".join(f"{name} {bytes_}" for bytes_, name in deepest))


if __name__ == "__main__":
    rust()
    c()
    sys.exit(0)
