"""GET /v1/models: what answers here, and how."""

from __future__ import annotations

import time

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from multispin.api.errors import ApiError
from multispin.api.openai_answers import Model, Models
from multispin.api.texts import FindTexts, Texts


def model_routes(find_texts: FindTexts) -> list[Route]:
    """The list, which has one entry, and the entry itself."""
    created = int(time.time())

    async def models(request: Request) -> Response:
        return _json(Models("list", [model_of(find_texts(request.scope), created)]))

    async def model(request: Request) -> Response:
        found, name = model_of(find_texts(request.scope), created), request.path_params["name"]
        if name != found.id:
            message = f"model = {name}: this endpoint has {found.id} only"
            raise ApiError(404, message, code="model_not_found", param="model")
        return _json(found)

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
