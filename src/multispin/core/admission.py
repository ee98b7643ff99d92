"""What a server refuses, and why."""

from __future__ import annotations

from multispin.acceptance import PROPOSAL_TOTAL
from multispin.core.engine import EngineInfo
from multispin.core.text import TextStream
from multispin.errors import BadInput, PeerError
from multispin.lm.base import Vocabulary
from multispin.lm.json_grammar import MAX_SCHEMA_BYTES
from multispin.types import TokenIds
from multispin.wire.frames import ChatMessage, Draft, Open, is_proposal, unpack_ids

MAX_STOPS = 16
MAX_STOP_LENGTH = 1000
MAX_LOGPROBS = 20
MAX_TRACE_LENGTH = 256  # kept with the session; W3C's version 00 has 55, later ones may have more
# Longer texts cannot fit: few tokens of any vocabulary are longer than so many bytes.
MAX_BYTES_PER_TOKEN = 64
MAX_PROPOSAL_BYTES = 1 << 13  # of the ids, and of the counts, of one proposal


def check_open(message: Open, info: EngineInfo, vocabulary_size: int, max_length: int) -> None:
    """Raise BadInput for what is wrong with a message, as far as that shows without token ids."""
    _check_size(message, info.context_length)
    _check_logits(message, info)
    message.params.validate()
    if message.rule == "greedy" and message.params.temperature > 0:
        raise BadInput("rule", "greedy", "needs temperature 0; above it coupled or rejection")
    if len(message.stop) > MAX_STOPS or any(len(s) > MAX_STOP_LENGTH for s in message.stop):
        raise BadInput(
            "stop",
            f"{len(message.stop)} sequences",
            f"at most {MAX_STOPS}, of {MAX_STOP_LENGTH} characters each",
        )
    if len(message.trace) > MAX_TRACE_LENGTH:
        remedy = f"a traceparent has at most {MAX_TRACE_LENGTH} characters"
        raise BadInput("trace", f"{len(message.trace)} characters", remedy)
    if message.max_tokens < 1:
        raise BadInput("max_tokens", message.max_tokens, "must be at least 1")
    if not 0 <= message.seed < 2**63:
        raise BadInput("seed", message.seed, "must be an integer from 0 to 2^63 - 1")
    if not 0 <= message.draft_length <= max_length:
        raise BadInput(
            "draft_length",
            message.draft_length,
            f"this server allows 0 to {max_length}",
            code="draft_too_long",
        )
    for token in message.params.logit_bias:
        if not 0 <= token < vocabulary_size:
            raise BadInput("logit_bias", token, "is no token id of the target")


def _check_logits(message: Open, info: EngineInfo) -> None:
    """What is asked for beyond the choice of tokens."""
    if not -1 <= message.num_logprobs <= MAX_LOGPROBS:
        remedy = f"must be -1 (no log-probabilities) to {MAX_LOGPROBS}"
        raise BadInput("num_logprobs", message.num_logprobs, remedy)
    num_bytes = len(message.json_schema.encode(errors="replace"))
    if num_bytes > MAX_SCHEMA_BYTES:
        raise BadInput("json_schema", f"{num_bytes} bytes", f"at most {MAX_SCHEMA_BYTES}")
    if not info.has_logits and (message.json_schema or message.num_logprobs >= 0):
        field = "json_schema" if message.json_schema else "num_logprobs"
        raise BadInput(field, "given", f"the target {info.target} is a record: it has no logits")


def _check_size(message: Open, context_length: int) -> None:
    """Tokenizing holds up everybody's batches: refuse what cannot fit before it is tried."""
    prompt = message.prompt
    parts = [prompt] if isinstance(prompt, str) else [_content(turn) for turn in prompt]
    if message.tools:
        parts.append(message.tools)
    num_bytes = sum(len(part.encode(errors="replace")) for part in parts)
    if num_bytes > MAX_BYTES_PER_TOKEN * context_length or len(parts) > context_length:
        raise BadInput(
            "prompt",
            f"{num_bytes} bytes in {len(parts)} messages",
            f"the context holds {context_length} tokens: shorten the prompt or serve "
            "with a larger --ctx-size",
            code="context_overflow",
        )


def _content(turn: ChatMessage) -> str:
    """All of it that a template may write."""
    calls = repr(turn.tool_calls) if turn.tool_calls else ""
    return "".join((turn.role, turn.content or "", turn.name or "", turn.tool_call_id or "", calls))


def check_prompt(prompt: TokenIds, context_length: int, most: int | None) -> None:
    """Raise BadInput for a prompt, in token ids, that leaves no room for an answer, or that is
    longer than the ``most`` its tenant may have."""
    if len(prompt) == 0:
        raise BadInput("prompt", "''", "must not be empty")
    if len(prompt) >= context_length:
        raise BadInput(
            "prompt",
            f"{len(prompt)} tokens",
            f"the context holds {context_length}, prompt and answer together: "
            "shorten the prompt or serve with a larger --ctx-size",
            code="context_overflow",
        )
    if most is not None and len(prompt) > most:
        remedy = f"this access token allows {most}: shorten the prompt"
        raise BadInput("prompt", f"{len(prompt)} tokens", remedy)


def unpack_committed(message: Open, id_bits: int, vocabulary: Vocabulary, most: int) -> TokenIds:
    """The tokens of a text that is to be continued; ``most`` follow the prompt in the context.

    Raise BadInput for a text that no server can have left unfinished.
    """
    most = min(message.max_tokens, most)
    num_ids = 8 * len(message.committed) // id_bits
    if num_ids >= most:
        raise BadInput("committed", f"{num_ids} tokens", f"must be fewer than the {most} allowed")
    try:
        ids = unpack_ids(message.committed, id_bits, vocabulary.size)
    except PeerError as error:
        raise BadInput("committed", f"{num_ids} tokens", str(error)) from None
    stream = TextStream(message.stop)
    stream.push(vocabulary.decode(ids.tolist()))
    if stream.stopped or not vocabulary.end_ids.isdisjoint(ids.tolist()):
        raise BadInput("committed", f"{num_ids} tokens", "the text has ended")
    return ids


def unpack_proposals(
    message: Draft, ids: list[int], id_bits: int, vocabulary_size: int
) -> list[tuple[bytes, bytes]]:
    """Ids, as int32, and counts of each proposal, checked against the draft's tokens.

    Raise PeerError (bad_frame) for what no drafter could have drawn from.
    """
    if len(message.proposals) != len(ids):
        raise PeerError(
            f"draft.proposals = {len(message.proposals)} for {len(ids)} tokens: the rule "
            "'rejection' needs one for each",
            code="bad_frame",
        )
    checked = []
    for token, (packed, counts) in zip(ids, message.proposals, strict=True):
        kept = unpack_ids(packed[:MAX_PROPOSAL_BYTES], id_bits, vocabulary_size)
        if not is_proposal(kept, counts) or token not in kept:
            raise PeerError(
                "draft.proposals: ids must ascend and hold the drafted one, counts must "
                f"sum to {PROPOSAL_TOTAL}",
                code="bad_frame",
            )
        checked.append((kept.astype("<i4").tobytes(), counts))
    return checked
