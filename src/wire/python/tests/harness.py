"""A device behind two pipes, for the Rust crate's test of the device: see `src/wire/tests/c/harness.c`."""

import pathlib
import sys
import zlib

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from holdfast_link import messages as m  # noqa: E402
from holdfast_link.device import Device, Gone, Identity, Part, Refusal, Stored  # noqa: E402


class Memory:
    def __init__(self):
        self.kept = {}

    def request(self, key):
        if key not in self.kept:
            return None
        wants, picture = self.kept[key]
        blobs = (m.BlobRef(key & 0xFFFFFFFF, len(picture), zlib.crc32(picture), m.JPEG),) if picture else ()
        return m.Submit(key, 0, 0, 0 if wants else m.NO_RESULT, 0, m.Task(1, (), blobs))

    def picture(self, key, blob, off, length):
        return self.kept[key][1][off : off + length] if key in self.kept else b""


def unhex(text):
    return b"" if text == "-" else bytes.fromhex(text)


def turn(device, memory, now, data):
    for event in device.receive(data, now):
        if isinstance(event, Stored):
            print("stored", event.ack.key)
        elif isinstance(event, Refusal):
            print("refused", event.nack.key)
        elif isinstance(event, Gone):
            print("gone", event.key)
        elif isinstance(event, Part):
            print("answer", event.part.key, int(event.last), "-" + event.part.text.hex())
    for _ in range(8):
        frame = device.poll(memory, now)
        if not frame:
            break
        print("send", frame.hex())
    print(".", flush=True)


def main():
    memory, device = Memory(), None
    print("state python", flush=True)
    for line in sys.stdin:
        word, *rest = line.split()
        if word == "keep":
            memory.kept[int(rest[0])] = (rest[1] != "0", unhex(rest[2]))
        elif word == "forget":
            memory.kept.pop(int(rest[0]), None)
        elif word == "start":
            identity = Identity(b"device-1", int(rest[0]), "test", "1", max_frame=256, rx_credit=512, frame_ms=20)
            device = Device(identity, int(rest[1]), open_max=4)
        elif word == "submit":
            device.submit(int(rest[0]), rest[1] != "0", int(rest[2]))
        elif word == "turn":
            turn(device, memory, int(rest[0]), unhex(rest[1]))
        else:
            raise SystemExit(f"what is {word}?")


main()
