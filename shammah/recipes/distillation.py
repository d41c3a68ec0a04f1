"""Distillation: a model learns to answer as another one does."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal
from urllib.parse import urlsplit

from pydantic import Field, model_validator

from shammah.errors import UsageError
from shammah.recipes.place import RunPlace
from shammah.recipes.runnable import TrainableRecipe
from shammah.recipes.teacher_answers import answered, answers, ask
from shammah.recipes.workflows.backends import Backends, Factory

if TYPE_CHECKING:
    from shammah.ports.training_client import TrainingClient
    from shammah.recipes.material import Material
    from shammah.recipes.workflows.workflow import Workflow
    from shammah.training.loops.method import Method


class Distillation(TrainableRecipe):
    """Learn to answer as a teacher does: another local model, or a server with the OpenAI API."""

    kind: ClassVar[str] = "distill"
    purpose: ClassVar[str] = "learn to answer as another model does"
    rate_share: ClassVar[float] = 0.5
    figure: ClassVar[tuple[str, bool]] = ("loss", True)

    teacher: str
    """A model as `--model` takes it, or the address of a server: http://localhost:8000/v1."""
    teacher_model: str = ""
    """What the server calls the model."""
    api_key_env: str = ""
    """The environment variable that holds the server's key; empty sends none, and OPENAI_API_KEY to
    OpenAI alone."""
    teacher_adapter: str = ""
    """An adapter of the library that a local teacher answers with."""
    how: Literal["answers", "distribution", "on-policy"] = "answers"
    """answers: learn what the teacher answers. distribution: match its likeliest tokens at each
    token of the data's own answers (local teachers). on-policy: the student answers, and the
    teacher says how likely it finds each token (the same tokenizer)."""
    batch_size: int = Field(default=8, ge=1)
    """Answers of a step; on-policy, prompts of a draw."""
    group: int = Field(default=4, ge=1)
    """On-policy: answers to each prompt."""
    max_tokens: int = Field(default=256, ge=1)
    """Tokens of an answer at most."""
    temperature: float = Field(default=1.0, ge=0)
    """Of whoever answers."""
    top_k: int = Field(default=32, ge=1)
    """Of a distribution: so many of the likeliest tokens; all others count as one more."""
    direction: Literal["forward", "reverse"] = "forward"
    """Of the divergence of distributions: from the teacher to the student, or the other way."""

    @model_validator(mode="after")
    def _possible(self) -> Distillation:
        if self.remote and not self.teacher_model:
            raise ValueError("a server needs teacher_model, what it calls the model")
        if self.remote and self.how == "distribution":
            raise ValueError("a server does not tell its distributions: how = answers or on-policy")
        if self.how == "on-policy" and not self.temperature:
            raise ValueError("on-policy draws: temperature is above 0")
        return self

    @property
    def remote(self) -> bool:
        """Whether the teacher is a server."""
        return self.teacher.startswith(("http://", "https://"))

    @property
    def ready(self) -> bool:
        """See `TrainingRecipe.ready`: not before the server was asked."""
        return not (self.remote and self.how == "answers")

    @property
    def best_figure(self) -> tuple[str, bool]:
        """See `TrainingRecipe.best_figure`: on-policy there is no answer to have a loss on."""
        return ("reverse_kl", True) if self.how == "on-policy" else self.figure

    @classmethod
    def path_fields(cls) -> tuple[str, ...]:
        """See `Recipe.path_fields`."""
        return (*super().path_fields(), "teacher")

    def workflow(self) -> Workflow:
        """See `Recipe.workflow`: a server is asked first."""
        from shammah.recipes.fitting import fit
        from shammah.recipes.preparing import prepare
        from shammah.recipes.publishing import publish
        from shammah.recipes.workflows.workflow import workflow

        asked = (ask,) if self.remote and self.how == "answers" else ()
        return workflow(self.kind, prepare, *asked, fit, publish)

    def provide(self, backends: Backends, place: RunPlace) -> None:
        """See `Recipe.provide`: also `teacher`."""
        super().provide(backends, place)
        backends["teacher"] = Factory(lambda: self._teacher(backends))

    def _teacher(self, backends: Backends) -> Any:
        if self.remote:
            from shammah.backends.openai_llm import OpenAILLM
            from shammah.backends.openai_logprobs import OpenAILogprobs

            kind = OpenAILogprobs if self.how == "on-policy" else OpenAILLM
            key = self.api_key_env or ("OPENAI_API_KEY" if _is_openai(self.teacher) else None)
            return kind(self.teacher_model, base_url=self.teacher, api_key_env=key)
        from shammah.adapters.weights import load_checked
        from shammah.generation.local_sampling import BaseSamplingClient
        from shammah.models.load import load_base_model

        base = load_base_model(self.model_settings().model_copy(update={"name": self.teacher}))
        weights = None
        if self.teacher_adapter:
            adapter = backends["library"].get(self.teacher_adapter)
            weights = load_checked(adapter.path, adapter.require_metadata(), base.shape)
        if base.tokenizer.get_vocab() != backends["base"].tokenizer.get_vocab():
            raise UsageError(
                f"{self.teacher} and {self.model} have other tokenizers.",
                hint="Serve the teacher with an OpenAI-compatible server, and learn its answers.",
            )
        return BaseSamplingClient(base, weights, self.teacher_adapter or None)

    def method(self, material: Material, client: TrainingClient, backends: Backends) -> Method:
        """See `TrainingRecipe.method`."""
        from shammah.training.loops.distillation import (
            OffPolicyDistillation,
            OffPolicySettings,
            OnPolicyDistillation,
            OnPolicySettings,
        )

        examples, held_out, renderer = material.examples, material.judged, material.renderer
        if self.how == "on-policy":
            return OnPolicyDistillation(
                examples,
                backends["teacher"],
                renderer,
                OnPolicySettings(
                    prompts=self.batch_size,
                    group=self.group,
                    max_tokens=self.max_tokens,
                    temperature=self.temperature,
                    seed=self.seed,
                ),
                held_out=held_out,
            )
        if self.remote:
            place: RunPlace = backends["place"]
            known = answers(place)
            examples, held_out = answered(examples, known), answered(held_out, known)
        given = self.remote or self.how == "distribution"
        return OffPolicyDistillation(
            examples,
            None if self.remote else backends["teacher"],
            renderer,
            OffPolicySettings(
                batch=self.batch_size,
                answers="given" if given else "teacher",
                match="distribution" if self.how == "distribution" else "text",
                direction=self.direction,
                top_k=self.top_k,
                max_tokens=self.max_tokens,
                temperature=self.temperature,
                seed=self.seed,
            ),
            held_out=held_out,
        )


def _is_openai(address: str) -> bool:
    host = urlsplit(address).hostname or ""
    return address.startswith("https://") and (host == "openai.com" or host.endswith(".openai.com"))
