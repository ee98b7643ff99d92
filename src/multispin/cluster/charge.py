"""What a keeper is to keep: a replica of a target or a directory, as a command line."""

from __future__ import annotations

import re
from functools import cache
from hashlib import blake2b
from importlib.metadata import version

import msgspec
from msgspec.structs import asdict

from multispin.cell.cluster_sections import ClusterSection, ServeSection, TargetSection
from multispin.cell.deployment import DIRECTORY, Deployment
from multispin.net.address import is_loopback
from multispin.types import DRAIN_S


class Charge(msgspec.Struct, frozen=True):
    """``arguments`` are multispin's, without the port, which the keeper chooses of ``ports``."""

    name: str
    target: str
    arguments: tuple[str, ...]
    host: str
    ports: tuple[int, int]
    port: int  # that is tried first
    reached_as: str  # by others than this machine, as in the file
    is_secure: bool  # TLS
    drain_s: float
    cpus: float
    gpus: float
    memory_bytes: int
    version: str

    @property
    def is_directory(self) -> bool:
        return self.target == DIRECTORY

    @property
    def digest(self) -> str:
        """Of all that asks for another process when it changes."""
        what = msgspec.json.encode({**asdict(self), "ports": None, "port": None})
        return blake2b(what, digest_size=8).hexdigest()

    def server(self, node: str, port: int) -> str:
        """As devices are sent there; ``node`` is this machine's address, for who is elsewhere."""
        return _server(self.host, self.reached_as, node, port, is_secure=self.is_secure)


def directory_address(deployment: Deployment, head: str) -> str:
    """By which devices know the directory; the first one is on the head."""
    section = deployment.cluster
    return section.directory_address or _server(
        section.host,
        section.reached_as,
        head,
        section.directory_ports[0],
        is_secure=section.cert is not None,
    )


def _server(host: str, reached_as: str, node: str, port: int, *, is_secure: bool) -> str:
    """Off loopback and without TLS, the scheme has to be written."""
    is_local = is_loopback(host)
    name = host if is_local else reached_as.format(ip=node, dashed_ip=re.sub("[.:]", "-", node))
    scheme = "https://" if is_secure else "" if is_local else "http://"
    return f"{scheme}[{name}]:{port}" if ":" in name else f"{scheme}{name}:{port}"


def directory_charge(deployment: Deployment, index: int) -> Charge:
    section = deployment.cluster
    port = section.directory_ports[index]
    arguments = ["directory", "--host", section.host, *_protection(section)]
    arguments += _options({"token_file": section.token_file, "ca": section.ca, "drain_s": DRAIN_S})
    return Charge(
        name=f"{DIRECTORY}-{index}",
        target=DIRECTORY,
        arguments=tuple(arguments),
        host=section.host,
        ports=(port, port),
        port=port,
        reached_as=section.reached_as,
        is_secure=section.cert is not None,
        drain_s=DRAIN_S,
        cpus=0.0,
        gpus=0.0,
        memory_bytes=0,
        version=_version(),
    )


def replica_charge(deployment: Deployment, target: TargetSection, index: int, head: str) -> Charge:
    """Of the replica with this index; every one has a port of its own as far as there are some."""
    section, name = deployment.cluster, f"{target.name}-{index}"
    first, last = section.ports
    known = deployment.targets.index(target)
    before = sum(other.most_replicas for other in deployment.targets[:known])
    resources = target.resources
    arguments = ["serve", "--target", str(target.model), "--name", name, "--host", section.host]
    arguments += ["--directory", directory_address(deployment, head), *_protection(section)]
    arguments += _options({"max_sessions": target.max_sessions, **asdict(target.serve)})
    arguments += _options(_first_share(deployment, target.serve))
    return Charge(
        name=name,
        target=target.name,
        arguments=tuple(arguments),
        host=section.host,
        ports=section.ports,
        port=first + (before + index) % (last - first + 1),
        reached_as=section.reached_as,
        is_secure=section.cert is not None,
        drain_s=target.serve.drain_s,
        cpus=resources.cpus,
        gpus=resources.gpus,
        memory_bytes=int(resources.memory_gb * 1e9),
        version=_version(),
    )


@cache
def _version() -> str:
    return version("multispin")


def _protection(section: ClusterSection) -> list[str]:
    names = ("cert", "key", "client_ca", "tokens", "insecure")
    return _options({name: getattr(section, name) for name in names})


def _first_share(deployment: Deployment, serve: ServeSection) -> dict[str, object]:
    """Of a site's uplink, until the supervisor has told the replica its own: little enough that all
    replicas together do not take more than there is."""
    if not deployment.cells or serve.policy is None:
        return {}
    most = sum(target.most_replicas for target in deployment.targets if target.serve.policy)
    return {deployment.cells[0].unit: min(cell.budget for cell in deployment.cells) / most}


def _options(values: dict[str, object]) -> list[str]:
    """As flags; what is not stated, or switched off, has none."""
    flags = []
    for name, value in values.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            flags.append(flag)
        elif value is not None and value is not False:
            flags += [flag, str(value)]
    return flags
