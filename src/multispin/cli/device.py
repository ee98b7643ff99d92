"""`multispin device`: a device agent, at work for applications (--port) or on a list of prompts."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multispin.cli import options
from multispin.errors import BadInput
from multispin.types import SamplingParams

if TYPE_CHECKING:
    import socket

    from multispin.net.device import Device, Request
    from multispin.net.drafting import DrafterOptions

# What requests to the endpoint state themselves.
OF_PROMPTS = (
    *("prompts", "chat", "max_tokens", "temperature", "top_p", "top_k", "min_p", "seed", "events"),
)
OF_ENDPOINT = ("max_sessions", "log_format", "log_level")


def device(
    port: Annotated[
        int | None,
        typer.Option(
            help="Serve applications on loopback, by OpenAI's API; 0 takes any free port. Without "
            "it, write texts for --prompts."
        ),
    ] = None,
    max_sessions: Annotated[
        int, typer.Option(help="With --port: texts drafted for at once; others wait.")
    ] = 4,
    prompts: options.Prompts = "-",
    server: options.Server = f"127.0.0.1:{options.DEFAULT_PORT}",
    draft: options.Draft = "lookup",
    draft_length: options.DraftLength = options.DEFAULT_DRAFT_LENGTH,
    chat: Annotated[bool, typer.Option("--chat", help="Use the target's chat template.")] = False,
    max_tokens: options.MaxTokens = 256,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    seed: options.Seed = None,
    acceptance_rule: options.Rule = None,
    draft_s_per_token: Annotated[
        float, typer.Option(help="Draft no faster than this: stands for a slower device.")
    ] = 0.0,
    spectral_efficiency: Annotated[
        float, typer.Option(help="Bit/s/Hz of the uplink, where the server shares out hertz.")
    ] = 1.0,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = 0,
    log_format: options.LogFormat = "text",
    log_level: options.LogLevel = "info",
    events: Annotated[
        bool,
        typer.Option("--events", help="Print a JSON object a line for each thing that happens."),
    ] = False,
) -> None:
    """Draft for applications on this device, or for prompts from a file or standard input."""
    given = locals()
    if port is not None:
        _refuse_given(given, OF_PROMPTS, "goes with --prompts: here each request states its own")
        # Where there is a choice: at temperature 0 every rule is greedy.
        params = SamplingParams(temperature=1.0)
    else:
        _refuse_given(given, OF_ENDPOINT, "goes with --port")
        params = SamplingParams(temperature, top_k, top_p, min_p)
        params.validate()
    rule = options.acceptance_rule(acceptance_rule, params)
    if draft_s_per_token < 0:
        raise BadInput("--draft-s-per-token", draft_s_per_token, "must be 0 or more")
    options.check_writing(draft_length, max_tokens, seed)
    if not 1 <= max_sessions <= 255:
        raise BadInput("--max-sessions", max_sessions, "must lie between 1 and 255")

    from multispin.cli.drafter import drafter_options

    listening = None
    if port is not None:
        from multispin.api.serving import bind

        listening = bind("127.0.0.1", port)
    drafter = drafter_options(
        draft,
        threads=threads,
        gpu_layers=gpu_layers,
        num_sequences=1 if port is None else max_sessions,
        draft_s_per_token=draft_s_per_token,
        spectral_efficiency=spectral_efficiency,
    )
    if listening is not None:
        options.start_log(log_format, log_level)
        defaults = {"num_places": max_sessions, "draft_length": draft_length, "rule": rule}
        asyncio.run(_serve(listening, server, drafter, defaults))
        return

    from multispin.cli.prompts import read_prompts
    from multispin.net.device import Request
    from multispin.wire.frames import ChatMessage

    requests = (
        Request(
            prompt=[ChatMessage("user", text)] if chat else text,
            params=params,
            rule=rule,
            seed=options.random_seed() if seed is None else seed,
            max_tokens=max_tokens,
            draft_length=draft_length,
            stop=[],
        )
        for text in read_prompts(prompts)
    )
    asyncio.run(_run(server, drafter, requests, print_event if events else print_text))


def _refuse_given(given: dict[str, Any], names: tuple[str, ...], remedy: str) -> None:
    """Options that would have no effect are not taken in silence."""
    parameters = inspect.signature(device).parameters
    for name in names:
        if given[name] != parameters[name].default:
            raise BadInput(f"--{name.replace('_', '-')}", given[name], remedy)


# --- an endpoint ---------------------------------------------------------------------------------


async def _serve(
    listening: socket.socket, server: str, drafter: DrafterOptions, defaults: dict[str, Any]
) -> None:
    from multispin.api.app import create_device_app
    from multispin.api.serving import address_of, serve_app
    from multispin.api.texts import DeviceTexts
    from multispin.net.drafting import connect
    from multispin.net.watch import watch

    with watch("device") as watching:
        device = await connect(server, drafter, watching.observers)
        texts = DeviceTexts(device, drafter.draft, **defaults)
        print(address_of(listening), flush=True)
        try:
            app = create_device_app(texts, watching.telemetry)
            await serve_app(app, listening, asyncio.Event().wait())
        finally:
            await device.close()


# --- prompts -------------------------------------------------------------------------------------


def print_event(event: dict[str, Any]) -> None:
    print(json.dumps(event), flush=True)


def print_text(event: dict[str, Any]) -> None:
    match event["event"]:
        case "commit":
            print(event["text"], end="", flush=True)
        case "done":
            print("\n")


async def _run(server: str, drafter: DrafterOptions, requests: Iterator[Request], tell) -> None:  # type: ignore[no-untyped-def]
    from multispin.net.drafting import connect

    device = await connect(server, drafter)
    tell({"event": "connected", "target": device.link.welcome.target, "draft": drafter.draft})
    try:
        while (request := await asyncio.to_thread(next, requests, None)) is not None:
            await _write(device, request, tell)
    finally:
        await device.close()


async def _write(device: Device, request: Request, tell) -> None:  # type: ignore[no-untyped-def]
    began = time.monotonic()
    async with device.write(request) as writing:
        session = writing.session
        tell({"event": "open", "prompt_tokens": session.num_prompt, "seed": request.seed})
        async for committed in writing:
            tell(
                {
                    "event": "commit",
                    "text": committed.text,
                    "num_tokens": len(committed.ids),
                    "num_accepted": committed.num_accepted,
                    "draft_length": session.grant,
                    "elapsed_s": time.monotonic() - began,
                    "speculation": writing.stats.report(),
                }
            )
        tell(
            {
                "event": "done",
                "finish_reason": session.finish,
                "completion_tokens": len(session.committed),
                "token_ids": session.committed,
                "elapsed_s": time.monotonic() - began,
            }
        )
