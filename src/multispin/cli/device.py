"""`multispin device`: a device agent, at work for applications (--port) or on a list of prompts."""

from __future__ import annotations

import asyncio
import inspect
import json
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from multispin.cli import options
from multispin.errors import BadInput
from multispin.types import DRAFT_LENGTH, MAX_TOKENS, Offline, SamplingParams

if TYPE_CHECKING:
    import socket

    from multispin.core.device import Committed
    from multispin.net.address import Address
    from multispin.net.device import Device, Request
    from multispin.net.drafting import DrafterOptions
    from multispin.wire.frames import Wish

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
    token: options.Token = None,
    token_file: options.TokenFile = None,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
    draft: options.Draft = "lookup",
    draft_length: options.DraftLength = DRAFT_LENGTH,
    chat: Annotated[bool, typer.Option("--chat", help="Use the target's chat template.")] = False,
    max_tokens: options.MaxTokens = MAX_TOKENS,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    seed: options.Seed = None,
    acceptance_rule: options.Rule = None,
    offline: Annotated[
        str,
        typer.Option(
            metavar="|".join(get_args(Offline)),
            help="What becomes of texts while the link is down. draft: the small model goes on "
            "alone, for who takes text that may be replaced.",
        ),
    ] = "wait",
    other_server: Annotated[
        list[str] | None,
        typer.Option(
            metavar="HOST:PORT",
            help="One with the same target, or another directory, for when the first is gone.",
        ),
    ] = None,
    draft_s_per_token: Annotated[
        float, typer.Option(help="Draft no faster than this: stands for a slower device.")
    ] = 0.0,
    spectral_efficiency: Annotated[
        float, typer.Option(help="Bit/s/Hz of the uplink, where the server shares out hertz.")
    ] = 1.0,
    pad: Annotated[
        bool,
        typer.Option(
            "--pad", help="Hide what is written from who watches the link: sizes and times alike."
        ),
    ] = False,
    cell: options.Cell = "",
    target: options.Target = "",
    max_s_per_token: options.MaxSPerToken = 0.0,
    max_joules_per_token: options.MaxJoulesPerToken = 0.0,
    max_cost_per_token: options.MaxCostPerToken = 0.0,
    min_quality: options.MinQuality = 0,
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
        _refuse_given(given, OF_PROMPTS, "goes without --port: there each request states its own")
        # Where there is a choice: at temperature 0 every rule is greedy.
        params = SamplingParams(temperature=1.0)
    else:
        _refuse_given(given, OF_ENDPOINT, "goes with --port")
        params = SamplingParams(temperature, top_k, top_p, min_p)
        params.validate()
        if offline == "draft" and not events:
            remedy = "goes with --port or --events: text that is printed cannot be replaced"
            raise BadInput("--offline", offline, remedy)
    rule = options.acceptance_rule(acceptance_rule, params)
    mode: Offline = options.choice("--offline", offline, get_args(Offline))
    if draft_s_per_token < 0:
        raise BadInput("--draft-s-per-token", draft_s_per_token, "must be 0 or more")
    options.check_writing(draft_length, max_tokens, seed)
    if not 1 <= max_sessions <= 255:
        raise BadInput("--max-sessions", max_sessions, "must lie between 1 and 255")

    from multispin.cli.drafter import drafter_options

    credentials = (token, token_file, ca, cert, key)
    addresses = [options.address(server, *credentials)]
    for other in other_server or []:
        addresses.append(options.address(other, *credentials, "--other-server"))
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
        pads=pad,
        cell=cell,
    )
    wish = options.wish(
        target, max_s_per_token, max_joules_per_token, max_cost_per_token, min_quality
    )
    if listening is not None:
        options.start_log(log_format, log_level)
        defaults = {
            "num_places": max_sessions,
            "draft_length": draft_length,
            "rule": rule,
            "wish": wish,
        }
        asyncio.run(_serve(listening, addresses, drafter, mode, defaults))
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
            provisional=events,
            wish=wish,
        )
        for text in read_prompts(prompts)
    )
    tell = print_event if events else print_text
    asyncio.run(_run(addresses, drafter, mode, wish, requests, tell))


def _refuse_given(given: dict[str, Any], names: tuple[str, ...], remedy: str) -> None:
    """Options that would have no effect are not taken in silence."""
    parameters = inspect.signature(device).parameters
    for name in names:
        if given[name] != parameters[name].default:
            raise BadInput(f"--{name.replace('_', '-')}", given[name], remedy)


# --- an endpoint ---------------------------------------------------------------------------------


async def _serve(
    listening: socket.socket,
    addresses: Sequence[Address],
    drafter: DrafterOptions,
    offline: Offline,
    defaults: dict[str, Any],
) -> None:
    from multispin.api.app import create_device_app
    from multispin.api.serving import address_of, serve_app
    from multispin.api.texts import DeviceTexts
    from multispin.net.drafting import connect
    from multispin.net.watch import watch

    with watch("device") as watching:
        first, *others = addresses
        device = await connect(
            first,
            drafter,
            watching.observers,
            others=others,
            offline=offline,
            wish=defaults["wish"],
        )
        texts = DeviceTexts(device, drafter.draft, **defaults)
        print(address_of(listening), flush=True)
        try:
            app = create_device_app(texts, watching.telemetry)
            await serve_app(
                app, listening, asyncio.Event().wait(), refused=watching.telemetry.refused
            )
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


async def _run(
    addresses: Sequence[Address],
    drafter: DrafterOptions,
    offline: Offline,
    wish: Wish,
    requests: Iterator[Request],
    tell: Callable[[dict[str, Any]], None],
) -> None:
    from multispin.net.drafting import connect

    first, *others = addresses
    device = await connect(first, drafter, others=others, offline=offline, wish=wish)
    device.line.on_change = lambda change: tell(
        {"event": "link", "state": "up" if change.is_up else "down", "reason": change.reason}
    )
    tell({"event": "connected", "target": device.router.welcome.target, "draft": drafter.draft})
    try:
        while (request := await asyncio.to_thread(next, requests, None)) is not None:
            await _write(device, request, tell)
    finally:
        await device.close()


def _caveats(committed: Committed) -> dict[str, Any]:
    """What a reader has to know of it, if anything."""
    caveats: dict[str, Any] = {"provisional": True} if committed.provisional else {}
    if (replaces := committed.replaces) is not None:
        caveats["replaces"] = {"token": replaces.token, "character": replaces.character}
    return caveats


async def _write(device: Device, request: Request, tell: Callable[[dict[str, Any]], None]) -> None:
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
                    **_caveats(committed),
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
