"""The page and its files, as they are served."""

from __future__ import annotations

import re
from importlib import resources

import pytest
from starlette.testclient import TestClient

from multispin.api.app import ServerState, create_app
from multispin.api.dashboard import MEDIA_TYPES

FILES = {file.name: file for file in (resources.files("multispin.api") / "static").iterdir()}
OURS = (
    *("index.html", "dashboard.css", "dashboard.js", "page.js", "icon.svg"),
    *("cluster.html", "cluster.css", "cluster.js"),
)


@pytest.fixture
def client() -> TestClient:
    return TestClient(create_app(ServerState()), base_url="http://127.0.0.1")


def test_every_file_is_served_as_what_it_is(client: TestClient) -> None:
    assert set(FILES) == set(MEDIA_TYPES)
    for name, file in FILES.items():
        answer = client.get(f"/static/{name}")
        assert answer.status_code == 200 and answer.content == file.read_bytes()
        assert answer.headers["content-type"] == MEDIA_TYPES[name]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_page_may_load_nothing_but_its_own_files(client: TestClient) -> None:
    """Also while the model is being loaded."""
    answer = client.get("/")
    policy = dict(
        part.split(" ", 1) for part in answer.headers["content-security-policy"].split("; ")
    )
    assert policy.pop("default-src") == policy.pop("frame-ancestors") == "'none'"
    assert policy.pop("base-uri") == "'none'"
    assert set(policy.values()) == {"'self'"} and {"script-src", "style-src"} <= set(policy)
    for name in OURS:
        text = FILES[name].read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|style=|onclick|innerHTML|eval\(", text), name


def test_what_has_not_changed_is_not_sent_again(client: TestClient) -> None:
    for path in ("/", "/static/dashboard.js"):
        tag = client.get(path).headers["etag"]
        again = client.get(path, headers={"if-none-match": tag})
        assert (again.status_code, again.content) == (304, b"")
        assert client.get(path, headers={"if-none-match": '"other"'}).status_code == 200


@pytest.mark.parametrize("name", ["nothing.js", "..%2Fapp.py", "%2e%2e/app.py", ""])
def test_there_are_no_other_files(client: TestClient, name: str) -> None:
    assert client.get(f"/static/{name}").status_code == 404


def test_the_vendored_library_is_the_one_that_its_licence_goes_with() -> None:
    assert "MIT License" in FILES["uPlot.LICENSE"].read_text("utf-8")
    assert (
        FILES["uPlot.iife.min.js"]
        .read_text("utf-8")
        .startswith("/*! https://github.com/leeoniya/uPlot (v1.6.32) */")
    )
