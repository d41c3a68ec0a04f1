"""Any server that speaks the OpenAI chat completions API, as an `LLMClient`.

What a server sends is checked before it is believed. The key is read from the environment when it
is needed, goes into one header, and is taken out of every message that a server sends back. Needs
the extra `openai` (httpx2), which is imported on use.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import re
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from email.utils import parsedate_to_datetime
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from shammah.errors import LLMError
from shammah.messages import Conversation, assistant, to_dicts
from shammah.ports.llm_client import ChatAnswer, ChatParams, ChatStop

if TYPE_CHECKING:
    import httpx2

log = logging.getLogger("shammah")

OPENAI = "https://api.openai.com/v1"
FIRST_WAIT, LONGEST_WAIT = 0.5, 60.0
"""Seconds between tries: the first pause, which doubles, and the longest that is waited."""
_QUOTED = 300
"""Characters of a server's words that a message quotes."""


class OpenAILLM:
    """An `LLMClient` over HTTP. Close it, or use it in `async with`.

    Args:
        model: as the server calls it.
        base_url: up to and without `/chat/completions`.
        api_key_env: the environment variable that holds the key; None sends none.
        timeout: seconds that the server may be silent.
        connect_timeout: seconds to reach it.
        retries: how often a request is sent again after 408, 429, 5xx or a lost connection; what
            has begun to arrive is not asked for again.
        max_tokens_field: what the server calls the limit on an answer.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str = OPENAI,
        api_key_env: str | None = "OPENAI_API_KEY",
        timeout: float = 120.0,
        connect_timeout: float = 10.0,
        retries: int = 4,
        max_tokens_field: Literal["max_tokens", "max_completion_tokens"] = "max_tokens",
    ) -> None:
        self._model = model
        self._url = base_url.rstrip("/") + "/chat/completions"
        self._api_key_env = api_key_env
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._retries = retries
        self._max_tokens_field = max_tokens_field
        self._http: httpx2.AsyncClient | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def model(self) -> str:
        return self._model

    async def __aenter__(self) -> OpenAILLM:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; the next question opens new ones."""
        http, self._http = self._http, None
        if http is not None and self._loop is asyncio.get_running_loop():
            await http.aclose()

    async def chat(self, messages: Conversation, params: ChatParams) -> ChatAnswer:
        """The port's `chat`."""
        async with self._answered(self._body(messages, params)) as response:
            text = await self._text(response)
        answer = self._read(_Completion, text)
        if not answer.choices:
            raise self._error("the answer has no choices.")
        choice = answer.choices[0]
        return ChatAnswer(
            message=assistant(choice.message.content or ""),
            stop_reason=self._reason(choice.finish_reason),
            model=answer.model or self._model,
            prompt_tokens=answer.usage.prompt_tokens if answer.usage else None,
            completion_tokens=answer.usage.completion_tokens if answer.usage else None,
        )

    async def stream(self, messages: Conversation, params: ChatParams) -> AsyncIterator[str]:
        """The port's `stream`, by server-sent events."""
        import httpx2

        reason: str | None = None
        async with self._answered({**self._body(messages, params), "stream": True}) as response:
            try:
                async for line in response.aiter_lines():
                    field, _, data = line.partition(":")
                    data = data.strip()
                    if field != "data" or not data:
                        continue
                    if data == "[DONE]":
                        break
                    chunk = self._read(_Chunk, data)
                    if chunk.error is not None:
                        raise self._error(f"it broke off: {self._quoted(json.dumps(chunk.error))}")
                    for choice in chunk.choices[:1]:
                        reason = choice.finish_reason or reason
                        if choice.delta.content:
                            yield choice.delta.content
            except httpx2.HTTPError as error:
                raise self._error(f"the answer broke off: {self._quoted(_named(error))}") from error
        if reason is None:
            raise self._error("the answer broke off before its end.")
        self._reason(reason)

    def _body(self, messages: Conversation, params: ChatParams) -> dict[str, Any]:
        if not messages:
            raise self._error("there is nothing to answer.")
        body = {
            "model": self._model,
            "messages": to_dicts(messages),
            self._max_tokens_field: params.max_tokens,
            "temperature": params.temperature,
            "top_p": params.top_p,
        }
        return body if params.seed is None else {**body, "seed": params.seed}

    @asynccontextmanager
    async def _answered(self, body: dict[str, Any]) -> AsyncIterator[httpx2.Response]:
        """The response to a request that the server took, its body still to be read."""
        import_http()
        import httpx2

        http, headers = self._client(), self._headers()
        for attempt in range(self._retries + 1):
            last = attempt == self._retries
            try:
                request = http.build_request("POST", self._url, json=body, headers=headers)
                response = await http.send(request, stream=True)
            except (httpx2.InvalidURL, httpx2.UnsupportedProtocol, UnicodeError) as error:
                raise self._error(
                    f"that is no address: {self._quoted(_named(error))}", hint="Check base_url."
                ) from error
            except httpx2.HTTPError as error:
                if last or isinstance(error, httpx2.LocalProtocolError):
                    raise self._error(
                        f"it could not be reached: {self._quoted(_named(error))}",
                        hint="Check the address and whether the server runs.",
                    ) from error
                await self._pause(attempt, None, _named(error))
                continue
            try:
                if response.status_code == 200:
                    yield response
                    return
                failure, again = await self._refused(response)
                if last or not again:
                    raise failure
                asked = _retry_after(response.headers.get("retry-after"))
                if asked is not None and asked > LONGEST_WAIT:
                    raise failure
            finally:
                await response.aclose()
            await self._pause(attempt, asked, str(response.status_code))

    async def _refused(self, response: httpx2.Response) -> tuple[LLMError, bool]:
        """What a status other than 200 means, and whether it may be another one next time."""
        try:
            said = self._quoted(_message(await self._text(response)))
        except LLMError as error:
            said = error.message
        status = response.status_code
        hint = None
        if status in (401, 403):
            hint = (
                f"Check the key in the environment variable {self._api_key_env}."
                if self._api_key_env
                else "It wants a key: name its environment variable in api_key_env."
            )
        elif status == 404:
            hint = "Check base_url, which often ends with /v1, and the model's name."
        elif status == 429:
            hint = "Ask less often, or wait."
        again = status in (408, 429) or status >= 500
        return self._error(f"HTTP {status}: {said or 'no reason given'}", hint=hint), again

    async def _pause(self, attempt: int, asked: float | None, why: str) -> None:
        doubled = min(FIRST_WAIT * 2**attempt, LONGEST_WAIT)
        # Clients that were refused together should not come back together.
        seconds = doubled * random.uniform(0.5, 1.0) if asked is None else asked
        log.info("%s failed and is asked again in %.1f s", self._model, seconds)
        log.debug("%s: %s", self._model, self._quoted(why))  # it may quote the question
        await asyncio.sleep(seconds)

    async def _text(self, response: httpx2.Response) -> str:
        import httpx2

        try:
            return (await response.aread()).decode("utf-8", "replace")
        except httpx2.HTTPError as error:
            raise self._error(f"the answer broke off: {self._quoted(_named(error))}") from error

    def _read(self, kind: type[Model], text: str) -> Model:
        try:
            return kind.model_validate_json(text)
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            where = ".".join(map(str, first["loc"])) or "the whole"
            raise self._error(
                f"it sent something that is no chat completion ({where}: {first['msg']}): "
                f"{self._quoted(text)}",
                hint="Check that base_url is of a server that speaks the OpenAI API.",
            ) from error

    def _reason(self, reason: str | None) -> ChatStop:
        if reason in ("stop", "length"):
            return "stop" if reason == "stop" else "length"
        raise self._error(f"the answer ended for another reason: {reason}.")

    def _client(self) -> httpx2.AsyncClient:
        import httpx2

        loop = asyncio.get_running_loop()
        if self._http is None or self._loop is not loop:
            # Connections belong to the loop that they were opened in.
            timeout = httpx2.Timeout(self._timeout, connect=self._connect_timeout)
            self._http = httpx2.AsyncClient(timeout=timeout, follow_redirects=False)
            self._loop = loop
        return self._http

    def _headers(self) -> dict[str, str]:
        key = self._key()
        return {"Authorization": f"Bearer {key}"} if key else {}

    def _key(self) -> str | None:
        if self._api_key_env is None:
            return None
        key = os.environ.get(self._api_key_env, "").strip()
        if not key:
            raise self._error(
                f"there is no key in the environment variable {self._api_key_env}.",
                hint=f"export {self._api_key_env}=..., or api_key_env=None for a server without.",
            )
        if not (key.isascii() and key.isprintable()):
            raise self._error(f"what is in {self._api_key_env} cannot be a key.")
        return key

    def _quoted(self, text: str) -> str:
        """Somebody else's words in a message of ours: short, and never with the key in them."""
        key = os.environ.get(self._api_key_env or "", "").strip()
        text = " ".join((text.replace(key, "***") if key else text).split())
        return text if len(text) <= _QUOTED else text[:_QUOTED] + "…"

    def _error(self, message: str, *, hint: str | None = None) -> LLMError:
        # An address may hold a name and a password.
        shown = re.sub(r"//[^/@]*@", "//", self._url)
        return LLMError(message, backend=f"{self._model} at {shown}", hint=hint)


def import_http() -> None:
    """Raises LLMError where the extra is not installed."""
    try:
        import httpx2  # noqa: F401
    except ImportError as error:
        raise LLMError(
            "httpx2 is not installed.", backend="openai", hint="pip install 'shammah[openai]'"
        ) from error


class _Loose(BaseModel):
    # Servers add fields of their own.
    model_config = ConfigDict(extra="ignore")


class _Message(_Loose):
    content: str | None = None


class _Choice(_Loose):
    message: _Message
    finish_reason: str | None = None


class _Usage(_Loose):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Completion(_Loose):
    choices: list[_Choice]
    model: str | None = None
    usage: _Usage | None = None


class _ChunkChoice(_Loose):
    delta: _Message = _Message()
    finish_reason: str | None = None


class _Chunk(_Loose):
    choices: list[_ChunkChoice] = []
    error: Any = None


Model = TypeVar("Model", bound=_Loose)


def _message(text: str) -> str:
    """What an error's body says, where it is JSON as the API has it."""
    try:
        values = json.loads(text)
        error = values.get("error", values)
        return str(error["message"] if isinstance(error, dict) else error)
    except (ValueError, KeyError, AttributeError):
        return text


def _retry_after(value: str | None) -> float | None:
    """Seconds from a `Retry-After` header (RFC 9110): a number, or a date."""
    if value is None:
        return None
    try:
        return max(0.0, float(value))
    except ValueError:
        pass
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except ValueError:
        return None


def _named(error: Exception) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
