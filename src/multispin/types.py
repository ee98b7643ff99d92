"""The nouns that everything else shares. No logic beyond validation lives here."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal, TypeAlias

import msgspec

from multispin.errors import BadInput

if TYPE_CHECKING:  # NumPy takes longer to import than a command to say --help
    import numpy as np
    import numpy.typing as npt

TokenIds: TypeAlias = "npt.NDArray[np.int32]"
Logits: TypeAlias = "npt.NDArray[np.float32]"  # [rows, vocab] or [vocab]
AcceptanceRule: TypeAlias = Literal["greedy", "coupled", "rejection"]
FinishReason: TypeAlias = Literal["stop", "length"]
Mode: TypeAlias = Literal["window", "stop-and-wait", "rounds"]
# What becomes of a device's texts while there is no link: they wait, or the drafter goes on alone
# for who can take back what it has shown, or they fail.
Offline: TypeAlias = Literal["wait", "draft", "fail"]
# Of a text whose request does not say: on the command line, in Python and over HTTP.
MAX_TOKENS = 256
DRAFT_LENGTH = 4
# Of a server or a directory that is told to stop: until who is served has to be gone.
DRAIN_S = 10.0
MAX_DRAIN_S = 3600


MAX_BIASES = 1024


class SamplingParams(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """How the target's next token is chosen; identical with and without drafting.

    Order: logit bias and penalties on the logits, division by temperature, then top-k, top-p and
    min-p, each on the distribution that the one before left. Temperature 0 means argmax.
    """

    temperature: float = 0.0
    top_k: int = 0  # 0: off
    top_p: float = 1.0  # 1: off
    min_p: float = 0.0  # 0: off
    repetition_penalty: float = 1.0  # over prompt and output
    presence_penalty: float = 0.0  # over output
    frequency_penalty: float = 0.0  # over output
    logit_bias: dict[int, float] = {}

    @property
    def has_penalties(self) -> bool:
        return (
            self.repetition_penalty != 1.0
            or self.presence_penalty != 0.0
            or self.frequency_penalty != 0.0
        )

    def validate(self) -> None:
        """Raise BadInput for the first field out of range."""
        _check("temperature", self.temperature, 0.0, 100.0)
        if not 0 <= self.top_k < 2**31:
            raise BadInput("top_k", self.top_k, "must be 0 (off) or a positive number of tokens")
        if not 0.0 < self.top_p <= 1.0:
            raise BadInput("top_p", self.top_p, "must be above 0 and at most 1 (1: off)")
        _check("min_p", self.min_p, 0.0, 1.0)
        _check("repetition_penalty", self.repetition_penalty, 0.01, 100.0)
        _check("presence_penalty", self.presence_penalty, -2.0, 2.0)
        _check("frequency_penalty", self.frequency_penalty, -2.0, 2.0)
        if len(self.logit_bias) > MAX_BIASES:
            raise BadInput("logit_bias", f"{len(self.logit_bias)} tokens", f"at most {MAX_BIASES}")
        for token, bias in self.logit_bias.items():
            if not 0 <= token < 2**31:  # more than MessagePack can carry, perhaps
                raise BadInput("logit_bias", token, "is no token id")
            _check(f"logit_bias[{token}]", bias, -100.0, 100.0)


def _check(field: str, value: float, low: float, high: float) -> None:
    if not (math.isfinite(value) and low <= value <= high):
        raise BadInput(field, value, f"must lie between {low:g} and {high:g}")
