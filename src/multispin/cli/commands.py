"""Which commands there are."""

from __future__ import annotations

import typer

from multispin.cli import cluster, models, tokens
from multispin.cli.bench import bench
from multispin.cli.certs import certs
from multispin.cli.chat import chat
from multispin.cli.complete import complete
from multispin.cli.demo import demo
from multispin.cli.device import device
from multispin.cli.directory import directory
from multispin.cli.doctor import doctor
from multispin.cli.plan import plan
from multispin.cli.profile import profile
from multispin.cli.record import record
from multispin.cli.reproduce import reproduce
from multispin.cli.serve import serve
from multispin.cli.simulate import simulate
from multispin.cli.top import top


def register(app: typer.Typer) -> None:
    for command in (
        *(demo, serve, directory, device, complete, chat, top, certs, doctor),
        *(plan, simulate, reproduce, profile, record, bench),
    ):
        app.command()(command)
    app.add_typer(cluster.app, name="cluster", help="Replicas and directories on Ray.")
    app.add_typer(models.app, name="models", help="The models that have a name, and their files.")
    app.add_typer(tokens.app, name="tokens", help="The access tokens of a server.")
