"""What happens at one end of the links, told to whoever watches: metrics, log, traces."""

from __future__ import annotations

from collections.abc import Mapping

from multispin.wire.frames import Draft, FromDevice, FromServer, Hello


class Observer:
    """Ignores everything; who watches overrides what it is after.

    Frames are told the same way at both ends: ``up`` from the device, ``down`` to it. Called in the
    event loop, between batches: be quick, never raise. ``device`` is the number of the link, the
    smallest that is free when it begins, so that there are never more numbers than links at once.
    """

    def joined(self, device: int, hello: Hello) -> None:
        """A device said hello and is welcome."""

    def left(self, device: int) -> None:
        """Its link is gone, and its sessions with it."""

    def opening(self, device: int, session: int, trace: str) -> str:
        """On a device: somebody wants a text. Answers with the trace that the session belongs to,
        given that of whoever wants it (W3C traceparent, or empty)."""
        return trace

    def drafted(self, device: int, draft: Draft) -> None:
        """On a device: the draft is ready to be uploaded; ``up`` tells when it was sent."""

    def up(self, device: int, frame: FromDevice) -> None:
        """A frame of the device was sent (on the device), or has come (on the server)."""

    def down(self, device: int, frame: FromServer) -> None:
        """A frame for the device was sent (on the server), or has come (on the device)."""

    def pass_began(self) -> None:
        """On the server: a forward pass begins."""

    def pass_ended(self, num_rows: int, forward_s: float) -> None:
        """On the server: it took so long; the verdicts are yet to be sent."""

    def shared_out(self, budgets: Mapping[str, float]) -> None:
        """On the server: these radio cells have these budgets now, whatever they had before."""
