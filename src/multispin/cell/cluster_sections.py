"""The tables of CLUSTER.toml: keys, defaults, ranges, and which go together (docs/cluster.md)."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated, Literal

import msgspec
import numpy as np

from multispin.cell.limits import Limits, NonNegative, Positive, Share, Together, given
from multispin.cell.sections import Section
from multispin.errors import BadInput
from multispin.types import DRAIN_S, MAX_DRAIN_S, Mode

HOURS = 24
MAX_REPLICAS = 100_000
_NODE = re.compile(r"[A-Za-z0-9.-]*\{(dashed_)?ip\}[A-Za-z0-9.-]*")


class ClusterSection(Section, frozen=True):
    """Where replicas and directories listen, what protects them, and which Ray keeps them."""

    name: str
    ray: str | None = None  # HOST:PORT, or "local"; by default the one that runs, or a local one
    host: str = "127.0.0.1"  # that replicas and directories listen on
    reached_as: str = "{ip}"  # by devices, where host is not loopback; or with {dashed_ip}
    ports: tuple[int, int] = (8601, 8650)  # first and last, for replicas
    directory_ports: tuple[int, ...] = (8600,)  # one directory on each
    directory_address: str | None = None  # by which devices know it; by default the first one's
    tokens: str | None = None
    cert: str | None = None
    key: str | None = None
    client_ca: str | None = None
    ca: str | None = None  # that replicas' certificates are checked with
    token_file: str | None = None  # of an operate token, to watch replicas with
    insecure: bool = False

    rules = (
        Together(given("cert", "key"), needs=("cert", "key"), allows=("client_ca", "ca")),
        Together(given("tokens", "token_file"), needs=("tokens", "token_file")),
    )

    @property
    def is_local(self) -> bool:
        """Whether nobody off this machine can connect."""
        return self.host == "localhost" or ipaddress.ip_address(self.host).is_loopback

    def check(self) -> None:
        try:
            _ = self.is_local
        except ValueError:
            raise BadInput("host", repr(self.host), "must be an IP address or localhost") from None
        if not _NODE.fullmatch(self.reached_as):
            remedy = "must be {ip}, or a name with {ip} or {dashed_ip} in it"
            raise BadInput("reached_as", repr(self.reached_as), remedy)
        ports, directory_ports = list(self.ports), list(self.directory_ports)
        if not 0 < ports[0] <= ports[1] < 65536:
            raise BadInput("ports", ports, "must be first and last, as in [8601, 8650]")
        if not directory_ports or not all(0 < port < 65536 for port in directory_ports):
            raise BadInput("directory_ports", directory_ports, "needs a port at least")
        if len(set(directory_ports)) < len(directory_ports):
            raise BadInput("directory_ports", directory_ports, "has a port twice")
        if any(ports[0] <= port <= ports[1] for port in directory_ports):
            raise BadInput("directory_ports", directory_ports, f"must lie outside of ports {ports}")


class ResourcesSection(Section, frozen=True):
    """What a replica gets of a machine: Ray counts it, and sets CUDA_VISIBLE_DEVICES."""

    cpus: NonNegative = 1.0
    gpus: NonNegative = 0.0
    memory_gb: NonNegative = 0.0


class ServeSection(Section, frozen=True):
    """Options of `multispin serve`, by their names there."""

    ctx_size: int | None = None
    max_draft_length: int | None = None
    mode: Mode | None = None
    policy: str | None = None
    least_share: Share | None = None
    reproducible: bool = False
    replay: str | None = None
    share_prefixes: bool = False
    show_texts: bool = False
    pad: bool = False
    threads: int | None = None
    gpu_layers: int | None = None
    drain_s: Annotated[float, Limits(0.0, MAX_DRAIN_S)] = DRAIN_S


class TargetSection(Section, frozen=True):
    """A model that replicas serve. `cluster` needs ``model``, what `serve --target` takes;
    `simulate` needs ``cell``, a CELL.toml with its passes and its devices."""

    name: str
    max_sessions: Annotated[int, Limits(1, 4096)]  # of a replica: what its KV memory holds
    model: str | None = None
    cell: str | None = None
    min_replicas: Annotated[int, Limits(1, MAX_REPLICAS)] = 1
    max_replicas: Annotated[int, Limits(1, MAX_REPLICAS)] | None = None  # by default min_replicas
    max_s_per_verdict: Positive | None = None  # slower than that, and there are to be more
    quality: Annotated[int, Limits(0, 1_000_000)] = 0
    watts: NonNegative = 0.0  # of a replica at work
    cost_per_hour: NonNegative = 0.0  # of a replica
    serve: ServeSection = ServeSection()
    resources: ResourcesSection = ResourcesSection()
    start_s: NonNegative = 30.0  # simulated: until a new or restarted replica serves
    prefill_s_per_token: NonNegative = 0.0  # simulated: of a text that is read anew
    share: Positive = 1.0  # simulated: of the texts, beside the other targets'

    def check(self) -> None:
        if self.most_replicas < self.min_replicas:
            remedy = f"must be at least min_replicas, {self.min_replicas}"
            raise BadInput("max_replicas", self.max_replicas, remedy)

    @property
    def most_replicas(self) -> int:
        return self.min_replicas if self.max_replicas is None else self.max_replicas


class RadioCellSection(Section, frozen=True):
    """A radio site, by the name that its devices give (`device --cell`), and its uplink."""

    name: str
    uplink_bits_per_s: Positive | None = None
    bandwidth_hz: Positive | None = None

    rules = (Together(one_of=("uplink_bits_per_s", "bandwidth_hz")),)

    @property
    def unit(self) -> Literal["uplink_bits_per_s", "bandwidth_hz"]:
        return "bandwidth_hz" if self.uplink_bits_per_s is None else "uplink_bits_per_s"

    @property
    def budget(self) -> float:
        return self.uplink_bits_per_s or self.bandwidth_hz or 0.0


class FleetSection(Section, frozen=True):
    """Who asks: rates are per device and hour, lengths are means."""

    devices: Annotated[int, Limits(1, 100_000_000)]
    radio_cells: Annotated[int, Limits(1, 1_000_000)]
    texts_per_hour: Positive
    prompt_tokens: Annotated[int, Limits(1, 1_000_000)] = 200
    answer_tokens: Annotated[int, Limits(1, 1_000_000)] = 200
    moves_per_hour: NonNegative = 0.0  # of a device, into another radio cell
    failures_per_hour: NonNegative = 0.0  # of a replica
    hours: Annotated[float, Limits(0.0, 168.0, is_open=True)] = 1.0
    start_hour: Annotated[float, Limits(0.0, HOURS)] = 0.0
    load_by_hour: list[float] | None = None  # of the day, as a factor of texts_per_hour

    def check(self) -> None:
        load = self.load_by_hour
        if load is not None and (
            len(load) != HOURS or not (np.isfinite(load).all() and min(load) >= 0)
        ):
            raise BadInput("load_by_hour", load, f"needs {HOURS} numbers, 0 or more")

    def load(self, hour: float) -> float:
        """The factor at an hour of the day, in a line between the full hours."""
        if self.load_by_hour is None:
            return 1.0
        around = [*self.load_by_hour, self.load_by_hour[0]]
        return float(np.interp(hour % HOURS, np.arange(HOURS + 1), around))


class ClusterFile(Section, frozen=True):
    """`simulate` needs ``fleet``, `cluster` needs ``cluster``."""

    target: list[TargetSection]
    fleet: FleetSection | None = None
    cluster: ClusterSection | None = None
    cell: list[RadioCellSection] = msgspec.field(default_factory=list)
