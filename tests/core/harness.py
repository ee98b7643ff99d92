"""Server and devices in one process, without a network: frames go through their bytes."""

from __future__ import annotations

import random
from dataclasses import dataclass, field

from multispin.core.batch import BatchLimits
from multispin.core.confidence import Calibration
from multispin.core.device import DeviceSession
from multispin.core.drafter import Drafter, LookupDrafter, ModelDrafter
from multispin.core.engine import Engine, StepResult
from multispin.core.limits import ServerLimits
from multispin.core.mixed import MixedDrafter
from multispin.core.server import Outgoing, ServerCore
from multispin.core.tenant import LOCAL, Tenant
from multispin.core.welcome import welcome
from multispin.lm.ngram import NgramModel
from multispin.types import AcceptanceRule, SamplingParams
from multispin.wire import frames
from multispin.wire.frames import Error, Open, Opened, Verdict

PROMPT = "The phone drafts and the server "
ONE_BY_ONE = BatchLimits(mode="stop-and-wait")
SECRETS = random.Random(11).randbytes  # no two servers make the same


class FakeClock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 0.001
        return self.now


def new_engine(num_sequences: int = 4, context_length: int = 512) -> Engine:
    model = NgramModel.from_text(num_sequences=num_sequences, context_length=context_length)
    # Passes take the same time, whatever else the machine does.
    return Engine(model, max_rows=64, reproducible=True, clock=FakeClock())


def new_server(engine: Engine | None = None, **limits: object) -> Harness:
    engine = engine or new_engine()
    limits.setdefault("batch", ONE_BY_ONE)
    return Harness(engine, ServerCore(engine.info, ServerLimits(**limits), FakeClock(), SECRETS))


def new_drafter(kind: str) -> Drafter | None:
    match kind:
        case "none":
            return None
        case "lookup":
            return LookupDrafter()
        case "weaker":
            return ModelDrafter(NgramModel.from_text(order=2, num_sequences=1))
        case "mixed":
            return MixedDrafter(ModelDrafter(NgramModel.from_text(order=2, num_sequences=1)))
        case _:
            return ModelDrafter(NgramModel.from_text(num_sequences=1))


def request(
    session: int = 0,
    prompt: str = PROMPT,
    *,
    rule: AcceptanceRule = "coupled",
    temperature: float = 0.8,
    seed: int = 7,
    max_tokens: int = 48,
    draft_length: int = 4,
    stop: tuple[str, ...] = (),
    **params: object,
) -> Open:
    sampling = SamplingParams(temperature=temperature, **params)
    return Open(
        session, prompt, sampling, rule, seed, max_tokens, draft_length, list(stop), wants_text=True
    )


@dataclass
class Harness:
    """Drives the core as the network shell does, one call at a time."""

    engine: Engine
    core: ServerCore
    sent: list[Outgoing] = field(default_factory=list)
    links: set[str] = field(default_factory=set)

    def connect(self, link: str, tenant: Tenant = LOCAL) -> None:
        self.links.add(link)
        self.core.connect(link, 1.0, tenant=tenant)

    def drop(self, link: str) -> None:
        self.links.discard(link)
        self.core.drop(link)

    def open(self, message: Open, link: str = "link") -> list[Outgoing]:
        if link not in self.links:
            self.connect(link)
        prompt = self.engine.tokenize(message.prompt, parse_special=False)
        return self._send(self.core.open(link, message, prompt))

    def resume(self, message: frames.Resume, link: str) -> list[Outgoing]:
        message = frames.decode_from_device(frames.encode(message))
        return self._send(self.core.resume(link, message))

    def draft(self, message: frames.Draft, link: str = "link") -> list[Outgoing]:
        message = frames.decode_from_device(frames.encode(message))
        return self._send(self.core.draft(link, message))

    def step(self) -> list[Outgoing] | None:
        batch = self.core.next_batch()
        return None if batch is None else self.complete(self.engine.step(batch))

    def complete(self, result: StepResult) -> list[Outgoing]:
        return self._send(self.core.complete(result))

    def _send(self, outgoing: list[Outgoing]) -> list[Outgoing]:
        self.sent += outgoing
        return [(link, frames.decode_from_server(frames.encode(frame))) for link, frame in outgoing]


def next_draft(session: DeviceSession, num_tokens: int = 1000) -> frames.Draft | None:
    """Draft as much as may be drafted, up to ``num_tokens``, and put it into one frame."""
    for _ in range(num_tokens):
        job = session.job()
        if job is None:
            break
        session.add(job, session.draft(job), 0.0)
    return session.message() if session.owes_message else None


class Writer:
    """One device with one session."""

    def __init__(self, harness: Harness, message: Open, drafter: Drafter | None, link: str) -> None:
        self.harness = harness
        self.link = link
        if drafter is None:
            message = frames.msgspec.structs.replace(message, draft_length=0)
        [(_, opened)] = harness.open(message, link)
        assert isinstance(opened, Opened), opened
        self.session = DeviceSession(
            message, opened, drafter, 0, welcome(harness.core), Calibration()
        )
        self.text = ""

    def act(self) -> None:
        draft = next_draft(self.session)
        if draft is not None:
            assert self.harness.draft(draft, self.link) == []

    def take(self, verdict: Verdict) -> None:
        committed = self.session.apply(verdict, 0.0)
        if committed is not None:
            self.text += committed.text


def run(harness: Harness, writers: list[Writer], rng: random.Random | None = None) -> None:
    """Until every text is finished; ``rng`` lets only some devices act between two batches."""
    by_key = {(w.link, w.session.request.session): w for w in writers}
    for _ in range(10_000):
        if all(w.session.finish for w in writers):
            return
        for writer in writers:
            if rng is None or rng.random() < 0.5:
                writer.act()
        for link, frame in harness.step() or []:
            assert not isinstance(frame, Error), frame
            by_key[link, frame.session].take(frame)
    raise AssertionError("the texts do not end")


def write(
    message: Open, kind: str, *, batch: BatchLimits | None = None, engine: Engine | None = None
) -> Writer:
    """One text, alone on a server of its own."""
    harness = new_server(engine, batch=batch or ONE_BY_ONE)
    writer = Writer(harness, message, new_drafter(kind), "link")
    run(harness, [writer])
    return writer
