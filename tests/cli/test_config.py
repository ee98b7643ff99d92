"""Flags, environment, file, defaults: in this order for every option of every command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import pytest
import typer
from typer.testing import CliRunner

from multispin.cli import commands
from multispin.cli.config import configure
from multispin.cli.settings import FILE_VARIABLE, OTHER_VARIABLES, PREFIX, toml_value
from multispin.errors import BadInput

ROOT = Path(__file__).parents[2]
runner = CliRunner()


@pytest.fixture(autouse=True)
def clean(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ:
        if name.startswith(f"{PREFIX}_"):
            monkeypatch.delenv(name)


def new_app() -> tuple[typer.Typer, list[dict[str, Any]]]:
    """Commands that note what they were called with: one of every kind of option."""
    calls: list[dict[str, Any]] = []
    app = typer.Typer(context_settings={"auto_envvar_prefix": PREFIX}, rich_markup_mode=None)
    group = typer.Typer()

    @app.command()
    def write(
        prompt: Annotated[str, typer.Argument()],
        name: Annotated[str, typer.Option()],
        count: Annotated[int, typer.Option()] = 1,
        share: Annotated[float | None, typer.Option()] = None,
        out: Annotated[Path | None, typer.Option()] = None,
        stop: Annotated[list[str] | None, typer.Option()] = None,
        shows_all: Annotated[bool, typer.Option("--all")] = False,
    ) -> None:
        calls.append(locals() | {"environment": dict(os.environ)})
        if count < 0:
            raise BadInput("--count", count, "must be 0 or more")
        if share is not None and share < 0:
            raise BadInput("share", share, "must be 0 or more")

    @group.command("pull-all")
    def pull(
        offline: Annotated[bool, typer.Option(envvar="MULTISPIN_OFFLINE")] = False,
    ) -> None:
        calls.append(locals())

    app.add_typer(group, name="models")
    configure(app)
    return app, calls


def run(*arguments: str, **environment: str) -> dict[str, Any]:
    """What the command was called with; what it or its settings got wrong is raised."""
    app, calls = new_app()
    done = runner.invoke(app, arguments, env=environment)
    if isinstance(done.exception, BadInput):
        raise done.exception
    assert done.exit_code == 0, done.output
    [call] = calls
    return call


def write(tmp_path: Path, text: str) -> str:
    file = tmp_path / "settings.toml"
    file.write_text(text)
    return str(file)


# --- one precedence ------------------------------------------------------------------------------

# key: what the file has, the variable, the flags; what each of them means, and the default
WAYS = {
    "name": ('"file"', "variable", ["--name", "flag"], ("file", "variable", "flag")),
    "count": ("2", "3", ["--count", "4"], (2, 3, 4, 1)),
    "share": ("2", "3.5", ["--share", "4e1"], (2.0, 3.5, 40.0, None)),
    "out": ('"a b"', "c d", ["--out", "e"], (Path("a b"), Path("c d"), Path("e"), None)),
    "stop": ('["a b"]', "c d", ["--stop", "e f"], (["a b"], ["c", "d"], ["e f"], None)),
    "all": ("true", "no", ["--all"], (True, False, True, False)),
}


@pytest.mark.parametrize("key", WAYS)
@pytest.mark.parametrize("ways", range(1, 8))
def test_flags_go_before_environment_before_file_before_defaults(
    tmp_path: Path, key: str, ways: int
) -> None:
    in_file, in_environment, flags, means = WAYS[key]
    arguments = ["write", "-", *(["--name", "x"] if key != "name" else [])]
    environment = {}
    if ways & 1:
        arguments += ["--config", write(tmp_path, f"[write]\n{key} = {in_file}\n")]
        expected = means[0]
    if ways & 2:
        environment[f"MULTISPIN_WRITE_{key.upper()}"] = in_environment
        expected = means[1]
    if ways & 4:
        arguments += flags
        expected = means[2]
    argument = "shows_all" if key == "all" else key
    assert run(*arguments, **environment)[argument] == expected
    if key != "name":
        assert run("write", "-", "--name", "x")[argument] == means[3]


def test_a_flag_switches_off_what_environment_and_file_switch_on(tmp_path: Path) -> None:
    file = write(tmp_path, "[write]\nall = true\n")
    base = ("write", "-", "--name", "x", "--config", file)
    assert run(*base)["shows_all"] is True
    assert run(*base, MULTISPIN_WRITE_ALL="off")["shows_all"] is False
    assert run(*base, "--no-all", MULTISPIN_WRITE_ALL="on")["shows_all"] is False


def test_a_group_is_a_table_of_tables(tmp_path: Path) -> None:
    file = write(tmp_path, "[models.pull-all]\noffline = true\n[write]\ncount = 2\n")
    assert run("models", "pull-all", "--config", file)["offline"] is True
    assert run("models", "pull-all", MULTISPIN_MODELS_PULL_ALL_OFFLINE="1")["offline"] is True
    assert run("models", "pull-all", MULTISPIN_OFFLINE="1")["offline"] is True
    assert run("models", "pull-all")["offline"] is False


def test_the_file_is_named_by_flag_or_variable(tmp_path: Path) -> None:
    file = write(tmp_path, '[write]\nname = "file"\n')
    other = tmp_path / "other.toml"
    other.write_text('[write]\nname = "other"\n')
    assert run("write", "-", MULTISPIN_CONFIG=file)["name"] == "file"
    assert run("write", "-", "--config", str(other), MULTISPIN_CONFIG=file)["name"] == "other"


def test_what_a_command_starts_is_not_told_again(tmp_path: Path) -> None:
    """`demo` starts servers and devices of its own, which are no business of the user's file."""
    file = write(tmp_path, "")
    kept = {"MULTISPIN_CACHE": "here", "MULTISPIN_LLAMA_LIB": "there"}
    call = run(
        *("write", "-"), **kept, MULTISPIN_CONFIG=file, MULTISPIN_WRITE_NAME="x",
        MULTISPIN_MODELS_PULL_ALL_OFFLINE="1",
    )  # fmt: skip
    assert call["name"] == "x"
    seen = {name for name in call["environment"] if name.startswith("MULTISPIN_")}
    assert seen == set(kept)


# --- mistakes ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[wirte]\n", "settings.toml: wirte = {...}: unknown key; did you mean write? known are"),
        (
            "[write]\ncuont = 1\n",
            "settings.toml: write.cuont = 1: unknown key; did you mean count?",
        ),
        ("[write]\nshows_all = true\n", "write.shows_all = True: unknown key; known are name"),
        ("[write]\nprompt = 'x'\n", "write.prompt = 'x': unknown key; known are name, count"),
        ("[write]\nconfig = 'x'\n", "write.config = 'x': unknown key"),
        ("[models]\nofline = true\n", "models.ofline = True: unknown key; known are pull-all"),
        ("[models.pull-all]\nofline = true\n", "did you mean offline?"),
        ("write = 1\n", "settings.toml: write = 1: must be a table, [write]"),
        ("[write]\ncount = '1'\n", "settings.toml: write.count = '1': must be an integer"),
        ("[write]\ncount = 1.5\n", "write.count = 1.5: must be an integer"),
        ("[write]\ncount = true\n", "write.count = True: must be an integer"),
        ("[write]\nshare = 'x'\n", "write.share = 'x': must be a number"),
        ("[write]\nname = 1\n", "write.name = 1: must be a string in quotes"),
        ("[write]\nout = 1\n", "write.out = 1: must be a path in quotes"),
        ("[write]\nall = 'yes'\n", "write.all = 'yes': must be true or false"),
        ("[write]\nall = 1\n", "write.all = 1: must be true or false"),
        ("[write]\nstop = 'x'\n", "write.stop = 'x': must be a list of strings"),
        ("[write]\nstop = [1]\n", "write.stop = [1]: must be a list of strings"),
        ("[write]\ncount = -1\n", "settings.toml: write.count = -1: must be 0 or more"),
        ("[write]\nshare = -1\n", "settings.toml: write.share = -1.0: must be 0 or more"),
        ("[write\n", "settings.toml: is no TOML file: "),
    ],
)
def test_a_mistake_in_the_file_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        run("write", "-", "--name", "x", "--config", write(tmp_path, text))
    assert said in str(caught.value)


def test_the_tables_of_other_commands_are_checked_too(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"write\.cuont"):
        run("models", "pull-all", "--config", write(tmp_path, "[write]\ncuont = 1\n"))


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.toml").write_bytes(b"[write]\nname = '\xe9'\n")
    for file, said in (
        (tmp_path / "none.toml", "No such file"),
        (tmp_path, "directory"),
        (tmp_path / "latin.toml", "utf-8"),
    ):
        with pytest.raises(BadInput, match=said) as caught:
            run("write", "-", "--config", str(file))
        assert str(caught.value).startswith(f"--config = {file}: ")


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MULTISPIN_WRITE_CUONT", "secret", "did you mean MULTISPIN_WRITE_COUNT?"),
        ("MULTISPIN_WRITE_SHOWS_ALL", "1", "did you mean MULTISPIN_WRITE_ALL?"),
        ("MULTISPIN_CONFG", "secret", "did you mean MULTISPIN_CONFIG?"),
        ("MULTISPIN_WRITE_PROMPT", "x", "MULTISPIN_WRITE_PROMPT = (not shown): nothing reads"),
        ("MULTISPIN_WRITE_CONFIG", "x", "MULTISPIN_WRITE_CONFIG = (not shown): nothing reads"),
        ("MULTISPIN_WRITE_PRINT_CONFIG", "1", "nothing reads this variable"),
        ("MULTISPIN_WRITE_COUNT", "many", "MULTISPIN_WRITE_COUNT = many: must be an integer"),
        ("MULTISPIN_WRITE_ALL", "maybe", "MULTISPIN_WRITE_ALL = maybe: must be true or false"),
        ("MULTISPIN_WRITE_COUNT", "-1", "MULTISPIN_WRITE_COUNT = -1: must be 0 or more"),
    ],
)
def test_a_mistake_in_the_environment_is_named(variable: str, value: str, said: str) -> None:
    with pytest.raises(BadInput) as caught:
        run("write", "-", "--name", "x", **{variable: value})
    assert said in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_mistake_in_a_flag_is_the_flags() -> None:
    with pytest.raises(BadInput, match=r"^--count = -1: "):
        run("write", "-", "--name", "x", "--count", "-1", MULTISPIN_WRITE_COUNT="2")


def test_help_is_there_whatever_the_environment() -> None:
    app, _ = new_app()
    done = runner.invoke(app, ["write", "--help"], env={"MULTISPIN_NONSENSE": "1"})
    assert done.exit_code == 0
    words = " ".join(done.output.split())
    assert "MULTISPIN_WRITE_<OPTION>" in words and "[write]" in words
    assert "MULTISPIN_WRITE_COUNT" not in words


def test_all_variables_that_the_project_reads_are_known() -> None:
    """Those of options follow a rule; nobody may invent another without listing it."""
    found = set()
    for folder in ("src", "scripts", "tests"):
        for file in (ROOT / folder).rglob("*.py"):
            if file != Path(__file__):
                found |= set(re.findall(r"\bMULTISPIN_[A-Z_]*[A-Z]\b", file.read_text()))
    by_rule = {variable for settings in all_settings().values() for variable in settings.values()}
    assert found - by_rule == {FILE_VARIABLE, *OTHER_VARIABLES}
    print_config(("models", "list"), **dict.fromkeys(OTHER_VARIABLES, "1"))


# --- the commands that there are -----------------------------------------------------------------

_real: list[typer.Typer] = []


def real_app() -> typer.Typer:
    """All commands, as `multispin` has them."""
    if not _real:
        app = typer.Typer(context_settings={"auto_envvar_prefix": PREFIX})
        commands.register(app)
        configure(app)
        _real.append(app)
    return _real[0]


def walk(command: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    inner = getattr(command, "commands", None)
    if inner is None:
        yield path, command
        return
    for name, one in inner.items():
        yield from walk(one, (*path, name))


def all_commands() -> dict[tuple[str, ...], Any]:
    return dict(walk(typer.main.get_command(real_app())))


def all_settings() -> dict[tuple[str, ...], dict[str, str]]:
    """Command -> key -> variable, from the flags that --help shows."""
    return {
        path: {
            option.opts[0].removeprefix("--").replace("-", "_"): "_".join(
                ["MULTISPIN", *path, option.opts[0].removeprefix("--")]
            )
            .upper()
            .replace("-", "_")
            for option in command.params
            if option.param_type_name == "option" and option.name not in ("config", "print_config")
        }
        for path, command in all_commands().items()
    }


def print_config(path: tuple[str, ...], *arguments: str, **environment: str) -> str:
    done = runner.invoke(real_app(), [*path, *arguments, "--print-config"], env=environment)
    assert done.exit_code == 0, (done.output, done.exception)
    return done.stdout


def table(path: tuple[str, ...], printed: str) -> dict[str, Any]:
    tables = tomllib.loads(printed)
    for name in path:
        tables = tables[name]
    return tables


@pytest.mark.parametrize("path", all_settings(), ids=" ".join)
def test_every_command_prints_settings_that_it_reads_again(
    tmp_path: Path, path: tuple[str, ...]
) -> None:
    printed = print_config(path)
    keys = re.findall(r"^(?:# )?(\w+) (?:=|is not set)", printed, re.MULTILINE)
    assert keys == list(all_settings()[path])
    again = print_config(path, "--config", write(tmp_path, printed))
    assert table(path, again) == table(path, printed)
    assert again.count("settings.toml: ") == len(table(path, printed))


@pytest.mark.parametrize("path", all_settings(), ids=" ".join)
def test_every_option_of_every_command_is_a_flag_a_variable_and_a_key(
    tmp_path: Path, path: tuple[str, ...]
) -> None:
    values: dict[str, Any] = {}
    secrets = set()
    flags, lines = [], [f"[{'.'.join(path)}]"]
    for option in all_commands()[path].params:
        if option.name not in all_settings()[path]:
            continue
        kind = "bool" if option.is_flag else option.display_type(None).strip("<>")
        value: Any = {"bool": True, "int": 3, "float": 0.5, "list[str]": ["x"]}.get(kind, "x")
        values[option.name] = value
        if option.hide_input:
            secrets.add(option.name)
        flags += [option.opts[0], *([] if value is True else [plain(value)])]
        lines.append(f"{option.name} = {toml_value(value)}")
    environment = {all_settings()[path][key]: plain(value) for key, value in values.items()}
    file = write(tmp_path, "\n".join(lines))
    for printed, source in (
        (print_config(path, *flags), lambda key: "command line"),
        (print_config(path, **environment), lambda key: all_settings()[path][key]),
        (print_config(path, "--config", file), lambda key: f"{file}: {'.'.join(path)}.{key}"),
    ):
        shown = {key: value for key, value in values.items() if key not in secrets}
        assert table(path, printed) == shown
        said = dict(re.findall(r"^(?:# )?(\w+) (?:=|is not) .*  # (.*)$", printed, re.MULTILINE))
        assert said == {key: source(key) for key in values}


def test_what_a_token_is_is_never_printed(tmp_path: Path) -> None:
    token = "msp_" + "s" * 43
    printed = [
        print_config(("complete",), "--token", token),
        print_config(("top",), MULTISPIN_TOKEN=token),
        print_config(("chat",), "--config", write(tmp_path, f'[chat]\ntoken = "{token}"\n')),
    ]
    assert [text.count("# token is not shown  # ") for text in printed] == [1, 1, 1]
    mistakes: list[tuple[list[str], dict[str, str]]] = [
        (["complete", "x", "--token", f"{token}!"], {}),
        (["complete", "x", "--token-file", "there"], {"MULTISPIN_TOKEN": token}),
        (["complete", "x"], {"MULTISPIN_TOKEM": token}),
    ]
    for text in (
        f'[complete]\ntokem = "{token}"',
        f'complete = "{token}"',
        f'[complete]\ntoken = ["{token}"]',
    ):
        mistakes.append((["complete", "x", "--config", write(tmp_path, text)], {}))
        arguments, environment = mistakes[-1]
        done = runner.invoke(real_app(), arguments, env=environment)
        assert isinstance(done.exception, BadInput)
        printed.append(str(done.exception))
    for arguments, environment in mistakes[:3]:
        done = runner.invoke(real_app(), arguments, env=environment)
        assert isinstance(done.exception, BadInput), (arguments, done.exception)
        printed.append(str(done.exception))
    assert not any("sss" in text for text in printed), printed


def plain(value: Any) -> str:
    return value[0] if isinstance(value, list) else str(value)


TEXT = 'a "b" \\ \n\t\x00\x7f é 𝄞'


@pytest.mark.parametrize(
    "value", [True, 0, -3, 0.1, 1e-9, 1e300, "", TEXT, ["a", TEXT], Path("a b")]
)
def test_values_are_toml(value: Any) -> None:
    read = tomllib.loads(f"x = {toml_value(value)}")["x"]
    assert read == (str(value) if isinstance(value, Path) else value)


def test_a_server_is_configured_from_everywhere(tmp_path: Path) -> None:
    """The real thing, as a process."""
    file = write(tmp_path, '[serve]\ntarget = "ngram"\nport = 1\nctx_size = 64\n')
    base = [sys.executable, "-m", "multispin", "serve", "--config", file]
    environment = os.environ | {"MULTISPIN_SERVE_PORT": "0"}
    process = subprocess.Popen(base, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        assert process.stdout is not None
        address = process.stdout.readline().strip()
        assert re.fullmatch(r"127\.0\.0\.1:\d+", address)
        done = subprocess.run(
            [*base[:3], "complete", "x" * 64],
            env=os.environ | {"MULTISPIN_COMPLETE_SERVER": address},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 2 and "64 tokens" in done.stderr
    finally:
        process.kill()
        process.communicate()
    done = subprocess.run(
        [*base, "--ctx-size", "1"], env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert done.stderr == "error: --ctx-size = 1: must lie between 16 and 1048576\n"
