"""The exception tree.

MultispinError
├── BadInput                 the caller's mistake: field, value, remedy (exit code 2)
│   ├── IncompatibleModels   drafter and target do not share a vocabulary
│   └── UnsupportedModel     a model that this version cannot run losslessly
├── ModelUnavailable         the catalog could not provide a model file
├── EngineFailed             the engine process cannot start or keeps crashing
├── EngineLost               it crashed and was restarted: every cache is gone
└── PeerError                the other side of the wire ended a session or a connection

Every exception carries ``code``, the short word that crosses the wire (see docs/protocol.md), and
``retry_after_s``: when it makes sense to try again, 0 if it does not or nobody knows.
"""

from __future__ import annotations

from typing import ClassVar


class MultispinError(Exception):
    """Base of everything that multispin raises on purpose."""

    default_code: ClassVar[str] = "internal"

    def __init__(
        self, message: str, *, code: str | None = None, retry_after_s: float = 0.0
    ) -> None:
        super().__init__(message)
        self.code = code or self.default_code
        self.retry_after_s = retry_after_s


class BadInput(MultispinError):
    """One line that a person can act on: what was wrong, with which value, and what to do.

    >>> print(BadInput("--temperature", -1, "must be 0 or more"))
    --temperature = -1: must be 0 or more
    """

    default_code = "bad_input"

    def __init__(self, field: str, value: object, remedy: str, *, code: str | None = None) -> None:
        super().__init__(f"{field} = {value}: {remedy}", code=code)
        self.field = field
        self.value = value
        self.remedy = remedy


class IncompatibleModels(BadInput):
    default_code = "vocabulary_mismatch"


class UnsupportedModel(BadInput):
    default_code = "unsupported_model"


class ModelUnavailable(MultispinError):
    default_code = "model_unavailable"


class EngineFailed(MultispinError):
    default_code = "engine_failed"


class EngineLost(MultispinError):
    default_code = "engine_failed"


class PeerError(MultispinError):
    default_code = "peer_error"


# Codes of a PeerError that the person at this side can cure: commands end with exit code 2.
CURABLE_CODES = frozenset(
    {
        BadInput.default_code,
        IncompatibleModels.default_code,
        UnsupportedModel.default_code,
        "build_crashes",
        "context_overflow",
        "draft_too_long",
        "forbidden",
        "infeasible",
        "loading",
        ModelUnavailable.default_code,
        "unauthorized",
        "unknown_target",
        "unreachable",
        "version_mismatch",
    }
)
