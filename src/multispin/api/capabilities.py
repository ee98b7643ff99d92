"""GET /v1/models: what answers here, and how."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from multispin.api.openai_answers import Model, Models
from multispin.api.texts import FindTexts, Texts, texts_of


def model_routes(find_texts: FindTexts) -> list[Route]:
    """The list, and each of its entries."""
    created = int(time.time())

    async def models(request: Request) -> Response:
        answering = find_texts(request.scope)
        return _json(Models("list", [model_of(texts, created) for texts in answering]))

    async def model(request: Request) -> Response:
        texts = texts_of(request.path_params["name"], find_texts(request.scope))
        return _json(model_of(texts, created))

    return [Route("/v1/models", models), Route("/v1/models/{name:path}", model)]


def model_of(texts: Texts, created: int) -> Model:
    return Model(
        id=texts.target,
        object="model",
        created=created,
        owned_by="multispin",
        context_length=texts.context_length,
        drafter=texts.drafter,
        acceptance_rule=texts.rule,
        link="up" if texts.is_up else "down",
    )


def _json(document: msgspec.Struct) -> Response:
    return Response(msgspec.json.encode(document), media_type="application/json")
