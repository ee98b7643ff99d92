"""CLUSTER.toml for `cluster up`: one clear line for every mistake, and command lines that fit."""

from __future__ import annotations

import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from msgspec.structs import fields, replace

from multispin.cell.cluster import load_cluster
from multispin.cell.cluster_sections import ServeSection
from multispin.cell.deployment import Deployment, load_deployment
from multispin.cli.directory import directory
from multispin.cli.serve import serve
from multispin.cluster.charge import directory_charge, replica_charge
from multispin.errors import BadInput

ROOT = Path(__file__).parents[2]
CLUSTER = '[cluster]\nname = "c"\n'
TARGET = '[[target]]\nname = "chat"\nmodel = "ngram"\nmax_sessions = 4\n'
SECURE = 'host = "0.0.0.0"\ncert = "c.pem"\nkey = "c.key"\ntokens = "t.json"\ntoken_file = "t"\n'


def load(folder: Path, text: str) -> Deployment:
    (folder / "cluster.toml").write_text(text)
    return load_deployment(folder / "cluster.toml")


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (TARGET, "cluster = (missing)"),
        (CLUSTER, "at least one [[target]]"),
        (CLUSTER + '[[target]]\nname = "a"\nmax_sessions = 4\n', "target 'a'.model = (missing)"),
        (CLUSTER + TARGET + TARGET, "used twice"),
        (CLUSTER + TARGET + "min_replicas = 3\nmax_replicas = 2", "at least min_replicas, 3"),
        (CLUSTER + TARGET + "serve = { ctx = 5 }", "did you mean ctx_size"),
        (CLUSTER + TARGET + "serve = { reproducible = 1 }", "serve.reproducible"),
        (CLUSTER + TARGET + 'serve = { mode = "fast" }', "serve.mode"),
        (CLUSTER + TARGET + "resources = { cpus = -1 }", "resources.cpus"),
        (CLUSTER + TARGET.replace("chat", "directory"), "take another"),
        (CLUSTER + TARGET.replace("chat", "a b"), "letters, digits"),
        (CLUSTER.replace('"c"', '"../c"') + TARGET, "letters, digits"),
        (CLUSTER + "ports = [5]\n" + TARGET, "ports"),
        (CLUSTER + "ports = [9, 8]\n" + TARGET, "first and last"),
        (CLUSTER + "ports = [8601, 8602]\n" + TARGET + "min_replicas = 3", "too small for 3"),
        (CLUSTER + "directory_ports = [8610]\n" + TARGET, "outside of ports"),
        (CLUSTER + "directory_ports = []\n" + TARGET, "a port at least"),
        (CLUSTER + "directory_ports = [8, 8]\n" + TARGET, "twice"),
        (CLUSTER + 'reached_as = "{name}"\n' + TARGET, "{dashed_ip}"),
        (CLUSTER + 'host = "example.org"\n' + TARGET, "IP address"),
        (CLUSTER + 'host = "0.0.0.0"\n' + TARGET, "insecure = true"),
        (CLUSTER + 'tokens = "t.json"\n' + TARGET, "token_file"),
        (CLUSTER + 'cert = "c.pem"\n' + TARGET, "key"),
        (CLUSTER + TARGET + '[[cell]]\nname = "n"\n', "exactly one of"),
        (CLUSTER + TARGET + '[[cell]]\nname = "n"\nbandwidth_hz = 1e6\n', "policy"),
        (
            CLUSTER
            + TARGET
            + '[[cell]]\nname = "n"\nbandwidth_hz = 1e6\n'
            + '[[cell]]\nname = "m"\nuplink_bits_per_s = 1e6\n',
            "all cells need the same",
        ),
    ],
)
def test_a_mistake_is_one_line_that_names_the_file(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(BadInput) as caught:
        load(tmp_path, text)
    line = str(caught.value)
    assert told in line
    assert "\n" not in line
    assert "cluster.toml" in line


def test_one_file_serves_both_and_each_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"\[fleet\]"):
        (tmp_path / "cluster.toml").write_text(CLUSTER + TARGET)
        load_cluster(tmp_path / "cluster.toml")
    city = (ROOT / "examples" / "city" / "cluster.toml").read_text()
    both = (
        CLUSTER
        + "ports = [10000, 10999]\n"
        + city.replace(
            'cell = "cell.toml"', f'cell = "{ROOT}/examples/city/cell.toml"\nmodel = "ngram"'
        )
    )
    assert load(tmp_path, both).targets[0].most_replicas == 800
    assert load_cluster(tmp_path / "cluster.toml").fleet.devices == 1_000_000
    fleet = both[both.index("[fleet]") :]
    with pytest.raises(BadInput, match=r"a target needs a CELL\.toml"):
        (tmp_path / "cluster.toml").write_text(TARGET + fleet)
        load_cluster(tmp_path / "cluster.toml")


def test_paths_are_meant_from_the_folder_of_the_file(tmp_path: Path) -> None:
    target = TARGET.replace('"ngram"', '"cost:pass.toml"') + 'serve = { replay = "a.record" }\n'
    made = load(tmp_path, CLUSTER + SECURE + target)
    assert made.targets[0].model == f"cost:{tmp_path}/pass.toml"
    assert made.targets[0].serve.replay == f"{tmp_path}/a.record"
    assert made.cluster.tokens == f"{tmp_path}/t.json"
    other = load(tmp_path, CLUSTER + TARGET.replace("ngram", "models/a.gguf"))
    assert other.targets[0].model == f"{tmp_path}/models/a.gguf"
    hub = load(tmp_path, CLUSTER + TARGET.replace("ngram", "hf:a/b/c.gguf"))
    assert hub.targets[0].model == "hf:a/b/c.gguf"


def test_every_option_is_one_of_serve() -> None:
    known = inspect.signature(serve).parameters
    assert {field.name for field in fields(ServeSection)} <= known.keys()


def test_the_commands_have_what_the_file_says(tmp_path: Path) -> None:
    made = load(
        tmp_path,
        CLUSTER
        + SECURE
        + TARGET
        + 'max_replicas = 4\nserve = { reproducible = true, policy = "heterogeneous" }\n'
        + '[[cell]]\nname = "n"\nuplink_bits_per_s = 8e6\n',
    )
    charge = replica_charge(made, made.targets[0], 2, "192.0.2.7")
    arguments = " ".join(charge.arguments)
    for part in (
        "serve --target ngram --name chat-2 --host 0.0.0.0",
        "--directory https://192.0.2.7:8600",
        f"--cert {tmp_path}/c.pem --key {tmp_path}/c.key --tokens {tmp_path}/t.json",
        "--max-sessions 4",
        "--reproducible",
        "--uplink-bits-per-s 2000000.0",  # a quarter, until it is told
    ):
        assert part in arguments
    assert charge.server("192.0.2.9", 8603) == "https://192.0.2.9:8603"
    named = replace(charge, reached_as="{dashed_ip}.pods.example")
    assert named.server("192.0.2.9", 8603) == "https://192-0-2-9.pods.example:8603"
    front = directory_charge(made, 0)
    assert f"--token-file {tmp_path}/t" in " ".join(front.arguments)
    known = {f"--{name.replace('_', '-')}" for name in inspect.signature(directory).parameters}
    assert {part for part in front.arguments if part.startswith("--")} <= known


def test_loopback_and_the_open_network_are_written_so_that_devices_understand() -> None:
    plain = load_deployment(ROOT / "examples" / "laptop" / "cluster.toml")
    charge = replica_charge(plain, plain.targets[0], 0, "192.0.2.7")
    assert charge.server("192.0.2.9", 8601) == "127.0.0.1:8601"
    assert "127.0.0.1:8600" in charge.arguments


def test_nobody_imports_ray_but_who_speaks_with_it() -> None:
    code = (
        "import sys, multispin, multispin.cluster.commands, multispin.cluster.supervising,"
        "multispin.cluster.driver; sys.exit('ray' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_files_for_kubernetes_fit_together() -> None:
    """Read, not applied: what was not tried is marked so in docs/kuberay.md."""
    deploy = ROOT / "deploy" / "kuberay"
    section = load_deployment(deploy / "cluster.toml").cluster
    values = yaml.safe_load((deploy / "values.yaml").read_text())
    policy, service = yaml.safe_load_all((deploy / "network-policy.yaml").read_text())
    assert values["service"]["type"] == "ClusterIP"
    environment = {one["name"]: one for one in values["common"]["containerEnv"]}
    assert environment["RAY_AUTH_MODE"]["value"] == "token"
    assert "secretKeyRef" in environment["RAY_AUTH_TOKEN"]["valueFrom"]
    [port] = policy["spec"]["ingress"][1]["ports"]
    assert port["port"] <= min(*section.directory_ports, *section.ports)
    assert port["endPort"] >= max(*section.directory_ports, *section.ports)
    assert [one["port"] for one in service["spec"]["ports"]] == list(section.directory_ports)
    text = (deploy / "Dockerfile").read_text()
    locked = re.search(r"^ray==(\S+)", (ROOT / "requirements-dev.lock").read_text(), re.MULTILINE)
    assert locked is not None
    assert set(re.findall(r"ray(?:==|:)(\d[\d.]*\d)", text)) == {locked[1], values["image"]["tag"]}
