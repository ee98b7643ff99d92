"""Who asks: a tenant is what an access token stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

# generate: have texts written; operate: see metrics, the cell and its dashboard.
Scope: TypeAlias = Literal["generate", "operate"]
SCOPES: tuple[Scope, ...] = get_args(Scope)


@dataclass(frozen=True)
class TenantLimits:
    """What one tenant may have of a server; None: as much as anybody."""

    max_sessions: int | None = None  # open at once, over all its links
    max_prompt_tokens: int | None = None
    max_draft_length: int | None = None
    requests_per_s: float | None = None  # sessions opened; as many at once, at least 1


@dataclass(frozen=True)
class Tenant:
    name: str
    scopes: frozenset[Scope]
    limits: TenantLimits = field(default_factory=TenantLimits)


# Everybody on this machine, where no access tokens are asked for.
LOCAL = Tenant("local", frozenset(SCOPES))
