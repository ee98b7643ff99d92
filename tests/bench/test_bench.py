"""`multispin bench`: its arithmetic by other ways, its link on a clock, all modes over sockets."""

from __future__ import annotations

import asyncio
import itertools
import json
import random
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
from websockets.asyncio.server import ServerConnection
from websockets.asyncio.server import serve as serve_websockets

from multispin.bench.colocated import Colocate, colocate
from multispin.bench.devices import Wrote, requests_of
from multispin.bench.link import ShapedSocket
from multispin.bench.measures import Measured, Spent, TextLog, measure
from multispin.bench.report import Run, report
from multispin.bench.run import Served
from multispin.lm.record import write_record
from multispin.net.drafting import DrafterOptions
from multispin.net.loading import TargetOptions
from multispin.net.transport import TransportClosed
from multispin.wire.frames import TRANSPORT_BITS
from tests.cli.test_commands import MULTISPIN, run
from tests.recording import small_record

MODES = ("server-only", "colocated", "fixed", "rounds", "stop-and-wait", "window")


# --- figures -----------------------------------------------------------------------------------


def random_logs(rng: random.Random) -> list[TextLog]:
    """Texts of a few devices, in whole tenths of a second; the last ones may have no token yet."""
    logs = []
    for _ in range(rng.randint(1, 3)):
        now = rng.randint(0, 20)
        for _ in range(rng.randint(1, 4)):
            log = TextLog(now / 10)
            for _ in range(rng.randint(0, 8)):
                now += rng.randint(1, 9)
                log.arrivals.append((now / 10, rng.randint(0, 4)))
            logs.append(log)
            if not log.arrivals:
                break
    return logs


@pytest.mark.parametrize("seed", range(40))
def test_figures_agree_with_counting_tick_by_tick(seed: int) -> None:
    logs = random_logs(random.Random(seed))
    begin, end = 20, 90  # tenths
    measured = measure(logs, begin / 10, end / 10, Spent(30, 10, 60))

    def first(log: TextLog) -> float:
        return 10 * log.arrivals[0][0] if log.arrivals else np.inf

    ticks = [  # (t, t + 1] tenths in which nobody reads
        t
        for t in range(begin, end)
        if not any(10 * log.opened_at <= t + 0.5 < first(log) for log in logs)
    ]
    tokens: dict[int, int] = {}
    for log in logs:
        for at, num in log.arrivals:
            tokens[round(10 * at)] = tokens.get(round(10 * at), 0) + num
    assert measured.num_tokens == sum(tokens.get(t + 1, 0) for t in range(begin, end))
    assert measured.goodput_tokens_per_s == pytest.approx(measured.num_tokens / 7.0)
    assert measured.writing_seconds == pytest.approx(len(ticks) / 10)
    if len(ticks) > 7:
        expected = sum(tokens.get(t + 1, 0) for t in ticks) / (len(ticks) / 10)
        assert measured.writing_goodput_tokens_per_s == pytest.approx(expected)
    else:
        assert measured.writing_goodput_tokens_per_s is None or len(ticks) == 7
    assert measured.mean_acceptance_length == 3.0 and measured.uplink_bytes_per_token == 2.0


def test_tokens_of_one_verdict_come_together() -> None:
    log = TextLog(0.0, [(1.0, 1), (1.5, 3), (2.5, 1), (2.6, 0)])
    measured = measure([log], 1.0, 3.0, Spent())
    assert measured.time_to_first_token_s.p50 == 1.0
    assert measured.inter_token_s.p50 == pytest.approx(0.25)  # of 0.5, 0, 0, 1
    assert measured.inter_verdict_s.p50 == pytest.approx(0.75)  # of 0.5, 1
    assert measured.uplink_bytes_per_token is None


def figures(goodput: float, writing: float | None) -> Served:
    bare = measure([], 0.0, 1.0, Spent())
    fields = {name: getattr(bare, name) for name in bare.__struct_fields__}
    fields["goodput_tokens_per_s"] = goodput
    fields["writing_goodput_tokens_per_s"] = writing
    return Served(Measured(**fields))


def test_ratios_are_to_the_server_alone_with_as_many_devices() -> None:
    runs = [
        Run("window", 1, "replayed", figures(30.0, 36.0)),
        Run("server-only", 1, "replayed", figures(20.0, 24.0)),
        Run("server-only", 4, "replayed", figures(40.0, None)),
        Run("window", 4, "replayed", figures(50.0, 60.0)),
        Run("window", 8, "replayed", figures(50.0, 60.0)),
    ]
    rows = report(runs)
    assert [row["goodput_ratio"] for row in rows] == [1.5, 1.0, 1.0, 1.25, None]
    assert [row["writing_goodput_ratio"] for row in rows] == [1.5, 1.0, None, None, None]


# --- the link ----------------------------------------------------------------------------------


def echoed(sizes: list[int], round_trip_s: float, bits_per_s: float) -> list[float]:
    """Seconds after which each message of these sizes is back, all sent at once."""

    async def echo(connection: ServerConnection) -> None:
        async for message in connection:
            await (await connection.ping())  # whoever does not answer is cut off
            await connection.send(message)

    async def main() -> list[float]:
        async with serve_websockets(echo, "127.0.0.1", 0, compression=None) as server:
            port = next(iter(server.sockets)).getsockname()[1]
            socket = await ShapedSocket.connect(f"127.0.0.1:{port}", round_trip_s, bits_per_s)
            began = time.monotonic()
            messages = [bytes([i]) * size for i, size in enumerate(sizes)]
            for message in messages:
                await socket.send(message)
            times = []
            for message in messages:
                assert await socket.receive() == message
                times.append(time.monotonic() - began)
            await socket.close()
            with pytest.raises(TransportClosed):
                while True:
                    await socket.receive()
            return times

    return asyncio.run(main())


def test_a_message_of_any_size_comes_back_in_order() -> None:
    echoed([0, 1, 125, 126, 127, 65535, 65536, 200_000, 3], 0.0, 0.0)


def test_a_link_is_never_faster_than_stated() -> None:
    sizes, bits_per_s = [10, 400, 10, 1000, 0], 400_000.0
    times = echoed(sizes, 0.06, bits_per_s)
    for number, (one, before) in enumerate(zip(times, [0.0, *times], strict=False), 1):
        bits = sum(8 * size + TRANSPORT_BITS for size in sizes[:number])
        assert one >= 0.06 + bits / bits_per_s - 1e-3 and one >= before


# --- everything together -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bench")
    write_record(folder / "a.record", small_record())
    (folder / "a.toml").write_text('[cost]\nfixed_s = 0.002\nrecord = "a.record"\n')
    (folder / "drafter.toml").write_text("[cost]\nfixed_s = 0.001\nper_row_s = 0.0001\n")
    (folder / "no.toml").write_text("[cost]\nfixed_s = 0.002\n")
    return folder


def bench(*arguments: str, seconds: str = "0.5") -> dict:
    done = run("bench", "--seconds", seconds, *arguments)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def check(row: dict) -> None:
    assert row["num_tokens"] > 0 and row["num_replay_differences"] in (0, None)
    if row["mode"] == "colocated":
        return
    assert 0 < row["server_busy"] <= 1.05
    assert (row["uplink_bytes_per_token"] or 0) > 0
    if row["mode"] == "server-only":
        assert row["goodput_ratio"] == 1.0 and row["mean_acceptance_length"] <= 1.0
    elif row["mode"] == "fixed":  # a policy may leave devices alone, window does not wait
        assert row["mean_acceptance_length"] > 1.0


def test_all_modes_with_a_cost_model(folder: Path) -> None:
    result = bench(
        *("--target", f"cost:{folder / 'a.toml'}", "--drafter-cost", str(folder / "drafter.toml")),
        *("--devices", "3", "--draft-s-per-token", "0.0005,0.001", "--round-trip-s", "0.002"),
        *("--uplink-bits-per-s", "1e6"),
    )
    assert [row["mode"] for row in result["runs"]] == list(MODES)
    for row in result["runs"]:
        assert row["num_devices"] == 3 and row["kind"] == "cost model"
        check(row)


def test_a_sweep_with_a_real_engine_draws_a_picture(folder: Path) -> None:
    done = run(
        *("bench", "--record", str(folder / "a.record"), "--target", "ngram", "--draft", "ngram"),
        *("--modes", "server-only,colocated,window", "--sweep", "devices=1,2"),
        *("--seconds", "0.4", "--draft-s-per-token", "0.0005", "--round-trip-s", "0.001"),
        *("--plot", str(folder / "a.png"), "--json"),
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    shape = [(row["num_devices"], row["mode"], row["kind"]) for row in result["runs"]]
    modes = [("server-only", "replayed"), ("colocated", "measured"), ("window", "replayed")]
    assert shape == [(num, *mode) for num, mode in itertools.product((1, 2), modes)]
    for row in result["runs"]:
        check(row)
    assert (folder / "a.png").read_bytes().startswith(b"\x89PNG")


def test_without_a_record_one_is_made(folder: Path) -> None:
    (folder / "prompts.txt").write_text("Every token \nA\n")
    result = bench(
        *("--record", str(folder / "new.record"), "--target", "ngram", "--draft", "ngram"),
        *("--prompts", str(folder / "prompts.txt"), "--max-tokens", "24"),
        *("--modes", "window", "--devices", "1", "--draft-s-per-token", "0.0005"),
    )
    check(result["runs"][0])
    assert (folder / "new.record").exists()


@pytest.mark.parametrize(
    ("arguments", "names"),
    [
        (["--record", "{}/none.record"], "--record"),
        (["--record", "{}/a.toml"], "--record"),
        (["--target", "cost:{}/no.toml"], "--record"),
        (["--target", "cost:{}/none.toml"], "none.toml"),
        (["--target", "cost:{}/a.toml", "--modes", "windows"], "--modes"),
        (["--target", "cost:{}/a.toml", "--devices", "0"], "--devices"),
        (["--target", "cost:{}/a.toml", "--sweep", "devices=1,x"], "--sweep"),
        (["--target", "cost:{}/a.toml", "--sweep", "devices=1", "--plot", "{}/x/y.png"], "--plot"),
        (["--target", "cost:{}/a.toml", "--seconds", "nan"], "--seconds"),
        (["--target", "cost:{}/a.toml", "--round-trip-s", "1,-1"], "--round-trip-s"),
        (["--target", "cost:{}/a.toml", "--peer"], "--peer"),
        (["--record", "{}/a.record", "--target", "{}/none.gguf", "--modes", "window"], "none.gguf"),
        (["--record", "{}/a.record", "--target", "ngram", "--drafter-cost", "x"], "--drafter-cost"),
    ],
)
def test_bad_input_is_one_clear_line(folder: Path, arguments: list[str], names: str) -> None:
    done = run("bench", "--seconds", "0.1", *(part.format(folder) for part in arguments))
    assert done.returncode == 2, done.stderr
    lines = done.stderr.strip().splitlines()
    assert names in lines[-1] and "Traceback" not in done.stderr


def children(pid: int) -> set[int]:
    found = set()
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            found |= {int(status.parent.name), *children(int(status.parent.name))}
    return found


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs Linux's /proc")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_no_process_is_left_behind(folder: Path, number: int) -> None:
    process = subprocess.Popen(
        [*MULTISPIN, "bench", "--target", f"cost:{folder / 'a.toml'}", "--seconds", "60"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    try:
        deadline = time.monotonic() + 60
        while len(started := children(process.pid)) < 3 and time.monotonic() < deadline:
            time.sleep(0.1)
        assert len(started) >= 3  # the server, its engine, the devices
        process.send_signal(number)
        _, stderr = process.communicate(timeout=30)
    finally:
        process.kill()
    assert process.returncode in (130, 143) and b"Traceback" not in stderr
    assert not [pid for pid in started if Path(f"/proc/{pid}").exists()]


# --- co-located --------------------------------------------------------------------------------


def test_colocated_time_is_the_sum_of_its_passes(folder: Path) -> None:
    """By hand: L drafter passes and one verification for each round, all texts in step."""
    record = small_record()
    longest = max(len(text.prompt_ids) + len(text.path) for text in record.texts) // 4
    (folder / "target.toml").write_text("[cost]\nfixed_s = 0.05\n")
    (folder / "flat.toml").write_text("[cost]\nfixed_s = 0.01\n")
    load = TargetOptions("cost:x", None, 2, longest + 8, 1, 0, False, 64)
    told: list[Wrote] = []
    measured = colocate(
        Colocate(
            *(str(folder / "a.record"), 2, 3, 2.0, load),
            costs=(str(folder / "target.toml"), str(folder / "flat.toml")),
        ),
        told.append,
    )
    assert measured.inter_verdict_s.p50 == pytest.approx(0.05 + 3 * 0.01)
    assert told[0].share == 0.0 and told[-1].share == 1.0
    assert 1.0 < measured.mean_acceptance_length <= 4.0


def test_colocated_models_draft_what_was_recorded(folder: Path) -> None:
    """The same acceptance length, whether the drafter computes or the record replays it."""
    load = TargetOptions("ngram", None, 2, 512, 1, 0, False, 64, str(folder / "a.record"))
    draft = DrafterOptions("ngram", num_sequences=2, context_length=512)
    job = Colocate(str(folder / "a.record"), 2, 3, 0.3, load, draft)
    measured = colocate(job, lambda wrote: None)
    assert 1.0 < measured.mean_acceptance_length <= 4.0


def test_each_text_is_asked_for_as_far_as_it_was_recorded() -> None:
    record = small_record()
    for request, text in zip(requests_of(record, 5), record.texts, strict=True):
        assert request.prompt == text.prompt
        assert request.max_tokens == len(text.path) // 4 and request.draft_length == 5
