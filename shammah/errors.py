"""Every error a user can meet, under one root.

Rules for adding one: derive from ShammahError and from the fitting standard error; the docstring
says "raised when ..."; the message says what happened, to what, and the hint says what to do next.
Only the edges (cli, repl) turn errors into printed text.
"""

from __future__ import annotations


class ShammahError(Exception):
    """Root of all errors that are the user's business. `hint` says what to do next."""

    exit_code: int = 1

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return f"{self.message}\n  {self.hint}" if self.hint else self.message


class UsageError(ShammahError, ValueError):
    """Raised when a command was given arguments it cannot take."""

    exit_code = 2


class ConfigError(ShammahError, ValueError):
    """Raised when a setting is unknown, mistyped or out of range, or the TOML cannot be read."""

    exit_code = 2


class InputError(ShammahError, ValueError):
    """Raised when a file the user gave (JSONL, text) cannot be read or has a bad line."""

    exit_code = 2


class DataError(ShammahError, ValueError):
    """Raised when an array, a model input or a training example does not fit together."""

    exit_code = 2


class StorageError(ShammahError, OSError):
    """Raised when data cannot be read or written (full disk, permissions, a broken database)."""

    exit_code = 3


class ModelError(ShammahError, RuntimeError):
    """Raised when a base model cannot be used. Base of the model errors."""

    exit_code = 4


class ModelNotFoundError(ModelError, FileNotFoundError):
    """Raised when a name is neither `embedded`, a folder with a model, nor a reachable Hub id."""


class NotEnoughMemoryError(ModelError, MemoryError):
    """Raised before loading when the estimate exceeds the memory that is free."""


class ContextTooLongError(ModelError, ValueError):
    """Raised when one message alone does not fit into the model's context."""


class GenerationError(ModelError):
    """Raised when decoding fails."""


class AdapterError(ShammahError, RuntimeError):
    """Raised when an adapter cannot be used. Base of the adapter errors."""

    exit_code = 5


class AdapterNotFoundError(AdapterError, FileNotFoundError):
    """Raised when no adapter of that name is in the library."""


class AdapterExistsError(AdapterError, FileExistsError):
    """Raised when an adapter of that name is already there."""


class AdapterInvalidError(AdapterError, ValueError):
    """Raised when an adapter file fails a check; the message names the check that failed."""


class FeedbackError(ShammahError, RuntimeError):
    """Raised when a rating, correction or edit cannot be applied (nothing to rate, no such id)."""

    exit_code = 6


class PortError(ShammahError, RuntimeError):
    """Raised when what stands behind a port fails. Base of the ports' errors, one a port.

    `port` is the protocol's name, `backend` the implementation's; the cause is `__cause__`.
    """

    port = ""

    def __init__(self, message: str, *, backend: str, hint: str | None = None) -> None:
        super().__init__(f"{backend}: {message}", hint=hint)
        self.backend = backend


class EmbeddingError(PortError):
    """Raised when texts cannot be embedded."""

    exit_code = 4
    port = "EmbeddingClient"


class SamplingError(PortError):
    """Raised when tokens cannot be sampled or their log-probabilities computed."""

    exit_code = 4
    port = "SamplingClient"


class LLMError(PortError):
    """Raised when a chat model does not answer."""

    exit_code = 4
    port = "LLMClient"


class DatasetError(PortError):
    """Raised when rows cannot be read."""

    exit_code = 2
    port = "DatasetStore"


class BlobError(PortError):
    """Raised when bytes cannot be read or written."""

    exit_code = 3
    port = "BlobStore"


class HubError(PortError):
    """Raised when a model hub does not give or take what it was asked for."""

    exit_code = 4
    port = "HubClient"


class VectorStoreError(PortError):
    """Raised when vectors cannot be stored or found."""

    exit_code = 3
    port = "VectorStore"


class MetricsError(PortError):
    """Raised when metrics cannot be recorded or read."""

    exit_code = 3
    port = "MetricsStore"


class TrackingError(ShammahError, RuntimeError):
    """Raised when a tool that keeps runs cannot be written to: a package, a key or a server is
    missing. Training goes on without it."""

    exit_code = 1


class RegistryError(PortError):
    """Raised when a model is not registered, or cannot be."""

    exit_code = 4
    port = "ModelRegistry"


class TrainingError(PortError):
    """Raised when an adapter cannot be trained: a job that cannot start or does not finish."""

    exit_code = 7
    port = "TrainingClient"

    def __init__(
        self, message: str, *, backend: str = "local torch", hint: str | None = None
    ) -> None:
        # Here only one backend trains, so that its name would tell a user nothing.
        ShammahError.__init__(self, message, hint=hint)
        self.backend = backend


class EmptyLessonError(TrainingError, ValueError):
    """Raised when a training example has no token with a weight above zero."""


class DivergenceError(TrainingError, ArithmeticError):
    """Raised when a loss or gradient stops being finite."""


class IncompatibleStateError(TrainingError, AdapterInvalidError):
    """Raised when a saved state is of another adapter than the one that is trained."""


class WorkflowError(ShammahError, RuntimeError):
    """Raised when a workflow cannot be run, or one of its stages failed.

    `stage` is the path of the stage it is about (`rounds[2]/train`), None where it is none's;
    `rolled_back` are those that were undone, in that order; `rollback_failures` are those of them
    whose undoing failed, each with what it said. The cause is `__cause__`; where that is the user's
    business, the exit code is its own.
    """

    exit_code = 7

    def __init__(
        self,
        message: str,
        *,
        stage: str | None = None,
        rolled_back: tuple[str, ...] = (),
        rollback_failures: tuple[tuple[str, str], ...] = (),
        hint: str | None = None,
    ) -> None:
        super().__init__(message, hint=hint)
        self.stage = stage
        self.rolled_back = rolled_back
        self.rollback_failures = rollback_failures
