"""A gateway as small as the rules allow, for tests of the client: sessions in memory, requests kept over its restarts."""

import socket
import threading
import zlib

from holdfast_link import frames, messages as m


class Gateway:
    """Stores what it is given; answers `answer <what was asked>`. `credit` and `chunk` are small on purpose."""

    def __init__(self, refuse=0):
        self.stored, self.blobs, self.bytes_of_pieces, self.acked = {}, {}, 0, set()
        self.boot, self.refuse, self.cut_after, self.holds_back = 1, refuse, None, False
        self.has_pruned = False
        self.changed = threading.Condition()

    def line(self):
        """A new line to this gateway; for `Client(open_line=...)`."""
        from holdfast_link.port import Socket

        ours, theirs = socket.socketpair()
        threading.Thread(target=self._serve, args=(ours,), daemon=True).start()
        return Socket(theirs)

    def wait(self, condition, seconds=20):
        with self.changed:
            if not self.changed.wait_for(condition, seconds):
                raise AssertionError("waited in vain")

    def restart(self):
        self.boot += 1

    def _serve(self, line):
        with line:
            self._talk(line)

    def _talk(self, line):
        deframer, boot = frames.Deframer(4096), self.boot
        session = None
        while data := line.recv(4096):
            for header, payload in deframer.push(data):
                if boot != self.boot:
                    session, boot = None, self.boot
                message = m.read(header.kind, payload)
                if isinstance(message, m.Hello):
                    session = header.session
                    replies = [m.HelloAck(1, self.boot, 1024, 100, 400, 1 << 23, 32, 2, 0, 0, "test")]
                elif session != header.session:
                    replies = [m.Nack(header.kind, 0, 4, 0, "")]
                else:
                    with self.changed:
                        replies = self._replies(message)
                        self.changed.notify_all()
                for reply in replies:
                    back = frames.Header(reply.KIND, header.session, header.tag, from_gateway=True)
                    line.sendall(frames.encode(back, reply.write()))
                if self.cut_after is not None and self.bytes_of_pieces >= self.cut_after:
                    self.cut_after = None
                    return

    def _replies(self, message):
        if isinstance(message, m.Submit):
            return self._submit(message)
        if isinstance(message, m.Chunk):
            blob = self.blobs.setdefault(message.blob, bytearray())
            self.bytes_of_pieces += len(message.data)
            if len(blob) == message.off:
                blob += message.data
            return [m.ChunkAck(message.blob, len(blob), 400)]
        if isinstance(message, m.Query):
            return [m.Progress(message.key, 4, 0, 0)]
        if isinstance(message, m.ResultAck):
            self.acked.add(message.key)
        return []

    def _submit(self, submit):
        if self.refuse:
            return [m.Nack(submit.KIND, submit.key, self.refuse, 0, "no such task")]
        if self.has_pruned:
            return [m.SubmitAck(submit.key, 3, 0, 0)]
        known = submit.key in self.stored
        for ref in () if known else submit.blobs():
            blob = self.blobs.setdefault(ref.blob, bytearray())
            if len(blob) < ref.length:
                return [m.SubmitAck(submit.key, 1, 0, 0, (ref.blob, len(blob)))]
            assert zlib.crc32(blob) == ref.crc32
        self.stored.setdefault(submit.key, submit.write())
        replies = [m.SubmitAck(submit.key, 2 if known else 0, 4711, 0)]
        if not submit.flags & m.NO_RESULT and not self.holds_back:
            replies += self._answer(submit)
        return replies

    def _answer(self, submit):
        op = submit.op
        text = ("answer " + (op.user if isinstance(op, m.Chat) else str(op))).encode()
        halves = [(0, text[:10]), (10, text[10:])] if len(text) > 10 else [(0, text)]
        return [m.Result(4711, submit.key, 0, 1, 7, 0.5, off, len(text), part) for off, part in halves]
