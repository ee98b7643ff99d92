"""`multispin serve`: the edge server."""

from __future__ import annotations

import asyncio
import gc
import ipaddress
import math
import os
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from multispin.cli import options
from multispin.errors import BadInput

if TYPE_CHECKING:
    from multispin.core.controller import ControlSettings
    from multispin.core.server import Counters

TARGETS_WITHOUT_FILE = ("ngram",)
MAX_COST_SESSIONS = 4096  # of a cost model, which holds tokens only


def serve(
    target: Annotated[
        str,
        typer.Option(
            help="Large model: catalog name, GGUF path, hf:owner/repo/file, ngram, "
            "cost:FILE (a TOML of batch times)."
        ),
    ],
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes any free one.")] = options.DEFAULT_PORT,
    reproducible: Annotated[
        bool, typer.Option("--reproducible", help="Bit-exact text for a prompt and seed; slower.")
    ] = False,
    ctx_size: Annotated[int, typer.Option(help="Tokens a session can hold.")] = 4096,
    max_sessions: Annotated[int, typer.Option(help="Sessions served at once; others wait.")] = 8,
    max_draft_length: Annotated[int, typer.Option(help="Longest draft a device may send.")] = 32,
    mode: Annotated[
        str | None,
        typer.Option(
            help="window: devices draft ahead while verdicts are outstanding; stop-and-wait; or "
            "rounds: all devices in one pass, with a barrier. By default window; stop-and-wait for "
            "the n-gram target, which leaves nobody the time to draft."
        ),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            help="Who decides how far devices draft (as in `plan`); by default, each device."
        ),
    ] = None,
    uplink_bits_per_s: Annotated[
        float | None, typer.Option(help="Uplink that all devices share; shared out by --policy.")
    ] = None,
    bandwidth_hz: Annotated[
        float | None, typer.Option(help="The same as a bandwidth; devices state their efficiency.")
    ] = None,
    least_share: Annotated[
        float | None,
        typer.Option(
            help="Of server-only generation, that each device keeps under --policy heterogeneous "
            "(0 to 1, 0.97 by default; at 0 only the sum counts)."
        ),
    ] = None,
    replay: Annotated[
        str | None,
        typer.Option(
            metavar="FILE.record", help="Texts of this record go on as recorded; for measurements."
        ),
    ] = None,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = 0,
    log_format: options.LogFormat = "text",
    log_level: options.LogLevel = "info",
    insecure: Annotated[
        bool, typer.Option("--insecure", help="Serve off loopback without TLS and tokens.")
    ] = False,
) -> None:
    """Serve a large model to devices that draft for it."""
    _check_address(host, insecure)
    for field, value, low, high in (
        ("--ctx-size", ctx_size, 16, 1 << 20),
        ("--max-sessions", max_sessions, 1, _most_sessions(target)),
        ("--max-draft-length", max_draft_length, 0, 1024),
    ):
        if not low <= value <= high:
            raise BadInput(field, value, f"must lie between {low} and {high}")

    from multispin.api.serving import bind
    from multispin.catalog import find_model, progress_on_stderr
    from multispin.core.batch import BatchLimits
    from multispin.core.server import ServerLimits
    from multispin.net.loading import COST_PREFIX, TargetOptions
    from multispin.types import Mode

    has_costs = target.startswith(COST_PREFIX)
    if has_costs and replay is not None:
        raise BadInput("--replay", replay, "a cost model names its record itself: cost.record")
    if mode is None:
        mode = "stop-and-wait" if target == "ngram" else "window"
    checked: Mode = options.choice("--mode", mode, get_args(Mode))

    options.start_log(log_format, log_level)
    listening = bind(host, port)
    path = None
    if target not in TARGETS_WITHOUT_FILE and not has_costs:
        with progress_on_stderr() as progress:
            path = os.fspath(find_model(target, progress=progress))
    max_rows = max(BatchLimits().max_rows, max_draft_length + 1)
    if mode == "rounds" or has_costs:  # everybody fits in one pass
        max_rows = max(max_rows, max_sessions * (max_draft_length + 1))
    else:  # where rows cost little, everybody with a few
        max_rows = max(max_rows, 8 * max_sessions)
    control = _control(policy, uplink_bits_per_s, bandwidth_hz, least_share)
    batch = BatchLimits(max_rows=max_rows, mode=checked)
    limits = ServerLimits(max_draft_length, batch=batch, control=control)
    load = TargetOptions(
        target=target,
        path=path,
        num_sequences=max_sessions,
        context_length=ctx_size,
        threads=options.num_threads(threads),
        gpu_layers=gpu_layers,
        reproducible=reproducible,
        max_rows=max_rows,
        replay=replay,
    )
    if log_format == "text":
        proof = " and proving the reproducible mode" if reproducible else ""
        print(f"loading {target}{proof} …", file=sys.stderr)
    asyncio.run(_serve(listening, load, limits))


def _most_sessions(target: str) -> int:
    """llama.cpp's limit, where it is there."""
    from multispin.net.loading import COST_PREFIX

    return MAX_COST_SESSIONS if target.startswith(COST_PREFIX) else 255


def _control(
    policy: str | None,
    uplink_bits_per_s: float | None,
    bandwidth_hz: float | None,
    least_share: float | None,
) -> ControlSettings:
    from multispin.control import POLICIES
    from multispin.core.controller import ControlSettings

    if policy is not None:
        # 'exhaustive' is for small cells and people with time; a server has promised no outage.
        left_out = ("exhaustive", "outage-constrained")
        options.choice("--policy", policy, tuple(n for n in POLICIES if n not in left_out))
    for field, value in (
        ("--uplink-bits-per-s", uplink_bits_per_s),
        ("--bandwidth-hz", bandwidth_hz),
    ):
        if value is None:
            continue
        if not (math.isfinite(value) and value > 0):
            raise BadInput(field, value, "must be above 0")
        if policy is None:
            raise BadInput(field, value, "needs a --policy that shares it out, as heterogeneous")
    if uplink_bits_per_s is not None and bandwidth_hz is not None:
        raise BadInput("--bandwidth-hz", bandwidth_hz, "state it or --uplink-bits-per-s, not both")
    control = ControlSettings(policy, uplink_bits_per_s, bandwidth_hz)
    if least_share is None:
        return control
    if not 0 <= least_share <= 1:
        raise BadInput("--least-share", least_share, "must lie between 0 and 1")
    if policy != "heterogeneous":
        raise BadInput("--least-share", least_share, "only --policy heterogeneous keeps to it")
    return replace(control, least_share=least_share)


def _check_address(host: str, insecure: bool) -> None:
    try:
        loopback = host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        raise BadInput("--host", host, "must be an IP address or localhost") from None
    if loopback:
        return
    if not insecure:
        raise BadInput(
            "--host",
            host,
            "off loopback anybody could read and use it: there is no TLS and no access token yet; "
            "write --insecure if the network is yours alone",
        )
    print(f"warning: serving on {host} without TLS and access tokens", file=sys.stderr)


def _tell_differences(counters: Counters) -> None:
    print(
        f"replayed: {counters.num_replay_differences} judgements differed from the record, "
        f"{counters.num_committed_tokens} tokens were committed",
        file=sys.stderr,
    )


async def _serve(listening, load, limits) -> None:  # type: ignore[no-untyped-def]
    from multispin.api.app import ServerState, create_app
    from multispin.api.serving import address_of, serve_app
    from multispin.net.engine_process import start_engine
    from multispin.net.server import EdgeServer
    from multispin.net.watch import watch

    async def main() -> None:
        engine = await start_engine(load)
        try:
            state.server = EdgeServer(engine, limits, observers=watching.observers)
            gc.collect()
            gc.freeze()  # what is here now stays: looking through it again would hold up batches
            print(address_of(listening), flush=True)
            await state.server.run()
        finally:
            if load.replay and state.server:
                _tell_differences(state.server.core.counters)
            await engine.close()

    with watch("server", limits.control) as watching:
        state = ServerState(telemetry=watching.telemetry)
        await serve_app(create_app(state), listening, main())
