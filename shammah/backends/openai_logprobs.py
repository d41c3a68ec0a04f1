"""How likely a server's model finds tokens, over the OpenAI completions API with `echo`.

The prompt goes out as token ids and comes back with the log-probability of each. That is an option
of the older completions endpoint which some servers have (vLLM and others) and the chat endpoint
never has; a server that does not tell them is refused in so many words. The server's model has to
read the same token ids: of those that it counts differently one is told, but not of another
vocabulary of the same length. Needs the extra `openai`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, ValidationError

from shammah.backends.openai_llm import OPENAI, OpenAILLM
from shammah.errors import LLMError, SamplingError
from shammah.ports.datum import ModelInput


class OpenAILogprobs:
    """A `ports.sampling_client.Scoring` over HTTP. Close it, or use it in `async with`.

    Args:
        model: as the server calls it.
        base_url: up to and without `/completions`.
        api_key_env, timeout, retries: as of `OpenAILLM`.
    """

    def __init__(
        self,
        model: str,
        *,
        base_url: str = OPENAI,
        api_key_env: str | None = "OPENAI_API_KEY",
        timeout: float = 120.0,
        retries: int = 4,
    ) -> None:
        self._server = _Completions(
            model, base_url=base_url, api_key_env=api_key_env, timeout=timeout, retries=retries
        )
        self._backend = f"{model} at {self._server.address}"

    async def __aenter__(self) -> OpenAILogprobs:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections."""
        await self._server.close()

    def identity(self) -> str:
        """See `Identified.identity`: the model's name and its server."""
        return self._backend

    async def compute_logprobs(self, model_input: ModelInput) -> NDArray[np.float32]:
        """The port's `compute_logprobs`.

        Raises:
            SamplingError: the server fails, or does not tell the log-probabilities of a prompt.
        """
        tokens = list(model_input.tokens)
        if not tokens:
            raise SamplingError("there is no token to begin with.", backend=self._backend)
        try:
            text = await self._server.completion(
                # Some servers refuse to draw nothing: what one token adds is cut off.
                {"prompt": tokens, "max_tokens": 1, "echo": True, "logprobs": 1, "temperature": 0}
            )
        except LLMError as error:
            said = error.message.removeprefix(f"{error.backend}: ")
            raise SamplingError(said, backend=self._backend, hint=error.hint) from error
        try:
            found = _Answer.model_validate_json(text).choices[0].logprobs
        except (ValidationError, IndexError) as error:
            raise self._silent("it sent no completion with log-probabilities") from error
        if found is None or not found.token_logprobs:
            raise self._silent("it sent no log-probabilities")
        values = found.token_logprobs
        # The prompt, with one token more where it was drawn; the first has nothing before it.
        if len(values) < len(tokens):
            raise self._silent(f"it told {len(values)} of {len(tokens)} log-probabilities")
        if len(values) > len(tokens) + 1:
            raise SamplingError(
                f"it reads {len(tokens)} tokens as {len(values)}.",
                backend=self._backend,
                hint="The teacher needs the same tokenizer as the student.",
            )
        own = [value for value in values[1 : len(tokens)] if value is not None]
        if len(own) < len(tokens) - 1:
            raise self._silent("it left log-probabilities out")
        return np.array([np.nan, *own], dtype=np.float32)

    def _silent(self, what: str) -> SamplingError:
        return SamplingError(
            f"{what}: this server does not tell how likely it finds a prompt.",
            backend=self._backend,
            hint="Take a server whose completions have echo and logprobs, a local model for a "
            "teacher, or off-policy distillation of its answers.",
        )


class _Completions(OpenAILLM):
    """The same server's other endpoint, with the same retries and messages."""

    def __init__(self, model: str, *, base_url: str, **options: Any) -> None:
        super().__init__(model, base_url=base_url, **options)
        self._url = base_url.rstrip("/") + "/completions"

    @property
    def address(self) -> str:
        """Without a name and a password that it may hold."""
        return self._error("").backend.partition(" at ")[2]

    async def completion(self, body: dict[str, Any]) -> str:
        """What the server says, as it is."""
        async with self._answered({"model": self.model, **body}) as response:
            return await self._text(response)


class _Loose(BaseModel):
    model_config = ConfigDict(extra="ignore")


class _Logprobs(_Loose):
    token_logprobs: list[float | None] | None = None


class _Choice(_Loose):
    logprobs: _Logprobs | None = None


class _Answer(_Loose):
    choices: list[_Choice]
