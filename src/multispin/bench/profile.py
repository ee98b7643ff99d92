"""A target and a drafter on this machine, measured, and the CELL.toml that says so."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib import resources
from pathlib import Path
from typing import Any

from multispin.bench.pair import Agreement, Sampling, check_prompts, walk_prompts
from multispin.bench.record import Prompt
from multispin.bench.verification import (
    BatchTime,
    Tell,
    VerificationCurve,
    by_rows,
    fit_curve,
    measure_batches,
)
from multispin.core.drafter import Drafter, LookupDrafter, ModelDrafter
from multispin.core.engine import Engine
from multispin.core.prompt import prompt_text, with_bos
from multispin.errors import BadInput, IncompatibleModels
from multispin.lm.base import LanguageModel
from multispin.lm.llama import LlamaModel
from multispin.lm.ngram import NgramModel, corpus
from multispin.net.drafting import NGRAM_CONTEXT, NGRAM_ORDER, DrafterOptions
from multispin.types import TokenIds
from multispin.wire.frames import TRANSPORT_BITS, ChatMessage
from multispin.wire.payload import payload


@dataclass(frozen=True)
class Machine:
    """Where the measurements were made: what figures depend on, and nothing that tells whose."""

    processor: str
    num_cores: int
    threads: int
    library: str


@dataclass(frozen=True)
class Profile:
    """Everything that was measured of one pair. ``bits_per_…`` follow from the wire's frames."""

    target: str
    draft: str
    machine: Machine
    sampling: Sampling
    vocabulary_size: int
    batches: list[BatchTime]
    curve: VerificationCurve
    by_prompt: list[Agreement]
    overall: Agreement

    @property
    def bits_per_token(self) -> float:
        return payload("coupled", self.vocabulary_size).bits_per_token

    @property
    def bits_per_draft(self) -> float:
        return payload("coupled", self.vocabulary_size).bits_per_draft

    def report(self) -> dict[str, Any]:
        """The ``profile --json`` object, less the cell."""
        return {
            "target": self.target,
            "draft": self.draft,
            "machine": asdict(self.machine),
            "vocabulary_size": self.vocabulary_size,
            "verification": {
                "fixed_s": self.curve.fixed_s,
                "per_device_s": self.curve.per_device_s,
                "per_token_s": self.curve.per_token_s,
                "fit_error_mean": self.curve.mean_error,
                "fit_error_max": self.curve.max_error,
                "batches": [asdict(batch) for batch in self.batches],
            },
            "draft_s_per_token": self.overall.draft_s_per_token,
            "bits_per_token": self.bits_per_token,
            "bits_per_draft": self.bits_per_draft,
            "acceptance": self.overall.acceptance,
            "num_empty_drafts": self.overall.num_empty,
            "speculation": _speculation(self.overall),
            "prompts": [
                {"acceptance": counted.acceptance, "speculation": _speculation(counted)}
                for counted in self.by_prompt
            ],
        }


def measure(
    engine: Engine,
    drafter: Drafter,
    prompts: Sequence[TokenIds],
    sampling: Sampling,
    machine: Machine,
    draft: str,
    tell: Tell,
) -> Profile:
    """Both halves of the profile. Raises BadInput for prompts that do not fit."""
    check_prompts(engine, prompts, sampling)
    batches = measure_batches(engine, max(prompts, key=len), tell)
    by_prompt = walk_prompts(engine, drafter, prompts, sampling, tell)
    overall = Agreement()
    for counted in by_prompt:
        overall.add(counted)
    return Profile(
        target=shown_name(engine.info.target),
        draft=shown_name(draft),
        machine=machine,
        sampling=sampling,
        vocabulary_size=engine.info.vocabulary().size,
        batches=batches,
        curve=fit_curve(batches),
        by_prompt=by_prompt,
        overall=overall,
    )


def load_drafter(options: DrafterOptions, engine: Engine) -> Drafter:
    """The drafter for this target; raises as `load_draft_model`."""
    if options.draft == "lookup":
        return LookupDrafter()
    model = load_draft_model(options, engine)
    return ModelDrafter(model, owns_vocabulary=options.path is not None)


def load_draft_model(options: DrafterOptions, engine: Engine) -> LanguageModel:
    """A drafter's model. Raises IncompatibleModels unless it shares the target's vocabulary."""
    if options.path is None:
        return NgramModel.from_tokens(
            engine.tokenize(corpus(), parse_special=False),
            engine.info.vocabulary().size,
            order=NGRAM_ORDER,
            num_sequences=options.num_sequences,
            context_length=NGRAM_CONTEXT,
        )
    llama = LlamaModel(
        path=options.path,
        name=options.draft,
        num_sequences=options.num_sequences,
        context_length=options.context_length,
        threads=options.threads,
        gpu_layers=options.gpu_layers,
    )
    if llama.vocabulary.fingerprint != engine.info.fingerprint:
        llama.close()
        raise IncompatibleModels(
            "--draft",
            options.draft,
            f"its vocabulary differs from that of the target {engine.info.target}: draft with a "
            "model of the target's family, or with lookup or ngram",
        )
    return llama


def default_prompts() -> list[str]:
    """A few short questions and beginnings, in the package."""
    return (
        resources.files("multispin.bench").joinpath("prompts.txt").read_text("utf-8").splitlines()
    )


def tokenize_prompt(engine: Engine, prompt: str, *, chat: bool) -> TokenIds:
    """A prompt's ids as the server would read them: plain, or as a user's turn of a chat."""
    return read_prompt(engine, prompt, chat=chat).ids


def read_prompt(engine: Engine, prompt: str, *, chat: bool) -> Prompt:
    """The same with the text that the tokenizer read."""
    vocabulary = engine.info.vocabulary()
    if chat and vocabulary.chat_template is None:
        raise BadInput("--chat", engine.info.target, "has no chat template: leave the option out")
    message = [ChatMessage("user", prompt)] if chat else prompt
    text, parse_special = prompt_text(message, vocabulary)
    ids = engine.tokenize(text, parse_special=parse_special)
    return Prompt(text, with_bos(ids, message, vocabulary))


def this_machine(threads: int, library: str) -> Machine:
    return Machine(_processor(), os.cpu_count() or 1, threads, library)


def shown_name(model: str) -> str:
    """A model's name without the folders that it lies in, in characters that TOML can quote."""
    return re.sub(r"[^\w.+:-]", "-", re.split(r"[/\\]", model)[-1]) or "model"


def cell_toml(profile: Profile, when: datetime) -> str:
    """A CELL.toml with one device that `multispin plan` takes as it is."""
    curve, machine, overall = profile.curve, profile.machine, profile.overall
    sampling, table = profile.sampling, by_rows(profile.batches)
    num_tokens = overall.stats.num_committed_tokens
    return f"""\
# Measured by `multispin profile` on {when:%Y-%m-%d %H:%M} UTC.
# target {profile.target}, draft {profile.draft}
# processor: {machine.processor}, {machine.num_cores} cores, {machine.threads} threads used
# library: {machine.library}
# texts: {len(profile.by_prompt)} prompts, {num_tokens} tokens, drafts of {sampling.draft_length}, \
temperature {sampling.params.temperature:g}, rule {sampling.rule}
# Lines marked SET are not measured: put your own numbers there.

[cell]
bandwidth_hz = 1e6  # SET: the uplink bandwidth that all devices share

[server]
# fit of {len(profile.batches)} batches of 1 to {max(b.rows for b in profile.batches)} rows: \
off by {curve.mean_error:.1%} on average, {curve.max_error:.1%} at most
verify_fixed_s = {curve.fixed_s:.6g}
verify_per_device_s = {curve.per_device_s:.6g}
verify_per_token_s = {curve.per_token_s:.6g}
round_trip_s = 0.02  # SET: from the last bit of a draft to the next draft, without the pass itself

[server.curve]
rows = {list(table)}
seconds = [{", ".join(f"{seconds:.4g}" for seconds in table.values())}]

[[device]]
name = "{profile.draft}"
count = 1  # SET: how many such devices
draft_s_per_token = {overall.draft_s_per_token:.6g}  # on this machine; measure on the device itself
acceptance = {overall.acceptance:.6g}  # of {overall.num_judged + overall.num_empty} judged tokens
spectral_efficiency = 4.0  # SET: bit/s/Hz of the device's uplink
bits_per_token = {profile.bits_per_token}  # an id of {profile.vocabulary_size}, and a confidence
# an empty draft frame and {TRANSPORT_BITS} bit of TCP, IP and TLS headers
bits_per_draft = {profile.bits_per_draft}
"""


def _speculation(counted: Agreement) -> dict[str, Any]:
    """The contract's counters, less bytes: nothing was sent."""
    report = counted.stats.report()
    return {key: value for key, value in report.items() if not key.endswith("_bytes")}


def _processor() -> str:
    """The processor's name, as the system calls it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    for line in lines:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
