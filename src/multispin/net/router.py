"""Which link carries a session: a server's own, or that of the replica that a directory names.

Behind a directory a device has one link for each replica in use, dialled when a session first needs
it. Where a replica does not take a session, or loses it, the next one is asked for at once; there
is no waiting until the directory knows of nobody else. Nothing here is on the way of a token.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import itertools
from collections.abc import Awaitable, Callable
from typing import Protocol, TypeAlias

from multispin.errors import BadInput, MultispinError, PeerError
from multispin.net.line import REFUSALS, Backoff, Line
from multispin.net.link import DeviceLink, LinkLost, Redirected
from multispin.wire.frames import Find, Redirect, Welcome, Wish

IDLE_S = 60.0  # a link that carried no session for so long is closed
MAX_REDIRECTS = 5  # before a session has begun
MAX_AVOIDED = 64  # whatever a directory says, there is a pause after so many failures
# What time alone cures. Who has begun a text waits for a place; who has not is told that there is
# none, but where a server comes or goes.
LEAVING = frozenset({"draining", "loading"})
BUSY = LEAVING | {"overloaded", "rate_limited"}

# Dials a replica, by its address as `redirect` has it. The number is the link's, for observers.
DialReplica: TypeAlias = Callable[[str, int], Awaitable[DeviceLink]]


class Finder(Protocol):
    """A directory, as a router asks it: over a line (`Line`), or in the directory's own process."""

    @property
    def is_up(self) -> bool:
        """Whether it can be asked now. While it cannot, a session that has to move tries the
        replica where it was."""
        ...

    def backoff(self) -> Backoff:
        """For whoever has to ask again and again."""
        ...

    async def find(self, find: Find, *, waits: bool = True) -> Redirect:
        """The replica for a session; ``find.session`` says nothing here.

        Raise PeerError: code overloaded or loading where nobody takes the session now, infeasible
        or unknown_target where nobody ever will. If it ``waits``, a directory that cannot be asked
        is waited for.
        """
        ...

    async def close(self) -> None: ...


class Unplaced(PeerError):
    """The directory names no replica; ``code`` says why."""


class Router:
    """Of one device. Without ``dial`` there is the server of the line, and no other."""

    def __init__(self, line: Line | Finder, dial: DialReplica | None = None) -> None:
        self._line = line
        self._dial = dial
        self._welcome: Welcome | None = None
        self._links: dict[str, DeviceLink] = {}  # to replicas
        self._dials: dict[str, asyncio.Task[DeviceLink | LinkLost]] = {}
        self._keepers: set[asyncio.Task[None]] = set()
        self._numbers: set[int] = {0}  # of links; 0 is the line's
        self._moving = asyncio.Lock()
        self.is_closed = False

    @property
    def line(self) -> Line:
        """To the server, or to the directory; a directory's own device has none."""
        assert isinstance(self._line, Line)
        return self._line

    @property
    def finder(self) -> Finder:
        return self._line

    @property
    def has_directory(self) -> bool:
        return not isinstance(self._line, Line) or self._line.welcome.is_directory

    @property
    def returns(self) -> bool:
        """Whether texts can go on when their link is lost."""
        return self.has_directory or self.line.returns

    @property
    def welcome(self) -> Welcome:
        """What a text can expect: the server's, or that of the replica that was met."""
        return self._welcome if self._welcome and self.has_directory else self.line.welcome

    async def meet(self, wish: Wish) -> DeviceLink:
        """The server that would have a text, to begin with. Raise MultispinError where nobody
        would now."""
        rng = self.finder.backoff().rng
        find = Find(0, rng.randbytes(8), wish)  # devices that only say hello spread evenly
        search = Search(self, find, is_begun=False, waits=False)
        while True:
            try:
                link = await search.link()
            except PeerError as error:
                await search.failed(error)
            else:
                self._welcome = link.welcome
                return link

    async def go_to(self, directory: str) -> None:
        """The server is a replica: from now on the directory is asked. Raise PeerError."""
        async with self._moving:
            if self.has_directory:
                return
            line = await self._line_to(directory)
            before, self._line = self.line, line
            line.on_change, before.on_change = before.on_change, line.on_change
            await before.close()

    async def _line_to(self, directory: str) -> Line:
        if not directory or self._dial is None:
            message = "the server serves by way of a directory, and names none: connect with that"
            raise PeerError(message, code="redirected")
        number = self._take_number()
        dial = functools.partial(self._dial, directory, number)
        try:
            link = await dial()
        except MultispinError as error:
            self._numbers.discard(number)
            message = f"the directory that the server names cannot be reached: {error}"
            raise _lost(error, message) from None
        if not link.welcome.is_directory:
            await link.close()
            message = f"the server sends sessions to {directory}, which is no directory"
            raise PeerError(message, code="redirected")
        return Line(link, [dial], rng=self.finder.backoff().rng)

    # --- replicas ------------------------------------------------------------------------------

    async def replica(self, server: str) -> DeviceLink:
        """The link to it that is up, or a new one. Raise LinkLost."""
        link = self._links.get(server)
        if link is not None and link.is_up:
            return link
        if self.is_closed:
            raise _closed()
        dialling = self._dials.get(server)
        if dialling is None:
            dialling = self._dials[server] = asyncio.create_task(self._dial_replica(server))
            dialling.add_done_callback(lambda _: self._dials.pop(server))
        await asyncio.wait([dialling])  # others may wait for it, too
        if dialling.cancelled():
            raise _closed()
        if isinstance(found := dialling.result(), LinkLost):
            raise _lost(found)
        return found

    async def _dial_replica(self, server: str) -> DeviceLink | LinkLost:
        assert self._dial is not None
        number = self._take_number()
        try:
            link = await self._dial(server, number)
        except MultispinError as error:
            self._numbers.discard(number)
            return _lost(error)
        self._links[server] = link
        keeper = asyncio.create_task(self._keep(server, link))
        self._keepers.add(keeper)
        keeper.add_done_callback(self._keepers.discard)
        return link

    def _take_number(self) -> int:
        number = next(n for n in itertools.count() if n not in self._numbers)
        self._numbers.add(number)
        return number

    async def _keep(self, server: str, link: DeviceLink) -> None:
        """Until it is lost, or was of no use for a while."""
        num_used = -1
        while link.is_up and (link.num_channels or link.num_used != num_used):
            num_used = link.num_used
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(IDLE_S):
                    await link.ended()
        if self._links[server] is link:
            del self._links[server]
        self._numbers.discard(link.number)
        await link.close()

    async def close(self) -> None:
        self.is_closed = True
        try:
            for dialling in self._dials.values():
                dialling.cancel()
            await asyncio.gather(*self._dials.values(), return_exceptions=True)
            for link in list(self._links.values()):
                await link.close()
            await asyncio.gather(*self._keepers)
        finally:
            await self._line.close()


class Search:
    """For a server that takes a session: `link` after `link`, each `failed`, until one does.

    ``is_begun`` says whether the session has been somewhere. ``server`` is where the link leads, as
    the directory names it; empty: to the one server that there is.
    """

    def __init__(self, router: Router, find: Find, *, is_begun: bool, waits: bool) -> None:
        if not (is_begun or router.has_directory):
            check_wish(find.wish, router.welcome)
        self.server = find.last
        self._router = router
        self._find = find
        self._is_begun = is_begun
        self._waits = waits
        self._backoff = router.finder.backoff()
        self._failures: list[PeerError] = []  # of servers that are avoided now
        self._num_redirects = 0
        self._is_blind = False  # the directory was not asked
        self._may_be_blind = bool(find.last)

    @property
    def busy(self) -> frozenset[str]:
        """Codes with which a server may refuse the session, and another one is asked, or the same
        one again later."""
        if self._is_begun:
            return BUSY
        return LEAVING | {"overloaded"} if self._router.has_directory else LEAVING

    async def link(self) -> DeviceLink:
        """The one to try now. Raise LinkLost, or Unplaced where the directory names none."""
        if not self._router.has_directory:
            return await self._router.line.link(waits=self._waits)
        self.server = await self._next()
        return await self._router.replica(self.server)

    async def _next(self) -> str:
        if self._router.is_closed:
            raise Unplaced("the link is closed", code="unreachable")
        finder, last = self._router.finder, self._find.last
        self._is_blind = self._may_be_blind and not finder.is_up and last not in self._find.avoid
        if self._is_blind:
            self._may_be_blind = False
            return last
        try:
            redirect = await finder.find(self._find, waits=self._waits)
        except MultispinError as error:
            raise Unplaced(str(error), code=error.code, retry_after_s=error.retry_after_s) from None
        avoid = self._find.avoid
        if redirect.server in avoid or len(avoid) >= MAX_AVOIDED:
            raise Unplaced("the directory names nobody who takes the session", code="overloaded")
        return redirect.server

    async def failed(self, error: PeerError) -> None:
        """Return when it makes sense to try again, which may be at once. Raise if it never does."""
        if isinstance(error, Redirected):
            await self._redirected(error)
        elif isinstance(error, Unplaced):
            if (refusal := self._refusal(error)) is not None:
                raise refusal
            await self._wait(error)
        elif self._router.has_directory:
            if isinstance(error, LinkLost) or error.code in self.busy:
                self._avoid(error)
        elif error.code in self.busy and not isinstance(error, LinkLost):
            await self._wait(error)

    def _refusal(self, error: Unplaced) -> PeerError | None:
        """What to raise where nobody is left to be asked."""
        if error.code not in self.busy:
            return error
        for failure in self._failures:
            if failure.code in REFUSALS:
                return failure
        if not self._waits:
            return self._failures[-1] if self._failures else error
        codes = {failure.code for failure in [*self._failures, error]}
        return error if codes == {"overloaded"} and not self._is_begun else None

    async def _redirected(self, error: Redirected) -> None:
        self._num_redirects += 1
        if self._num_redirects > MAX_REDIRECTS and not self._is_begun:
            message = f"sent on {MAX_REDIRECTS} times and served nowhere: ask the operator"
            raise PeerError(message, code="redirected")
        if self._router.has_directory:
            self._avoid(error)
            return
        try:
            await self._router.go_to(error.directory)
        except LinkLost as lost:
            if not (self._is_begun and self._waits):
                raise
            await self._wait(lost)

    def _avoid(self, error: PeerError) -> None:
        """While the directory cannot be asked, that says little about a server."""
        if self.server and not self._is_blind:
            self._find.avoid.append(self.server)
            self._failures.append(error)

    async def _wait(self, error: PeerError) -> None:
        """Everybody may be asked again then."""
        self._find.avoid.clear()
        self._failures.clear()
        await asyncio.sleep(self._backoff.next_s(error.retry_after_s))


def check_wish(wish: Wish, welcome: Welcome, option: Callable[[str], str] = str) -> None:
    """Raise BadInput for what a server without a directory cannot give. ``option`` makes the names
    of fields those of options."""
    if wish.target not in ("", welcome.target):
        remedy = f"this server has {welcome.target} only"
        raise BadInput(option("target"), wish.target, remedy, code="unknown_target")
    for name in wish.__struct_fields__[1:]:
        if value := getattr(wish, name):
            remedy = "goes with a directory: this is one server, with one target"
            raise BadInput(option(name), value, remedy)


def _closed() -> LinkLost:
    return LinkLost("the link is closed", code="unreachable")


def _lost(error: MultispinError, message: str = "") -> LinkLost:
    """The same for another task: an exception raised twice would grow a trace of both."""
    return LinkLost(message or str(error), code=error.code, retry_after_s=error.retry_after_s)
