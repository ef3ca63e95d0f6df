"""A stand-in for the cloud, on the host: it outlives every power cut and so knows how often each request was sent.

Owns its ledger of what came; never decides whether that was right.
"""

from __future__ import annotations

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class Uplink:
    """An OpenAI-compatible service on loopback that takes one key; `down` and `delay_s` are its faults."""

    def __init__(self, port: int, key: str) -> None:
        self.port = port
        self.key = key
        self.delay_s = 0.0
        self.lock = threading.Lock()
        self.seen: dict[str, int] = {}
        self.refused_keys = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                if outer._turns_away(self):
                    return
                outer._answer(self, 200, {"object": "list", "data": [{"id": "stand-in", "object": "model"}]})

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                if outer._turns_away(self):
                    return
                outer._complete(self, body)

            def log_message(self, *_: object) -> None:
                pass

        self.handler = Handler
        self.server: ThreadingHTTPServer | None = None
        self.rise()

    def sends(self) -> dict[str, int]:
        """How often each prompt was seen."""
        with self.lock:
            return dict(self.seen)

    def rise(self) -> None:
        """Listens, if it does not."""
        if self.server is None:
            self.server = ThreadingHTTPServer(("127.0.0.1", self.port), self.handler)
            self.server.daemon_threads = True
            threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()

    def down(self) -> None:
        """Refuses connections; one that is open ends after its answer."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None

    def _turns_away(self, call: BaseHTTPRequestHandler) -> bool:
        if self.server is None:
            call.close_connection = True
        if call.headers.get("Authorization") != f"Bearer {self.key}":
            self.refused_keys += 1
            self._answer(call, 401, {"error": {"message": "wrong key", "type": "invalid_request_error", "code": "invalid_api_key"}})
            return True
        return False

    def _complete(self, call: BaseHTTPRequestHandler, body: bytes) -> None:
        asked = json.loads(body)
        prompt = asked["messages"][-1]["content"]
        with self.lock:
            self.seen[prompt] = self.seen.get(prompt, 0) + 1
        time.sleep(self.delay_s)
        answer = {"role": "assistant", "content": f"answer to {prompt}"}
        self._answer(call, 200, {
            "id": "cmpl", "object": "chat.completion", "created": 1, "model": asked.get("model", ""),
            "choices": [{"index": 0, "message": answer, "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 3, "completion_tokens": 3, "total_tokens": 6},
        })  # fmt: skip

    @staticmethod
    def _answer(call: BaseHTTPRequestHandler, status: int, value: object) -> None:
        text = json.dumps(value).encode()
        try:
            call.send_response(status)
            call.send_header("Content-Type", "application/json")
            call.send_header("Content-Length", str(len(text)))
            call.end_headers()
            call.wfile.write(text)
        except OSError:
            pass  # the gateway lost its power meanwhile
