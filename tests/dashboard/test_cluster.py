"""The page of a directory in a browser: it tells of each replica, and says when it has no news."""

from __future__ import annotations

import json
import signal
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.api.directory_process import Cluster, cluster, wait
from tests.dashboard.browser import Page
from tests.dashboard.test_login import add_token

IS_LIVE = "document.body.dataset.state === 'live'"
ROWS = "[...document.querySelectorAll('#replicas tbody tr')].map(row => row.dataset.condition)"


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    policy = ("--policy", "heterogeneous", "--uplink-bits-per-s", "20000")
    with cluster(tmp_path_factory.mktemp("two"), "a", "b", of_replicas=policy) as made:
        wait(lambda: set(made.conditions().values()) == {"ok"})
        yield made


@pytest.fixture
def opened(page: Page, two: Cluster) -> Iterator[Page]:
    page.resize(1320, 900)
    page.open(f"http://{two.directory}/")
    page.wait_for(IS_LIVE)
    yield page
    assert page.complaints == []


@contextmanager
def writing(address: str) -> Iterator[None]:
    """Several have texts written meanwhile."""
    stop = threading.Event()

    def write(number: int) -> None:
        body = {"model": "chat", "prompt": f"the phone {number}", "max_tokens": 200, "seed": 1}
        asked = json.dumps({**body, "logit_bias": {"256": -100}}).encode()
        while not stop.is_set():
            with urllib.request.urlopen(
                urllib.request.Request(f"http://{address}/v1/completions", asked), timeout=30
            ) as answer:
                answer.read()

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_a_row_for_each_replica_and_it_moves(opened: Page, two: Cluster) -> None:
    assert opened.text("#targets") == "chat"
    assert opened.value(f"JSON.stringify({ROWS})") == '["ok","ok"]'
    assert opened.text("#serving .value") == "2"
    with writing(two.directory):
        opened.wait_for(
            "Number(document.querySelector('#goodput .value').textContent.replace(',', '')) > 10"
        )
        opened.wait_for("Number(document.querySelector('#sessions .value').textContent) > 0")
        opened.wait_for("document.querySelector('#goodput .line').getAttribute('d').length > 30")
        tokens = "[...document.querySelectorAll('#replicas td:last-child')].map(c => c.textContent)"
        opened.wait_for(f"{tokens}.some(told => told !== '0')")


def test_it_fits_a_phone_in_light_and_dark_and_the_keyboard_gets_anywhere(opened: Page) -> None:
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    for width in (320, 390, 768, 1320):
        opened.resize(width, 800)
        assert opened.wait_for("document.documentElement.scrollWidth") == width
    opened.prefer("light")
    light = opened.value(paper)
    opened.prefer("dark")
    assert opened.value(paper) != light
    opened.press("Tab")
    assert opened.value("document.activeElement.textContent") == "Skip to the replicas"
    opened.press("Enter")
    assert opened.value("location.hash") == "#replicas"
    tree = opened.call("Accessibility.getFullAXTree")["nodes"]
    roles = {node["role"]["value"] for node in tree if "role" in node}
    assert {"table", "columnheader", "rowheader", "cell", "status", "main"} <= roles


def test_it_says_what_is_gone(page: Page, tmp_path: Path) -> None:
    with cluster(tmp_path, "a", "b") as made:
        wait(lambda: set(made.conditions().values()) == {"ok"})
        page.open(f"http://{made.directory}/")
        page.wait_for(f"{ROWS}.length === 2")
        made.processes["b"].kill()
        page.wait_for(f"{ROWS}[1] === 'down'")
        assert "1: no connection" in page.text("#serving .detail")
        made.list("a")
        page.wait_for(f"{ROWS}.length === 1")
        made.processes["directory"].send_signal(signal.SIGTERM)
        page.wait_for("document.querySelector('#status').textContent.startsWith('no news since')")
    # A browser itself notes each attempt that nobody answers; the page has nothing to say.
    assert [c for c in page.complaints if not c.startswith("Failed to load resource: ")] == []


def test_who_has_no_token_signs_in(page: Page, tmp_path: Path) -> None:
    file = tmp_path / "tokens.json"
    token = add_token(file, "operate")
    with cluster(tmp_path, of_directory=("--tokens", str(file))) as made:
        page.open(f"http://{made.directory}/")
        page.wait_for("document.activeElement.id === 'token'")
        page.call("Input.insertText", text=token)
        page.press("Enter")
        page.wait_for(IS_LIVE)
        assert not page.value("document.querySelector('#sign-out').hidden")
        assert page.text("#no-replicas") == "None is listed."
        page.value("document.querySelector('#sign-out button').click()")
        page.wait_for("location.pathname === '/login'")
