"""`multispin directory` as people start it, with real replicas behind it: texts stay what they are,
whoever dies meanwhile."""

from __future__ import annotations

import json
import signal
import ssl
import subprocess
import threading
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.api.conftest import MULTISPIN, complete, get
from tests.api.directory_process import Cluster, cluster, wait
from tests.cli.conftest import agent
from tests.identity import Certs, add, make_certs

LONG: dict[str, Any] = {
    "model": "chat",
    "prompt": "The phone drafts ",
    "max_tokens": 2500,
    "temperature": 0.8,
    "seed": 7,
    "logit_bias": {"256": -100},
}


@pytest.fixture(scope="module")
def three(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with cluster(tmp_path_factory.mktemp("three"), "a", "b", "c") as made:
        wait(lambda: set(made.conditions().values()) == {"ok"})
        yield made


def client(address: str, key: str = "none", ca: str | None = None) -> openai.OpenAI:
    scheme = "" if address.startswith("https://") else "http://"
    http = openai.DefaultHttpxClient(verify=ssl.create_default_context(cafile=ca))
    base = f"{scheme}{address}/v1"
    return openai.OpenAI(base_url=base, api_key=key, max_retries=0, http_client=http)


def text_of(address: str, **fields: Any) -> str:
    """Of a completion."""
    with client(address) as near:
        answer = near.completions.create(**{**LONG, **fields})
        text: str = answer.choices[0].text
        return text


def test_openais_client_gets_the_text_of_a_replica(three: Cluster) -> None:
    [direct] = {text_of(at, model="ngram", max_tokens=60) for at in three.servers.values()}
    asked = {**LONG, "max_tokens": 60}
    with client(three.directory) as near:
        assert [model.id for model in near.models.list()] == ["chat"]
        assert near.completions.create(**asked).choices[0].text == direct
        streamed = near.completions.create(**asked, stream=True)
        assert "".join(event.choices[0].text for event in streamed) == direct
        chat = near.chat.completions.create(
            model="chat", messages=[{"role": "user", "content": "the server"}], max_tokens=9, seed=1
        )
        assert chat.usage is not None
        assert 0 < chat.usage.completion_tokens <= 9
        with pytest.raises(openai.NotFoundError, match="has chat only"):
            near.completions.create(**{**asked, "model": "ngram"})


def test_a_device_gets_the_same_as_without_a_directory(three: Cluster) -> None:
    options = ("--temperature", "0.9", "--seed", "3", "--max-tokens", "50")
    there = complete(three.directory, "the phone ", *options)
    assert there["text"] == complete(three.servers["a"], "the phone ", *options)["text"]
    device = ("device", "--server", three.directory, "--draft", "ngram", "--port", "0")
    with agent(*device) as (_, address):
        near = text_of(address, model="ngram", max_tokens=40)
    assert near == text_of(three.directory, max_tokens=40)


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM], ids=["killed", "drained"])
def test_a_replica_that_goes_in_mid_stream_is_a_pause(how: signal.Signals, tmp_path: Path) -> None:
    with cluster(tmp_path, "a", "b") as made:
        wait(lambda: set(made.conditions().values()) == {"ok"})
        expected = text_of(made.servers["a"], model="ngram")
        text, gone = "", None
        with client(made.directory) as near:
            for event in near.completions.create(**LONG, stream=True):
                text += event.choices[0].text
                if gone is None and len(text) > 100:
                    gone = made.busy()
                    made.processes[gone].send_signal(how)
        assert event.choices[0].finish_reason == "length"
        assert text == expected
        assert gone is not None
        wait(lambda: made.conditions()[gone] == "down")
        assert get(made.directory, "/health")["status"] == "ok"


def test_what_is_no_list_or_no_address_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "replicas.json"
    for text, said in (
        ("{}", "is no list of replicas"),
        (
            '{"targets": [{"name": "a"}], "replicas": [{"name":"x","target":"a","server":"x"}]}',
            "HOST:PORT",
        ),
    ):
        file.write_text(text)
        command = [*MULTISPIN, "directory", str(file), "--port", "0"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (done.returncode, done.stdout) == (2, "")
        assert said in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1
    off = subprocess.run(
        [*MULTISPIN, "directory", str(file), "--host", "0.0.0.0", "--port", "0"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert off.returncode == 2
    assert "--insecure" in off.stderr


def test_it_ends_when_it_is_told_to(tmp_path: Path) -> None:
    with cluster(tmp_path, "a") as made:
        wait(lambda: made.conditions() == {"a": "ok"})
        answers: list[str] = []

        def write() -> None:
            answers.append(text_of(made.directory, max_tokens=1500))

        writing = threading.Thread(target=write)
        writing.start()
        wait(lambda: get(made.servers["a"], "/api/cell")["num_sessions"])
        made.processes["directory"].send_signal(signal.SIGTERM)
        assert made.processes["directory"].wait(15) == 0
        writing.join()
        assert len(answers[0]) == 1500  # it could end


# --- tokens and certificates ---------------------------------------------------------------------


class Secured:
    """Files of a CA and of tokens; the directory's own may operate, the client's may generate."""

    def __init__(self, folder: Path) -> None:
        self.certs: Certs = make_certs(folder / "certs")
        self.tokens = folder / "tokens.json"
        self.client = add(self.tokens, "client", "generate", max_sessions=1)
        self.watcher = folder / "watcher"
        self.watcher.write_text(add(self.tokens, "watcher", "operate"))
        self.watcher.chmod(0o600)
        server = ("--cert", self.certs("server.pem"), "--key", self.certs("server.key"))
        self.of_replicas = (*server, "--tokens", str(self.tokens))
        own = ("--token-file", str(self.watcher), "--ca", self.certs("ca.pem"))
        self.of_directory = (*self.of_replicas, *own)

    def get(self, address: str, path: str, token: str) -> tuple[int, bytes]:
        context = ssl.create_default_context(cafile=self.certs("ca.pem"))
        asked = urllib.request.Request(
            f"{address}{path}", headers={"Authorization": f"Bearer {token}"} if token else {}
        )
        try:
            with urllib.request.urlopen(asked, timeout=30, context=context) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as error:
            return error.code, error.read()


def test_tokens_and_certificates_all_the_way(tmp_path: Path) -> None:
    files = Secured(tmp_path)
    mutual = ("--client-ca", files.certs("ca.pem"))
    settings = {"of_directory": files.of_directory, "of_replicas": (*files.of_replicas, *mutual)}
    with cluster(tmp_path, "a", "b", **settings) as made:
        assert made.directory.startswith("https://")
        wait(lambda: files.get(made.directory, "/health", "")[0] == 200)
        watcher = files.watcher.read_text()
        assert files.get(made.directory, "/api/cluster", "")[0] == 401
        assert files.get(made.directory, "/api/cluster", files.client)[0] == 403
        status, body = files.get(made.directory, "/metrics", watcher)
        assert (status, body.count(b"multispin_generation_tokens_total{")) == (200, 2)
        ca = files.certs("ca.pem")
        with (
            client(made.directory, "msp_wrong", ca) as stranger,
            pytest.raises(openai.AuthenticationError),
        ):
            stranger.completions.create(**LONG)
        with client(made.directory, files.client, ca) as near:
            text = near.completions.create(**{**LONG, "max_tokens": 30}).choices[0].text
            assert len(text) == 30
            # The replica knows whose text it is: the token allows one session there.
            with pytest.raises(openai.RateLimitError, match="it allows 1"):
                near.completions.create(**LONG, n=2)


def test_a_replica_that_does_not_know_the_directorys_token_is_down(tmp_path: Path) -> None:
    files = Secured(tmp_path)
    others = tmp_path / "others.json"
    add(others, "somebody", "operate")
    server = files.of_replicas[:4]
    replica = (*server, "--tokens", str(others))
    with cluster(tmp_path, "a", of_directory=files.of_directory, of_replicas=replica) as made:
        watcher = files.watcher.read_text()

        def conditions() -> Any:
            found = json.loads(files.get(made.directory, "/api/cluster", watcher)[1])
            return [replica["condition"] for replica in found["replicas"]]

        wait(lambda: conditions() == ["down"])
        assert files.get(made.directory, "/health", "")[0] == 503
