"""Budgets in requests: at a server that is alone, and at a device and a directory with replicas."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from multispin.api.app import create_device_app
from multispin.api.texts import DeviceTexts
from multispin.net.drafting import DrafterOptions, connect
from multispin.net.telemetry import Telemetry
from multispin.wire.frames import Wish
from tests.api import directory_stage
from tests.api.stage import served
from tests.api.test_bad_input import TEXT, refused
from tests.api.test_directory import told


def body(**fields: Any) -> bytes:
    return json.dumps(
        {"model": "ngram", "prompt": "The phone ", "max_tokens": 4, **fields}
    ).encode()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("max_s_per_token", 0.05),
        ("max_joules_per_token", 1),
        ("max_cost_per_token", 2e-6),
        ("min_quality", 2),
    ],
)
def test_a_server_that_is_alone_has_nothing_to_choose_from(
    endpoint: str, field: str, value: float
) -> None:
    error = refused(endpoint, TEXT, body(**{field: value}), 400, "bad_input", field)
    assert "goes with a directory" in error["message"]
    refused(endpoint, TEXT, body(**{field: -1}), 400, "invalid_value", field)
    refused(endpoint, TEXT, body(**{field: "much"}), 400, "invalid_value", field)


def test_what_a_request_asks_for_counts_before_what_its_device_does(tmp_path: Path) -> None:
    async def scene(stage: directory_stage.Stage) -> None:
        wish = Wish("chat", max_s_per_token=10.0)
        device = await connect(stage.address, DrafterOptions("lookup"), wish=wish)
        texts = DeviceTexts(device, "lookup", num_places=2, draft_length=4, wish=wish)
        app = create_device_app(texts, Telemetry())
        async with served(app, asyncio.Event().wait()) as near:
            for address in (near, stage.address):
                status, answer = await told(address, max_cost_per_token=1.0, min_quality=1)
                assert (status, answer.get("model")) == (200, "chat")
                status, answer = await told(address, min_quality=9)
                assert (status, answer["error"]["code"]) == (400, "infeasible")
                status, answer = await told(address, max_s_per_token=1e-12)
                assert (status, answer["error"]["code"]) == (400, "infeasible")
                assert "chat" in answer["error"]["message"]
        await device.close()

    directory_stage.play(scene, tmp_path)


def test_a_device_asks_for_what_it_was_started_with(tmp_path: Path) -> None:
    async def scene(stage: directory_stage.Stage) -> None:
        device = await connect(stage.address, DrafterOptions("lookup"))
        texts = DeviceTexts(
            device, "lookup", num_places=2, draft_length=4, wish=Wish(max_s_per_token=1e-12)
        )
        async with served(create_device_app(texts, Telemetry()), asyncio.Event().wait()) as near:
            status, answer = await told(near, model="ngram")
            assert (status, answer["error"]["code"]) == (400, "infeasible")
            status, answer = await told(near, model="ngram", max_s_per_token=10)
            assert status == 200, answer
        await device.close()

    directory_stage.play(scene, tmp_path)
