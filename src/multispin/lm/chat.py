"""Chat messages to prompt text, by the template that the model file carries."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

import jinja2
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment

from multispin.errors import BadInput


def render_chat(
    template: str,
    messages: Sequence[Mapping[str, Any]],
    *,
    bos: str,
    eos: str,
    add_generation_prompt: bool = True,
    tools: Sequence[Mapping[str, Any]] | None = None,
) -> str:
    """The prompt for ``messages`` (each with ``role`` and ``content``), as Hugging Face renders it.

    ``tools`` are described to the model where the template provides for them. ``bos`` and ``eos``
    are the texts of these tokens, "" for a model without. The template comes from a file that may
    not be trusted, so it runs in a sandbox. Raises BadInput when the template rejects the messages
    or is broken.
    """
    try:
        return (
            _environment()
            .from_string(template)
            .render(
                messages=list(messages),
                bos_token=bos,
                eos_token=eos,
                add_generation_prompt=add_generation_prompt,
                tools=tools,
            )
        )
    except jinja2.TemplateSyntaxError as error:
        raise BadInput(
            "chat_template", f"line {error.lineno}", f"{error.message}; take another model file"
        ) from error
    except (jinja2.TemplateError, TypeError, ValueError, KeyError, RecursionError) as error:
        raise BadInput(
            "messages", f"{len(messages)} messages", f"the model's chat template refuses: {error}"
        ) from error


def _environment() -> ImmutableSandboxedEnvironment:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols]
    )
    environment.filters["tojson"] = _to_json  # Jinja's own escapes for HTML
    environment.globals["raise_exception"] = _raise_exception
    return environment


def _to_json(value: Any, indent: int | None = None) -> str:
    return json.dumps(value, ensure_ascii=False, indent=indent)


def _raise_exception(message: str) -> NoReturn:
    raise jinja2.TemplateError(message)
