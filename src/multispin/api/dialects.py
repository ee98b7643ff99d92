"""Two ways to ask for the same thing, chat and plain completions: how each puts what is written."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, ClassVar

from multispin.api.answer import Answer
from multispin.api.logprobs import chat_logprobs, text_logprobs
from multispin.api.openai_answers import (
    ChatAnswer,
    ChatChoice,
    ChatChunk,
    ChatChunkChoice,
    ChatCompletion,
    Delta,
    TextChoice,
    TextChunk,
    TextCompletion,
)
from multispin.api.openai_schema import ChatRequest, CompletionRequest
from multispin.api.orders import chat_requests, completion_requests
from multispin.api.texts import Texts
from multispin.core.device import Committed
from multispin.net.device import Request


class Dialect:
    """``opening``, ``piece`` and ``closing`` make the choices of a stream's chunks."""

    path: ClassVar[str]
    id_prefix: ClassVar[str]
    whole_object: ClassVar[str]
    chunk_object: ClassVar[str]
    request: ClassVar[type[ChatRequest] | type[CompletionRequest]]
    whole: ClassVar[type[Any]]
    chunk: ClassVar[type[Any]]
    fields: ClassVar[Mapping[str, str]]  # that it calls otherwise than we

    def requests(self, body: Any, texts: Texts) -> list[Request]:
        raise NotImplementedError

    def opening(self, answer: Answer) -> list[Any]:
        return []

    def piece(self, answer: Answer, committed: Committed) -> Any:
        raise NotImplementedError

    def closing(self, answer: Answer) -> Any:
        raise NotImplementedError

    def choice(self, answer: Answer) -> Any:
        raise NotImplementedError


class Chat(Dialect):
    path = "/v1/chat/completions"
    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"
    request = ChatRequest
    whole = ChatCompletion
    chunk = ChatChunk
    fields = MappingProxyType(
        {"prompt": "messages", "json_schema": "response_format", "num_logprobs": "top_logprobs"}
    )

    def requests(self, body: ChatRequest, texts: Texts) -> list[Request]:
        return chat_requests(body, texts)

    def opening(self, answer: Answer) -> list[ChatChunkChoice]:
        return [ChatChunkChoice(answer.index, Delta("assistant", ""), None, None)]

    def piece(self, answer: Answer, committed: Committed) -> ChatChunkChoice:
        logprobs = chat_logprobs(committed.logprobs) if committed.logprobs else None
        return ChatChunkChoice(answer.index, Delta(content=committed.text), logprobs, None)

    def closing(self, answer: Answer) -> ChatChunkChoice:
        return ChatChunkChoice(answer.index, Delta(), None, answer.finish)

    def choice(self, answer: Answer) -> ChatChoice:
        logprobs = chat_logprobs(answer.logprobs) if answer.logprobs else None
        message = ChatAnswer("assistant", answer.text)
        return ChatChoice(answer.index, message, logprobs, answer.finish)


class Text(Dialect):
    path = "/v1/completions"
    id_prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"
    request = CompletionRequest
    whole = TextCompletion
    chunk = TextChunk
    fields = MappingProxyType({"num_logprobs": "logprobs"})

    def requests(self, body: CompletionRequest, texts: Texts) -> list[Request]:
        return completion_requests(body, texts)

    def piece(self, answer: Answer, committed: Committed) -> TextChoice:
        offset = len(answer.text) - len(committed.text)
        logprobs = text_logprobs(committed.logprobs, offset) if committed.logprobs else None
        return TextChoice(answer.index, committed.text, logprobs, None)

    def closing(self, answer: Answer) -> TextChoice:
        return TextChoice(answer.index, "", None, answer.finish)

    def choice(self, answer: Answer) -> TextChoice:
        logprobs = text_logprobs(answer.logprobs, 0) if answer.logprobs else None
        return TextChoice(answer.index, answer.text, logprobs, answer.finish)
