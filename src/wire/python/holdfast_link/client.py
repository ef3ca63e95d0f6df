"""A device in a program: requests that survive its restarts, one thread that keeps the line.

Owns the thread, the lock and the waiting; what is said is decided in `device`, what is kept in `memory`.
"""

from __future__ import annotations

import json
import threading
import time
from types import TracebackType
from typing import Callable, Dict, List, Optional, Sequence, Tuple, Type, Union

from . import messages as m
from .device import Device, Event, Gone, Identity, Online, Part, Refusal, Stored
from .frames import Header, encode
from .memory import Answer, Memory, answer_of
from .port import Port, open_port

READ_S = 0.02
"""How soon a new request is noticed while the line is silent."""
AGAIN_S = (0.5, 10.0)
"""A line that is gone is tried again after the first, doubled up to the second."""
RAW_BLOB_FROM = 512
"""A longer body is uploaded beside its request: the smallest frames stay usable."""

ENDPOINTS = ("chat", "completions", "embeddings")
PRIORITIES = ("critical", "high", "normal", "low")


class Refused(Exception):
    """The gateway does not take this request and never will as it is."""

    def __init__(self, code: int, detail: str) -> None:
        super().__init__(f"refused, code {code}: {detail}")
        self.code, self.detail = code, detail


class ResultGone(Exception):
    """The gateway finished this request and does not keep its result any more: it was asked too late."""

    def __init__(self) -> None:
        super().__init__("finished, the result is not kept any more")


class Request:
    """A request that is on this machine's disk."""

    def __init__(self, client: "Client", submit: m.Submit, answer: Optional[Answer] = None) -> None:
        self.key = submit.key
        self.submit = submit
        self._client, self._answer = client, answer
        self._no: Optional[Exception] = None
        self._stored, self._ended = threading.Event(), threading.Event()
        if answer is not None:
            self._end()

    def wait(self, timeout_s: Optional[float] = None) -> Answer:
        """The answer, handed over once: from here on it is the caller's.

        `Refused`, `ResultGone` or `TimeoutError` otherwise.
        """
        if not self._ended.wait(timeout_s):
            raise TimeoutError("no answer yet; the request stays open")
        if self._answer is None:
            raise self._no or TimeoutError("nobody wants a result of this request")
        self._client._handed_over(self.key)
        return self._answer

    def wait_stored(self, timeout_s: Optional[float] = None) -> bool:
        """Whether it is on the gateway's disk."""
        return self._stored.wait(timeout_s)

    @property
    def done(self) -> bool:
        return self._ended.is_set()

    def cancel(self) -> None:
        """Asks the gateway not to answer; it may be too late."""
        self._client._cancel(self.key)

    def _end(self, answer: Optional[Answer] = None, no: Optional[Exception] = None) -> None:
        self._answer, self._no = answer or self._answer, no
        self._stored.set()
        self._ended.set()


class Client:
    """One device on one line; `state` is a file of its own that survives the program."""

    def __init__(
        self,
        address: str,
        state: str,
        *,
        baud: int = 115_200,
        model: str = "python",
        firmware: str = "0.1.0",
        uid: Optional[bytes] = None,
        token: Optional[bytes] = None,
        max_frame: int = 1024,
        open_line: Optional[Callable[[], Port]] = None,
    ) -> None:
        self._open_line = open_line or (lambda: open_port(address, baud))
        self._memory = Memory(state, uid)
        # 8N1: ten bits a byte.
        frame_ms = max(1, max_frame * 10_000 // baud)
        identity = Identity(
            self._memory.uid, self._memory.boot_id, model, firmware,
            token=token, max_frame=max_frame, frame_ms=frame_ms,
        )  # fmt: skip
        self._device = Device(identity, _now_ms())
        self._lock = threading.Lock()
        self._text: Dict[int, bytearray] = {}
        self._requests: Dict[int, Request] = {}
        for submit, answer in self._memory.kept():
            self._requests[submit.key] = Request(self, submit, answer)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="holdfast-link", daemon=True)
        self._thread.start()

    # ---- asking ----

    def task(
        self,
        number: int,
        *args: str,
        pictures: Sequence[bytes] = (),
        priority: str = "normal",
        ttl_s: int = 0,
        flags: int = 0,
        max_reply: int = 0,
    ) -> Request:
        """A canned prompt of the gateway's configuration, by its number."""

        def op(blobs: Sequence[m.BlobRef]) -> m.Op:
            return m.Task(number, tuple(args), tuple(blobs))

        if len(args) > m.ARGS_MAX or any(len(arg.encode()) > m.ARG_BYTES_MAX for arg in args):
            raise ValueError(f"a task takes {m.ARGS_MAX} arguments of {m.ARG_BYTES_MAX} bytes")
        return self._submit(op, [(p, picture_kind(p)) for p in pictures], priority, ttl_s, flags, max_reply)

    def chat(
        self,
        text: str,
        *,
        model: str = "",
        system: str = "",
        max_tokens: int = 0,
        pictures: Sequence[bytes] = (),
        priority: str = "normal",
        ttl_s: int = 0,
        flags: int = 0,
        max_reply: int = 0,
    ) -> Request:
        """A prompt of the device's own. One that does not fit a frame: use `raw`."""

        def op(blobs: Sequence[m.BlobRef]) -> m.Op:
            return m.Chat(model, system, text, max_tokens, tuple(blobs))

        return self._submit(op, [(p, picture_kind(p)) for p in pictures], priority, ttl_s, flags, max_reply)

    def raw(
        self,
        body: Union[bytes, Dict[str, object]],
        *,
        endpoint: str = "chat",
        priority: str = "normal",
        ttl_s: int = 0,
        flags: int = 0,
        max_reply: int = 0,
    ) -> Request:
        """A whole request in OpenAI's JSON; `endpoint` is chat, completions or embeddings."""
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        number = ENDPOINTS.index(endpoint)
        if len(data) <= RAW_BLOB_FROM:
            return self._submit(lambda _: m.Raw(number, data), [], priority, ttl_s, flags, max_reply)
        return self._submit(lambda blobs: m.RawBlob(number, blobs[0]), [(data, 0)], priority, ttl_s, flags, max_reply)

    def unfinished(self) -> List[Request]:
        """Every request whose answer was not handed over, also those of earlier runs of the program."""
        with self._lock:
            return list(self._requests.values())

    @property
    def is_online(self) -> bool:
        """Whether a session with the gateway is open."""
        return self._device.is_online

    def close(self) -> None:
        """Ends the thread; open requests stay in the state file."""
        self._stopping.set()
        self._thread.join()
        self._memory.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: Optional[Type[BaseException]], error: Optional[BaseException], trace: Optional[TracebackType]
    ) -> None:
        self.close()

    # ---- inside ----

    def _submit(
        self,
        op: Callable[[Sequence[m.BlobRef]], m.Op],
        pictures: Sequence[Tuple[bytes, int]],
        priority: str,
        ttl_s: int,
        flags: int,
        max_reply: int,
    ) -> Request:
        if len(pictures) > m.BLOBS_MAX or any(not 0 < len(data) <= m.BLOB_BYTES_MAX for data, _ in pictures):
            raise ValueError(f"a request takes {m.BLOBS_MAX} pictures of up to {m.BLOB_BYTES_MAX} bytes")
        with self._lock:
            key = self._memory.new_key()
            blobs = self._memory.references(key, pictures)
            submit = m.Submit(key, PRIORITIES.index(priority), ttl_s, flags, max_reply, op(blobs))
            room = self._device.identity.max_frame
            if len(encode(Header(m.Submit.KIND, 0, 0), submit.write())) > room:
                raise ValueError(f"the request does not fit a frame of {room} bytes; raw() takes any length")
            self._memory.keep(submit, [data for data, _ in pictures])
            request = self._requests[key] = Request(self, submit)
        return request

    def _handed_over(self, key: int) -> None:
        with self._lock:
            if self._requests.pop(key, None) is not None:
                self._memory.forget(key)

    def _cancel(self, key: int) -> None:
        with self._lock:
            self._device.cancel(key, _now_ms())

    def _run(self) -> None:
        wait_s = AGAIN_S[0]
        while not self._stopping.is_set():
            try:
                port = self._open_line()
            except (OSError, ValueError):
                self._stopping.wait(wait_s)
                wait_s = min(wait_s * 2, AGAIN_S[1])
                continue
            try:
                wait_s = AGAIN_S[0]
                port.write(b"\0\0")
                self._talk(port)
            except OSError:
                # Unplugged: everything open is said again on the next line.
                self._stopping.wait(wait_s)
            finally:
                port.close()
                with self._lock:
                    self._device.line_lost(_now_ms())

    def _talk(self, port: Port) -> None:
        while not self._stopping.is_set():
            while True:
                with self._lock:
                    for request in self._requests.values():
                        if not request.done and not self._device.submit(request.key, _wants(request), _now_ms()):
                            break
                    frame = self._device.poll(self._memory, _now_ms())
                if not frame:
                    break
                port.write(frame)
            data = port.read(READ_S)
            if data:
                with self._lock:
                    for event in self._device.receive(data, _now_ms()):
                        self._told(event)

    def _told(self, event: Event) -> None:
        if isinstance(event, Stored):
            request = self._requests.get(event.ack.key)
            if request is not None:
                request._stored.set()
                if not _wants(request):
                    self._forget(request)
                    request._end()
        elif isinstance(event, Refusal):
            request = self._requests.get(event.nack.key)
            if request is not None:
                self._forget(request)
                request._end(no=Refused(event.nack.code, event.nack.detail))
        elif isinstance(event, Gone):
            request = self._requests.get(event.key)
            self._text.pop(event.key, None)
            if request is not None:
                self._forget(request)
                request._end(no=ResultGone())
        elif isinstance(event, Part):
            self._answered(event)
        elif isinstance(event, Online):
            # Parts that came in an earlier session stay: the device goes on behind them.
            pass

    def _answered(self, event: Part) -> None:
        text = self._text.setdefault(event.part.key, bytearray())
        text += event.part.text
        if not event.last:
            return
        del self._text[event.part.key]
        part = event.part
        whole = m.Result(
            part.req, part.key, part.status, part.source, part.code, part.value, 0, len(text), bytes(text)
        )  # fmt: skip
        request = self._requests.get(part.key)
        if request is not None:
            self._memory.answered(whole)
            request._end(answer=answer_of(whole))

    def _forget(self, request: Request) -> None:
        self._requests.pop(request.key, None)
        self._memory.forget(request.key)


def picture_kind(picture: bytes) -> int:
    """JPEG, PNG or WebP by its first bytes."""
    for start, kind in ((b"\xff\xd8\xff", m.JPEG), (b"\x89PNG\r\n\x1a\n", m.PNG), (b"RIFF", m.WEBP)):
        if picture.startswith(start):
            return kind
    raise ValueError("a picture is a JPEG, a PNG or a WebP")


def _wants(request: Request) -> bool:
    return not request.submit.flags & m.NO_RESULT


def _now_ms() -> int:
    return time.monotonic_ns() // 1_000_000
