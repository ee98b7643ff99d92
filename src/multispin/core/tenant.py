"""Who asks: a tenant is what an access token stands for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal, TypeAlias, get_args

# generate: have texts written; operate: see metrics, the cell and its dashboard.
Scope: TypeAlias = Literal["generate", "operate"]
SCOPES: tuple[Scope, ...] = get_args(Scope)
TOKEN_PREFIX = "msp_"  # by which people, and scanners for secrets, know an access token


@dataclass(frozen=True)
class TenantLimits:
    """What one tenant may have of a server; None: as much as anybody."""

    max_sessions: int | None = None  # open at once, over all its links
    max_prompt_tokens: int | None = None
    max_draft_length: int | None = None
    requests_per_s: float | None = None  # sessions opened; as many at once, at least 1

    def draft_length(self, most: int) -> int:
        """The longest draft, where a server allows ``most`` to everybody."""
        return most if self.max_draft_length is None else min(most, self.max_draft_length)


@dataclass(frozen=True)
class Tenant:
    name: str
    scopes: frozenset[Scope]
    limits: TenantLimits = field(default_factory=TenantLimits)


# Everybody on this machine, where no access tokens are asked for.
LOCAL = Tenant("local", frozenset(SCOPES))
