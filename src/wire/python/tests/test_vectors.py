"""The bytes on the wire, frozen: every vector both ways, and the edges of the byte stuffing."""

import pathlib
import random
import unittest

from holdfast_link import frames, messages as m

VECTORS = pathlib.Path(__file__).resolve().parents[2] / "tests" / "vectors.txt"
UID = bytes.fromhex("02005E1000000001")
BOOT = 0x00C0FFEE
KEY = 0x00C0FFEE00000005
BLOB = bytes.fromhex("FFD8FFE000104A46494600000D1A2734414E5B6875828F9CA9B6C3D0DDEAF704")

SUBMIT = m.Submit(KEY, 1, 86400, 0, 200, m.Task(12, ("Naht 7", "23.5"), (m.BlobRef(9, 32, 0x448EC3F3, 1),)))
# Name, from the gateway, repeat, addr, tag, message.
CASES = [
    ("hello", 0, 0, 0, 1, m.Hello(1, 1, UID, BOOT, 1024, 2048, 3, "cam-esp32", "1.4.2")),
    ("hello_ack", 1, 0, 0, 1, m.HelloAck(1, 7, 1024, 960, 3840, 8388608, 32, 2, 1795200000000, 1, "hf-line3")),
    ("submit", 0, 0, 0, 2, SUBMIT),
    ("submit_again", 0, 1, 0, 4, SUBMIT),
    ("submit_ack_need", 1, 0, 0, 2, m.SubmitAck(KEY, 1, 0, 0, (9, 0))),
    ("submit_ack_stored", 1, 0, 0, 4, m.SubmitAck(KEY, 0, 4711, 3)),
    ("submit_ack_known", 1, 0, 0, 5, m.SubmitAck(KEY, 2, 4711, 3)),
    ("chunk", 0, 0, 0, 3, m.Chunk(9, 0, BLOB)),
    ("chunk_ack", 1, 0, 0, 3, m.ChunkAck(9, 32, 3840)),
    ("result", 1, 0, 0, 200, m.Result(4711, KEY, 0, 1, -2, 0.5, 0, 9, b"NIO: Pore")),
    ("result_ack", 0, 0, 0, 200, m.ResultAck(KEY, 9)),
    ("nack", 1, 0, 0, 6, m.Nack(0x10, 6, 7, 30000, "storage full")),
    ("cancel", 0, 0, 0, 7, m.Cancel(KEY)),
    ("ping", 0, 0, 17, 8, m.Ping(0xDEADBEEF)),
    ("pong", 1, 0, 17, 8, m.Pong(0xDEADBEEF, 7, 2, 0)),
]


def frozen():
    lines = (line.split(" ", 1) for line in VECTORS.read_text().splitlines() if not line.startswith("#"))
    return {name: bytes.fromhex(text) for name, text in lines}


class Vectors(unittest.TestCase):
    def test_all_of_them_both_ways(self):
        vectors = frozen()
        self.assertEqual(sorted(vectors), sorted(case[0] for case in CASES))
        for name, from_gateway, repeat, addr, tag, message in CASES:
            with self.subTest(name):
                header = frames.Header(message.KIND, 0xEE, tag, bool(from_gateway), bool(repeat), addr)
                self.assertEqual(frames.encode(header, message.write()).hex(" "), vectors[name].hex(" "))
                ((got, payload),) = frames.Deframer(256).push(vectors[name])
                self.assertEqual(got, header)
                read = m.read(got.kind, payload)
                self.assertEqual(read.write(), message.write())
                if not isinstance(message, m.Submit):
                    self.assertEqual(read, message)

    def test_a_missing_tail_is_defaults_and_a_longer_one_is_ignored(self):
        pong = m.Pong(5, 7, 2, 9)
        self.assertEqual(m.read(0x51, pong.write() + b"more"), pong)
        self.assertEqual(m.read(0x51, b"\x05"), m.Pong(5, 0, 0, 0))
        with self.assertRaises(m.Malformed):
            m.read(0x51, b"\x85")
        with self.assertRaises(m.Malformed):
            m.read(0x99, b"")


class Stuffing(unittest.TestCase):
    def test_every_length_comes_back(self):
        chance = random.Random(1)
        for length in range(1100):
            for data in (bytes(length), b"\1" * length, chance.randbytes(length), b"\1" * (length - 1) + b"\0"):
                stuffed = frames.stuff(data)
                self.assertNotIn(0, stuffed)
                self.assertLessEqual(len(stuffed), len(data) + len(data) // 254 + 1)
                self.assertEqual(frames.unstuff(stuffed), data)

    def test_what_is_damaged_is_counted_and_never_believed(self):
        frame = frozen()["nack"]
        deframer = frames.Deframer(64)
        self.assertEqual(len(list(deframer.push(frame + frame[1:]))), 2, "frames that share a delimiter")
        for at in range(1, len(frame) - 1):
            flipped = bytearray(frame)
            flipped[at] ^= 0x10
            self.assertEqual(list(deframer.push(bytes(flipped))), [])
        self.assertGreaterEqual(deframer.damaged, len(frame) - 2)
        self.assertEqual(list(deframer.push(b"\0" + b"x" * 100 + b"\0")), [])
        self.assertEqual(len(list(deframer.push(frame))), 1, "and goes on")


if __name__ == "__main__":
    unittest.main()
