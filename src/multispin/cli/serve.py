"""`multispin serve`: the edge server."""

from __future__ import annotations

import asyncio
import gc
import math
import os
import sys
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated, get_args

import typer

from multispin.cli import options
from multispin.cli.protection import protection
from multispin.errors import BadInput
from multispin.types import DRAIN_S, MAX_DRAIN_S

if TYPE_CHECKING:
    import socket

    from multispin.api.serving import Protection
    from multispin.core.controller import ControlSettings
    from multispin.core.limits import ServerLimits
    from multispin.core.server import Counters
    from multispin.net.loading import TargetOptions

TARGETS_WITHOUT_FILE = ("ngram",)
MAX_NAME = 64  # characters of a replica's
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
            help="Who decides how far devices draft, as in `plan`, or your own as MODULE:CLASS; by "
            "default, each device."
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
    show_texts: Annotated[
        bool,
        typer.Option(
            "--show-texts",
            help="Show what is being written on the dashboard; else no text is ever kept or shown.",
        ),
    ] = False,
    pad: Annotated[
        bool,
        typer.Option(
            "--pad", help="Pad every device's link, asked for or not (see `device --pad`)."
        ),
    ] = False,
    drain_s: Annotated[
        float,
        typer.Option(
            help="Seconds for texts of its own endpoint to end when it is told to stop; with "
            "--directory, half of them for handing over sessions."
        ),
    ] = DRAIN_S,
    name: Annotated[
        str | None,
        typer.Option(help="What directories and the supervisor call it; by default, its target."),
    ] = None,
    directory: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="Of several servers, who tells devices which: sessions that it has not sent here "
            "are sent there, and all are, one by one, when this server is told to stop.",
        ),
    ] = None,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = 0,
    log_format: options.LogFormat = "text",
    log_level: options.LogLevel = "info",
    cert: Annotated[
        str | None,
        typer.Option(metavar="FILE.pem", help="The server's certificate, for TLS (see `certs`)."),
    ] = None,
    key: options.Key = None,
    client_ca: options.ClientCa = None,
    tokens: Annotated[
        str | None,
        typer.Option(metavar="FILE.json", help="Let in only who has an access token (`tokens`)."),
    ] = None,
    share_prefixes: Annotated[
        bool,
        typer.Option(
            "--share-prefixes",
            help="Read what prompts of several access tokens begin with once for all: how soon an "
            "answer begins then tells what others have asked.",
        ),
    ] = False,
    insecure: options.Insecure = False,
) -> None:
    """Serve a large model to devices that draft for it."""
    for field, value, low, high in (
        ("--ctx-size", ctx_size, 16, 1 << 20),
        ("--max-sessions", max_sessions, 1, _most_sessions(target)),
        ("--max-draft-length", max_draft_length, 0, 1024),
        ("--drain-s", drain_s, 0, MAX_DRAIN_S),
    ):
        if not low <= value <= high:
            raise BadInput(field, value, f"must lie between {low} and {high}")
    if name is not None and not 0 < len(name) <= MAX_NAME:
        raise BadInput("--name", name, f"must have 1 to {MAX_NAME} characters")
    if directory is not None:
        from multispin.net.address import parse_address

        parse_address(directory, "--directory")

    from multispin.api.serving import bind
    from multispin.catalog import find_model, progress_on_stderr
    from multispin.core.batch import BatchLimits
    from multispin.core.limits import ServerLimits
    from multispin.net.loading import COST_PREFIX, TargetOptions
    from multispin.types import Mode

    has_costs = target.startswith(COST_PREFIX)
    if has_costs and replay is not None:
        raise BadInput("--replay", replay, "a cost model names its record itself: cost.record")
    if mode is None:
        mode = "stop-and-wait" if target == "ngram" else "window"
    checked: Mode = options.choice("--mode", mode, get_args(Mode))

    options.start_log(log_format, log_level)
    protected = protection(
        host, cert=cert, key=key, client_ca=client_ca, tokens=tokens, insecure=insecure
    )
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
    limits = ServerLimits(
        max_draft_length, share_prefixes=share_prefixes, batch=batch, control=control
    )
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
    replica = _Replica(name or target, directory or "", drain_s)
    asyncio.run(_serve(listening, load, limits, protected, show_texts, replica, pad))


@dataclass(frozen=True)
class _Replica:
    """One server among others."""

    name: str
    directory: str  # or empty: there is none
    drain_s: float


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
    from multispin.control import find_policy
    from multispin.core.controller import ControlSettings

    if policy in ("exhaustive", "outage-constrained"):
        # The one is for small cells and people with time; a server has promised no outage.
        raise BadInput("--policy", policy, "is for `plan` and `simulate` only; try heterogeneous")
    if policy is not None:
        find_policy(policy)
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


def _tell_differences(counters: Counters) -> None:
    print(
        f"replayed: {counters.num_replay_differences} judgements differed from the record, "
        f"{counters.num_committed_tokens} tokens were committed",
        file=sys.stderr,
    )


async def _serve(
    listening: socket.socket,
    load: TargetOptions,
    limits: ServerLimits,
    protected: Protection,
    show_texts: bool,
    replica: _Replica,
    pad: bool,
) -> None:
    from multispin.api.app import ServerState, create_app
    from multispin.api.dashboard_feed import Logs
    from multispin.api.serving import address_of, serve_app
    from multispin.net.engine_process import start_engine
    from multispin.net.server import EdgeServer
    from multispin.net.watch import watch

    async def main() -> None:
        engine = await start_engine(load)
        try:
            observers = [*watching.observers, *state.logs.observers]
            server = EdgeServer(
                engine, limits, observers=observers, pads=pad, directory=replica.directory
            )
            state.begin(server)
            state.logs.attach(server.core)
            gc.collect()
            gc.freeze()  # what is here now stays: looking through it again would hold up batches
            print(address_of(listening, protected.tls), flush=True)
            await server.run()
        finally:
            if load.replay and state.server:
                _tell_differences(state.server.core.counters)
            await engine.close()

    with watch("server", limits.control) as watching:
        logs = Logs(shows_texts=show_texts)
        state = ServerState(telemetry=watching.telemetry, logs=logs, name=replica.name)

        async def drain() -> None:
            if state.server is not None:
                await state.server.drain(replica.drain_s)

        refused = watching.telemetry.refused
        await serve_app(create_app(state), listening, main(), drain, refused, protected)
