"""`serve --pad` and `device --pad`."""

from __future__ import annotations

import threading

import pytest
import websockets.sync.client
import websockets.sync.server

from multispin.wire import frames
from multispin.wire.frames import Hello, Welcome
from tests.cli.test_commands import complete, run, serving

OPTIONS = ("--draft", "ngram", "--temperature", "0.8", "--seed", "7", "--max-tokens", "24")


def test_a_server_pads_every_link_and_the_text_is_the_same() -> None:
    with serving() as (_, plain), serving("--pad") as (_, padding):
        for server, expected in ((plain, False), (padding, True)):
            with websockets.sync.client.connect(f"ws://{server}/v1/device", proxy=None) as socket:
                socket.send(frames.encode(Hello(1, "lookup")))
                welcome = frames.decode_from_server(socket.recv(decode=False))
                assert isinstance(welcome, Welcome) and welcome.pads is expected
        assert complete(padding, *OPTIONS)["token_ids"] == complete(plain, *OPTIONS)["token_ids"]


@pytest.mark.parametrize("pads", [True, False])
def test_a_device_asks_for_padding(pads: bool) -> None:
    heard: list[frames.FromDevice] = []

    def hear(socket: websockets.sync.server.ServerConnection) -> None:
        heard.append(frames.decode_from_device(socket.recv(decode=False)))

    with websockets.sync.server.serve(hear, "127.0.0.1", 0) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        port = server.socket.getsockname()[1]
        done = run(
            "device", "--server", f"127.0.0.1:{port}", *(["--pad"] if pads else []), stdin="Hello\n"
        )
        server.shutdown()
        thread.join()
    assert done.returncode == 2, done.stderr
    assert [hello.pads for hello in heard if isinstance(hello, Hello)] == [pads]
