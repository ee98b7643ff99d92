"""What a file and the environment may say: the settings of all commands, and the checks of both."""

from __future__ import annotations

import json
import os
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, Union, get_args, get_origin

from multispin.cli import options
from multispin.core.tenant import TOKEN_PREFIX
from multispin.errors import BadInput

PREFIX = "MULTISPIN"
FILE_VARIABLE = "MULTISPIN_CONFIG"
OTHER_VARIABLES = (  # read where they are needed, whatever the command
    "MULTISPIN_CACHE",
    "MULTISPIN_CELLS",  # tests
    "MULTISPIN_LLAMA_LIB",
    "MULTISPIN_OFFLINE",
    options.TOKEN_VARIABLE,
)


class Setting(NamedTuple):
    """An option of a command, called as its flag is."""

    key: str
    kind: Any  # its type
    variable: str
    is_secret: bool = False


# Settings by key, commands by name; a group of commands is a table of tables.
Settings: TypeAlias = dict[str, Setting]
Commands: TypeAlias = "dict[str, Settings | Commands]"


def variable_name(path: tuple[str, ...], key: str) -> str:
    """MULTISPIN_<COMMAND>_<OPTION>"""
    return "_".join((PREFIX, *path, key)).upper().replace("-", "_")


def variables(commands: Commands | Settings) -> Iterator[str]:
    """Those of all settings."""
    for inner in commands.values():
        if isinstance(inner, Setting):
            yield inner.variable
        else:
            yield from variables(inner)


def check_environment(commands: Commands) -> None:
    """Raise BadInput for a variable that nothing reads."""
    known = (FILE_VARIABLE, *OTHER_VARIABLES, *variables(commands))
    for name in os.environ:
        if name.startswith(f"{PREFIX}_") and name not in known:
            # Its value may be a secret.
            remedy = f"nothing reads this variable; {options.nearest(name, known)}unset it"
            raise BadInput(name, "(not shown)", remedy)


def read_file(file: Path, commands: Commands) -> dict[str, Any]:
    """The tables of a file, checked: those of all commands, whichever is run."""
    import tomllib

    try:
        tables = tomllib.loads(file.read_bytes().decode())
    except OSError as error:
        raise BadInput("--config", file, f"cannot be read: {error.strerror}") from None
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise BadInput("--config", file, f"is no TOML file: {error}") from None
    return _check_table(tables, commands, f"{file}: ")


def _check_table(table: dict[str, Any], known: Commands | Settings, prefix: str) -> dict[str, Any]:
    checked = {}
    for key, value in table.items():
        field, inner = f"{prefix}{key}", known.get(key)
        if inner is None:
            near = options.nearest(key, tuple(known))
            remedy = f"unknown key; {near}known are {', '.join(known) or '(none)'}"
            raise BadInput(field, _shown(value), remedy)
        if isinstance(inner, Setting):
            checked[key] = _converted(value, inner, field)
        elif isinstance(value, dict):
            checked[key] = _check_table(value, inner, f"{field}.")
        else:
            raise BadInput(field, _shown(value), f"must be a table, [{key}]")
    return checked


def _converted(value: object, setting: Setting, field: str) -> Any:
    import msgspec

    one = _without_none(setting.kind)
    try:
        return msgspec.convert(value, str if one is Path else one)
    except msgspec.ValidationError:
        shown = "(not shown)" if setting.is_secret else _shown(value)
        raise BadInput(field, shown, f"must be {described(setting.kind)}") from None


def _without_none(kind: Any) -> Any:
    """X of ``X | None``."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind
    [one] = (option for option in get_args(kind) if option is not type(None))
    return one


def described(kind: Any) -> str:
    """What a setting of this type must be."""
    names = {
        bool: "true or false",
        int: "an integer",
        float: "a number",
        str: "a string in quotes",
        Path: "a path in quotes",
        list[str]: "a list of strings, as in ['a', 'b']",
    }
    one = _without_none(kind)
    return names.get(one, str(one))


def _shown(value: object) -> str:
    if TOKEN_PREFIX in str(value):  # a secret, at whichever key it stands
        return "(not shown)"
    return "{...}" if isinstance(value, dict) else repr(value)


def toml_value(value: object) -> str:
    """A setting as TOML has it."""
    match value:
        case bool():
            return "true" if value else "false"
        case int() | float():
            return repr(value)
        case list():
            return f"[{', '.join(toml_value(one) for one in value)}]"
        case _:  # JSON's escapes are among TOML's, which wants one more character escaped
            return json.dumps(str(value), ensure_ascii=False).replace("\x7f", "\\u007f")
