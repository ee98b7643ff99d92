"""Access tokens at the port: who is let in, for what, and for how long."""

from __future__ import annotations

import asyncio
import base64
import json
import logging
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import openai
import pytest

from multispin.api.serving import Protection
from multispin.errors import PeerError
from multispin.net import tokens as tokens_module
from multispin.net.address import parse_address
from multispin.net.device import Request
from multispin.net.drafting import DrafterOptions, connect
from multispin.net.token_file import revoke_token
from multispin.net.tokens import Tokens
from multispin.types import SamplingParams
from tests.api.stage import leave
from tests.identity import NEVER_END, Served, add, served, until

WITHIN_S = 5.0  # what runs with a token that is void ends


class Gate:
    """A file of three tokens, and the clock that they expire by."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "tokens.json"
        self.now = 0.0
        self.phone = add(self.file, "phone", "generate", expires_s=3600)
        self.boss = add(self.file, "boss", "operate")
        self.both = add(self.file, "both", "generate", "operate", max_sessions=1)
        self.old = add(self.file, "old", "generate", "operate", expires_s=-1)

    def play(self, scene: Callable[[Served], Awaitable[None]]) -> None:
        async def main() -> None:
            tokens = Tokens(str(self.file), clock=lambda: tokens_module.time.time() + self.now)
            async with asyncio.timeout(60), served(Protection(tokens=tokens)) as it:
                await scene(it)

        asyncio.run(main())


@pytest.fixture
def gate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Gate:
    monkeypatch.setattr(tokens_module, "LOOK_S", 0.05)
    return Gate(tmp_path)


async def get(address: str, path: str, *headers: bytes, method: str = "GET") -> tuple[int, bytes]:
    """The status and all that is said; headers as they are, so that they may be wrong."""
    host, _, port = address.rpartition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    lines = [f"{method} {path} HTTP/1.1\r\nHost: {address}".encode(), *headers]
    writer.write(b"\r\n".join([*lines, b"Connection: close", b"", b""]))
    answer = await reader.read()
    await leave(writer)
    return int(answer.split()[1]), answer


def bearer(token: str) -> bytes:
    return f"Authorization: Bearer {token}".encode()


# --- who is let in -------------------------------------------------------------------------------

# The status for the scope generate, and for operate; nobody else gets anywhere but to /health.
PATHS = {
    "/v1/models": (200, 403),
    "/v1/models/ngram": (200, 403),
    "/v1/nothing": (404, 403),
    "/openapi.json": (200, 403),
    "/metrics": (403, 200),
    "/api/cell": (403, 200),
    "/nothing": (403, 404),
    "/health/": (403, 307),
    "//v1/models": (403, 404),
}


def test_each_path_asks_for_its_scope(gate: Gate) -> None:
    async def scene(it: Served) -> None:
        for path, (with_generate, with_operate) in PATHS.items():
            for header, status in (
                (bearer(gate.phone), with_generate),
                (bearer(gate.boss), with_operate),
                (bearer(gate.old), 401),
                (b"Accept: */*", 401),
            ):
                assert (path, (await get(it.address, path, header))[0]) == (path, status)
        assert (await get(it.address, "/health"))[0] == 200
        assert it.refused.count("http_401") == 2 * len(PATHS)

    gate.play(scene)


def test_the_dashboard_is_for_who_operates(gate: Gate) -> None:
    async def scene(it: Served) -> None:
        status, answer = await get(it.address, "/")
        assert status == 401 and b'www-authenticate: Bearer realm="multispin"' in answer
        for path in ("/", "/api/events"):
            assert (await get(it.address, path, bearer(gate.phone)))[0] == 403
        assert (await get(it.address, "/", bearer(gate.boss)))[0] == 200

    gate.play(scene)


def test_a_token_is_shown_in_one_header_and_as_it_is(gate: Gate) -> None:
    phone = gate.phone
    wrong: list[tuple[bytes, ...]] = [
        (b"Authorization: " + phone.encode(),),
        (b"Authorization: Bearer",),
        (b"Authorization: Bearer  ",),
        (b"Authorization: Digest " + phone.encode(),),
        (bearer(phone[:-1]),),
        (bearer(phone + "x"),),
        (bearer(phone.upper()),),
        (bearer(f"{phone}, {phone}"),),
        (bearer(phone), bearer(phone)),
        (bearer("no"), bearer(phone)),
        (b"Authorization: Bearer no\r\nX-Authorization: Bearer " + phone.encode(),),
        (b"Authorization: Bearer \xff\xfe\xc3\xa9",),
        ("Authorization: Bearer ｍｓｐ＿".encode(),),
        (bearer("x" * 10_000),),
        (b"Authorization: Basic " + base64.b64encode(b"phone:" + phone.encode()),),
        (b"Cookie: multispin_token=" + phone.encode(),),  # is for looking at things only
        (b"X-Api-Key: " + phone.encode(),),
        (b"Cookie: token=" + phone.encode(),),
        (b"Proxy-Authorization: Bearer " + phone.encode(),),
    ]

    async def scene(it: Served) -> None:
        for headers in wrong:
            status, answer = await get(it.address, "/v1/models", *headers)
            assert (headers, status) == (headers, 401)
            assert b"ngram" not in answer and phone.encode() not in answer
        for line in (b"Authorization: Bearer a\rb", b"Authorization: Bearer\x00 b"):
            assert (await get(it.address, "/v1/models", line))[0] in (400, 401)
        good = (
            b"authorization:bearer " + phone.encode(),
            b"AUTHORIZATION: BEARER " + phone.encode(),
        )
        for header in good:
            assert (await get(it.address, "/v1/models", header))[0] == 200

    gate.play(scene)


def test_a_token_in_a_url_is_refused_even_beside_a_header(gate: Gate) -> None:
    async def scene(it: Served) -> None:
        for query in (f"?token={gate.phone}", f"?access_token={gate.phone}&x=1", f"?{gate.phone}"):
            status, answer = await get(it.address, f"/v1/models{query}", bearer(gate.phone))
            assert status == 401 and b"revoke" in answer

    gate.play(scene)


def test_nothing_of_a_body_is_read_for_who_is_not_let_in(gate: Gate) -> None:
    async def scene(it: Served) -> None:
        length = b"Content-Length: 1000000000"
        status, _ = await get(it.address, "/v1/completions", length, method="POST")
        assert status == 401

    gate.play(scene)


def test_each_request_of_a_connection_shows_its_token(gate: Gate) -> None:
    """Also where one hides in the body of another."""
    hidden = b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n" + bearer(gate.boss) + b"\r\n\r\n"

    async def scene(it: Served) -> None:
        end = b"\r\n\r\nGET /v1/models HTTP/1.1\r\nHost: localhost"
        _, answer = await get(it.address, "/v1/models", bearer(gate.phone) + end)
        assert [line.split()[1] for line in status_lines(answer)] == [b"200", b"401"]
        length = f"Content-Length: {len(hidden)}".encode()
        _, answer = await get(it.address, "/v1/models", length + b"\r\n\r\n" + hidden)
        assert b"multispin_sessions" not in answer
        assert status_lines(answer)[0].split()[1] == b"401"

    gate.play(scene)


def status_lines(answer: bytes) -> list[bytes]:
    return re.findall(rb"HTTP/1.1 \d+", answer)


def test_tokens_are_in_no_log(gate: Gate, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG, logger="multispin")  # as --log-level does
    logging.getLogger("uvicorn.error").setLevel(logging.NOTSET)
    logging.getLogger().setLevel(logging.WARNING)

    async def scene(it: Served) -> None:
        await get(it.address, "/v1/models", bearer(gate.phone))
        await get(it.address, "/metrics", bearer(gate.phone))
        await get(it.address, "/v1/models", bearer(gate.old))
        revoke_token(gate.file, "phone", "--file")
        await asyncio.sleep(0.2)
        await get(it.address, "/v1/models", bearer(gate.phone))
        with pytest.raises(PeerError):
            address = parse_address(it.address, token=gate.phone)
            await connect(address, DrafterOptions("lookup"))

    gate.play(scene)
    events = [record.getMessage() for record in caplog.records]
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert events.count("not_let_in") == 4 and "tokens_read" in events
    for record in caplog.records:
        said = record.getMessage() + str(getattr(record, "fields", ""))
        assert "msp_" not in said
    told = [record.fields for record in caplog.records if record.getMessage() == "not_let_in"]  # type: ignore[attr-defined]
    assert [fields["code"] for fields in told] == ["forbidden", *["unauthorized"] * 3]
    assert {fields["client"] for fields in told} == {"127.0.0.1"}


# --- devices -------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "code"), [("", "unauthorized"), ("boss", "forbidden")])
def test_a_device_without_the_right_token_is_told_why(gate: Gate, name: str, code: str) -> None:
    async def scene(it: Served) -> None:
        address = parse_address(it.address, token=getattr(gate, name) if name else "")
        with pytest.raises(PeerError, match="token") as caught:
            await connect(address, DrafterOptions("lookup"))
        assert caught.value.code == code
        assert not it.server.links

    gate.play(scene)


def endless(**fields: Any) -> Request:
    params = SamplingParams(logit_bias={int(k): v for k, v in NEVER_END.items()})
    return Request("x", params, "greedy", 1, 50_000, 4, [], **fields)


def void_by_revoking(gate: Gate) -> None:
    revoke_token(gate.file, "phone", "--file")


def void_by_time(gate: Gate) -> None:
    gate.now = 7200


def void_by_change(gate: Gate) -> None:
    document = json.loads(gate.file.read_text())
    document["tokens"][0]["max_sessions"] = 3
    gate.file.write_text(json.dumps(document))


VOID = [void_by_revoking, void_by_time]


@pytest.mark.parametrize("void", VOID)
def test_a_link_ends_with_its_token_and_others_go_on(
    gate: Gate, void: Callable[[Gate], None]
) -> None:
    async def scene(it: Served) -> None:
        phone = await connect(parse_address(it.address, token=gate.phone), DrafterOptions("lookup"))
        other = await connect(parse_address(it.address, token=gate.both), DrafterOptions("lookup"))
        num_tokens = 0
        with pytest.raises(PeerError) as caught:
            async with asyncio.timeout(30), phone.write(endless()) as writing:
                async for committed in writing:
                    num_tokens += len(committed.ids)
                    if num_tokens > 20:
                        void(gate)
                        num_tokens = -(10**9)
        assert caught.value.code == "unauthorized"
        await until(lambda: len(it.server.links) == 1, WITHIN_S)
        async with other.write(endless()._replace(max_tokens=8)) as writing:
            assert [c async for c in writing][-1].finish == "length"
        await phone.close()
        await other.close()

    gate.play(scene)


def test_a_link_whose_token_was_changed_is_back_with_what_it_may_now(gate: Gate) -> None:
    async def scene(it: Served) -> None:
        phone = await connect(parse_address(it.address, token=gate.phone), DrafterOptions("lookup"))
        [before] = it.server.links
        void_by_change(gate)
        await until(lambda: [*it.server.links] not in ([before], []), WITHIN_S)
        [now] = it.server.links
        assert now.tenant.limits.max_sessions == 3
        await phone.close()

    gate.play(scene)


def test_a_text_survives_a_change_of_its_token(gate: Gate, tmp_path: Path) -> None:
    """The tenant is the name: with a new token of the same name a device goes on where it was."""
    file = tmp_path / "token"
    request = endless()._replace(max_tokens=400)

    async def written(it: Served, when: int, change: Callable[[], None]) -> list[int]:
        device = await connect(
            parse_address(it.address, token_file=str(file)), DrafterOptions("lookup")
        )
        ids: list[int] = []
        async with device.write(request) as writing:
            async for committed in writing:
                if len(ids) < when <= len(ids) + len(committed.ids):
                    change()
                    await until(lambda old=[*it.server.links]: not {*old} & {*it.server.links})
                ids += committed.ids
        await device.close()
        return ids

    def change() -> None:
        revoke_token(gate.file, "phone", "--file")
        file.write_text(add(gate.file, "phone"))

    async def scene(it: Served) -> None:
        file.touch(0o600)
        file.write_text(gate.phone)
        expected = await written(it, 1000, change)
        assert await written(it, 40, change) == expected
        assert len(expected) == 400

    gate.play(scene)


# --- applications --------------------------------------------------------------------------------


def asked(address: str, token: str, **fields: Any) -> Any:
    with openai.OpenAI(base_url=f"http://{address}/v1", api_key=token, max_retries=0) as client:
        wanted = {"model": "ngram", "prompt": "x", "max_tokens": 50_000, **fields}
        answer = client.completions.create(logit_bias=NEVER_END, **wanted)
        return list(answer) if fields.get("stream") else answer


def test_openais_client_shows_its_key(gate: Gate) -> None:
    async def scene(it: Served) -> None:
        answer = await asyncio.to_thread(asked, it.address, gate.phone, max_tokens=5)
        assert answer.usage.completion_tokens == 5
        with pytest.raises(openai.AuthenticationError, match="not known"):
            await asyncio.to_thread(asked, it.address, "sk-none")
        with pytest.raises(openai.PermissionDeniedError, match="generate"):
            await asyncio.to_thread(asked, it.address, gate.boss)

    gate.play(scene)


@pytest.mark.parametrize("void", VOID)
@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_ends_with_its_token(
    gate: Gate, void: Callable[[Gate], None], stream: bool
) -> None:
    async def scene(it: Served) -> None:
        asking = asyncio.create_task(
            asyncio.to_thread(asked, it.address, gate.phone, stream=stream)
        )
        await until(lambda: it.server.core.counters.num_committed_tokens > 10)
        void(gate)
        async with asyncio.timeout(WITHIN_S):
            with pytest.raises(openai.APIError, match="no longer valid") as caught:
                await asking
        assert caught.value.code == "unauthorized"
        await until(lambda: it.server.core.num_sessions == 0)

    gate.play(scene)


def test_the_dashboards_events_end_with_its_token(gate: Gate) -> None:
    async def scene(it: Served) -> None:
        watching = asyncio.create_task(get(it.address, "/api/events", bearer(gate.boss)))
        await asyncio.sleep(0.3)
        assert not watching.done()
        revoke_token(gate.file, "boss", "--file")
        async with asyncio.timeout(WITHIN_S):
            status, answer = await watching
        assert status == 200
        assert not answer.endswith(b"0\r\n\r\n")  # cut off, not complete

    gate.play(scene)


def test_what_a_token_may_have_is_what_its_holder_gets(gate: Gate) -> None:
    async def scene(it: Served) -> None:
        it.engine.steps.clear()
        first = asyncio.create_task(asyncio.to_thread(asked, it.address, gate.both, max_tokens=5))
        await until(lambda: it.server.core.num_sessions == 1)
        with pytest.raises(openai.RateLimitError) as caught:
            await asyncio.to_thread(asked, it.address, gate.both)
        assert caught.value.code == "rate_limited"
        assert int(caught.value.response.headers["retry-after"]) >= 1
        it.engine.steps.set()
        assert (await first).usage.completion_tokens == 5

    gate.play(scene)


# --- the file, while it is in use ----------------------------------------------------------------


@pytest.mark.parametrize("harm", ["broken", "gone", "open"])
def test_a_file_that_cannot_be_read_leaves_what_was_known(
    gate: Gate, harm: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def scene(it: Served) -> None:
        if harm == "broken":
            gate.file.write_text('{"tokens": [')
        elif harm == "gone":
            gate.file.unlink()
        else:
            gate.file.chmod(0o666)
        await asyncio.sleep(0.2)
        assert (await get(it.address, "/v1/models", bearer(gate.phone)))[0] == 200
        gate.now = 7200  # expiry is looked at all the same
        assert (await get(it.address, "/v1/models", bearer(gate.phone)))[0] == 401

    gate.play(scene)
    assert sum("tokens_kept" in record.getMessage() for record in caplog.records) == 1


def test_a_new_token_is_let_in_without_a_restart(gate: Gate) -> None:
    async def scene(it: Served) -> None:
        token = add(gate.file, "new")
        await asyncio.sleep(0.2)
        assert (await get(it.address, "/v1/models", bearer(token)))[0] == 200

    gate.play(scene)
