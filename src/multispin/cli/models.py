"""``multispin models``: what the catalog has, and where it is."""

from __future__ import annotations

from typing import Annotated

import msgspec
import typer

from multispin import catalog
from multispin.errors import BadInput

app = typer.Typer(help="The model catalog.", no_args_is_help=True)

_MODEL_HELP = "a catalog name, hf:owner/repo/file.gguf, or the path of a GGUF file"


@app.command("list")
def list_models(
    as_json: Annotated[bool, typer.Option("--json", help="print one JSON object")] = False,
) -> None:
    """Show the models that have a name, and which of them are here."""
    rows = [
        {
            "name": model.name,
            "description": model.description,
            "num_bytes": model.num_bytes,
            "licence": model.licence,
            "path": str(path) if path else None,
        }
        for model in catalog.entries()
        for path in [catalog.local_path(model.name)]
    ]
    if as_json:
        out = {"cache_dir": str(catalog.cache_dir()), "models": rows}
        print(msgspec.json.encode(out).decode())
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("name", "what", "size", "licence", "in cache", box=None, pad_edge=False)
    for model, row in zip(catalog.entries(), rows, strict=True):
        size = f"{(model.num_bytes or 0) / 1e6:.0f} MB"
        table.add_row(
            model.name, model.description, size, model.licence, "yes" if row["path"] else "no"
        )
    console = Console()
    console.print(table)
    console.print(f"cache: {catalog.cache_dir()}", soft_wrap=True)


@app.command()
def pull(
    names: Annotated[list[str], typer.Argument(metavar="NAME...", help=_MODEL_HELP)],
    offline: Annotated[
        bool,
        typer.Option("--offline", envvar="MULTISPIN_OFFLINE", help="only check what is here"),
    ] = False,
) -> None:
    """Bring models into the cache, verify them, and print where they are."""
    with catalog.progress_on_stderr() as progress:
        paths = [catalog.find_model(name, progress=progress, offline=offline) for name in names]
    for path in paths:
        print(path)


@app.command()
def path(name: Annotated[str, typer.Argument(metavar="NAME", help=_MODEL_HELP)]) -> None:
    """Print where the verified file of a model is; never pulls."""
    found = catalog.local_path(name)
    if found is None:
        raise BadInput(
            "NAME", name, f"is not in the cache; pull it with `multispin models pull {name}`"
        )
    print(found)
