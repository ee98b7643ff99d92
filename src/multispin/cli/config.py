"""Every command takes its settings from flags, environment, a file, or defaults, in this order.

Looking a value up is Typer's: the environment by ``auto_envvar_prefix``, the file by a context's
``default_map``. What it lacks is here: ``--config``, ``--print-config``, and mistakes that are told
by where they were made. docs/configuration.md describes it.
"""

from __future__ import annotations

import copy
import functools
import inspect
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Annotated, Any, TypeAlias, get_args, get_origin

import typer
from typer.main import get_command_name
from typer.models import OptionInfo

from multispin.cli.settings import (
    FILE_VARIABLE,
    Commands,
    Setting,
    Settings,
    check_environment,
    described,
    read_file,
    toml_value,
    variable_name,
    variables,
)
from multispin.errors import BadInput

Function: TypeAlias = Callable[..., None]
KEYWORD = inspect.Parameter.KEYWORD_ONLY
COMMAND_LINE, DEFAULT = "command line", "default"


def configure(app: typer.Typer) -> None:
    """Let every command of ``app`` read its options from environment and file too."""
    commands: Commands = {}
    _configure(app, (), commands, commands)


def _configure(app: typer.Typer, path: tuple[str, ...], here: Commands, root: Commands) -> None:
    for group in app.registered_groups:
        assert group.name and group.typer_instance
        inner: Commands = {}
        here[group.name] = inner
        _configure(group.typer_instance, (*path, group.name), inner, root)
    for info in app.registered_commands:
        assert info.callback
        name = info.name or get_command_name(info.callback.__name__)
        command = _Command(info.callback, (*path, name), root)
        here[name] = command.settings
        info.callback = command.configured()
        info.epilog = (
            f"Options are also read from {variable_name(command.path, '<option>')} in the "
            f"environment and from [{command.table}] in the --config file."
        )


class _Command:
    """A command, and where it takes its settings from."""

    def __init__(self, function: Function, path: tuple[str, ...], commands: Commands) -> None:
        self.path = path
        self.table = ".".join(path)
        self.settings: Settings = {}
        self._function = function
        self._commands = commands
        parameters = inspect.signature(function, eval_str=True).parameters.values()
        self._argument: dict[str, str] = {}  # what the function calls a parameter
        self._parameters = [self._parameter(one) for one in parameters]

    def _parameter(self, parameter: inspect.Parameter) -> inspect.Parameter:
        """As Typer is to see it: an option by the name of its flag, from which all others follow.

        An argument is no setting: it says what is to be done, not how.
        """
        name, annotation = parameter.name, parameter.annotation
        assert annotation is not typer.Context, f"{self.table}: commands get their settings only"
        kind, info = get_args(annotation) if get_origin(annotation) is Annotated else (None, None)
        if isinstance(info, OptionInfo):
            flag = _flag(info) or f"--{name.replace('_', '-')}"
            name = flag.removeprefix("--").replace("-", "_")
            variable = variable_name(self.path, name)
            self.settings[name] = Setting(name, kind, variable, is_secret=info.hide_input)
            info = copy.copy(info)
            info.show_envvar = info.envvar is not None  # --help has one line for all others
            if kind is bool:  # what the file switches on can be switched off
                info.default, info.param_decls = f"{flag}/--no-{flag.removeprefix('--')}", ()
                info.show_default = False
            annotation = Annotated[kind, info]
        self._argument[name] = parameter.name
        return parameter.replace(name=name, annotation=annotation, kind=KEYWORD)

    def configured(self) -> Function:
        """What Typer is to call: the command with two more options."""

        @functools.wraps(self._function)
        def run(
            ctx: typer.Context, *, config: Path | None, print_config: bool, **given: Any
        ) -> None:
            sources = {key: self._source(ctx, key, config) for key in self.settings}
            if print_config:
                print("\n".join(self._effective(given, sources)))
                return
            # Commands that this one starts are told by flags, and by nothing else.
            for variable in (FILE_VARIABLE, *variables(self._commands)):
                os.environ.pop(variable, None)
            arguments = {self._argument[name]: value for name, value in given.items()}
            try:
                self._function(**arguments)
            except BadInput as error:
                source = sources.get(error.field.removeprefix("--").replace("-", "_"))
                if source in (None, COMMAND_LINE, DEFAULT):
                    raise
                raise BadInput(source, error.value, error.remedy, code=error.code) from None

        run.__annotations__ = {}
        run.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [
                inspect.Parameter("ctx", KEYWORD, annotation=typer.Context),
                *self._parameters,
                inspect.Parameter("config", KEYWORD, annotation=self._config(), default=None),
                inspect.Parameter("print_config", KEYWORD, annotation=_PrintConfig, default=False),
            ]
        )
        return run

    def _config(self) -> Any:
        option = typer.Option(
            "--config",
            metavar="FILE.toml",
            envvar=FILE_VARIABLE,
            allow_from_autoenv=False,
            is_eager=True,
            callback=self._read,
            help="Take settings from this file.",
        )
        return Annotated[Path | None, option]

    def _read(self, ctx: typer.Context, file: Path | None) -> Path | None:
        """Before the options: check environment and file, and show the file to Typer."""
        check_environment(self._commands)
        if file is not None:
            table = read_file(file, self._commands)
            for name in self.path:
                table = table.get(name, {})
            ctx.default_map = table
        for parameter in ctx.command.params:
            if parameter.name in self.settings:
                self._check_variable(ctx, parameter)
        return file

    def _check_variable(self, ctx: typer.Context, parameter: Any) -> None:
        """Typer would name the flag, which nobody wrote."""
        value = parameter.value_from_envvar(ctx)
        if value is None:
            return
        try:
            parameter.process_value(ctx, value)
        except typer.BadParameter:
            remedy = f"must be {described(self.settings[parameter.name].kind)}"
            raise BadInput(self._variable(parameter), value, remedy) from None

    def _variable(self, parameter: Any) -> str:
        """That of an option's variables which is set."""
        own = [parameter.envvar] if isinstance(parameter.envvar, str) else parameter.envvar or []
        names: tuple[str, ...] = (*own, self.settings[parameter.name].variable)
        return next(name for name in names if os.environ.get(name))

    def _source(self, ctx: typer.Context, key: str, file: Path | None) -> str:
        """What has set it."""
        source = ctx.get_parameter_source(key)
        match source and source.name:
            case "COMMANDLINE":
                return COMMAND_LINE
            case "ENVIRONMENT":
                parameters = {one.name: one for one in ctx.command.params}
                return self._variable(parameters[key])
            case "DEFAULT_MAP":
                return f"{file}: {self.table}.{key}"
            case _:
                return DEFAULT

    def _effective(self, given: dict[str, Any], sources: dict[str, str]) -> Iterator[str]:
        """The settings as TOML, and where each comes from."""
        yield f"[{self.table}]"
        for key, source in sources.items():
            if given[key] is None:
                yield f"# {key} is not set  # {source}"
            elif self.settings[key].is_secret:
                yield f"# {key} is not shown  # {source}"
            else:
                yield f"{key} = {toml_value(given[key])}  # {source}"


def _flag(info: OptionInfo) -> str | None:
    """The first that is declared; in Annotated, Typer keeps it in ``default``."""
    declared = (info.default, *(info.param_decls or ()))
    return next((flag.partition("/")[0] for flag in declared if isinstance(flag, str)), None)


def _require_nothing(ctx: typer.Context, wanted: bool) -> bool:
    """What is missing is no mistake where settings are only shown."""
    if wanted:
        for parameter in ctx.command.params:
            parameter.required = False
    return wanted


_PrintConfig = Annotated[
    bool,
    typer.Option(
        "--print-config",
        allow_from_autoenv=False,
        show_envvar=False,
        is_eager=True,
        callback=_require_nothing,
        help="Print the settings and where each comes from, and exit.",
    ),
]
