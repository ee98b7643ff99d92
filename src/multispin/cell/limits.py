"""What a value of CELL.toml may be, and which keys go together: checks written as data."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple, TypeAlias


@dataclass(frozen=True)
class Limits:
    """A finite number from ``low`` to ``high``, or from above ``low`` on."""

    low: float
    high: float = math.inf
    is_open: bool = False

    def allows(self, value: float) -> bool:
        is_above = value > self.low if self.is_open else value >= self.low
        return math.isfinite(value) and is_above and value <= self.high

    def __str__(self) -> str:
        if math.isfinite(self.high):
            return f"between {self.low:g} and {self.high:g}"
        return f"above {self.low:g}" if self.is_open else f"{self.low:g} or more"


NonNegative: TypeAlias = Annotated[float, Limits(0.0)]
Positive: TypeAlias = Annotated[float, Limits(0.0, is_open=True)]
Share: TypeAlias = Annotated[float, Limits(0.0, 1.0)]
Decibels: TypeAlias = Annotated[float, Limits(-300.0, 100.0)]

Table: TypeAlias = Mapping[str, Any]


class Condition(NamedTuple):
    """On the keys of a table; ``text`` says it after 'with'."""

    text: str
    holds: Callable[[Table], bool]


def given(*keys: str) -> Condition:
    """Any of these keys is there."""
    return Condition(" or ".join(keys), lambda table: any(key in table for key in keys))


def equals(key: str, *values: str) -> Condition:
    text = " or ".join(f'{key} = "{value}"' for value in values)
    return Condition(text, lambda table: table.get(key) in values)


ALWAYS = Condition("", lambda table: True)


@dataclass(frozen=True)
class Together:
    """Where ``when`` holds all of ``needs`` and one of ``one_of`` are required and ``allows`` may
    be given; elsewhere none of these."""

    when: Condition = ALWAYS
    needs: tuple[str, ...] = ()
    one_of: tuple[str, ...] = ()
    allows: tuple[str, ...] = ()

    def broken(self, table: Table) -> tuple[str, str] | None:
        """The key at fault and the remedy; None where all is well."""
        if not self.when.holds(table):
            vain = [key for key in (*self.needs, *self.one_of, *self.allows) if key in table]
            return (vain[0], f"only goes with {self.when.text}; remove it") if vain else None
        for key in self.needs:
            if key not in table:
                return key, f"is required with {self.when.text}"
        present = [key for key in self.one_of if key in table]
        if self.one_of and len(present) != 1:
            fault = present[-1] if present else self.one_of[0]
            return fault, f"give exactly one of {', '.join(self.one_of)}"
        return None
