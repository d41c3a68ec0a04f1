"""What can be configured: names, types, ranges, defaults and presets.

Reading and writing the TOML file is `settings_file`'s work; this module only knows values.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from shammah.errors import ConfigError

DOMAIN = r"[a-z0-9][a-z0-9+#._-]{0,39}"
"""What a domain may be called: `rust`, `c++`, `web-api`."""


HOOK = (
    r"norm|distribution|flow|health"
    r"(:(vanishing|exploding)=\d[\d.eE+-]*(,(vanishing|exploding)=\d[\d.eE+-]*)?)?"
)
"""A gradient hook; `health` may have thresholds of its own: `health:vanishing=1e-9`."""

LoggerName = Literal["rich", "tensorboard", "wandb", "mlflow", "neptune", "trackio", "otel"]
"""Tools that runs can be written to; `shammah.tracking.loggers.opening` knows them."""


class Section(BaseModel):
    """A table of the TOML file: unknown keys are errors, values do not change once read."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class ModelSettings(Section):
    """Which base model answers, and where it runs."""

    name: str = "embedded"
    device: Literal["auto", "cuda", "mps", "cpu"] = "auto"
    dtype: Literal["auto", "bf16", "fp16", "fp32"] = "auto"
    renderer: str = Field(default="auto", min_length=1)
    """How conversations are written for it; `shammah.renderers.registry` knows the names. One of
    your own is `file.py:name`, with the whole path."""
    threads: int = Field(default=0, ge=0, le=1024)
    """Threads for the chat's own computing; 0 leaves the choice to torch."""


class GenerationSettings(Section):
    """How an answer is drawn from the model."""

    max_tokens: int = Field(default=512, ge=1, le=1_000_000)
    temperature: float = Field(default=0.0, ge=0.0, le=10.0)
    top_p: float = Field(default=1.0, gt=0.0, le=1.0)
    top_k: int = Field(default=0, ge=0)
    repetition_penalty: float = Field(default=1.0, ge=1.0, le=10.0)
    seed: int | None = Field(default=None, ge=0)


class ChatSettings(Section):
    """How the conversation looks and begins."""

    system: str = ""
    markdown: bool = True
    code_theme: str = "monokai"


class FeedbackSettings(Section):
    """What ratings weigh and when they start a training job."""

    critical: float = Field(default=10.0, gt=0, le=1e6)
    medium: float = Field(default=3.0, gt=0, le=1e6)
    good: float = Field(default=1.0, gt=0, le=1e6)
    capacity: int = Field(default=100, ge=1, le=100_000)
    threshold: float = Field(default=10.0, gt=0)
    threshold_by: Literal["count", "weight"] = "count"
    auto_train: bool = True

    def weight(self, rating: str) -> float:
        """The weight of a rating: `critical`, `medium` or `good`."""
        return {"critical": self.critical, "medium": self.medium, "good": self.good}[rating]


class LoraSettings(Section):
    """Shape of the adapter (Hu et al. 2021, arXiv 2106.09685; rsLoRA arXiv 2312.03732)."""

    rank: int = Field(default=16, ge=1, le=1024)
    alpha: float = Field(default=32.0, gt=0)
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    target_modules: Literal["auto", "mlp", "all-linear"] | list[str] = "mlp"
    rslora: bool = False
    layers: float = Field(default=0.33, gt=0.0, le=1.0)
    """Share of the model's layers, from the top, that the adapter is in. What the layers below say
    about an example is computed once, not in every step."""

    @field_validator("target_modules")
    @classmethod
    def _some_module(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list) and not value:
            raise ValueError("needs at least one module name, or auto, mlp or all-linear")
        return value


class TrainingSettings(Section):
    """How a job trains."""

    preset: Literal["lessons", "classic"] = "lessons"
    learning_rate: float = Field(default=0.0, ge=0, le=1.0)
    """0 chooses by the model's width."""
    epochs: int = Field(default=100, ge=1, le=10_000)
    max_steps: int = Field(default=0, ge=0)
    """Optimiser steps at most; 0 means epochs alone decide."""
    batch_size: int = Field(default=24, ge=1, le=4096)
    accumulation: int = Field(default=1, ge=1, le=4096)
    """Batches whose gradients are summed before one optimiser step."""
    micro_batch_tokens: int = Field(default=0, ge=0)
    """Tokens computed at once: memory grows with it, results do not change. 0 chooses by the
    model's size."""
    max_length: int = Field(default=1024, ge=8)
    """Tokens of one example at most; the oldest turns go first, the answer never."""
    context_turns: int = Field(default=1, ge=0)
    """Turns before a lesson's question that it is also learned after; the question by itself always
    is."""
    rephrasings: int = Field(default=12, ge=0, le=20)
    """Other wordings of each lesson's question, made by rules, that are learned with it."""
    near_misses: int = Field(default=1, ge=0, le=10)
    """Questions that look like a lesson's and ask something else, made by rules, whose answers are
    kept as they are."""
    warmup_steps: int = Field(default=3, ge=0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    beta1: float = Field(default=0.9, ge=0, lt=1)
    beta2: float = Field(default=0.99, ge=0, lt=1)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    max_grad_norm: float = Field(default=1.0, ge=0)
    """Gradients are scaled down to this norm; 0 leaves them as they are."""
    domain: str = ""
    """What the adapters of the next jobs are for; empty is nothing in particular."""
    replay: float = Field(default=0.33, ge=0.0, lt=1.0)
    """Share of each batch drawn from earlier lessons and from the model's anchors."""
    anchor_tokens: int = Field(default=8, ge=0, le=256)
    """How many of the likeliest tokens of the base are held at each position of an anchor (a KL
    term to the base); 0 holds the words alone."""
    hold: Literal["auto"] | Annotated[float, Field(ge=0.0, le=1e6)] = "auto"
    """Price of changing what the layers say about the anchors, as a share of what they say; 0 holds
    nothing so. auto is 1 where the adapter will answer every question, and 0 where
    adapters.scope leaves those far from its lessons to the base."""
    stop_when_learned: bool = True
    """End as soon as every lesson is answered as taught (greedy decoding)."""
    patience: int = Field(default=25, ge=0)
    """Where it ends when learned, end too after so many steps in which no further wording was; 0
    goes on until the epochs are over."""
    mode: Literal["continue", "delta", "fresh"] = "continue"
    """continue trains the active adapter further; delta keeps it as it is and trains a small
    difference beside it, which can be taken out again; fresh trains every lesson that stands anew
    from the base model."""
    max_rank: int = Field(default=64, ge=2, le=4096)
    """With delta: where the rank would grow beyond this, the earlier rounds are recompressed."""
    hooks: list[str] = []
    """What looks at the gradients of each step: norm, distribution, flow, health."""
    checkpoint_every: int = Field(default=20, ge=1)
    seed: int = Field(default=0, ge=0)
    threads: int = Field(default=0, ge=0, le=1024)
    """Threads of the worker process; 0 chooses by the model's size."""
    nice: int = Field(default=10, ge=0, le=19)
    timeout_minutes: float = Field(default=120.0, gt=0)

    @field_validator("hooks")
    @classmethod
    def _some_hooks(cls, value: list[str]) -> list[str]:
        for name in value:
            if not re.fullmatch(HOOK, name):
                raise ValueError(
                    f"{name!r} is no hook: there are norm, distribution, flow, health and "
                    "health:vanishing=1e-7,exploding=1e3"
                )
        return value

    @field_validator("domain")
    @classmethod
    def _some_domain(cls, value: str) -> str:
        return domain_name(value) if value.strip() else ""


class AdaptersSettings(Section):
    """What happens to a trained adapter."""

    activate: Literal["gate", "always", "never"] = "gate"
    max_kept: int = Field(default=20, ge=0, le=100_000)
    """Adapters of each base model that are kept; 0 keeps all."""
    routing: Literal["off", "domain"] = "off"
    """Whether a question that is near to the lessons of an adapter with a domain goes to it."""
    routing_threshold: float = Field(default=0.5, ge=0.0, le=1.0)
    """How near, as a cosine."""
    scope: Literal["lessons", "all"] = "lessons"
    """Which questions the active adapter answers: those near to its lessons, or all of them."""
    scope_threshold: float = Field(default=0.5, ge=0.0, le=1.0)
    """How near, as a cosine."""
    embedding: str = Field(default="base", min_length=1)
    """What measures nearness: the base model's own hidden states, or a sentence encoder."""


class TrackingSettings(Section):
    """Where training is written down beside the run's own files."""

    loggers: list[LoggerName] = []
    project: str = Field(default="shammah", pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]{0,63}$")
    name: str = Field(default="", max_length=128)
    """What a run is called there; empty is the job's own name."""
    group: str = Field(default="", max_length=128)
    tags: list[str] = []
    run_id: str = Field(default="", pattern=r"^[A-Za-z0-9_-]{0,64}$")
    """Go on with the run of this id; empty gives each job one of its own."""
    online: bool = False
    """Whether tools that have a server may send to it."""
    mlflow_uri: str = ""
    """MLflow's server or database; empty is a database in the data folder."""
    otel_endpoint: str = ""
    """OpenTelemetry's collector; empty is files in the data folder."""
    trace: bool = False
    """Write a timeline of each job into its folder."""


class LoggingSettings(Section):
    """What is written to the log file."""

    level: Literal["debug", "info", "warning", "error"] = "info"
    format: Literal["text", "json"] = "text"
    max_bytes: int = Field(default=1_000_000, ge=10_000, le=1_000_000_000)
    """A larger file is put aside and a new one begun."""
    files: int = Field(default=2, ge=1, le=100)
    """How many of those are kept."""


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    # The defaults of the sections themselves: measured to make ten corrections stick.
    "lessons": {"lora": {}, "training": {}},
    # What LoRA tutorials use. Nine steps at 1e-4 teach a handful of lessons nothing; it is here to
    # compare with.
    "classic": {
        "lora": {
            "rank": 16,
            "alpha": 32.0,
            "dropout": 0.1,
            "target_modules": ["q_proj", "v_proj"],
            "layers": 1.0,
        },
        "training": {
            "learning_rate": 1e-4,
            "batch_size": 4,
            "epochs": 3,
            "warmup_steps": 0,
            "beta2": 0.999,
            "weight_decay": 0.01,
            "schedule": "linear",
            "rephrasings": 0,
            "near_misses": 0,
            "replay": 0.0,
            "hold": 0.0,
            "stop_when_learned": False,
        },
    },
}


class Settings(Section):
    """All settings. `[training] preset` fills in what the file leaves out of lora and training."""

    model: ModelSettings = ModelSettings()
    generation: GenerationSettings = GenerationSettings()
    chat: ChatSettings = ChatSettings()
    feedback: FeedbackSettings = FeedbackSettings()
    lora: LoraSettings = LoraSettings()
    training: TrainingSettings = TrainingSettings()
    adapters: AdaptersSettings = AdaptersSettings()
    tracking: TrackingSettings = TrackingSettings()
    logging: LoggingSettings = LoggingSettings()

    @model_validator(mode="before")
    @classmethod
    def _apply_preset(cls, data: Any) -> Any:
        if not isinstance(data, Mapping):
            return data
        training = data.get("training")
        preset = training.get("preset") if isinstance(training, Mapping) else None
        if preset not in PRESETS:
            return data
        filled = dict(data)
        for section, values in PRESETS[preset].items():
            given = data.get(section, {})
            if isinstance(given, Mapping):
                filled[section] = {**values, **given}
        return filled

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, source: str = "the settings") -> Settings:
        """Validated settings from nested tables.

        Raises:
            ConfigError: an unknown key (with the nearest known one), a wrong type or range.
        """
        try:
            return cls.model_validate(dict(data))
        except ValidationError as error:
            raise ConfigError(
                "\n".join(f"{source}: {_explain(dict(problem))}" for problem in error.errors()),
                hint="`shammah config show` lists every setting with its value.",
            ) from error

    def flat(self) -> dict[str, Any]:
        """Dotted key -> value, in the order of the sections."""
        return {
            f"{section}.{key}": value
            for section, values in self.model_dump().items()
            for key, value in values.items()
        }

    def get(self, key: str) -> Any:
        """One value by its dotted key, such as `lora.rank`.

        Raises:
            ConfigError: there is no such key.
        """
        values = self.flat()
        if key not in values:
            raise ConfigError(f"There is no setting {key!r}.", hint=nearest(key, list(values)))
        return values[key]


def domain_name(text: str) -> str:
    """A domain as it is written everywhere: without blanks around it, in small letters.

    Raises:
        ValueError: it is no name for one.
    """
    name = text.strip().lower()
    if not re.fullmatch(DOMAIN, name) or name == "none":
        raise ValueError(
            f"{text.strip()!r} is no name for a domain: use up to 40 letters, digits and +#._-"
        )
    return name


def keys() -> list[str]:
    """Every dotted key."""
    return list(Settings().flat())


def nearest(name: str, known: list[str]) -> str | None:
    """`Did you mean ...?`, or nothing where nothing is near."""
    found = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    return f"Did you mean {found[0]}?" if found else None


def _explain(problem: dict[str, Any]) -> str:
    # Pydantic appends the branch of a union to the location; the user knows only section and key.
    location = [str(part) for part in problem["loc"]][:2]
    where = ".".join(location)
    if problem["type"] == "extra_forbidden":
        known = keys() if len(location) == 2 else list(Settings.model_fields)
        hint = nearest(where, known)
        return f"there is no setting {where!r}." + (f" {hint}" if hint else "")
    return f"{where} = {problem['input']!r}: {problem['msg'].lower()}."
