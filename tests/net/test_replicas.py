"""Devices, directories and replicas on real sockets: what is refused, killed, and started again."""

from __future__ import annotations

import asyncio
import contextlib
import json
import signal
import ssl
import subprocess
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import websockets.asyncio.server
import websockets.exceptions

from multispin.api.app import ServerState, create_app
from multispin.api.serving import Protection
from multispin.api.texts import DeviceTexts
from multispin.cell.replica_list import (
    ListedReplica,
    ListedTarget,
    ReplicaList,
    write_replica_list,
)
from multispin.errors import BadInput, MultispinError, PeerError
from multispin.net.address import Address, elsewhere, parse_address
from multispin.net.device import Device
from multispin.net.drafting import DrafterOptions, connect
from multispin.net.tls import server_context
from multispin.net.tokens import Tokens
from multispin.wire import frames
from multispin.wire.frames import Error, Find, Hello, Redirect, Welcome, Wish
from tests import identity
from tests.api import directory_stage, stage
from tests.cli.test_commands import MULTISPIN, run, serving
from tests.core.harness import PROMPT
from tests.identity import Certs, add, make_certs
from tests.net.replicas import Known
from tests.net.test_server import wanted
from tests.net.test_writing import joined, play, told, undisturbed, until

WELCOME = Welcome(1, "x", "p", 300, [256], 512, 32, True, "window", is_directory=True)


@pytest.fixture(scope="module")
def certs(tmp_path_factory: pytest.TempPathFactory) -> Certs:
    return make_certs(tmp_path_factory.mktemp("ca"))


class Directing:
    """A directory that names whomever it likes."""

    def __init__(self, *servers: str) -> None:
        self.known = Known(*servers)
        self.hellos: list[tuple[Hello, str]] = []  # and the token that came with it
        self.address = ""

    @contextlib.asynccontextmanager
    async def listening(self, tls: ssl.SSLContext | None = None) -> AsyncIterator[None]:
        server = await websockets.asyncio.server.serve(self._serve, "127.0.0.1", 0, ssl=tls)
        host, port = next(iter(server.sockets)).getsockname()[:2]
        self.address = f"{'https://' if tls else ''}{host}:{port}"
        try:
            yield
        finally:
            server.close()
            await server.wait_closed()

    async def _serve(self, link: websockets.asyncio.server.ServerConnection) -> None:
        assert link.request is not None
        with contextlib.suppress(websockets.exceptions.ConnectionClosed):
            async for data in link:
                assert isinstance(data, bytes)
                match frames.decode_from_device(data):
                    case Hello() as hello:
                        token = link.request.headers.get("Authorization", "")
                        self.hellos.append((hello, token))
                        await link.send(frames.encode(WELCOME))
                    case Find() as find:
                        await link.send(frames.encode(await self._find(find)))

    async def _find(self, find: Find) -> Redirect | Error:
        try:
            found = await self.known.find(find)
        except PeerError as error:
            return Error.of(find.session, error)
        return Redirect(find.session, found.server)


@contextlib.asynccontextmanager
async def device_at(
    address: Address | str, draft: str = "none", **wish: object
) -> AsyncIterator[Device]:
    device = await connect(address, DrafterOptions(draft), wish=Wish(**wish))  # type: ignore[arg-type]
    try:
        yield device
    finally:
        await device.close()


# --- the way to a replica ------------------------------------------------------------------------


@pytest.mark.parametrize("draft", ["none", "lookup", "ngram"])
def test_by_way_of_a_directory_it_is_the_same_text(tmp_path: Path, draft: str) -> None:
    async def scene(place: directory_stage.Stage) -> None:
        async with device_at(place.address, draft, target="chat") as device:
            assert joined(await told(device, wanted(wish=Wish("chat")))) == undisturbed()
            assert joined(await told(device, wanted(wish=Wish("ngram")))) == undisturbed()
            assert device.line.welcome.is_directory and not device.router.welcome.is_directory
            texts = DeviceTexts(device, draft, num_places=1, draft_length=4, wish=Wish("chat"))
            assert (texts.target, texts.context_length, texts.is_up) == ("chat", 1024, True)
            async with texts.write(wanted(wish=Wish(max_s_per_token=10.0))) as writing:
                assert writing.target == "ngram"
            with pytest.raises(PeerError) as caught:
                await told(device, wanted(wish=Wish("nobody")))
            assert caught.value.code == "unknown_target"
            with pytest.raises(PeerError) as caught:
                await told(device, wanted(wish=Wish(min_quality=7)))
            assert caught.value.code == "infeasible"
        with pytest.raises(PeerError) as caught:
            await connect(place.address, DrafterOptions(draft), wish=Wish("nobody"))
        assert caught.value.code == "unknown_target"

    directory_stage.play(scene, tmp_path)


def test_while_replicas_load_it_says_so(tmp_path: Path) -> None:
    async def scene() -> None:
        async with stage.served(create_app(ServerState()), asyncio.Event().wait()) as loading:
            there = Directing(loading)
            async with there.listening():
                with pytest.raises(PeerError, match="loading its model") as caught:
                    await connect(there.address, DrafterOptions("ngram"))
                assert caught.value.code == "loading"
                there.known.servers = []
                there.known.refusal = PeerError("none serves yet", code="loading")
                with pytest.raises(PeerError, match="none serves yet"):
                    await connect(there.address, DrafterOptions("lookup"))

    play(scene())


def test_a_hello_names_the_radio_site_to_the_directory_and_to_the_replica() -> None:
    async def scene() -> None:
        async with identity.served(Protection()) as it:
            there = Directing(it.address)
            async with there.listening():
                options = DrafterOptions("none", cell="north")
                device = await connect(there.address, options)
                assert [hello.cell for hello, _ in there.hellos] == ["north"]
                assert set(it.server.core.controller._cells) == {"", "north"}
                await device.close()

    play(scene())


def test_an_ngram_drafter_stays_with_the_vocabulary_that_it_learned() -> None:
    async def scene() -> None:
        async with identity.served(Protection()) as it:
            there = Directing(it.address)
            async with there.listening(), device_at(there.address, "ngram") as device:
                await device.line._link.close()
                await until(lambda: len(there.hellos) == 2)
                own = device.router.welcome.fingerprint
                assert [hello.fingerprint for hello, _ in there.hellos] == [None, own]

    play(scene())


def test_a_server_that_is_alone_has_no_other_target() -> None:
    async def scene() -> None:
        async with identity.served(Protection()) as it:
            for name, value in (("target", "chat"), ("min_quality", 2)):
                option = f"--{name.replace('_', '-')}"
                with pytest.raises(BadInput, match=f"{option} = {value}"):
                    async with device_at(it.address, **{name: value}):
                        pass
            async with device_at(it.address, target="ngram"):
                pass

    play(scene())


# --- who may be gone to --------------------------------------------------------------------------


def test_where_the_directory_has_tls_a_replica_has_it_too_and_the_same_ca(
    certs: Certs, tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    strange = make_certs(tmp_path_factory.mktemp("other"))

    def tls(certs: Certs) -> ssl.SSLContext:
        return server_context(certs("server.pem"), certs("server.key"))

    async def scene() -> None:
        tokens = tmp_path / "tokens.json"
        token = add(tokens, "shop")
        right = Protection(tls(certs), Tokens(str(tokens)))
        async with (
            identity.served(right) as good,
            identity.served(Protection()) as plain,
            identity.served(Protection(tls(strange))) as unknown,
        ):
            bare = good.address.removeprefix("https://")
            bad = [f"http://{plain.address}", plain.address, unknown.address, "[::", "a b:1"]
            there = Directing(*bad, bare)
            async with there.listening(tls(certs)):
                address = parse_address(there.address, ca=certs("ca.pem"), token=token)
                async with device_at(address) as device:
                    assert joined(await told(device, wanted())) == undisturbed()
                    assert there.known.asked[-1].avoid == bad
                    there.known.servers = bad
                    there.known.refusal = PeerError("nobody else", code="overloaded")
                assert there.hellos[0][1] == f"Bearer {token}"
                with pytest.raises(MultispinError) as caught:
                    await connect(address, DrafterOptions("none"))
                assert caught.value.code in ("bad_input", "unreachable")
                assert plain.server.core.counters.num_batches == 0

    play(scene())


def test_another_directory_has_its_own_way_of_speaking(certs: Certs) -> None:
    """The first is plain and gone, and so its replicas would be; this one has TLS."""

    async def scene() -> None:
        protection = Protection(server_context(certs("server.pem"), certs("server.key")))
        async with identity.served(protection) as replica:
            there = Directing(replica.address.removeprefix("https://"))
            async with there.listening(protection.tls):
                gone = parse_address("http://127.0.0.1:9")
                other = parse_address(there.address, ca=certs("ca.pem"))
                device = await connect(gone, DrafterOptions("none"), others=[other])
                assert joined(await told(device, wanted())) == undisturbed()
                await device.close()

    play(scene())


def test_a_token_that_a_replica_does_not_know(tmp_path: Path) -> None:
    async def scene() -> None:
        ours, theirs = tmp_path / "ours.json", tmp_path / "theirs.json"
        token = add(ours, "shop")
        add(theirs, "shop")
        async with (
            identity.served(Protection(tokens=Tokens(str(theirs)))) as closed,
            identity.served(Protection(tokens=Tokens(str(ours)))) as open_to_us,
        ):
            there = Directing(closed.address, open_to_us.address)
            async with (
                there.listening(),
                device_at(parse_address(there.address, token=token)) as device,
            ):
                assert joined(await told(device, wanted())) == undisturbed()
                there.known.servers = [closed.address]
                with pytest.raises(PeerError, match="token") as caught:
                    await told(device, wanted())
                assert caught.value.code == "unauthorized"

    play(scene())


TOKEN = "msp_" + "a" * 32


@pytest.mark.parametrize(
    ("server", "directory", "token", "goes"),
    [
        ("127.0.0.1:8601", "127.0.0.1:8600", TOKEN, "plain"),
        ("10.0.0.2:8601", "127.0.0.1:8600", TOKEN, "tls"),
        ("http://10.0.0.2:8601", "127.0.0.1:8600", TOKEN, "refused"),
        ("http://10.0.0.2:8601", "http://10.0.0.1:8600", "", "plain"),
        ("10.0.0.2:8601", "http://10.0.0.1:8600", "", "tls"),
        ("https://10.0.0.2:8601", "127.0.0.1:8600", TOKEN, "tls"),
        ("http://a.localhost:8601", "127.0.0.1:8600", TOKEN, "refused"),
        ("10.0.0.2:8601", "10.0.0.1:8600", TOKEN, "tls"),
        ("127.0.0.1:8601", "10.0.0.1:8600", TOKEN, "tls"),
        ("http://10.0.0.2:8601", "10.0.0.1:8600", "", "refused"),
        ("http://127.0.0.1:8601", "https://127.0.0.1:8600", TOKEN, "refused"),
        ("", "127.0.0.1:8600", "", "refused"),
        ("user:secret@10.0.0.2:8601", "127.0.0.1:8600", "", "refused"),
    ],
)
def test_a_redirect_never_leads_out_of_tls(
    server: str, directory: str, token: str, goes: str
) -> None:
    first = parse_address(directory, token=token)
    if goes == "refused":
        with pytest.raises(BadInput, match=r"^redirect = "):
            elsewhere(first, server)
        return
    found = elsewhere(first, server)
    assert (found.tls is not None) == (goes == "tls")
    assert first.tls is None or found.tls is first.tls
    assert (found.token, found.given) == (token, server)


# --- processes -----------------------------------------------------------------------------------


@contextlib.contextmanager
def directing(file: Path, port: int = 0) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        [*MULTISPIN, "directory", str(file), "--port", str(port)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_replicas_and_the_directory_are_killed_and_texts_go_on(tmp_path: Path) -> None:
    """As people run them: the directory dies, then a replica, then a directory is back."""
    file = tmp_path / "replicas.json"
    with (
        serving("--reproducible", "--name", "a") as a,
        serving("--reproducible", "--name", "b") as b,
    ):
        replicas = {"a": a, "b": b}
        listed = [ListedReplica(name, "chat", of[1]) for name, of in replicas.items()]
        write_replica_list(file, ReplicaList([ListedTarget("chat")], listed))
        with directing(file) as (directory, address):
            found = wait_for(address, "--target", "chat", "--cell", "north")
            assert (found["token_ids"], found["text"]) == undisturbed()
            assert found["target"] == "ngram"
            refused = run("complete", PROMPT, "--server", address, "--min-quality", "9")
            assert refused.returncode == 2 and "chat" in refused.stderr

            async def scene() -> None:
                async with device_at(address, "lookup") as device:
                    order = wanted(max_tokens=300)
                    expected = joined(await told(device, order))
                    news = []
                    async with device.write(order) as writing:
                        async for committed in writing:
                            news.append(committed)
                            if len(news) == 1:
                                directory.send_signal(signal.SIGKILL)
                                await until(lambda: not device.line.is_up)
                            elif len(news) == 5:
                                links = device.router._links.items()
                                [server] = [at for at, link in links if link.num_channels]
                                [name] = [n for n, of in replicas.items() if of[1] == server]
                                replicas[name][0].send_signal(signal.SIGKILL)
                                directory.communicate()
                                again.enter_context(directing(file, int(address.split(":")[1])))
                    assert joined(news) == expected
                    assert server not in device.router._links

            with contextlib.ExitStack() as again:
                play(scene())


def wait_for(address: str, *arguments: str) -> dict:
    """A text, as soon as the directory has found its replicas."""
    options = ("--temperature", "0.8", "--seed", "7", "--max-tokens", "48", *arguments)
    for _ in range(5):
        done = run("complete", PROMPT, "--server", address, "--json", *options)
        if done.returncode == 0:
            return json.loads(done.stdout)  # type: ignore[no-any-return]
    raise AssertionError(done.stderr)
