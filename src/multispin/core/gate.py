"""Who may begin a session now, and who has to come back later."""

from __future__ import annotations

from collections.abc import Callable, Hashable

from multispin.core.tenant import Tenant
from multispin.errors import PeerError

LEAST_RETRY_S = 1.0
DURATION_WEIGHT = 0.1  # of the newest session in the average of how long they last


class Gate:
    """Knows the tenant of each link, how fast tenants ask, and how long sessions last."""

    def __init__(self, num_sequences: int, max_waiting: int, clock: Callable[[], float]) -> None:
        self._num_sequences = num_sequences
        self._max_waiting = max_waiting
        self._clock = clock
        self._tenants: dict[Hashable, Tenant] = {}  # by link
        # By tenant's name: when it may again begin as many sessions at once as at first.
        self._rested_at: dict[str, float] = {}
        self._session_s = 0.0  # how long sessions last
        self._drain_s: float | None = None

    # --- links ---------------------------------------------------------------------------------

    def connect(self, link: Hashable, tenant: Tenant) -> None:
        self._tenants[link] = tenant

    def drop(self, link: Hashable) -> None:
        self._tenants.pop(link, None)

    def tenant(self, link: Hashable) -> Tenant:
        """Raise PeerError where the link has ended while its message was being read."""
        if link not in self._tenants:
            raise PeerError("the link has ended", code="unreachable")
        return self._tenants[link]

    # --- sessions ------------------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        return self._drain_s is not None

    def refuse_new(self, retry_after_s: float) -> None:
        self._drain_s = retry_after_s

    def check(self, tenant: Tenant, num_sessions: int, num_own: int) -> None:
        """Raise PeerError if no further session can begin: of so many, so many are the tenant's."""
        if self._drain_s is not None:
            raise being_stopped(self._drain_s)
        num_waiting = num_sessions - self._num_sequences
        if num_waiting >= self._max_waiting:
            raise PeerError(
                f"{num_waiting} sessions are waiting already: try again later, or serve with a "
                "larger --max-sessions",
                code="overloaded",
                retry_after_s=self._ends_in(self._num_sequences),
            )
        most = tenant.limits.max_sessions
        if most is not None and num_own >= most:
            raise PeerError(
                f"{num_own} sessions of this access token are open: it allows {most}",
                code="rate_limited",
                retry_after_s=self._ends_in(num_own),
            )

    def check_rate(self, tenant: Tenant) -> None:
        """Raise PeerError if the tenant asks for sessions faster than it may."""
        rate = tenant.limits.requests_per_s
        if rate is None:
            return
        tired_s = self._rested_at.get(tenant.name, 0.0) - self._clock()
        allowed_s = (max(rate, 1.0) - 1) / rate
        if tired_s > allowed_s:
            raise PeerError(
                f"this access token allows {rate:g} requests per second",
                code="rate_limited",
                retry_after_s=tired_s - allowed_s,
            )

    def began(self, tenant: Tenant) -> None:
        """A session has been opened: it counts against the tenant's rate."""
        now, rate = self._clock(), tenant.limits.requests_per_s
        self._rested_at = {name: at for name, at in self._rested_at.items() if at > now}
        if rate is not None:
            self._rested_at[tenant.name] = (
                max(self._rested_at.get(tenant.name, now), now) + 1 / rate
            )

    def ended(self, session_s: float) -> None:
        """A session has lasted for so long."""
        self._session_s += DURATION_WEIGHT * (session_s - self._session_s)

    def _ends_in(self, num_running: int) -> float:
        """Seconds until one of so many sessions is over, on average."""
        return max(self._session_s / max(num_running, 1), LEAST_RETRY_S)


def being_stopped(retry_after_s: float) -> PeerError:
    """What everybody is told while the server drains."""
    return PeerError("the server is being stopped", code="draining", retry_after_s=retry_after_s)
