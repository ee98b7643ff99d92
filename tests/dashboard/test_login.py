"""The way in for browsers, where the server asks for access tokens."""

from __future__ import annotations

import http.client
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from starlette.testclient import TestClient

from multispin.api.app import ServerState, create_app
from multispin.api.login import COOKIE
from multispin.net.token_file import new_token
from tests.cli.conftest import agent
from tests.dashboard.browser import Page


class Locked(NamedTuple):
    """HOST:PORT of a server that asks for tokens, and one of each scope."""

    address: str
    operate: str
    generate: str


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Locked]:
    file = tmp_path_factory.mktemp("tokens") / "tokens.json"
    operate, generate = (add_token(file, scope) for scope in ("operate", "generate"))
    serve = ("serve", "--target", "ngram", "--port", "0", "--tokens", str(file))
    with agent(*serve) as (_, server):
        yield Locked(server, operate, generate)


def add_token(file: Path, scope: str) -> str:
    command = [sys.executable, "-m", "multispin", "tokens", "add", scope, "--json"]
    done = subprocess.run(
        [*command, "--scope", scope, "--file", file], capture_output=True, text=True, check=True
    )
    token: str = json.loads(done.stdout)["token"]
    return token


class Answer(NamedTuple):
    status: int
    location: str | None


def asked(address: str, path: str, token: str | None, **headers: str) -> Answer:
    """What a browser that has the token gets."""
    cookie = {"cookie": f"{COOKIE}={token}"} if token else {}
    connection = http.client.HTTPConnection(address, timeout=30)
    connection.request("GET", path, headers={"accept": "text/html", **cookie, **headers})
    answer = connection.getresponse()
    connection.close()
    return Answer(answer.status, answer.headers["location"])


def test_the_cookie_opens_what_there_is_to_see_and_nothing_else(locked: Locked) -> None:
    for path in ("/", "/api/cell", "/metrics"):
        assert asked(locked.address, path, locked.operate).status == 200
        # A token that may have texts written may not look at the cell.
        assert asked(locked.address, path, locked.generate, accept="*/*").status == 403
    for token in (locked.operate, locked.generate):
        assert asked(locked.address, "/v1/models", token).status == 401


def test_people_are_sent_to_the_form_and_programs_are_not(locked: Locked) -> None:
    address = locked.address
    assert asked(address, "/", None) == (303, "/login")
    for token in (new_token(), locked.generate):
        assert asked(address, "/", token) == (303, "/login?refused")
    assert asked(address, "/", None, accept="*/*").status == 401
    assert asked(address, "/login", None).status == 200
    assert asked(address, "/static/dashboard.css", None).status == 200
    assert asked(address, "/static/../api/cell", None).status in (401, 404)


def test_a_header_counts_more_than_the_cookie(locked: Locked) -> None:
    bearer = f"Bearer {locked.generate}"
    assert asked(locked.address, "/api/cell", locked.operate, authorization=bearer).status == 403


@pytest.mark.parametrize("scheme", ["http", "https"])
def test_no_script_and_no_other_site_gets_the_cookie(scheme: str) -> None:
    client = TestClient(create_app(ServerState()), base_url=f"{scheme}://x", follow_redirects=False)
    answer = client.post("/login", data={"token": new_token()})
    assert (answer.status_code, answer.headers["location"]) == (303, "/")
    attributes = {part.strip().lower() for part in answer.headers["set-cookie"].split(";")[1:]}
    assert {"httponly", "samesite=strict", "path=/"} <= attributes
    assert ("secure" in attributes) == (scheme == "https")
    gone = client.post("/logout")
    assert "max-age=0" in gone.headers["set-cookie"].lower()


@pytest.mark.parametrize("token", ["", "secret", "msp_", "msp_a b", "msp_a\r\nX: y", "msp_é"])
def test_what_cannot_be_a_token_sets_no_cookie(token: str) -> None:
    client = TestClient(create_app(ServerState()), base_url="http://x", follow_redirects=False)
    answer = client.post("/login", data={"token": token})
    assert answer.headers["location"] == "/login?refused"
    assert "set-cookie" not in answer.headers


def sign_in(page: Page, token: str) -> None:
    page.wait_for("document.activeElement.id === 'token'")
    page.call("Input.insertText", text=token)
    page.press("Enter")


def test_a_person_signs_in_and_out(page: Page, locked: Locked) -> None:
    page.open(f"http://{locked.address}/")
    assert page.value("document.querySelector('#refused').hidden")
    sign_in(page, new_token())
    page.wait_for("location.search === '?refused' && document.readyState === 'complete'")
    assert not page.value("document.querySelector('#refused').hidden")
    sign_in(page, locked.operate)
    page.wait_for("document.body.dataset.state === 'live'")
    assert page.value("document.cookie") == ""
    assert page.value("document.querySelector('#sign-out').getClientRects().length") == 1
    page.value("document.querySelector('#sign-out button').click()")
    page.wait_for("document.activeElement.id === 'token'")
    page.open(f"http://{locked.address}/")
    assert page.value("location.pathname") == "/login"
    assert page.complaints == []
