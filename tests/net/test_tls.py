"""TLS on the one port, over real sockets: who trusts whom, and what is said when nobody does."""

from __future__ import annotations

import asyncio
import json
import logging
import shutil
import socket
import ssl
from collections.abc import Awaitable, Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import openai
import pytest

import multispin
from multispin.api import connection, serving
from multispin.api.serving import Protection
from multispin.cli.endpoint import HttpEndpoint
from multispin.errors import BadInput
from multispin.net.address import Address, parse_address
from multispin.net.authority import Authority
from multispin.net.device import Request
from multispin.net.drafting import DrafterOptions, connect
from multispin.net.tls import check_private, client_context, server_context
from multispin.net.tokens import Tokens
from multispin.types import SamplingParams
from tests.api.stage import ask, leave
from tests.identity import Certs, Served, add, make_certs, served, until

REQUEST = Request("The phone ", SamplingParams(temperature=0.8), "coupled", 7, 24, 4, [])


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    return make_certs(tmp_path_factory.mktemp("ca"))


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    """Of a CA that nobody knows."""
    return make_certs(tmp_path_factory.mktemp("other"))


def play(
    scene: Callable[[Served], Awaitable[None]], certs: Certs, *, client_ca: str | None = None
) -> None:
    async def main() -> None:
        context = server_context(certs("server.pem"), certs("server.key"), client_ca)
        async with asyncio.timeout(60), served(Protection(tls=context)) as it:
            await scene(it)

    asyncio.run(main())


async def text_from(address: Address | str) -> list[int]:
    device = await connect(address, DrafterOptions("lookup"))
    try:
        async with device.write(REQUEST) as writing:
            return [token async for committed in writing for token in committed.ids]
    finally:
        await device.close()


def refusal(address: Address) -> str:
    """What a device is told, and what the commands are that ask over HTTP: the same."""

    async def told() -> str:
        with pytest.raises(BadInput) as caught:
            await connect(address, DrafterOptions("none"))
        assert caught.value.code == "unreachable"
        return str(caught.value)

    with pytest.raises(BadInput) as caught:
        HttpEndpoint(address, "--server", "").get("/health")
    said = asyncio.run(told())
    assert _reason(said) == _reason(str(caught.value))
    return said


def _reason(said: str) -> str:
    return said.partition("(")[2].rpartition(")")[0]


# --- those who are let in ------------------------------------------------------------------------


def test_a_device_writes_the_same_over_tls(certs: Certs) -> None:
    async def scene(it: Served) -> None:
        assert it.address.startswith("https://")
        async with served(Protection()) as plain:
            expected = await text_from(plain.address)
        assert len(expected) == 24
        assert await text_from(parse_address(it.address, ca=certs("ca.pem"))) == expected
        bare = it.address.removeprefix("https://")  # a CA means TLS
        assert await text_from(parse_address(bare, ca=certs("ca.pem"))) == expected

    play(scene, certs)


@pytest.mark.parametrize("over_tls", [False, True])
def test_a_small_message_does_not_wait_for_the_last_one_to_be_read(
    certs: Certs, over_tls: bool
) -> None:
    """Nagle's algorithm and delayed acknowledgements would add 40 ms to each connection."""

    async def main() -> None:
        context = server_context(certs("server.pem"), certs("server.key")) if over_tls else None
        async with served(Protection(tls=context)) as it:
            ca = certs("ca.pem") if over_tls else None
            device = await connect(parse_address(it.address, ca=ca), DrafterOptions("none"))
            [link] = it.server.links
            transport: Any = link._transport
            accepted = transport.transport.get_extra_info("socket")
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
            await device.close()

    asyncio.run(main())


def test_openais_client_asks_over_https(certs: Certs) -> None:
    def asked(address: str) -> Any:
        http = openai.DefaultHttpxClient(verify=client_context(certs("ca.pem")))
        with openai.OpenAI(base_url=f"{address}/v1", api_key="none", http_client=http) as client:
            chunks = client.completions.create(model="ngram", prompt="x", max_tokens=9, stream=True)
            return [choice.finish_reason for chunk in chunks for choice in chunk.choices]

    async def scene(it: Served) -> None:
        assert (await asyncio.to_thread(asked, it.address))[-1] == "length"

    play(scene, certs)


@pytest.mark.parametrize("name", ["phone", "server"])
def test_with_a_certificate_of_the_ca_a_device_is_let_in(certs: Certs, name: str) -> None:
    """And so is a directory, which shows that of a server."""

    async def scene(it: Served) -> None:
        own = parse_address(
            it.address, ca=certs("ca.pem"), cert=certs(f"{name}.pem"), key=certs(f"{name}.key")
        )
        assert len(await text_from(own)) == 24
        endpoint = HttpEndpoint(own, "--server", "")
        assert b"ngram" in await asyncio.to_thread(endpoint.get, "/v1/models")

    play(scene, certs, client_ca=certs("ca.pem"))


def test_the_python_client_shows_its_certificate_and_its_token(
    certs: Certs, tmp_path: Path
) -> None:
    file = tmp_path / "tokens.json"
    token = add(file, "phone")
    own = {"ca": certs("ca.pem"), "cert": certs("phone.pem"), "key": certs("phone.key")}

    def complete(address: str, **credentials: Any) -> str:
        with multispin.Client(address, **credentials) as client:
            return client.complete("The phone ", max_tokens=8, seed=1).text

    async def main() -> None:
        context = server_context(certs("server.pem"), certs("server.key"), certs("ca.pem"))
        async with served(Protection(tls=context, tokens=Tokens(str(file)))) as it:
            assert await asyncio.to_thread(complete, it.address, token=token, **own)
            with pytest.raises(multispin.PeerError, match="token") as caught:
                await asyncio.to_thread(complete, it.address, **own)
            assert caught.value.code == "unauthorized"
            with pytest.raises(multispin.BadInput, match="certificate") as wrong:
                await asyncio.to_thread(complete, it.address, token=token, ca=own["ca"])
            assert wrong.value.field == "server"
            with pytest.raises(multispin.BadInput) as missing:
                await asyncio.to_thread(complete, it.address, token_file="none", **own)
            assert missing.value.field == "token_file"

    asyncio.run(main())


# --- those who are not ---------------------------------------------------------------------------


@pytest.mark.parametrize("own", ["none", "other", "expired"])
def test_without_a_device_certificate_of_the_ca_nobody_is_let_in(
    certs: Certs, others: Certs, own: str
) -> None:
    Authority.at(certs.folder).make_device("expired", days=-0.01)
    cert, key = {
        "none": (None, None),
        "expired": (certs("expired.pem"), certs("expired.key")),
        "other": (others("phone.pem"), others("phone.key")),
    }[own]

    async def scene(it: Served) -> None:
        address = parse_address(it.address, ca=certs("ca.pem"), cert=cert, key=key)
        reason = await asyncio.to_thread(refusal, address)
        assert "asks for a certificate (--cert and --key)" in reason
        assert not it.server.links

    play(scene, certs, client_ca=certs("ca.pem"))


def test_a_server_of_another_ca_is_not_trusted(certs: Certs, others: Certs) -> None:
    async def scene(it: Served) -> None:
        for ca in (others("ca.pem"), None):  # another's, and the system's
            address = parse_address(it.address, ca=ca)
            assert "not trusted" in await asyncio.to_thread(refusal, address)

    play(scene, certs)


def test_an_expired_certificate_is_not_trusted(tmp_path: Path) -> None:
    certs = make_certs(tmp_path)
    Authority.at(tmp_path).make_server(["127.0.0.1"], days=-0.01)

    async def scene(it: Served) -> None:
        address = parse_address(it.address, ca=certs("ca.pem"))
        assert "certificate has expired" in await asyncio.to_thread(refusal, address)

    play(scene, certs)


def test_a_certificate_for_another_name_is_not_trusted(tmp_path: Path) -> None:
    certs = make_certs(tmp_path, ("edge.test", "192.0.2.7"))

    async def scene(it: Served) -> None:
        port = it.address.rpartition(":")[2]
        for host in ("127.0.0.1", "localhost"):
            address = parse_address(f"https://{host}:{port}", ca=certs("ca.pem"))
            assert "not trusted" in await asyncio.to_thread(refusal, address)

    play(scene, certs)


def test_a_device_cannot_pass_itself_off_as_the_server(certs: Certs, tmp_path: Path) -> None:
    for name in ("ca.pem", "phone.pem", "phone.key"):
        shutil.copy(certs(name), tmp_path / name.replace("phone", "server"))
    authority = Authority.at(certs.folder)
    authority.make_device("localhost", 10)  # and were its name the server's
    for end in ("pem", "key"):
        shutil.copy(certs(f"localhost.{end}"), tmp_path / f"server.{end}")

    async def scene(it: Served) -> None:
        port = it.address.rpartition(":")[2]
        address = parse_address(f"https://localhost:{port}", ca=certs("ca.pem"))
        assert "not trusted" in await asyncio.to_thread(refusal, address)

    play(scene, Certs(tmp_path))


def test_who_speaks_no_tls_gets_nothing_and_is_told_what_to_write(certs: Certs) -> None:
    async def scene(it: Served) -> None:
        bare = it.address.removeprefix("https://")
        reader, writer = await ask(bare)
        with suppress(ConnectionError):
            assert await reader.read() == b""
        await leave(writer)
        assert "https://…" in await asyncio.to_thread(refusal, parse_address(bare))
        async with served(Protection()) as plain:
            address = parse_address(f"https://{plain.address}", ca=certs("ca.pem"))
            assert "http://… says so" in await asyncio.to_thread(refusal, address)

    play(scene, certs)


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_1, ssl.TLSVersion.TLSv1_2])
@pytest.mark.filterwarnings("ignore:.*TLSv1_1:DeprecationWarning")
def test_tls_is_1_2_at_least(certs: Certs, version: ssl.TLSVersion) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.load_verify_locations(certs("ca.pem"))
    context.minimum_version = ssl.TLSVersion.TLSv1_1
    context.maximum_version = version
    context.set_ciphers("ALL:@SECLEVEL=0")

    async def scene(it: Served) -> None:
        port = int(it.address.rpartition(":")[2])
        if version == ssl.TLSVersion.TLSv1_1:
            with pytest.raises((ssl.SSLError, ConnectionError)):
                await asyncio.open_connection("127.0.0.1", port, ssl=context)
            return
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        name = writer.get_extra_info("cipher")[0]
        assert name.startswith("ECDHE") and ("GCM" in name or "CHACHA20" in name)
        writer.close()
        context.set_ciphers("ECDHE-ECDSA-AES128-SHA256:ECDHE-ECDSA-AES256-SHA:@SECLEVEL=0")
        with pytest.raises((ssl.SSLError, ConnectionError)):
            await asyncio.open_connection("127.0.0.1", port, ssl=context)

    play(scene, certs)


def test_a_client_that_may_choose_gets_1_3(certs: Certs) -> None:
    async def scene(it: Served) -> None:
        port = int(it.address.rpartition(":")[2])
        context = client_context(certs("ca.pem"))
        _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context)
        assert writer.get_extra_info("ssl_object").version() == "TLSv1.3"
        writer.close()

    play(scene, certs)


# --- half a handshake ----------------------------------------------------------------------------

HELLO = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # begins one; 501 bytes are to come


@pytest.mark.parametrize("begun", [b"", b"\x16", HELLO, b"GET / HTTP/1.1\r\n\r\n", b"\x80" * 64])
def test_half_a_handshake_is_given_up_and_holds_up_nobody(
    certs: Certs, begun: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "HEAD_S", 0.5)
    monkeypatch.setattr(connection, "HEAD_S", 0.5)

    async def scene(it: Served) -> None:
        port = int(it.address.rpartition(":")[2])
        silent = [await asyncio.open_connection("127.0.0.1", port) for _ in range(20)]
        for _, writer in silent:
            writer.write(begun)
        address = parse_address(it.address, ca=certs("ca.pem"))
        assert len(await text_from(address)) == 24
        for reader, writer in silent:
            async with asyncio.timeout(5):
                with suppress(ConnectionError):
                    await reader.read()
            await leave(writer)
        await until(lambda: it.refused.count("bad_handshake") == 20)

    play(scene, certs)


# --- files and addresses -------------------------------------------------------------------------


def test_files_that_are_none_are_named(certs: Certs, others: Certs, tmp_path: Path) -> None:
    junk = tmp_path / "junk"
    junk.write_text("junk")
    junk.chmod(0o600)
    pem, key, ca = certs("server.pem"), certs("server.key"), certs("ca.pem")
    for make, field in (
        (lambda: server_context(str(junk), key), "--cert"),
        (lambda: server_context(pem, str(junk)), "--cert"),
        (lambda: server_context(pem, others("server.key")), "--cert"),
        (lambda: server_context("none", key), "--cert"),
        (lambda: server_context(pem, "none"), "--key"),
        (lambda: server_context(pem, key, str(junk)), "--client-ca"),
        (lambda: server_context(pem, key, "none"), "--client-ca"),
        (lambda: client_context(str(junk)), "--ca"),
        (lambda: client_context("none"), "--ca"),
        (lambda: client_context(str(tmp_path)), "--ca"),
        (lambda: client_context(ca, pem), "--cert"),
        (lambda: client_context(ca, None, key), "--key"),
    ):
        with pytest.raises(BadInput) as caught:
            make()  # type: ignore[no-untyped-call]
        assert caught.value.field == field


def test_secrets_are_readable_by_their_owner_and_group_at_most(tmp_path: Path) -> None:
    file = tmp_path / "secret"
    file.write_text("x")
    for mode in range(0o400, 0o1000):
        file.chmod(mode)
        is_open = bool(mode & 0o007) or bool(mode & 0o020)
        try:
            check_private(file, "--key")
            assert not is_open, oct(mode)
        except BadInput as error:
            assert is_open and "chmod 600" in str(error), oct(mode)


PLAIN, TLS = None, ssl.SSLContext
ADDRESSES = {
    "127.0.0.1:8600": ("127.0.0.1", 8600, PLAIN),
    "localhost:1": ("localhost", 1, PLAIN),
    "[::1]:8600": ("::1", 8600, PLAIN),
    "127.8.9.10:65535": ("127.8.9.10", 65535, PLAIN),
    "http://192.0.2.7:8600": ("192.0.2.7", 8600, PLAIN),
    "http://edge:8600/": ("edge", 8600, PLAIN),
    "https://127.0.0.1:8600": ("127.0.0.1", 8600, TLS),
    "192.0.2.7:8600": ("192.0.2.7", 8600, TLS),
    "Edge.Test:8600": ("edge.test", 8600, TLS),
    "evil.localhost:8600": ("evil.localhost", 8600, TLS),
    "[2001:db8::1]:8600": ("2001:db8::1", 8600, TLS),
    "https://[::1]:8600": ("::1", 8600, TLS),
}
NO_ADDRESSES = (
    *("", ":", ":::", "nonsense", "nonsense:port", ":8600", "a:0", "a:65536", "a:-1", "a:1:2"),
    *("ftp://a:1", "wss://a:1", "https://a", "https://a:1/v1", "https://a:1?x", "a:1#x", "a:1/v1"),
    *(
        "u:p@a:1",
        "https://u:p@a:1",
        "a b:1",
        "a:1\r\nX: y",
        "a\\b:1",
        "[::1:8600",
        "a%00:1",
        "é..:1",
    ),
)


@pytest.mark.parametrize("given", ADDRESSES)
def test_an_address_says_where_and_whether_over_tls(given: str) -> None:
    host, port, tls = ADDRESSES[given]
    address = parse_address(given)
    assert (address.host, address.port, str(address)) == (host, port, given)
    assert (address.tls is None) == (tls is None)
    assert address.authority == (f"[{host}]:{port}" if ":" in host else f"{host}:{port}")


@pytest.mark.parametrize("given", NO_ADDRESSES)
def test_what_is_no_address_is_named(given: str) -> None:
    with pytest.raises(BadInput, match="must be HOST:PORT") as caught:
        parse_address(given, "--device")
    assert caught.value.field == "--device"
    assert "u:p" not in str(caught.value)


def test_a_token_leaves_this_machine_over_tls_only(certs: Certs, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("msp_0123\n")
    file.chmod(0o600)
    for given in ADDRESSES:
        for shown in ({"token": "msp_0123"}, {"token_file": str(file)}):
            if given.startswith("http://"):
                with pytest.raises(BadInput, match="in the clear"):
                    parse_address(given, **shown)
                continue
            address = parse_address(given, **shown)
            assert address.headers == {"Authorization": "Bearer msp_0123"}
            assert "0123" not in repr(address)
    with pytest.raises(BadInput, match="says that there is none"):
        parse_address("http://127.0.0.1:1", ca=certs("ca.pem"))
    assert parse_address("127.0.0.1:1").headers == {}


@pytest.mark.parametrize(
    "token", ["a b", "a\r\nX: y", "a\n", "é", "a,b", "a:b", "x" * 513, "=", "\x00", "msp_Ｘ"]
)
def test_what_is_no_token_is_not_sent(tmp_path: Path, token: str) -> None:
    file = tmp_path / "token"
    file.write_text(f" {token} x", encoding="utf-8")
    file.chmod(0o600)
    for shown in ({"token": token}, {"token_file": str(file)}):
        with pytest.raises(BadInput) as caught:
            parse_address("127.0.0.1:1", **shown)
        assert "(not shown)" in str(caught.value) or "no token" in str(caught.value)
        assert len(token) < 3 or token not in str(caught.value)


def test_a_token_file_is_read_anew_for_each_connection(tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("first")
    file.chmod(0o600)
    address = parse_address("127.0.0.1:1", token_file=str(file))
    file.write_text("second")
    assert address.headers == {"Authorization": "Bearer second"}
    file.chmod(0o604)
    with pytest.raises(BadInput, match="open to others"):
        address.headers  # noqa: B018


def test_a_program_that_logs_everything_logs_no_token(
    certs: Certs, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)

    async def scene(it: Served) -> None:
        address = parse_address(it.address, ca=certs("ca.pem"), token="msp_0123")
        assert len(await text_from(address)) == 24

    play(scene, certs)
    ours = [one for one in caplog.records if not one.name.startswith("uvicorn")]  # the server's
    assert ours and not any("0123" in one.getMessage() for one in ours)


def test_redirects_are_not_followed(tmp_path: Path) -> None:
    """Whoever answers could send a device, and its token, elsewhere."""
    asked = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(json.dumps((await reader.readuntil(b"\r\n\r\n")).decode()))
        writer.write(b"HTTP/1.1 302 Found\r\nLocation: /v1/other\r\nContent-Length: 0\r\n\r\n")
        await leave(writer)

    async def main() -> None:
        listening = socket.create_server(("127.0.0.1", 0))
        with closing(listening):
            async with await asyncio.start_server(answer, sock=listening):
                address = parse_address(f"127.0.0.1:{listening.getsockname()[1]}", token="msp_x")
                with pytest.raises(BadInput, match="302"):
                    await connect(address, DrafterOptions("none"))

    asyncio.run(main())
    assert len(asked) == 1
