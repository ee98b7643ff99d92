"""One text being written, as its device sees it: draft, send, take the verdict, commit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import msgspec
import numpy as np

from multispin.acceptance import Proposal
from multispin.core.confidence import Calibration, level_of
from multispin.core.drafter import Drafted, Drafter, Sampler
from multispin.core.reading import Reading, Replaces
from multispin.core.speculation import SpeculationStats
from multispin.errors import PeerError
from multispin.lm.prefix import num_common
from multispin.types import FinishReason, TokenIds
from multispin.wire import frames
from multispin.wire.frames import (
    Draft,
    Open,
    Opened,
    PrefixDigest,
    Resume,
    TokenLogprobs,
    Verdict,
    Welcome,
)


class Committed(NamedTuple):
    """News for the application: tokens in order, of which the first are accepted drafts.

    The token after ``num_accepted`` of them is a correction if more were judged, the server's own
    if none was, else a bonus. Provisional ones are not committed: they were drafted without a link,
    and may be replaced. Of committed ones the first ``num_shown`` were told of as provisional; the
    ``text`` is what comes after these, behind the part that it ``replaces``, if it does.
    """

    ids: list[int]
    num_accepted: int
    text: str
    finish: FinishReason | None
    num_draft: int  # drafted tokens that were judged
    logprobs: list[TokenLogprobs]  # one for each token, if asked for
    provisional: bool = False
    num_shown: int = 0
    replaces: Replaces | None = None


MIN_SURVIVAL = 0.1  # goodput is the same from 0.02 to 0.2, uploads are not
FLUSH_S = 0.005  # of drafting: tokens drafted faster than that share a frame


class Job(NamedTuple):
    """One token to be drafted behind ``tokens``."""

    epoch: int
    tokens: TokenIds  # a copy: the session goes on meanwhile
    num_committed: int  # of them


@dataclass
class Pace:
    """How fast the device drafts, and how fast its text grows."""

    num_drafted: int = 0
    drafting_s: float = 0.0
    num_committed: int = 0
    began: float | None = None  # at the first verdict

    @property
    def draft_s(self) -> float:
        """Of a token."""
        return self.drafting_s / self.num_drafted if self.num_drafted else 0.0

    def tokens_per_draft_time(self, now: float) -> float:
        """Tokens that are committed, on average, while one is drafted; 0 while nobody knows."""
        if self.began is None or now <= self.began or self.num_drafted == 0:
            return 0.0
        goodput = self.num_committed / (now - self.began)
        return goodput * self.draft_s


class DeviceSession:
    """State of a session on its device: committed tokens, and behind them the drafted ones.

    job → draft (computes, in any thread) → add → message, and apply for every verdict. In mode
    window it drafts on, token by token, while verdicts are outstanding, up to its grant ahead of
    what is committed; otherwise one draft at a time. When the link is lost, resumption or reopening
    says on the next one where it stands, and resume takes the answer.
    """

    def __init__(
        self,
        request: Open,
        opened: Opened,
        drafter: Drafter | None,
        seq: int,
        welcome: Welcome,
        calibration: Calibration,
    ) -> None:
        self.request = request
        self.stats = SpeculationStats()
        self.finish: FinishReason | None = None
        self.grant = opened.draft_length
        self.upload_bits_per_s = opened.upload_bits_per_s
        self._token = opened.resume
        self._calibration = calibration
        self.is_window = welcome.mode == "window"
        self._num_ids = welcome.vocabulary_size
        self._id_bits = frames.id_bits(welcome.vocabulary_size)
        self._end_ids = frozenset(welcome.end_ids)
        self._drafter = drafter
        self._seq = seq
        prompt = self._unpack(opened.prompt_ids)
        self.num_prompt = len(prompt)
        self._sampler = Sampler(len(prompt), request.params, request.rule, request.seed)
        self._tokens = prompt
        self._levels = np.zeros(0, np.uint8)  # of the drafter's confidence
        self._make_room(welcome)
        self._length = self._sent = self._end = len(prompt)  # committed, sent and drafted up to
        self._proposals: list[Proposal] = []  # of what is drafted and not committed
        self.unsent_s = 0.0  # spent on what is drafted and not sent
        self._pace = Pace()
        self._committed_meanwhile = 0.0  # tokens, while one is drafted
        self._digest = PrefixDigest(prompt)
        self._reading = Reading(len(prompt), request.stop)
        self._epoch = 0
        self._first_epoch = 0  # as it was when this link's server heard of the session
        self._is_alone = False  # drafts on without a link
        self._is_exhausted = False  # the drafter has nothing to propose until the next verdict
        self._awaits_verdict = False

    def _unpack(self, ids: bytes) -> TokenIds:
        return frames.unpack_ids(ids, self._id_bits, self._num_ids)

    def _make_room(self, welcome: Welcome) -> None:
        """For as many tokens as the text can have."""
        num_prompt = self.num_prompt
        self._most = min(
            num_prompt + self.request.max_tokens, max(welcome.context_length, num_prompt)
        )
        room = self._most + self.request.draft_length + 1
        self._tokens = np.concatenate([self._tokens, np.empty(room, np.int32)])[:room]
        self._levels = np.concatenate([self._levels, np.zeros(room, np.uint8)])[:room]

    @property
    def committed(self) -> list[int]:
        ids: list[int] = self._tokens[self.num_prompt : self._length].tolist()
        return ids

    # --- draft ---------------------------------------------------------------------------------

    def job(self) -> Job | None:
        """What to draft now, if anything."""
        if self._drafter is None or self.finish is not None:
            return None
        if self._is_exhausted or self._is_at_end():
            return None
        if not (self._may_go_on_alone() if self._is_alone else self._may_go_on()):
            return None
        return Job(self._epoch, self._tokens[: self._end].copy(), self._length)

    def _may_go_on(self) -> bool:
        if self._awaits_verdict and not self.is_window:
            return False
        return self._end - self._length < self.grant and not self._is_hopeless()

    def _may_go_on_alone(self) -> bool:
        return self._end < self._most and not self._reading.has_stopped

    def _is_hopeless(self) -> bool:
        """Early stop: what is drafted and not verified will hardly survive.

        In mode window the device has time to lose: it stops where nine of ten further tokens would
        be in vain. Where drafts are due one by one, a token costs its drafting time, in which the
        text would otherwise grow by goodput times that time.
        """
        least = MIN_SURVIVAL if self.is_window else min(self._committed_meanwhile, 1.0)
        levels = self._levels[self._length : self._end]
        return bool(self._calibration.acceptance[levels].prod() < least)

    def _is_at_end(self) -> bool:
        """Nothing follows the end of a text."""
        return self._end > self._length and int(self._tokens[self._end - 1]) in self._end_ids

    def draft(self, job: Job) -> Drafted:
        """Compute: the only step that takes time."""
        assert self._drafter is not None
        self._drafter.learn(self._seq, job.tokens[: job.num_committed])
        return self._drafter.draft(self._seq, job.tokens, 1, self._sampler)

    def add(self, job: Job, drafted: Drafted, drafting_s: float) -> None:
        """Append what was drafted, unless a verdict has made it stale."""
        if job.epoch != self._epoch or len(job.tokens) != self._end or self.finish is not None:
            return
        end = self._end + len(drafted.ids)
        self._tokens[self._end : end] = drafted.ids
        self._levels[self._end : end] = level_of(drafted.confidences)
        self._proposals += drafted.proposals
        self._end = end
        self.unsent_s += drafting_s
        self._pace.num_drafted += len(drafted.ids)
        self._pace.drafting_s += drafting_s
        self._is_exhausted = len(drafted.ids) == 0

    @property
    def owes_message(self) -> bool:
        """Whether there is something to send. Where drafts are due one by one it may be an empty
        one, which asks for one token of the server's own."""
        if self.is_window:
            return self._sent < self._send_up_to
        is_due = self.finish is None and self.grant > 0 and not self._awaits_verdict
        return is_due and self.job() is None

    @property
    def _send_up_to(self) -> int:
        """What was drafted alone may be more than a server takes at a time."""
        most = self.request.draft_length if self.is_window else self.grant
        return min(self._end, self._length + most)

    @property
    def sends_now(self) -> bool:
        """Whether a message is due on an uplink that is free; what is drafted meanwhile waits."""
        if not self.owes_message:
            return False
        is_soon = self.unsent_s < FLUSH_S and self.job() is not None
        return not is_soon

    def message(self) -> Draft:
        """What was drafted and not sent."""
        assert self.owes_message
        begin, end = self._sent, self._send_up_to
        spent_s = self.unsent_s
        if end < self._end:
            spent_s *= (end - begin) / (self._end - begin)
        message = Draft(
            session=self.request.session,
            epoch=self._epoch - self._first_epoch,
            start=begin,
            digest=self._digest.digest(self._tokens[self._length : begin]),
            tokens=frames.pack_tokens(
                self._tokens[begin:end], self._levels[begin:end], self._id_bits
            ),
            drafting=round(1e4 * spent_s),
            proposals=[
                (
                    frames.pack_ids(proposal.ids, self._id_bits),
                    (proposal.counts - 1).astype("<u2").tobytes(),
                )
                for proposal in self._proposals[begin - self._length : end - self._length]
            ],
        )
        self._sent = end
        self.unsent_s -= spent_s
        self._awaits_verdict = True
        return message

    # --- verdicts ------------------------------------------------------------------------------

    def apply(self, verdict: Verdict, now: float) -> Committed | None:
        """Commit what the server decided; None for a verdict that was applied before."""
        if verdict.start < self._length or self.finish is not None:
            return None
        self._check(verdict)
        start, at = self._length, self._length + verdict.num_accepted
        ids = [*self._tokens[start:at].tolist(), verdict.token][: verdict.num_committed]
        is_known = at < self._end
        contradicts = is_known and int(self._tokens[at]) != verdict.token
        compared = self._levels[start : min(start + verdict.num_draft + 1, self._end)]
        num_same = verdict.num_accepted + (is_known and not contradicts)
        self._calibration.observe(compared, num_same)
        self._tokens[at] = verdict.token
        self._extend(ids, contradicts=contradicts)
        self.stats.count(verdict)
        if self._pace.began is None:
            self._pace.began = now
        else:
            self._pace.num_committed += len(ids)
        self._committed_meanwhile = self._pace.tokens_per_draft_time(now)
        self.grant = verdict.draft_length
        self.upload_bits_per_s = verdict.upload_bits_per_s
        self._awaits_verdict = self._is_exhausted = False
        self.finish = verdict.finish
        news = self._reading.commit(
            self._bytes(ids, verdict.text),
            start,
            at if contradicts else self._length,
            self._length,
            is_void=contradicts or verdict.finish is not None,
            final=verdict.finish is not None,
        )
        return Committed(
            ids,
            min(verdict.num_accepted, len(ids)),
            news.text,
            verdict.finish,
            verdict.num_draft,
            verdict.logprobs,
            num_shown=news.num_shown,
            replaces=news.replaces,
        )

    def _extend(self, ids: list[int], *, contradicts: bool) -> None:
        """The text grows by ids that are in their places; what was drafted behind them stays, if
        it was for this text."""
        self._length += len(ids)
        self._digest.update(ids)
        if contradicts:
            self._roll_back()
        else:
            # What was drafted and not yet sent may have been committed meanwhile.
            self._proposals = self._proposals[len(ids) :]
            self._sent = max(self._sent, self._length)
            self._end = max(self._end, self._length)

    def _bytes(self, ids: list[int], text: bytes) -> bytes:
        """Of committed tokens: as the server sent them, or as we know them."""
        if not self.request.wants_text and self._drafter and self._drafter.vocabulary:
            return self._drafter.vocabulary.decode(ids)
        return text

    def _check(self, verdict: Verdict) -> None:
        epoch = verdict.epoch + self._first_epoch
        num_sent = self._sent - self._length if epoch == self._epoch else 0
        if (
            epoch > self._epoch
            or verdict.start != self._length
            or not 0 <= verdict.num_accepted <= verdict.num_draft <= num_sent
            or not 0 <= verdict.num_committed <= verdict.num_accepted + 1
            or not 0 <= verdict.token < self._num_ids
            or not 0 <= verdict.draft_length <= self.request.draft_length
            or self._length + verdict.num_committed > self._most
        ):
            raise PeerError("the server sent a verdict that fits no draft", code="out_of_order")

    def _roll_back(self) -> None:
        """Drop what was drafted: an epoch ends."""
        self._epoch += 1
        self._sent = self._end = self._length
        self._proposals, self.unsent_s = [], 0.0

    # --- without a link, and on the next one ---------------------------------------------------

    def go_on_alone(self) -> None:
        """Draft on without verdicts, where the drafter knows what its tokens say."""
        self._is_alone = self._drafter is not None and self._drafter.vocabulary is not None

    def provisional(self) -> Committed | None:
        """What was drafted alone and not told of yet."""
        begin, end = self._reading.end, self._end
        if self._is_at_end():
            end -= 1  # that a text ends is not told of: it may well go on
        if not self._is_alone or begin >= end:
            return None
        assert self._drafter is not None and self._drafter.vocabulary is not None
        ids: list[int] = self._tokens[begin:end].tolist()
        text = self._reading.show(self._drafter.vocabulary.decode(ids), end)
        return Committed(ids, 0, text, None, 0, [], provisional=True)

    def resumption(self, number: int) -> Resume | None:
        """Asks the server that has the session to go on with it; None: it cannot be asked."""
        if not self._token:
            return None
        return Resume(number, self._token, self._length, self._digest.digest())

    def reopening(self, number: int, welcome: Welcome) -> Open:
        """Asks any server to go on with the text."""
        return msgspec.structs.replace(
            self.request,
            session=number,
            draft_length=min(self.request.draft_length, welcome.max_draft_length),
            committed=frames.pack_ids(self.committed, self._id_bits),
        )

    def resume(self, request: Open, opened: Opened, welcome: Welcome) -> Committed | None:
        """Go on as ``request`` on another link; what was committed and not told of here."""
        ids = self._unpack(opened.committed)
        start, end = self._length, self._length + len(ids)
        prompt = self._tokens[: self.num_prompt]
        if opened.prompt_ids and not np.array_equal(self._unpack(opened.prompt_ids), prompt):
            raise PeerError(
                "the server reads the prompt otherwise than the one that began the text",
                code="target_changed",
            )
        self.request = request
        self.is_window = welcome.mode == "window"
        self._make_room(welcome)
        if end > self._most:
            raise PeerError("the server committed more than was asked for", code="out_of_order")
        self._end = min(self._end, self._most)  # this server's context may be smaller
        self._proposals = self._proposals[: self._end - start]
        num_known = min(len(ids), self._end - start)
        num_same = num_common(self._tokens[start : start + num_known], ids)
        self._tokens[start:end] = ids
        self._extend(ids.tolist(), contradicts=num_same < num_known)
        self._start_anew(opened)
        if not len(ids):
            return None
        news = self._reading.commit(
            self._bytes(ids.tolist(), opened.text),
            start,
            start + num_same if num_same < num_known else end,
            end,
            is_void=num_same < num_known,
        )
        return Committed(
            ids.tolist(),
            0,
            news.text,
            None,
            0,
            [],
            num_shown=news.num_shown,
            replaces=news.replaces,
        )

    def _start_anew(self, opened: Opened) -> None:
        """The server knows nothing of what is drafted."""
        self._token = opened.resume
        self.grant = opened.draft_length
        self.upload_bits_per_s = opened.upload_bits_per_s
        self._sent, self._first_epoch = self._length, self._epoch
        self._is_alone = self._awaits_verdict = self._is_exhausted = False
        self.unsent_s = self._pace.draft_s * (self._end - self._length)
        self._pace.num_committed, self._pace.began = 0, None
