"""The client's side of our HTTP endpoints, for the commands that talk to one."""

from __future__ import annotations

import contextlib
import http.client
import json
from collections.abc import Generator, Iterator
from typing import Any

from multispin.errors import CURABLE_CODES, BadInput, PeerError
from multispin.net.address import Address, reason_of

TIMEOUT_S = 10.0  # to connect, and for answers that nobody has to write
DATA = b"data: "
OUR_CODES = {"context_length_exceeded": "context_overflow"}


class HttpEndpoint:
    """``option`` is the one that the address was given by."""

    def __init__(self, address: Address, option: str, remedy: str) -> None:
        self._address = address
        self._option = option
        self._remedy = remedy

    def get(self, path: str) -> bytes:
        """The body. Raise BadInput if nobody answers, PeerError if it is no success."""
        with self._asked("GET", path) as response:
            return response.read()

    def events(self, path: str, body: dict[str, Any]) -> Generator[dict[str, Any]]:
        """Server-sent events, as they come; leaving early closes the connection.

        Raise BadInput if nobody answers, PeerError for an error in place of the answer or in it.
        """
        with self._asked("POST", path, json.dumps(body)) as response:
            while line := response.readline():
                if not line.startswith(DATA):
                    continue
                data = line[len(DATA) :].strip()
                if data == b"[DONE]":
                    return
                event = json.loads(data)
                if "error" in event:
                    raise _refusal(data, "")
                yield event
        raise PeerError(f"{self._address} ended the answer too early", code="unreachable")

    @contextlib.contextmanager
    def _asked(
        self, method: str, path: str, body: str | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = self._connection()
        headers = {"Content-Type": "application/json", **self._address.headers}
        try:
            connection.connect()
            if body is not None:  # a text takes as long as it takes
                connection.sock.settimeout(None)
            connection.request(method, path, body, headers)
            response = connection.getresponse()
            if response.status != 200:
                raise _refusal(response.read(), f"{response.status} {response.reason}")
            yield response
        except (OSError, http.client.HTTPException) as error:
            reason = reason_of(error, over_tls=self._address.tls is not None)
            raise self._nobody(reason) from None
        finally:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        host, port, tls = self._address.host, self._address.port, self._address.tls
        if tls is None:
            return http.client.HTTPConnection(host, port, timeout=TIMEOUT_S)
        return http.client.HTTPSConnection(host, port, timeout=TIMEOUT_S, context=tls)

    def _nobody(self, reason: str) -> BadInput:
        return BadInput(
            self._option,
            self._address,
            f"nobody answers there ({reason}): {self._remedy}",
            code="unreachable",
        )


def _refusal(body: bytes, status: str) -> PeerError:
    """OpenAI's shape, or a status in a word or two."""
    try:
        told = json.loads(body)
        if "error" not in told:
            return PeerError(f"{status}: {told['status']}")
        error = told["error"]
        code = OUR_CODES.get(error["code"], error["code"])
        if error["type"] == "invalid_request_error" and code not in CURABLE_CODES:
            code = BadInput.default_code
        return PeerError(str(error["message"]), code=code)
    except (ValueError, TypeError, KeyError):
        return PeerError(f"{status}: this is no multispin endpoint")
