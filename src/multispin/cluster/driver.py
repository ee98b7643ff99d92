"""A process of its own that speaks with Ray: it may hang, and abort, without harm to the command.

Run by cluster.connection as ``python -m multispin.cluster.driver LOG``; requests and answers as in
net/child.py. What Ray prints goes into the log.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import TypeAlias

import msgspec

from multispin.cell.deployment import Deployment
from multispin.cluster.local_ray import token_variables
from multispin.cluster.overview import Overview
from multispin.errors import MultispinError
from multispin.net.child import Failed, reply, requests


class Connect(msgspec.Struct, array_like=True, tag=0):
    address: str
    cluster: str
    token_path: str


class Apply(msgspec.Struct, array_like=True, tag=1):
    deployment: Deployment


class Look(msgspec.Struct, array_like=True, tag=2):
    cluster: str


class Drain(msgspec.Struct, array_like=True, tag=3):
    cluster: str
    name: str


class Stop(msgspec.Struct, array_like=True, tag=4):
    cluster: str
    limit_s: float


class Done(msgspec.Struct, array_like=True, tag=0):
    overview: Overview | None = None


Request: TypeAlias = Connect | Apply | Look | Drain | Stop
Response: TypeAlias = Done | Failed


_BAD_TOKEN = "InvalidAuthToken"  # Ray says so in its log only
_TOKEN_REMEDY = (
    "Ray does not take this machine's token: RAY_AUTH_TOKEN, the file RAY_AUTH_TOKEN_PATH or "
    "~/.ray/auth_token must have that of the cluster, and RAY_AUTH_MODE must be token"
)


def main(log: str) -> None:
    """The log begins anew."""
    asked, answers = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND, 0o600)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    decoder = msgspec.msgpack.Decoder(Request)
    for data in requests(asked):
        answer = _answer(decoder.decode(data))
        if isinstance(answer, Failed) and _BAD_TOKEN in Path(log).read_text(errors="replace"):
            answer = Failed("unauthorized", _TOKEN_REMEDY)
        reply(answers, msgspec.msgpack.encode(answer))
    os._exit(0)  # Ray's farewells may take as long as its other timeouts


def _answer(request: Request) -> Response:
    if isinstance(request, Connect) and request.token_path:  # before Ray looks
        os.environ.pop("RAY_AUTH_TOKEN", None)
        os.environ.update(token_variables(request.token_path))
    from multispin.cluster import on_ray

    try:
        match request:
            case Connect(address=address, cluster=cluster):
                on_ray.connect(address, cluster)
            case Apply(deployment):
                on_ray.apply(deployment)
            case Look(cluster):
                return Done(on_ray.look(cluster))
            case Drain(cluster, name):
                on_ray.drain(cluster, name)
            case Stop(cluster, limit_s):
                on_ray.stop(cluster, limit_s)
        return Done()
    except MultispinError as error:
        return Failed.of(error)
    except Exception as error:  # Ray's own
        return Failed("unreachable", f"Ray: {type(error).__name__}: {' '.join(str(error).split())}")


if __name__ == "__main__":
    main(sys.argv[1])
