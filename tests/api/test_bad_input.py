"""What is wrong is refused with a status, the field's name and no stack trace; others go on."""

from __future__ import annotations

import asyncio
import http.client
import json
import socket
from typing import Any

import pytest
import websockets.asyncio.client
import websockets.exceptions

from multispin.api.body import MAX_BODY_BYTES
from tests.api.conftest import CONTEXT_LENGTH, Endpoints, get

CHAT = "/v1/chat/completions"
TEXT = "/v1/completions"
MESSAGES = [{"role": "user", "content": "hi"}]


def send(
    address: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
    method: str | None = None,
) -> tuple[http.client.HTTPResponse, Any]:
    connection = http.client.HTTPConnection(address, timeout=30)
    try:
        method = method or ("GET" if body is None else "POST")
        connection.request(method, path, body, headers or {})
        answer = connection.getresponse()
        data = answer.read()
    finally:
        connection.close()
    assert b"Traceback" not in data
    return answer, json.loads(data)


def refused(
    address: str,
    path: str,
    body: bytes | None,
    status: int,
    code: str,
    param: str | None = None,
    **more: Any,
) -> dict[str, Any]:
    answer, document = send(address, path, body, **more)
    assert answer.status == status, document
    assert answer.headers["content-type"] == "application/json"
    error: dict[str, Any] = document["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    return error


def chat(**fields: Any) -> bytes:
    return json.dumps({"model": "ngram", "messages": MESSAGES, "max_tokens": 2, **fields}).encode()


def text(**fields: Any) -> bytes:
    return json.dumps({"model": "ngram", "prompt": "hi", "max_tokens": 2, **fields}).encode()


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b'{"model":"\xff"}',
        b'{"model":"\\ud800"}',
        b'{"model":"ngram","user":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
    ids=["empty", "cut", "words", "latin", "surrogate", "deep"],
)
def test_what_is_no_json_is_told_so(endpoint: str, body: bytes) -> None:
    for path in (CHAT, TEXT):
        error = refused(endpoint, path, body, 400, "invalid_json")
        assert error["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    ("path", "body", "code", "param"),
    [
        (CHAT, b"[]", "invalid_value", None),
        (CHAT, b"[" * 1_000_000, "invalid_value", None),
        (CHAT, b"{}", "missing_parameter", "model"),
        (TEXT, b'{"model": "ngram"}', "missing_parameter", "prompt"),
        (TEXT, text(max_tokens="many"), "invalid_value", "max_tokens"),
        (TEXT, text(max_tokens=0), "invalid_value", "max_tokens"),
        (TEXT, text(max_tokens=2**40), "invalid_value", "max_tokens"),
        (TEXT, text(max_tokens=1.5), "invalid_value", "max_tokens"),
        (TEXT, text(temperature="hot"), "invalid_value", "temperature"),
        (TEXT, text(temperature=-1), "bad_input", "temperature"),
        (TEXT, text(top_p=0), "bad_input", "top_p"),
        (TEXT, text(top_k=-1), "bad_input", "top_k"),
        (TEXT, text(top_k=2**70), "bad_input", "top_k"),
        (TEXT, text(min_p=2), "bad_input", "min_p"),
        (TEXT, text(presence_penalty=3), "bad_input", "presence_penalty"),
        (TEXT, text(frequency_penalty=-3), "bad_input", "frequency_penalty"),
        (TEXT, text(logit_bias={"x": 1}), "invalid_value", "logit_bias"),
        (TEXT, text(logit_bias={"5": "y"}), "invalid_value", "logit_bias"),
        (TEXT, text(logit_bias={"5": 1000}), "bad_input", "logit_bias"),
        (TEXT, text(logit_bias={"999": 1}), "bad_input", "logit_bias"),
        (TEXT, text(logit_bias={"-1": 1}), "bad_input", "logit_bias"),
        (TEXT, text(logit_bias={str(2**70): 1}), "bad_input", "logit_bias"),
        (TEXT, text(logit_bias={str(i): 1 for i in range(2000)}), "bad_input", "logit_bias"),
        (TEXT, text(seed=-1), "invalid_value", "seed"),
        (TEXT, text(seed=2**63), "invalid_value", "seed"),
        (TEXT, text(seed=0.5), "invalid_value", "seed"),
        (TEXT, text(n=0), "invalid_value", "n"),
        (TEXT, text(n=1_000_000), "invalid_value", "n"),
        (TEXT, text(n=9, prompt=["a", "b"]), "bad_input", "n"),
        (TEXT, text(stop=7), "invalid_value", "stop"),
        (TEXT, text(stop=["x"] * 17), "bad_input", "stop"),
        (TEXT, text(stop="x" * 2000), "bad_input", "stop"),
        (TEXT, text(stream="yes"), "invalid_value", "stream"),
        (TEXT, text(prompt=""), "bad_input", "prompt"),
        (TEXT, text(prompt=[]), "invalid_value", "prompt"),
        (TEXT, text(prompt=[1, 2]), "invalid_value", "prompt[0]"),
        (TEXT, text(prompt="x" * CONTEXT_LENGTH), "context_length_exceeded", "prompt"),
        (TEXT, text(prompt="x" * 1_000_000), "context_length_exceeded", "prompt"),
        (TEXT, text(acceptance_rule="luck"), "invalid_value", "acceptance_rule"),
        (TEXT, text(acceptance_rule="greedy", temperature=1), "bad_input", "acceptance_rule"),
        (TEXT, text(draft_length=-1), "invalid_value", "draft_length"),
        (TEXT, text(best_of=3), "invalid_value", "best_of"),
        (TEXT, text(suffix="the end"), "invalid_value", "suffix"),
        (TEXT, text(echo=True), "unsupported_parameter", "echo"),
        (TEXT, text(top_q=1), "unsupported_parameter", "top_q"),
        (CHAT, chat(model="gpt-4o", messages=[]), "invalid_value", "messages"),
        (CHAT, chat(messages="hi"), "invalid_value", "messages"),
        (CHAT, chat(messages=[{"role": "user"}]), "missing_parameter", "messages[0].content"),
        (CHAT, chat(messages=[{"content": "x"}]), "missing_parameter", "messages[0].role"),
        (CHAT, chat(messages=[*MESSAGES, {"role": "cat"}]), "invalid_value", "messages[1].role"),
        (
            CHAT,
            chat(messages=[{"role": "user", "content": [{"type": "image_url"}]}]),
            "invalid_value",
            "messages[0].content[0].type",
        ),
        (CHAT, chat(messages=[MESSAGES[0]] * 2000), "context_length_exceeded", "messages"),
        (CHAT, chat(reasoning_effort="high"), "unsupported_parameter", "reasoning_effort"),
        (CHAT, chat(functions=[]), "unsupported_parameter", "functions"),
        (CHAT, chat(modalities=["audio"]), "invalid_value", "modalities[0]"),
        (CHAT, chat(tool_choice="required"), "invalid_value", "tool_choice"),
        (CHAT, chat(top_logprobs=3), "bad_input", "top_logprobs"),
        (CHAT, chat(logprobs=True, top_logprobs=21), "invalid_value", "top_logprobs"),
        (CHAT, chat(response_format={"type": "xml"}), "invalid_value", "response_format.type"),
        (
            CHAT,
            chat(response_format={"type": "json_schema"}),
            "missing_parameter",
            "response_format.json_schema",
        ),
    ],
    ids=lambda value: str(value)[:60],
)
def test_the_field_that_is_wrong_is_named(
    endpoint: str, path: str, body: bytes, code: str, param: str | None
) -> None:
    refused(endpoint, path, body, 400, code, param)
    if body.startswith(b'{"model"'):
        refused(endpoint, path, body.replace(b"{", b'{"stream": true, ', 1), 400, code, param)


def test_a_draft_that_the_server_forbids_is_refused(endpoints: Endpoints) -> None:
    body = text(draft_length=33)
    refused(endpoints.device, TEXT, body, 400, "draft_too_long", "draft_length")


def test_an_unknown_model_is_not_found(endpoint: str) -> None:
    for path, body in ((CHAT, chat(model="x")), (TEXT, text(model="x"))):
        error = refused(endpoint, path, body, 404, "model_not_found", "model")
        assert "ngram" in error["message"]
    refused(endpoint, "/v1/models/x/y", None, 404, "model_not_found", "model")


def test_other_paths_and_methods_have_the_same_shape(endpoint: str) -> None:
    refused(endpoint, "/v1/embeddings", b"{}", 404, "not_found")
    refused(endpoint, CHAT, None, 405, "method_not_allowed")
    answer, _ = send(endpoint, "/v1/models", b"{}", method="DELETE")
    assert answer.status == 405
    assert "GET" in answer.headers["allow"]


def test_a_body_that_is_too_large_is_refused_before_it_is_kept(endpoint: str) -> None:
    body = text(prompt="x" * MAX_BODY_BYTES)
    refused(endpoint, TEXT, body, 413, "request_too_large")
    pieces = (body[i : i + 65_536] for i in range(0, len(body), 65_536))
    connection = http.client.HTTPConnection(endpoint, timeout=30)
    connection.request("POST", TEXT, pieces, encode_chunked=True)
    assert connection.getresponse().status == 413
    connection.close()


def test_a_body_without_end_is_given_up(endpoints: Endpoints) -> None:
    host, _, port = endpoints.server.rpartition(":")
    with socket.create_connection((host, int(port)), timeout=30) as it:
        head = f"POST {TEXT} HTTP/1.1\r\nHost: {endpoints.server}\r\n"
        it.sendall(head.encode() + b"Content-Length: 99999999999\r\n\r\n")
        with pytest.raises(OSError):
            for _ in range(2000):
                it.sendall(b" " * 65_536)
            raise AssertionError("it was read to the end")


def test_pages_of_others_reach_nothing(endpoint: str) -> None:
    port = endpoint.rpartition(":")[2]
    for headers, code in (
        ({"Host": f"evil.example:{port}"}, "wrong_host"),
        ({"Host": f"localhost.evil.example:{port}"}, "wrong_host"),
        ({"Host": ""}, "wrong_host"),
        ({"Origin": "https://evil.example"}, "wrong_origin"),
        ({"Origin": "null"}, "wrong_origin"),
        ({"Origin": "http://[bad"}, "wrong_origin"),
    ):
        for path, body in ((TEXT, text()), ("/v1/models", None), ("/health", None)):
            refused(endpoint, path, body, 403, code, headers=headers)
    for headers in (
        {"Host": f"localhost:{port}"},
        {"Host": "127.0.0.1"},
        {"Host": f"[::1]:{port}"},
        {"Origin": "http://localhost:3000"},
        {"Origin": f"http://127.0.0.1:{port}"},
    ):
        assert send(endpoint, TEXT, text(), headers)[0].status == 200


def test_pages_of_others_do_not_become_devices(endpoints: Endpoints) -> None:
    async def main() -> None:
        url = f"ws://{endpoints.server}/v1/device"
        with pytest.raises(websockets.exceptions.InvalidStatus) as caught:
            await websockets.asyncio.client.connect(
                url, origin=websockets.Origin("https://evil.example"), proxy=None
            )
        assert caught.value.response.status_code == 403

    asyncio.run(main())


def test_one_prompt_of_several_that_fails_ends_the_others(endpoints: Endpoints) -> None:
    body = text(prompt=["hi", ""], max_tokens=500)
    refused(endpoints.device, TEXT, body, 400, "bad_input", "prompt")
    body = text(prompt=["hi", ""], max_tokens=500, stream=True)
    connection = http.client.HTTPConnection(endpoints.device, timeout=30)
    connection.request("POST", TEXT, body)
    *_, last = connection.getresponse().read().decode().strip().split("\n\n")
    connection.close()
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "bad_input"


def test_nothing_of_this_stays_behind(endpoints: Endpoints) -> None:
    assert get(endpoints.server, "/api/cell")["num_sessions"] == 0
    for address in endpoints:
        assert send(address, TEXT, text())[0].status == 200
