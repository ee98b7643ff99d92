"""The site: it builds without a warning, has everything, and fetches nothing from elsewhere."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import urlsplit
from xml.etree import ElementTree

import pytest

import multispin
from tests.docs.blocks import DOCS, ROOT, pages

FETCHING = {"img": "src", "script": "src", "link": "href", "iframe": "src", "source": "src"}
PICTURES = sorted(DOCS.rglob("*.svg"))


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    done = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", folder],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    return folder


class Fetched(HTMLParser):
    """What a browser loads to show a page."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.found: list[str] = []
        self.feed(page.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        attributes = dict(attrs)
        if tag in FETCHING and attributes.get("rel") != "canonical":
            self.found.append(attributes.get(FETCHING[tag]) or "")


def test_every_page_is_there(site: Path) -> None:
    for page in pages():
        assert (site / page).with_suffix(".html").is_file()


def test_nothing_comes_from_elsewhere(site: Path) -> None:
    for page in site.rglob("*.html"):
        fetched = Fetched(page).found
        assert fetched
        for address in filter(None, fetched):
            parts = urlsplit(address)
            assert not parts.scheme and not parts.netloc, f"{page.name} loads {address}"
            if page.name != "404.html":  # whose links begin at the site's root
                assert (page.parent / parts.path).exists(), f"{page.name}: {address} is not there"
    for style in site.rglob("*.css"):
        assert not re.search(r"url\(['\"]?(?:https?:)?//", style.read_text()), style.name


def test_the_python_interface_is_in_the_reference(site: Path) -> None:
    text = "".join(page.read_text() for page in (site / "api-reference").glob("*.html"))
    documented = {name.rpartition(".")[2] for name in re.findall(r'id="(multispin[\w.]+)"', text)}
    assert set(multispin.__all__) <= documented


def test_files_of_the_repository_are_in_the_site(site: Path) -> None:
    """A link out of docs/ leads to the file in the site, or to its first page."""
    example = ROOT / "examples" / "kiosks.toml"
    assert (site / "examples" / "kiosks.toml.txt").read_bytes() == example.read_bytes()
    assert "../README.md" not in (site / "python.html").read_text()


@pytest.mark.parametrize("picture", PICTURES, ids=lambda path: path.stem)
def test_pictures_follow_the_readers_colours(picture: Path) -> None:
    root = ElementTree.parse(picture).getroot()
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert "prefers-color-scheme: dark" in picture.read_text()


def test_the_crossover_is_drawn_by_its_script(tmp_path: Path) -> None:
    def drawn(name: str) -> tuple[str, bytes]:
        file = tmp_path / name
        script = ROOT / "scripts" / "draw_crossover.py"
        done = subprocess.run(
            [sys.executable, script, "--out", file, "--passes", "30", "--most-devices", "1"],
            capture_output=True,
            text=True,
            check=True,
        )
        return done.stdout, file.read_bytes()

    printed, picture = drawn("a.svg")
    assert (printed, picture) == drawn("b.svg")
    alone = [float(found) for found in re.findall(r"over +([\d.]+) tokens/s", printed)]
    # Without drafts a device gets a token a pass: of 70 and of 30 ms.
    assert alone == pytest.approx(3 * [1 / 0.070] + 3 * [1 / 0.030], rel=0.05)
    shipped = (DOCS / "pictures" / "crossover.svg").read_text()
    for line in ("two processor cores, passes as measured", "simulated, seed 0"):
        assert line in picture.decode() and line in shipped
