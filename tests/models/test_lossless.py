"""Reproducible mode, end to end: the same ids whatever drafts, however long, beside whomever."""

from __future__ import annotations

import asyncio

import pytest

from tests.models.serving import device, ids_of, request, serving

pytestmark = pytest.mark.models

CODE = "def largest_prime_factor(n: int) -> int:\n    "
PROSE = "A radio cell is the area around a base station in which"
NEIGHBOUR = "import json\n\ndef read_config(path):\n"


@pytest.mark.timeout(1200)
@pytest.mark.parametrize(
    ("target", "drafters", "prompt"),
    [
        ("smollm2-135m", ["lookup"], PROSE),
        ("qwen2.5-coder-1.5b", ["lookup", "qwen2.5-coder-0.5b"], CODE),
    ],
)
def test_every_way_of_drafting_writes_the_same_ids(
    target: str, drafters: list[str], prompt: str
) -> None:
    async def matrix(address: str) -> None:
        devices = {name: await device(address, name, 4) for name in ["none", *drafters]}
        variants = [("none", 0), *((name, length) for name in drafters for length in (1, 4, 8))]
        try:
            for temperature in (0.0, 0.8):
                expected = await ids_of(devices["none"], request(prompt, temperature=temperature))
                assert len(expected) == 48
                for name, length in variants[1:]:
                    message = request(prompt, temperature=temperature, draft_length=length)
                    assert await ids_of(devices[name], message) == expected, (name, length)
                together = [
                    ids_of(devices[name], request(prompt, temperature=temperature, draft_length=n))
                    for name, n in variants
                ]
                # Eight sessions at once: the variants, and strangers until there are enough.
                strangers = [
                    ids_of(devices["none"], request(NEIGHBOUR * (i + 1), temperature=temperature))
                    for i in range(8 - len(together))
                ]
                found = await asyncio.gather(*together, *strangers)
                for variant, ids in zip(variants, found[: len(variants)], strict=True):
                    assert ids == expected, (temperature, variant)
        finally:
            for it in devices.values():
                await it.close()

    with serving(target, "--reproducible", "--ctx-size", "512", "--max-sessions", "8") as (_, at):
        asyncio.run(matrix(at))
