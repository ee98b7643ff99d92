"""Tables of TOML into sections: every mistake is a BadInput with file, field, value and remedy."""

from __future__ import annotations

import difflib
from functools import cache
from typing import (
    Annotated,
    Any,
    Literal,
    NamedTuple,
    TypeVar,
    get_args,
    get_origin,
    get_type_hints,
)

import msgspec

from multispin.cell.limits import Limits
from multispin.cell.sections import Section
from multispin.errors import BadInput

S = TypeVar("S", bound=Section)


class _Field(NamedTuple):
    """One key: what msgspec converts it to, its limits, and the section it is, if it is one or a
    list of them."""

    is_required: bool
    kind: Any
    limits: Limits | None
    section: type[Section] | None
    is_list: bool = False


@cache
def _fields_of(kind: type[Section]) -> dict[str, _Field]:
    hints = get_type_hints(kind, include_extras=True)
    return {
        field.name: _field(field.required, hints[field.name])
        for field in msgspec.structs.fields(kind)
    }


def _field(is_required: bool, hint: Any) -> _Field:
    """``hint`` is a type, Annotated with Limits, or either or None."""
    options = [option for option in get_args(hint) if option is not type(None)]
    inner = options[0] if type(None) in get_args(hint) else hint
    if get_origin(inner) is Annotated:
        kind, limits = get_args(inner)
        return _Field(is_required, kind, limits, None)
    is_list = get_origin(inner) is list and _is_section(get_args(inner)[0])
    section = get_args(inner)[0] if is_list else inner
    return _Field(is_required, inner, None, section if _is_section(section) else None, is_list)


def _is_section(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Section)


class Reader:
    """``source`` is how messages call the file."""

    def __init__(self, source: str) -> None:
        self.source = source

    def read(self, tables: dict[str, Any], kind: type[S]) -> S:
        """A whole file: ``kind`` has a section, or a list of them, for each table."""
        fields = _fields_of(kind)
        self._check_keys("", tables, list(fields))
        return kind(
            **{
                name: self._list(name, tables.get(name), field.section)
                if field.is_list
                else self._section(name, tables.get(name), field.section)
                for name, field in fields.items()
                if field.section and (field.is_required or name in tables)
            }
        )

    def _list(self, name: str, tables: Any, kind: type[S]) -> list[S]:
        if not isinstance(tables, list) or not tables:
            raise self.bad(name, tables, f"the file needs at least one [[{name}]] table")
        return [self._item(name, index, table, kind) for index, table in enumerate(tables)]

    def _item(self, path: str, index: int, table: Any, kind: type[S]) -> S:
        name = table.get("name") if isinstance(table, dict) else None
        named = f" {name!r}" if isinstance(name, str) else ""
        return self._section(f"{path}[{index}]{named}", table, kind)

    def _section(self, path: str, table: Any, kind: type[S]) -> S:
        if table is None:
            raise self.bad(path, "(missing)", f"the file needs a [{path}] table")
        if not isinstance(table, dict):
            raise self.bad(path, table, "must be a table")
        fields = _fields_of(kind)
        self._check_keys(f"{path}.", table, list(fields))
        for name, field in fields.items():
            if field.is_required and name not in table:
                raise self.bad(f"{path}.{name}", "(missing)", "is required")
        values = {key: self._value(f"{path}.{key}", table[key], fields[key]) for key in table}
        for rule in kind.rules:
            if broken := rule.broken(table):
                name, remedy = broken
                raise self.bad(f"{path}.{name}", _shown(table.get(name)), remedy)
        section = kind(**values)
        try:
            section.check()
        except BadInput as error:
            raise self.bad(f"{path}.{error.field}", error.value, error.remedy) from None
        return section

    def _value(self, path: str, value: Any, field: _Field) -> Any:
        if field.section:
            return self._section(path, value, field.section)
        if isinstance(value, bool) and field.kind is not bool:  # TOML's true is no number
            raise self.bad(path, value, "must not be true or false")
        choices = get_args(field.kind) if get_origin(field.kind) is Literal else ()
        if choices and value not in choices:
            allowed = " or ".join(f'"{choice}"' for choice in choices)
            raise self.bad(path, repr(value), f"must be {allowed}")
        try:
            converted = msgspec.convert(value, field.kind)
        except msgspec.ValidationError as error:
            raise self.bad(path, repr(value), str(error)) from None
        if field.limits and not field.limits.allows(converted):
            raise self.bad(path, value, f"must be {field.limits}")
        return converted

    def _check_keys(self, prefix: str, table: dict[str, Any], known: list[str]) -> None:
        for key, value in table.items():
            if key not in known:
                near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]}? " if near else ""
                remedy = f"unknown key; {hint}known are {', '.join(known)}"
                raise self.bad(f"{prefix}{key}", _shown(value), remedy)

    def bad(self, path: str, value: object, remedy: str) -> BadInput:
        return BadInput(f"{self.source}: {path}", value, remedy)


def _shown(value: object) -> str:
    if value is None:
        return "(missing)"
    return "{...}" if isinstance(value, dict | list) else repr(value)
