"""`multispin complete`: one text."""

from __future__ import annotations

import asyncio
import json
import sys
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multispin.cli import options
from multispin.errors import BadInput
from multispin.types import DRAFT_LENGTH, MAX_TOKENS, SamplingParams

if TYPE_CHECKING:
    from multispin.net.address import Address
    from multispin.net.device import Request
    from multispin.net.drafting import DrafterOptions
    from multispin.net.line import Change


def complete(
    prompt: Annotated[str, typer.Argument(help="The text to continue; - reads standard input.")],
    server: options.Server = f"127.0.0.1:{options.DEFAULT_PORT}",
    token: options.Token = None,
    token_file: options.TokenFile = None,
    ca: options.Ca = None,
    cert: options.Cert = None,
    key: options.Key = None,
    draft: options.Draft = "lookup",
    draft_length: options.DraftLength = DRAFT_LENGTH,
    chat: Annotated[
        bool, typer.Option("--chat", help="The prompt is a question: use the chat template.")
    ] = False,
    max_tokens: options.MaxTokens = MAX_TOKENS,
    temperature: options.Temperature = 0.0,
    top_p: options.TopP = 1.0,
    top_k: options.TopK = 0,
    min_p: options.MinP = 0.0,
    repetition_penalty: Annotated[
        float, typer.Option(help="Weaken tokens of prompt and text; 1: off.")
    ] = 1.0,
    presence_penalty: Annotated[
        float, typer.Option(help="Subtracted once from tokens of the text.")
    ] = 0.0,
    frequency_penalty: Annotated[
        float, typer.Option(help="Subtracted for each time a token is in the text.")
    ] = 0.0,
    logit_bias: Annotated[
        list[str] | None, typer.Option(metavar="ID=BIAS", help="Add to a token's logit.")
    ] = None,
    stop: Annotated[list[str] | None, typer.Option(help="End before this text appears.")] = None,
    seed: options.Seed = None,
    acceptance_rule: options.Rule = None,
    cell: options.Cell = "",
    target: options.Target = "",
    max_s_per_token: options.MaxSPerToken = 0.0,
    max_joules_per_token: options.MaxJoulesPerToken = 0.0,
    max_cost_per_token: options.MaxCostPerToken = 0.0,
    min_quality: options.MinQuality = 0,
    threads: options.Threads = None,
    gpu_layers: options.GpuLayers = 0,
    as_json: options.Json = False,
) -> None:
    """Write one text, drafting here and verifying on the server."""
    params = SamplingParams(
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        presence_penalty=presence_penalty,
        frequency_penalty=frequency_penalty,
        logit_bias=_parse_bias(logit_bias or []),
    )
    params.validate()
    rule = options.acceptance_rule(acceptance_rule, params)
    options.check_writing(draft_length, max_tokens, seed)
    text = options.utf8("PROMPT", sys.stdin.read() if prompt == "-" else prompt)
    for sequence in stop or []:
        options.utf8("--stop", sequence)
    if not text:
        raise BadInput("PROMPT", "''", "must not be empty")

    wish = options.wish(
        target, max_s_per_token, max_joules_per_token, max_cost_per_token, min_quality
    )

    from multispin.cli.drafter import drafter_options
    from multispin.net.device import Request
    from multispin.wire.frames import ChatMessage

    request = Request(
        prompt=[ChatMessage("user", text)] if chat else text,
        params=params,
        rule=rule,
        seed=options.random_seed() if seed is None else seed,
        max_tokens=max_tokens,
        draft_length=draft_length,
        stop=stop or [],
        wish=wish,
    )
    address = options.address(server, token, token_file, ca, cert, key)
    drafter = drafter_options(draft, threads=threads, gpu_layers=gpu_layers, cell=cell)
    result = asyncio.run(_complete(address, drafter, request, stream=not as_json))
    if as_json:
        print(json.dumps(result))
    else:
        print()
        _summary(result)


def _parse_bias(pairs: list[str]) -> dict[int, float]:
    bias = {}
    for pair in pairs:
        token, _, value = pair.partition("=")
        try:
            bias[int(token)] = float(value)
        except ValueError:
            raise BadInput("--logit-bias", pair, "must be ID=BIAS, as in 198=-5") from None
        if not 0 <= int(token) < 2**31:
            raise BadInput("--logit-bias", pair, "is no token id of the target")
    return bias


async def _complete(
    server: Address, drafter: DrafterOptions, request: Request, *, stream: bool
) -> dict[str, Any]:
    from multispin.net.drafting import connect

    device = await connect(server, drafter, wish=request.wish)
    device.line.on_change = _tell
    parts = []
    try:
        async with device.write(request) as writing:
            async for committed in writing:
                parts.append(committed.text)
                if stream:
                    print(committed.text, end="", flush=True)
            session = writing.session
            return {
                "text": "".join(parts),
                "token_ids": session.committed,
                "finish_reason": session.finish,
                "usage": {
                    "prompt_tokens": session.num_prompt,
                    "completion_tokens": len(session.committed),
                },
                "speculation": writing.stats.report(),
                "seed": request.seed,
                "acceptance_rule": request.rule,
                "target": writing.target,
                "draft": drafter.draft,
            }
    finally:
        await device.close()


def _tell(change: Change) -> None:
    news = "the link is up again" if change.is_up else f"{change.reason}: waiting for another link"
    print(f"\n[{news}]", file=sys.stderr)


def _summary(result: dict[str, Any]) -> None:
    usage, speculation = result["usage"], result["speculation"]
    line = f"{usage['completion_tokens']} tokens ({result['finish_reason']}), seed {result['seed']}"
    if speculation["num_drafts"]:
        line += (
            f"; {speculation['num_accepted_tokens']} of {speculation['num_draft_tokens']} drafted "
            f"tokens accepted, {speculation['mean_acceptance_length']:.2f} tokens per verification"
        )
    print(f"[{line}]", file=sys.stderr)
