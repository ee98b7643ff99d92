"""Prompts are tokenized together, and an engine that dies in one is no matter of the others."""

from __future__ import annotations

import asyncio
import random

import numpy as np

from multispin.errors import EngineLost
from multispin.net.engine_child import Tokenized
from multispin.net.engine_process import NUM_SHARES, SHORT, EngineProcess
from multispin.net.loading import TargetOptions

GUILTY = "the text in which it dies"


class Fake(EngineProcess):
    """Its child takes its time for all texts that it has, and dies with all of them."""

    def __init__(self) -> None:
        super().__init__(TargetOptions("cost:nothing", None, 4, 512, 1, 0, True, 64))
        self._up.set()
        self.there: dict[asyncio.Future[None], str] = {}
        self.most = self.most_characters = 0

    async def _exchange(self, request):  # type: ignore[no-untyped-def]
        answer = asyncio.get_running_loop().create_future()
        self.there[answer] = request.text
        self.most = max(self.most, len(self.there))
        self.most_characters = max(self.most_characters, sum(map(len, self.there.values())))
        try:
            await answer
        finally:
            self.there.pop(answer, None)
        return Tokenized(np.array([len(request.text)], "<i4").tobytes())

    async def work(self) -> None:
        """Passes, and between them all texts that have come."""
        while True:
            await asyncio.sleep(0.001)
            dies = GUILTY in self.there.values()
            for answer in [a for a in self.there if not a.done()]:
                if dies:
                    answer.set_exception(EngineLost("it died"))
                else:
                    answer.set_result(None)


def play(scene) -> None:  # type: ignore[no-untyped-def]
    async def main() -> None:
        engine = Fake()
        working = asyncio.create_task(engine.work())
        async with asyncio.timeout(30):
            await scene(engine)
        assert engine._shares._value == NUM_SHARES, "all shares are back"
        working.cancel()

    asyncio.run(main())


def ask(engine: Fake, text: str) -> asyncio.Task:  # type: ignore[type-arg]
    return asyncio.create_task(engine.tokenize(text, parse_special=False))


def test_short_texts_share_the_time_between_two_passes() -> None:
    async def scene(engine: Fake) -> None:
        found = await asyncio.gather(*(ask(engine, "x" * n) for n in range(50)))
        assert [ids.tolist() for ids in found] == [[n] for n in range(50)]
        assert engine.most == NUM_SHARES

    play(scene)


def test_long_texts_do_not_pile_up() -> None:
    async def scene(engine: Fake) -> None:
        lengths = [random.Random(1).randrange(40 * SHORT) for _ in range(60)]
        await asyncio.gather(*(ask(engine, "x" * n) for n in lengths))
        assert engine.most_characters <= max(NUM_SHARES * SHORT, *lengths)

    play(scene)


def test_only_the_text_in_which_the_engine_dies_is_refused() -> None:
    async def scene(engine: Fake) -> None:
        texts = ["x" * n for n in range(1, 60)]
        texts[7] = texts[30] = GUILTY
        found = await asyncio.gather(*(ask(engine, t) for t in texts), return_exceptions=True)
        for text, ids in zip(texts, found, strict=True):
            if text == GUILTY:
                assert isinstance(ids, EngineLost)
            else:
                assert ids.tolist() == [len(text)]

    play(scene)


def test_whoever_leaves_gives_its_shares_back() -> None:
    async def scene(engine: Fake) -> None:
        rng = random.Random(2)
        tasks = [ask(engine, "x" * rng.randrange(20 * SHORT)) for _ in range(200)]
        for task in rng.sample(tasks, 100):
            await asyncio.sleep(0)
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        assert (await ask(engine, "again")).tolist() == [5]

    play(scene)


def test_the_engine_that_is_down_is_waited_for() -> None:
    async def scene(engine: Fake) -> None:
        engine._up.clear()
        waiting = ask(engine, "abc")
        await asyncio.sleep(0.01)
        assert not engine.there
        engine._up.set()
        assert (await waiting).tolist() == [3]

    play(scene)
