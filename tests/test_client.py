"""The Python client against a real server process, and planning as a library call."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import inspect
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import multispin
from multispin import client as client_module
from multispin.cell import load_cell
from multispin.cli.complete import complete
from multispin.control import solve
from multispin.core.device import Committed
from multispin.errors import BadInput, MultispinError, PeerError
from tests.cli.test_commands import serving
from tests.core.harness import PROMPT, request, write

CELL = Path(__file__).parents[1] / "examples" / "factory.toml"
LONG = {"max_tokens": 4000}  # some seconds of the n-gram target's time


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with serving("--ctx-size", "8192") as (_, address):
        yield address


def num_sessions(server: str) -> int:
    with urllib.request.urlopen(f"http://{server}/api/cell", timeout=10) as answer:
        return int(json.load(answer)["num_sessions"])


def wait_for_no_session(server: str) -> None:
    for _ in range(200):
        if num_sessions(server) == 0:
            return
        time.sleep(0.01)
    raise AssertionError("a session is left")


# --- texts and where their tokens come from ------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.8])
@pytest.mark.parametrize("draft", ["none", "lookup", "ngram"])
def test_provenance_adds_up_with_the_statistics(
    server: str, draft: str, temperature: float
) -> None:
    rule = "coupled" if temperature else "greedy"
    expected = write(request(rule=rule, temperature=temperature, max_tokens=96), "none")
    with multispin.Client(server, draft=draft) as client:
        assert client.target == "ngram"
        stream = client.stream(PROMPT, temperature=temperature, seed=7, max_tokens=96)
        commits = list(stream)
        done = stream.completion
        again = client.complete(PROMPT, temperature=temperature, seed=7, max_tokens=96)
    tokens = [token for commit in commits for token in commit.tokens]
    assert [token.id for token in tokens] == done.token_ids == expected.session.committed
    assert "".join(commit.text for commit in commits) == done.text == expected.text
    assert (again.text, again.token_ids) == (done.text, done.token_ids)
    assert (done.finish_reason, done.seed, done.acceptance_rule) == ("length", 7, rule)
    assert done.prompt_tokens == len(PROMPT)

    counted = collections.Counter(token.provenance for token in tokens)
    speculation = done.speculation
    assert counted["accepted"] == speculation.num_accepted_tokens
    assert counted.total() == speculation.num_committed_tokens == 96
    # Every verification ends in a token of the server's own; the last may have been cut off.
    own = speculation.num_verifications - (tokens[-1].provenance == "accepted")
    assert counted["correction"] + counted["bonus"] + counted["server"] == own
    assert counted["correction"] + counted["bonus"] <= speculation.num_drafts
    for commit in commits:
        assert all(token.provenance == "accepted" for token in commit.tokens[:-1])
    if draft == "none":
        assert counted["server"] == 96
    else:
        assert counted["accepted"] and counted["correction"]


@pytest.mark.parametrize(
    ("num_accepted", "num_draft", "expected"),
    [
        (0, 0, ["server"]),
        (0, 3, ["correction"]),
        (2, 3, ["accepted", "accepted", "correction"]),
        (3, 3, ["accepted", "accepted", "accepted", "bonus"]),
        (2, 2, ["accepted", "accepted"]),  # the text ends there
        (0, 2, []),  # with the end token
    ],
)
def test_what_follows_the_accepted_tokens_is_the_servers(
    num_accepted: int, num_draft: int, expected: list[str]
) -> None:
    ids = list(range(5, 5 + len(expected)))
    committed = Committed(ids, num_accepted, "", None, num_draft, [])
    found = client_module._tokens(committed)
    assert found == list(zip(ids, expected, strict=True))


def test_options_reach_the_server(server: str) -> None:
    expected = write(request(presence_penalty=1.5, stop=("e",), temperature=1.2), "none")
    with multispin.Client(server, draft="ngram") as client:
        options: Any = {"presence_penalty": 1.5, "stop": "e", "temperature": 1.2, "seed": 7}
        done = client.complete(PROMPT, **options, max_tokens=48, acceptance_rule="coupled")
        assert (done.text, done.finish_reason) == (expected.text, "stop")
        assert client.complete(PROMPT, max_tokens=1, draft_length=0).speculation.num_drafts == 0
        chat = [{"role": "user", "content": PROMPT}]  # this target answers by going on
        assert client.complete(chat, **options, max_tokens=48).text == expected.text
        seeds = {client.complete(PROMPT, temperature=1.0, max_tokens=1).seed for _ in range(3)}
        assert len(seeds) == 3  # 3 equal pairs in 2^32


def test_a_stream_keeps_its_client(server: str) -> None:
    commits = list(multispin.Client(server).stream(PROMPT, max_tokens=5))
    assert sum(len(commit.tokens) for commit in commits) == 5


def test_defaults_are_the_command_lines() -> None:
    parameters = inspect.signature(complete).parameters
    assert parameters["draft"].default == client_module.DRAFT
    assert parameters["draft_length"].default == client_module.DRAFT_LENGTH
    assert parameters["max_tokens"].default == client_module.MAX_TOKENS
    sampling = client_module.SamplingParams()
    for name in client_module.SamplingParams.__struct_fields__:
        assert (parameters[name].default or {}) == (getattr(sampling, name) or {})


# --- several at once, and leaving early ----------------------------------------------------------


@pytest.mark.parametrize(
    ("draft", "num_sequences", "expected"), [("lookup", 1, 3), ("ngram", 1, 1), ("ngram", 2, 2)]
)
def test_texts_wait_for_a_drafting_model_only(
    server: str, draft: str, num_sequences: int, expected: int
) -> None:
    async def main() -> None:
        options: Any = {"draft": draft, "num_sequences": num_sequences}
        async with multispin.AsyncClient(server, **options) as client:
            texts = [asyncio.create_task(client.complete(PROMPT, **LONG)) for _ in range(3)]
            seen = [num_sessions(server)]
            while seen[-1] < expected or len(seen) < 20:
                await asyncio.sleep(0.01)
                seen.append(num_sessions(server))
            assert max(seen) == expected
            for text in texts:
                text.cancel()
            await asyncio.gather(*texts, return_exceptions=True)

    asyncio.run(asyncio.wait_for(main(), 30))
    wait_for_no_session(server)


@pytest.mark.parametrize("draft", ["lookup", "ngram"])  # ngram: one waits for the other
def test_one_asynchronous_client_writes_several_texts(server: str, draft: str) -> None:
    async def main() -> list[multispin.Completion]:
        async with multispin.AsyncClient(server, draft=draft) as client:
            options: Any = {"temperature": 0.8, "max_tokens": 48}
            return await asyncio.gather(
                *(client.complete(PROMPT, seed=seed, **options) for seed in range(3))
            )

    for seed, done in enumerate(asyncio.run(main())):
        assert done.token_ids == write(request(seed=seed), "none").session.committed


def test_two_clients_at_once_and_threads_that_share_one(server: str) -> None:
    found: dict[int, list[int]] = {}

    def one(client: multispin.Client, seed: int) -> None:
        found[seed] = client.complete(PROMPT, seed=seed, temperature=0.8, max_tokens=48).token_ids

    with multispin.Client(server) as first, multispin.Client(server, draft="ngram") as second:
        threads = [
            threading.Thread(target=one, args=(client, seed))
            for seed, client in enumerate((first, second, first, second))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert found == {seed: write(request(seed=seed), "none").session.committed for seed in range(4)}


def test_leaving_the_iteration_early_ends_the_session(server: str) -> None:
    with multispin.Client(server, draft="ngram") as client:
        stream = client.stream(PROMPT, **LONG)
        for _ in stream:
            assert num_sessions(server) == 1
            break
        assert not client._running.client._writing  # at once, not when rubbish is collected
        wait_for_no_session(server)
        assert stream.completion.finish_reason is None
        assert 1 <= len(stream.completion.token_ids) < 4000
        with pytest.raises(ZeroDivisionError):
            for _ in client.stream(PROMPT, **LONG):
                1 / 0  # noqa: B018
        wait_for_no_session(server)
        assert len(client.complete(PROMPT, max_tokens=3).token_ids) == 3


def test_leaving_an_asynchronous_iteration_early_ends_the_session(server: str) -> None:
    async def main() -> None:
        async with multispin.AsyncClient(server) as client:
            stream = client.stream(PROMPT, **LONG)
            async for _ in stream:
                break
            await asyncio.to_thread(wait_for_no_session, server)
            assert stream.completion.finish_reason is None
            assert len((await client.complete(PROMPT, max_tokens=3)).token_ids) == 3

    asyncio.run(main())


def test_ctrl_c_ends_the_text_and_not_the_client(server: str) -> None:
    # Whoever started the tests in the background may have had the signal ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with multispin.Client(server) as client:
        has_stopped = threading.Event()

        def press() -> None:
            while not has_stopped.wait(0.3):  # again, as people do
                os.kill(os.getpid(), signal.SIGINT)

        pressing = threading.Thread(target=press)
        pressing.start()
        with pytest.raises(KeyboardInterrupt):
            try:
                client.complete(PROMPT, **LONG)
            finally:
                has_stopped.set()
        pressing.join()
        signal.signal(signal.SIGINT, before)
        wait_for_no_session(server)
        assert len(client.complete(PROMPT, max_tokens=3).token_ids) == 3


# --- when it does not work -----------------------------------------------------------------------


def test_a_server_that_is_gone_is_one_clear_error() -> None:
    with serving("--ctx-size", "8192") as (process, address):
        with multispin.Client(address, offline="fail") as client:
            with pytest.raises(PeerError) as caught:
                for _ in client.stream(PROMPT, **LONG):
                    process.kill()
            assert str(caught.value) == "the server closed the link"
            assert caught.value.code == "unreachable"
            with pytest.raises(PeerError, match="the server closed the link"):
                client.complete(PROMPT)
        process.wait()
        with pytest.raises(BadInput, match=f"^server = {address}: no multispin server answers"):
            multispin.Client(address)


def test_a_client_outlives_its_server_and_its_model_goes_on_alone() -> None:
    options: Any = {"max_tokens": 400, "seed": 7, "temperature": 0.8}
    text, tokens, num_alone = "", list[multispin.Token](), 0
    with contextlib.ExitStack() as servers:
        process, address = servers.enter_context(serving())
        with multispin.Client(address, draft="ngram", offline="draft") as client:
            stream = client.stream(PROMPT, **options)
            for commit in stream:
                if commit.replaces:
                    text = text[: commit.replaces.character]
                    del tokens[commit.replaces.token :]
                text, tokens = text + commit.text, tokens + commit.tokens
                process.kill()
                if commit.provisional and num_alone == 0:
                    process.wait()
                    servers.enter_context(serving("--port", address.partition(":")[2]))
                num_alone += commit.provisional
            done, again = stream.completion, client.complete(PROMPT, **options)
    assert num_alone > 3
    assert text == done.text == again.text
    assert [token.id for token in tokens] == done.token_ids == again.token_ids
    assert done.finish_reason == "length"


def test_what_is_asked_wrongly_is_told(server: str) -> None:
    wrong: list[tuple[dict[str, Any], type[Exception], str]] = [
        ({"temperature": -1.0}, BadInput, "temperature = -1"),
        ({"max_tokens": 0}, PeerError, "max_tokens = 0: must be at least 1"),
        ({"seed": -1}, PeerError, "seed = -1"),
        ({"draft_length": 33}, PeerError, "draft_length = 33"),
        ({"temperature": 1.0, "acceptance_rule": "greedy"}, PeerError, "needs temperature 0"),
        ({"temprature": 1.0}, TypeError, "temprature"),
        ({"prompt": ""}, PeerError, "prompt = ''"),
        ({"prompt": [{"content": "hi"}]}, BadInput, "prompt = .*role"),
        ({"prompt": "x" * 9000}, PeerError, "--ctx-size"),
    ]
    with multispin.Client(server) as client:
        for options, error, said in wrong:
            with pytest.raises(error, match=said):
                client.complete(**{"prompt": PROMPT, **options})
        assert len(client.complete(PROMPT, max_tokens=3).token_ids) == 3
    with pytest.raises(TypeError, match="drafft"):
        multispin.Client(server, drafft="none")  # type: ignore[call-arg]
    with pytest.raises(BadInput, match="no-such-model"):
        multispin.Client(server, draft="no-such-model")
    with pytest.raises(BadInput, match="offline = drft: must be one of wait, draft, fail"):
        multispin.Client(server, offline="drft")  # type: ignore[arg-type]
    with pytest.raises(BadInput, match=r"^offline = draft: needs a model"):
        multispin.Client(server, offline="draft")


def test_a_closed_client_says_so_and_keeps_nobody_waiting(server: str) -> None:
    client = multispin.Client(server)
    stream = client.stream(PROMPT, **LONG)
    commits = iter(stream)
    next(commits)
    stop = threading.Timer(0.1, client.close)
    stop.start()
    with pytest.raises(MultispinError, match="the client is closed"):
        list(commits)
    stop.join()
    with pytest.raises(MultispinError, match="the client is closed"):
        client.complete(PROMPT)
    with pytest.raises(MultispinError, match="the client is closed"):
        _ = client.target
    client.close()
    wait_for_no_session(server)


def test_a_closed_asynchronous_client_ends_the_texts_of_other_tasks(server: str) -> None:
    async def main() -> None:
        async with multispin.AsyncClient(server) as client:
            writing = asyncio.create_task(client.complete(PROMPT, **LONG))
            while num_sessions(server) == 0:
                await asyncio.sleep(0.01)
        with pytest.raises(MultispinError, match="the client is closed"):
            async with asyncio.timeout(10):
                await writing
        with pytest.raises(MultispinError, match="the client is closed"):
            await client.complete(PROMPT)
        await asyncio.to_thread(wait_for_no_session, server)

    asyncio.run(main())

    async def never_opened() -> None:
        with pytest.raises(MultispinError, match="never opened"):
            await multispin.AsyncClient(server).complete(PROMPT)

    asyncio.run(never_opened())


def test_a_program_that_never_closes_ends_cleanly(server: str) -> None:
    code = f"""
import multispin
client = multispin.Client({server!r}, draft="ngram")
for commit in client.stream({PROMPT!r}, max_tokens=4000):
    print(commit.text)
    break
commits = iter(client.stream({PROMPT!r}, max_tokens=4000))
print(next(commits).text)
"""
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert len(done.stdout.splitlines()) == 2
    wait_for_no_session(server)


# --- the library ---------------------------------------------------------------------------------


def test_importing_it_imports_next_to_nothing() -> None:
    code = """
import sys, threading
import multispin
heavy = {"numpy", "scipy", "msgspec", "websockets", "asyncio", "typer", "starlette"}
print(sorted(heavy & set(sys.modules)), threading.active_count(), dir(multispin))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == f"[] 1 {multispin.__all__}\n"


def test_everything_public_is_there_and_nothing_else() -> None:
    for name in multispin.__all__:
        assert getattr(multispin, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'clients'"):
        _ = multispin.clients  # type: ignore[attr-defined]
    assert (Path(multispin.__file__).parent / "py.typed").exists()


@pytest.mark.parametrize("policy", ["heterogeneous", "fixed"])
def test_solve_takes_a_path_a_text_and_a_cell(policy: str) -> None:
    expected = solve(load_cell(CELL).problem, policy)
    for cell in (CELL, str(CELL), CELL.read_text(), load_cell(CELL)):
        plan = multispin.solve(cell, policy)
        assert plan.lengths.tolist() == expected.lengths.tolist()
        assert plan.goodput_tokens_per_s == expected.goodput_tokens_per_s
    if policy == "heterogeneous":
        assert multispin.solve(CELL).lengths.tolist() == expected.lengths.tolist()


def test_solve_names_what_is_wrong() -> None:
    with pytest.raises(BadInput, match="did you mean heterogeneous"):
        multispin.solve(CELL, "heterogenous")
    with pytest.raises(BadInput, match=r"no-such\.toml: cannot be read"):
        multispin.solve("no-such.toml")
    with pytest.raises(BadInput, match="did you mean bandwidth_hz"):
        multispin.solve(CELL.read_text().replace("bandwidth_hz", "bandwith_hz", 1))
