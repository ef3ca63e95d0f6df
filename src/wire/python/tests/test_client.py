"""The client on a line to a small gateway: restarts on both sides, cut lines, refusals."""

import os
import pathlib
import tempfile
import threading
import unittest

from holdfast_link import Client, Refused, ResultGone
from holdfast_link import messages as m
from tests.gateway import Gateway

JPEG = b"\xff\xd8\xff" + bytes(range(256)) * 20


class Links(unittest.TestCase):
    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.state = str(pathlib.Path(folder.name) / "state")

    def client(self, gateway):
        return Client("", self.state, open_line=gateway.line)

    def test_a_question_and_its_answer(self):
        gateway = Gateway()
        with self.client(gateway) as link:
            answer = link.chat("Is 71 C normal?").wait(20)
            self.assertEqual((answer.text, answer.status, answer.source), ("answer Is 71 C normal?", "ok", "uplink"))
            self.assertEqual((answer.code, answer.value, answer.req), (7, 0.5, 4711))
            gateway.wait(lambda: len(gateway.acked) == 1)
            self.assertEqual(link.unfinished(), [])
        self.assertEqual(len(gateway.stored), 1)

    def test_tasks_raw_bodies_and_what_only_has_to_arrive(self):
        gateway = Gateway()
        with self.client(gateway) as link:
            self.assertIn("23.5", link.task(12, "Naht 7", "23.5").wait(20).text)
            self.assertIn("Raw(", link.raw({"messages": []}).wait(20).text)
            self.assertIn("RawBlob", link.raw({"messages": ["long" * 500]}).wait(20).text)
            self.assertTrue(link.task(1, flags=m.NO_RESULT).wait_stored(20))
            self.assertEqual(link.unfinished(), [])
            with self.assertRaises(ValueError):
                link.chat("too long for a frame " * 100)
            with self.assertRaises(ValueError):
                link.chat("no picture", pictures=[b"GIF89a"])

    def test_an_upload_goes_on_where_the_cable_was_pulled(self):
        gateway = Gateway()
        gateway.cut_after = 2_000
        with self.client(gateway) as link:
            request = link.chat("Whole?", pictures=[JPEG, JPEG[:500]])
            request.wait(30)
        whole = sorted(bytes(blob) for blob in gateway.blobs.values())
        self.assertEqual(whole, sorted([JPEG, JPEG[:500]]))
        twice = gateway.bytes_of_pieces - len(JPEG) - 500
        self.assertLessEqual(twice, 800, "only what was on the line is sent again")

    def test_a_restart_repeats_what_is_open_and_nothing_else(self):
        gateway = Gateway()
        gateway.holds_back = True
        with self.client(gateway) as link:
            first = link.chat("one")
            self.assertTrue(first.wait_stored(20))
            with self.assertRaises(TimeoutError):
                first.wait(0.05)
        gateway.holds_back = False
        gateway.restart()
        with self.client(gateway) as link:
            (again,) = link.unfinished()
            self.assertEqual(again.key, first.key)
            self.assertEqual(again.wait(20).text, "answer one")
            second = link.chat("two")
            self.assertGreater(second.key, first.key)
            self.assertTrue(second.wait_stored(20))
        self.assertEqual(len(gateway.stored), 2, "the same key is the same request")

    def test_an_answer_that_nobody_took_is_there_after_a_restart(self):
        gateway = Gateway()
        with self.client(gateway) as link:
            request = link.chat("one")
            gateway.wait(lambda: gateway.acked)
            self.assertTrue(request.done)
        with self.client(Gateway()) as link:
            (kept,) = link.unfinished()
            self.assertEqual(kept.wait(0).text, "answer one")
            self.assertEqual(link.unfinished(), [])

    def test_a_refusal_is_an_exception_and_the_request_is_gone(self):
        with self.client(Gateway(refuse=9)) as link:
            with self.assertRaises(Refused) as refused:
                link.task(99).wait(20)
            self.assertEqual((refused.exception.code, refused.exception.detail), (9, "no such task"))
            self.assertEqual(link.unfinished(), [])

    def test_a_result_that_is_not_kept_is_an_exception_and_the_request_is_gone(self):
        gateway = Gateway()
        gateway.has_pruned = True
        with self.client(gateway) as link:
            request = link.chat("one")
            with self.assertRaises(ResultGone):
                request.wait(20)
            self.assertEqual(link.unfinished(), [])

    def test_many_more_than_one_device_may_have_open(self):
        gateway = Gateway()
        with self.client(gateway) as link:
            requests = [link.chat(f"number {n}") for n in range(80)]
            self.assertEqual([r.wait(30).text for r in requests], [f"answer number {n}" for n in range(80)])


class SerialPort(unittest.TestCase):
    def test_over_a_terminal(self):
        try:
            import serial  # noqa: F401
        except ImportError:
            self.skipTest("pyserial is not installed")
        from holdfast_link.port import open_port

        ours, theirs = os.openpty()
        port = open_port(os.ttyname(theirs), 115_200)
        self.addCleanup(port.close)
        every = bytes(range(256))
        threading.Thread(target=os.write, args=(ours, every), daemon=True).start()
        got = b""
        while len(got) < 256:
            got += port.read(10)
        self.assertEqual(got, every, "no byte is swallowed or changed")
        port.write(every)
        back = b""
        while len(back) < 256:
            back += os.read(ours, 256)
        self.assertEqual(back, every)
        self.assertEqual(port.read(0.01), b"")


if __name__ == "__main__":
    unittest.main()
