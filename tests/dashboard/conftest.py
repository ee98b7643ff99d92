"""A browser, where there is one, and the processes that it looks at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from typing import NamedTuple

import pytest

from tests.cli.conftest import agent
from tests.dashboard.browser import Browser, Page, find_browser, running_browser


class Cell(NamedTuple):
    """HOST:PORT of a server, and of the devices in front of it."""

    server: str
    devices: list[str]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    program = find_browser()
    if program is None:
        pytest.skip("there is no Chromium: bash scripts/set_up_browser.sh installs it")
    with running_browser(program, tmp_path_factory.mktemp("browser")) as found:
        yield found


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    with browser.page() as found:
        yield found


@pytest.fixture(scope="session")
def cell() -> Iterator[Cell]:
    """A server that shows its texts, and two devices with different drafters."""
    serve = ("serve", "--target", "ngram", "--port", "0", "--ctx-size", "4096", "--show-texts")
    with ExitStack() as stack:
        _, server = stack.enter_context(agent(*serve))
        drafters = ("ngram", "lookup")
        agents = (
            agent("device", "--server", server, "--draft", d, "--port", "0") for d in drafters
        )
        yield Cell(server, [stack.enter_context(each)[1] for each in agents])
