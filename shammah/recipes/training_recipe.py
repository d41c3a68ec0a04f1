"""What the recipes have in common that train on a data set by one loop."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import ConfigDict, Field, field_validator

from shammah.recipes.recipe import Recipe, listed, paired
from shammah.settings import LoraSettings
from shammah.training.loops.settings import LoopSettings
from shammah.training.schedule import rate_for_width

if TYPE_CHECKING:
    from shammah.datasets import ChatExample
    from shammah.ports.training_client import TrainingClient
    from shammah.recipes.material import Material
    from shammah.recipes.workflows.backends import Backends
    from shammah.training.local_client import LocalTrainingClient
    from shammah.training.loops.method import Method

CHECKPOINT_EVERY = 50
MOST_EVALUATIONS = 20
EPOCHS, FEWEST_STEPS = 3, 100
SMALL_LAYERS = 0.33


class LoraConfig(LoraSettings):
    """The adapter of a recipe. Where nothing else is said it is in all of the model; a small one
    is enough for what answers near to a few examples, and carries further to other wordings."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rank: int = Field(default=16, ge=1, le=1024)
    """Rank of the matrices A and B."""
    alpha: float = Field(default=32.0, gt=0)
    """The change is scaled by alpha / rank."""
    dropout: float = Field(default=0.0, ge=0.0, lt=1.0)
    """Share of the inputs of A that is left out in each step."""
    target_modules: Literal["auto", "mlp", "all-linear"] | list[str] = "auto"
    """mlp, all-linear, or the names of modules with commas; auto is mlp for an sft that answers
    what is near to its examples (scope), else all-linear."""
    rslora: bool = False
    """Scale by alpha / sqrt(rank)."""
    layers: float = Field(default=0.0, ge=0.0, le=1.0)
    """Share of the model's layers, from the top, that it is in; 0 is the upper third for an sft
    that answers what is near to its examples (scope), else all."""

    @field_validator("target_modules", mode="before")
    @classmethod
    def _listed(cls, value: object) -> object:
        if not isinstance(value, str) or value in ("auto", "mlp", "all-linear"):
            return value
        return list(listed(value))

    def shape(self, *, small: bool) -> LoraSettings:
        """It with what is left to be chosen."""
        values = self.model_dump()
        values["layers"] = self.layers or (SMALL_LAYERS if small else 1.0)
        if self.target_modules == "auto":
            values["target_modules"] = "mlp" if small else "all-linear"
        return LoraSettings(**values)


class TrainingRecipe(Recipe, LoopSettings):
    """What every recipe is configured with that trains on a data set by one loop."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    rate_share: ClassVar[float] = 1.0
    """How much of the learning rate that fits supervised training of a model is right for it."""
    figure: ClassVar[tuple[str, bool]]
    """The figure of evaluations that tells the best adapter, and whether less is better."""

    adapter: str = ""
    """An adapter of the library to go on from; empty begins with a fresh one."""
    lora: LoraConfig = LoraConfig()

    format: str = ""
    """What its rows are: gsm8k, scifact, fever, chat, prompt-completion, prompt, preference,
    feedback, or
    your own `file.py:function`; empty goes by the columns."""
    format_options: dict[str, str] = Field(default_factory=dict)
    """Options of the format, as NAME=VALUE with commas between."""
    split: str = ""
    """Which split, where there are several."""
    limit: int = Field(default=0, ge=0)
    """Rows at most; 0 takes all."""
    skip_bad: bool = False
    """Pass over rows that cannot be read, instead of ending with an error."""
    held_out: float | str = 0.1
    """What is evaluated on and not learned: a share of the rows (none of fewer than 30, 500 at
    most), a number of them, or another file. Where nothing is, what was learned is looked at."""
    max_length: int = Field(default=0, ge=0)
    """Tokens of an example at most; longer ones are left out. 0 takes what the model can read."""

    epochs: int = Field(default=0, ge=0)
    """How often all examples are gone through; 0 is three times, and oftener where that makes fewer
    than 100 steps."""
    learning_rate: float = Field(default=0.0, ge=0, le=1.0)
    """The highest one; 0 chooses by the model's width."""
    evaluate_every: int = Field(default=0, ge=0)
    """Steps between evaluations; 0 is once an epoch, and twenty times at most. One before the first
    step, and one after the last, always."""
    checkpoint_every: int = Field(default=CHECKPOINT_EVERY, ge=0)
    """Steps between checkpoints; 0 writes one where it is stopped and at the end."""
    best_metric: str = "auto"
    """The figure of evaluations that tells the best adapter: auto is the recipe's own, empty keeps
    none."""
    restore_best: bool = True
    """End with the best adapter in place of the last."""
    micro_batch_tokens: int = Field(default=0, ge=0)
    """Tokens computed at once; 0 chooses by the model's size."""
    hooks: tuple[str, ...] = ()
    """What looks at gradients: norm, distribution, flow, health, with commas between."""

    @field_validator("held_out", mode="before")
    @classmethod
    def _number(cls, value: object) -> object:
        try:
            return float(value) if isinstance(value, str) else value
        except ValueError:
            return value

    @field_validator("held_out")
    @classmethod
    def _sensible(cls, value: float | str) -> float | str:
        if isinstance(value, float) and (value < 0 or (value >= 1 and value % 1)):
            raise ValueError("is a share below 1, a whole number of rows, or a file")
        return value

    @field_validator("hooks", mode="before")
    @classmethod
    def _listed_hooks(cls, value: object) -> object:
        return listed(value)

    @field_validator("format_options", mode="before")
    @classmethod
    def _paired(cls, value: object) -> object:
        return paired(value)

    # --- what it does -----------------------------------------------------------------------

    def client(self, *given: Any, **named: Any) -> LocalTrainingClient:
        """What its gradients come from; takes what `parallel.client_of` takes."""
        from shammah.training.parallel import client_of

        return client_of(*given, **named)

    def method(self, material: Material, client: TrainingClient, backends: Backends) -> Method:
        """What a step learns.

        Raises:
            ShammahError: the material is not of its kind.
        """
        raise NotImplementedError

    def shape(self, examples: int) -> LoraSettings:
        """The adapter, for so many examples."""
        return self.lora.shape(small=False)

    async def lessons(self, material: Material, client: TrainingClient) -> list[dict[str, Any]]:
        """What the adapter is said to have been taught, as `LessonRecord` has it; with any it
        answers in the chat what is near to these, and without all questions."""
        return []

    def lacks(self, example: ChatExample) -> str:
        """What an example does not have that is learned from, such as `an answer`; empty where it
        has it all. Such examples are passed over, and counted by it."""
        return ""

    @property
    def ready(self) -> bool:
        """Whether its method can be made of the data alone."""
        return True

    # --- parts of the configuration ---------------------------------------------------------

    @property
    def best_figure(self) -> tuple[str, bool]:
        """What best_metric = auto stands for: the figure, and whether less of it is better."""
        return self.figure

    def loop(self, width: int, steps_per_epoch: int) -> LoopSettings:
        """The settings of the loop, with what is left to be chosen.

        Args:
            width: of the model's hidden states.
        """
        values = {name: getattr(self, name) for name in LoopSettings.model_fields}
        if not values["learning_rate"]:
            values["learning_rate"] = self.rate_share * rate_for_width(width)
        values["epochs"] = self.epochs or max(EPOCHS, -(-FEWEST_STEPS // steps_per_epoch))
        steps = steps_per_epoch * values["epochs"]
        steps = min(steps, self.max_steps or steps)
        rarely = max(steps_per_epoch, -(-steps // MOST_EVALUATIONS))
        values["evaluate_every"] = values["evaluate_every"] or rarely
        if values["best_metric"] == "auto":
            values["best_metric"], values["best_lower"] = self.best_figure
        values["restore_best"] = self.restore_best and bool(values["best_metric"])
        return LoopSettings(**values)

    @classmethod
    def path_fields(cls) -> tuple[str, ...]:
        """See `Recipe.path_fields`."""
        return (*super().path_fields(), "held_out")

    @classmethod
    def code_fields(cls) -> tuple[str, ...]:
        """See `Recipe.code_fields`."""
        return (*super().code_fields(), "format")
