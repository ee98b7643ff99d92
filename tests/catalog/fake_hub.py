"""A loopback stand-in for Hugging Face, with the faults that a test asks for."""

from __future__ import annotations

import hashlib
import threading
import time
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class FakeHub:
    """Serves ``content`` at every path, and notes what it was asked for and what it sent."""

    content: bytes
    sha256: str | None = None  # announced; None: the truth
    statuses: list[int] = field(default_factory=list)  # of the next requests; then 200 and 206
    cuts: list[int] = field(default_factory=list)  # bytes after which the next GETs are cut
    hangs: bool = False  # instead of closing a connection that it cuts
    knows_ranges: bool = True
    bytes_per_s: float | None = None
    stalls: bool = False
    dribbles: bool = False  # a header now and then, for ever
    announced: int | None = None  # length in answer to HEAD; None: the truth
    storage: FakeHub | None = None  # redirect there, as the hub does for large files
    requests: list[tuple[str, str | None, str | None]] = field(default_factory=list)
    num_sent: int = 0

    def __post_init__(self) -> None:
        self._server = _Server(self)
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,))
        self._thread.start()

    def close(self) -> None:
        self._stopped.set()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def ranges(self) -> list[str | None]:
        return [wanted for method, wanted, _ in self.requests if method == "GET"]

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        wanted = handler.headers.get("Range")
        self.requests.append((handler.command, wanted, handler.headers.get("Authorization")))
        if "/old/" in handler.path:  # a renamed repository
            handler.send_response(307)
            handler.send_header("Location", handler.path.replace("/old/", "/repo/"))
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if self.stalls:
            self._stopped.wait()
            return
        if self.dribbles:
            handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
            while not self._stopped.wait(0.1):
                handler.wfile.write(b"X-Wait: more\r\n")
            return
        status = self.statuses.pop(0) if self.statuses else 200
        start = int(wanted.removeprefix("bytes=").rstrip("-")) if wanted else 0
        if status == 200 and self.storage is not None:
            handler.send_response(302)
            handler.send_header("Location", self.storage.endpoint + handler.path)
            handler.send_header("X-Linked-Size", str(len(self.content)))
            handler.send_header("X-Linked-ETag", self._etag())
            handler.send_header("Content-Length", "0")
            handler.end_headers()
            return
        if status != 200:
            body = b""
        elif wanted and self.knows_ranges:
            status = 206
            body = self.content[start:]
        else:
            body = self.content
        handler.send_response(status)
        if status == 206:
            end = f"{len(self.content) - 1}/{len(self.content)}"
            handler.send_header("Content-Range", f"bytes {start}-{end}")
        handler.send_header("ETag", self._etag())
        length = len(body) if handler.command == "GET" else self.announced or len(body)
        handler.send_header("Content-Length", str(length))
        handler.end_headers()
        if handler.command == "GET":
            cut = self.cuts.pop(0) if self.cuts else None
            self._send(handler, body[:cut])
            if cut is not None and self.hangs:
                self._stopped.wait()
        handler.close_connection = True

    def _etag(self) -> str:
        return f'"{self.sha256 or hashlib.sha256(self.content).hexdigest()}"'

    def _send(self, handler: BaseHTTPRequestHandler, body: bytes) -> None:
        step = 1 << 16
        for at in range(0, len(body), step):
            piece = body[at : at + step]
            handler.wfile.write(piece)
            self.num_sent += len(piece)
            if self.bytes_per_s:
                time.sleep(len(piece) / self.bytes_per_s)


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, hub: FakeHub) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET  # noqa: N815 - BaseHTTPRequestHandler's name

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(("127.0.0.1", 0), Handler)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A puller that is killed or hangs up is part of the tests."""
