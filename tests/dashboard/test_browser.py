"""The dashboard in a browser: it loads, moves, survives a restart, and can be used by keyboard."""

from __future__ import annotations

import json
import threading
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from tests.cli.conftest import agent
from tests.dashboard.browser import Browser, Page
from tests.dashboard.conftest import Cell

MOST_BYTES = 300_000  # of a page load
IS_LIVE = "document.body.dataset.state === 'live'"
ORIGINS = ("accepted", "correction", "bonus", "alone")


@contextmanager
def writing(*addresses: str, prompt: str = "the server ", seed: int = 7) -> Iterator[None]:
    """Somebody has texts written at these endpoints meanwhile, one after the other."""
    stop = threading.Event()

    def write(address: str) -> None:
        body = {"model": "ngram", "prompt": prompt, "max_tokens": 200, "temperature": 0.8}
        request = urllib.request.Request(
            f"http://{address}/v1/completions", json.dumps({**body, "seed": seed}).encode()
        )
        while not stop.is_set():
            urllib.request.urlopen(request, timeout=30).read()

    threads = [threading.Thread(target=write, args=(address,)) for address in addresses]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()


@pytest.fixture
def opened(page: Page, cell: Cell) -> Iterator[Page]:
    """The dashboard, live; whatever the test does, its console stays empty."""
    page.resize(1320, 900)
    page.open(f"http://{cell.server}/")
    page.wait_for(IS_LIVE)
    yield page
    assert page.complaints == []


def test_it_loads_with_few_bytes_and_all_of_them_from_the_server(opened: Page, cell: Cell) -> None:
    opened.wait_for("document.querySelector('#target').textContent === 'ngram'")
    assert opened.text("#mode") == "stop-and-wait"
    assert "hidden" not in opened.text("#texts-note")
    assert all(url.startswith(f"http://{cell.server}/") for url in opened.sizes)
    assert 50_000 < sum(opened.sizes.values()) < MOST_BYTES


def test_it_moves_while_devices_write(opened: Page, cell: Cell) -> None:
    tokens = "Number(document.querySelector('#goodput .value').textContent.replace(',', ''))"
    drawn = "document.querySelector('#timeline').getAttribute('aria-valuetext')"
    with writing(*cell.devices, cell.server):
        opened.wait_for(f"{tokens} > 10")
        opened.wait_for("document.querySelectorAll('#devices tbody tr').length === 2")
        opened.wait_for("document.querySelectorAll('#plans tbody tr').length === 7")
        before = opened.value(drawn)
        opened.wait_for(f"{drawn} !== {json.dumps(before)}")
        state = read_cell(cell.server)
        assert opened.text("#devices tr:first-child .device span") == state["devices"][0]["drafter"]
        for column in (".positions path", ".lengths path:last-child"):
            shape = f"document.querySelector('#devices {column}').getAttribute('d')"
            opened.wait_for(f"{shape}.length > 20")
        assert "the server’s own" in opened.text("#batch")
        assert opened.text("#devices .count") == "(2)"
        peak = opened.value(tokens)
    opened.wait_for(f"{tokens} < {0.5 * peak}")


def read_cell(address: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"http://{address}/api/cell", timeout=10) as answer:
        found: dict[str, Any] = json.load(answer)
        return found


def test_texts_are_coloured_by_where_tokens_came_from(opened: Page, cell: Cell) -> None:
    body = {"model": "ngram", "prompt": "the phone ", "max_tokens": 120, "temperature": 0.9}
    asked = json.dumps({**body, "seed": 3}).encode()
    url = f"http://{cell.devices[0]}/v1/completions"
    with urllib.request.urlopen(urllib.request.Request(url, asked), timeout=30) as answer:
        told = json.load(answer)
    text, counts = told["choices"][0]["text"], told["speculation"]
    shown = "[...document.querySelectorAll('.text pre')].map(pre => pre.textContent)"
    at = opened.wait_for(f"{shown}.indexOf({json.dumps(text)}) + 1") - 1
    runs = opened.value(
        f"[...document.querySelectorAll('.text pre')[{at}].children]"
        ".map(span => [span.dataset.kind, span.textContent.length])"
    )
    letters = {origin: sum(n for kind, n in runs if kind == origin) for origin in ORIGINS}
    # A token of this model is a byte, and the text is plain.
    assert letters["accepted"] == counts["num_accepted_tokens"] > 0
    assert sum(letters.values()) == told["usage"]["completion_tokens"]
    rejected = sum(1 for kind, _ in runs if kind == "correction")
    assert 0 < rejected <= counts["num_drafts"]
    colours = {
        opened.value(
            f"getComputedStyle(document.querySelector('.text [data-kind={o}]')).backgroundColor"
        )
        for o in ORIGINS
        if letters[o]
    }
    assert len(colours) == sum(1 for n in letters.values() if n)


def test_without_the_flag_there_are_no_texts(page: Page) -> None:
    serve = ("serve", "--target", "ngram", "--port", "0")
    with agent(*serve) as (_, server), writing(server):
        page.open(f"http://{server}/")
        page.wait_for("Number(document.querySelector('#goodput .value').textContent) > 1")
        assert "--show-texts" in page.text("#texts-note")
        assert page.value("document.querySelectorAll('.text').length") == 0
        for hidden in ("#texts .legend", "#devices table", "#sign-out"):
            assert page.value(f"document.querySelector('{hidden}').getClientRects().length") == 0


def test_it_says_that_the_server_is_gone_and_goes_on_when_it_is_back(page: Page) -> None:
    serve = ("serve", "--target", "ngram", "--port")
    with agent(*serve, "0") as (_, server):
        page.open(f"http://{server}/")
        page.wait_for(IS_LIVE)
        assert page.complaints == []
    page.wait_for("document.querySelector('#status').textContent.startsWith('no news since')")
    with agent(*serve, server.rpartition(":")[2]) as (_, again), writing(again):
        page.wait_for(IS_LIVE)
        page.wait_for("Number(document.querySelector('#goodput .value').textContent) > 1")
    # A browser itself notes each attempt that nobody answers; the page has nothing to say.
    assert [c for c in page.complaints if not c.startswith("Failed to load resource: ")] == []


def focused(page: Page) -> str:
    found: str = page.value(
        "document.activeElement.id || document.activeElement.textContent.trim()"
        " || document.activeElement.tagName"
    )
    return found


def test_all_that_can_be_done_can_be_done_by_keyboard(opened: Page, cell: Cell) -> None:
    with writing(*cell.devices):
        opened.wait_for("document.querySelectorAll('#devices tbody tr').length === 2")
        opened.wait_for("Number(document.querySelector('#timeline').ariaValueMax) > 5")
        reached = []
        for _ in range(14):
            opened.press("Tab")
            reached.append(focused(opened))
            if reached[-1] == "timeline":
                look_at_batches(opened)
            if reached[-1] == "accepted, by position":
                opened.press("Enter")
                assert opened.value("document.activeElement.parentElement.ariaSort") == "descending"
        assert reached[:2] == ["Skip to the devices", "timeline"]
        assert {"device ↑", "device", "tokens/s", "round trip", "up", "down"} & set(reached)


def look_at_batches(page: Page) -> None:
    page.press("Home")
    first = "Number(document.querySelector('#timeline').ariaValueNow)"
    assert page.value(first) == 1
    page.press("End")
    last = page.value("Number(document.querySelector('#timeline').ariaValueMax)")
    page.press("ArrowLeft")
    assert page.value(first) == last - 1
    page.press("Escape")
    assert page.text("#batch").startswith("The latest")


def test_it_fits_a_phone_in_light_and_dark(opened: Page, cell: Cell) -> None:
    paper = "getComputedStyle(document.documentElement).backgroundColor"
    with writing(*cell.devices):
        opened.wait_for("document.querySelectorAll('#devices tbody tr').length === 2")
        for width in (320, 390, 768, 1320):
            opened.resize(width, 800)
            wide = opened.wait_for("document.documentElement.scrollWidth")
            assert wide == width
        opened.prefer("light")
        light = opened.value(paper)
        opened.prefer("dark")
        assert opened.value(paper) != light


def test_what_is_hidden_from_sight_is_told_to_a_screen_reader(opened: Page, cell: Cell) -> None:
    with writing(*cell.devices):
        opened.wait_for("document.querySelectorAll('#devices tbody tr').length === 2")
        opened.wait_for("document.querySelector('#plans tbody tr')")
        tree = opened.call("Accessibility.getFullAXTree")["nodes"]
    nodes = [(n["role"]["value"], n.get("name", {}).get("value", "")) for n in tree if "role" in n]
    roles = {role for role, _ in nodes}
    assert {"table", "columnheader", "rowheader", "cell", "slider", "status", "main"} <= roles
    unnamed = [
        r for r, name in nodes if r in ("image", "img", "link", "button", "slider") and not name
    ]
    assert unnamed == []


def test_two_viewers_see_the_same(browser: Browser, opened: Page, cell: Cell) -> None:
    with writing(*cell.devices), browser.page() as second:
        second.open(f"http://{cell.server}/")
        for page in (opened, second):
            page.wait_for("document.querySelectorAll('#devices tbody tr').length === 2")
        assert second.complaints == []
