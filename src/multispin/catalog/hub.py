"""Model files from Hugging Face, or whatever HF_ENDPOINT names, resumed at the byte."""

from __future__ import annotations

import hashlib
import http.client
import os
import queue
import re
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from email.message import Message
from pathlib import Path
from typing import IO, Any

from multispin.catalog.models import HubFile, Model
from multispin.catalog.sources import Download, NeedSpace, Report, SourceError, is_disk_full

_CHUNK = 1 << 18
_MAX_FRUITLESS_TRIES = 3


@dataclass(frozen=True)
class _Facts:
    num_bytes: int
    sha256: str | None
    etag: str

    @property
    def partial_name(self) -> str:
        """A partial download of one version is never continued with bytes of another."""
        return hashlib.sha256(f"{self.etag} {self.num_bytes}".encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Hub:
    """Source. ``contact_s`` bounds the first answer, name lookup included: an unreachable hub
    costs the user no more than that. A transfer that stalls for ``stall_s`` is taken up again,
    after ``retry_s`` when it had brought nothing.
    """

    endpoint: str
    token: str | None
    contact_s: float = 6.0
    stall_s: float = 15.0
    retry_s: float = 1.0
    name: str = "Hugging Face"

    @classmethod
    def from_environment(cls) -> Hub:
        endpoint = os.environ.get("HF_ENDPOINT") or "https://huggingface.co"
        return cls(endpoint.rstrip("/"), os.environ.get("HF_TOKEN") or None)

    def offers(self, model: Model) -> bool:
        return model.hub is not None

    def fetch(self, model: Model, folder: Path, need: NeedSpace, report: Report) -> Download:
        assert model.hub is not None
        url = self._url(model.hub)
        facts = self._facts(url)
        for known, told in ((model.sha256, facts.sha256), (model.num_bytes, facts.num_bytes)):
            if known is not None and told is not None and known != told:
                raise SourceError(f"{url} is another file than the catalog's ({told})")
        partial = folder / facts.partial_name
        done = partial.stat().st_size if partial.exists() else 0
        need(folder, facts.num_bytes - done)
        self._download(url, partial, facts, report)
        return Download(partial, facts.sha256)

    def _url(self, file: HubFile) -> str:
        return f"{self.endpoint}/{file.repo}/resolve/main/{urllib.parse.quote(file.path)}"

    def _facts(self, url: str) -> _Facts:
        """Ask in a thread: urllib bounds neither the name lookup nor the number of addresses."""
        answer: queue.SimpleQueue[Message | Exception] = queue.SimpleQueue()

        def ask() -> None:
            try:
                with self._open(url, "HEAD", self.contact_s) as response:
                    answer.put(response.headers)
            except Exception as error:
                answer.put(error)

        threading.Thread(target=ask, daemon=True, name="hub-contact").start()
        try:
            headers = answer.get(timeout=self.contact_s)
        except queue.Empty:
            raise SourceError(f"no answer from {self.endpoint} in {self.contact_s:g} s") from None
        if isinstance(headers, Exception):
            raise SourceError(_explain(headers, url, self.endpoint)) from headers
        return _facts_of(headers, url)

    def _download(self, url: str, partial: Path, facts: _Facts, report: Report) -> None:
        fruitless = 0
        with partial.open("ab") as file:
            while (done := file.seek(0, os.SEEK_END)) < facts.num_bytes:
                report(done, facts.num_bytes)
                try:
                    self._transfer(url, file, done, facts.num_bytes, report)
                    reason = f"{url} ended at byte {file.tell()} of {facts.num_bytes}"
                except (OSError, http.client.HTTPException) as error:
                    if isinstance(error, OSError) and is_disk_full(error):
                        raise
                    reason = _explain(error, url, self.endpoint)
                file.flush()
                fruitless = fruitless + 1 if file.seek(0, os.SEEK_END) <= done else 0
                if fruitless == _MAX_FRUITLESS_TRIES:
                    raise SourceError(reason)
                if fruitless:
                    time.sleep(self.retry_s)
            if done > facts.num_bytes:
                file.truncate(0)
                raise SourceError(f"{url} is longer than the {facts.num_bytes} bytes announced")
        report(facts.num_bytes, facts.num_bytes)

    def _transfer(self, url: str, file: IO[bytes], done: int, total: int, report: Report) -> None:
        with self._open(url, "GET", self.stall_s, start=done) as response:
            if response.status != http.HTTPStatus.PARTIAL_CONTENT:
                file.truncate(0)  # the server knows no ranges: from the beginning
                done = 0
            elif not response.headers.get("Content-Range", "").startswith(f"bytes {done}-"):
                raise http.client.HTTPException("answered with another range than asked for")
            while done <= total and (chunk := response.read1(_CHUNK)):
                file.write(chunk)
                done += len(chunk)
                report(min(done, total), total)

    def _open(self, url: str, method: str, timeout_s: float, start: int = 0) -> Any:
        request = urllib.request.Request(url, method=method)
        request.add_header("User-Agent", "multispin")
        request.add_header("Accept-Encoding", "identity")
        if start:
            request.add_header("Range", f"bytes={start}-")
        if self.token:
            # Unredirected: _Redirects hands it on within the hub, never to a storage host.
            request.add_unredirected_header("Authorization", f"Bearer {self.token}")
        opener = urllib.request.build_opener(_Redirects)
        try:
            return opener.open(request, timeout=timeout_s)
        except urllib.error.HTTPError as error:
            if error.code < 400 and error.headers.get("X-Linked-Size"):
                return error  # the redirection where _Redirects stopped
            raise


class _Redirects(urllib.request.HTTPRedirectHandler):
    """A HEAD stops where the hub itself describes a file that it keeps elsewhere."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        method = req.get_method()
        if method == "HEAD" and headers.get("X-Linked-Size"):
            return None
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None:
            following.method = method
            token = req.unredirected_hdrs.get("Authorization")
            if token and _origin(newurl) == _origin(req.full_url):
                following.add_unredirected_header("Authorization", token)
        return following


def _origin(url: str) -> tuple[str, str]:
    parts = urllib.parse.urlsplit(url)
    return parts.scheme, parts.netloc


def _facts_of(headers: Message, url: str) -> _Facts:
    length = headers.get("X-Linked-Size") or headers.get("Content-Length") or ""
    if not length.isdigit():
        raise SourceError(f"{url} comes without a length")
    etag = (headers.get("X-Linked-ETag") or headers.get("ETag") or "").strip('W/"')
    is_hash = re.fullmatch(r"[0-9a-f]{64}", etag)  # of large files, which all models are
    return _Facts(int(length), etag if is_hash else None, etag)


def _explain(error: Exception, url: str, endpoint: str) -> str:
    if isinstance(error, urllib.error.HTTPError):
        remedy = {
            401: " (no such repository, or one that needs a token: set HF_TOKEN)",
            403: " (accept its terms on its page, and set HF_TOKEN)",
            404: " (no such file)",
        }.get(error.code, "")
        return f"{url} answered {error.code}{remedy}"
    reason = error.reason if isinstance(error, urllib.error.URLError) else error
    return f"{endpoint} is not reachable: {reason}"
