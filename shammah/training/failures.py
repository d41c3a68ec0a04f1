"""What goes wrong while training, as the port's error with its cause. Knows no model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from shammah.errors import (
    AdapterInvalidError,
    DataError,
    IncompatibleStateError,
    ShammahError,
    TrainingError,
)
from shammah.ports.datum import Datum


@contextmanager
def failures() -> Iterator[None]:
    """Inside, what the input types, torch and numpy raise becomes a `TrainingError`; errors of the
    disk stay what they are."""
    try:
        yield
    except DataError as error:
        raise TrainingError(error.message, hint=error.hint) from error
    except AdapterInvalidError as error:
        if isinstance(error, TrainingError):
            raise
        raise IncompatibleStateError(error.message, hint=error.hint) from error
    except ShammahError:
        raise
    except (torch.OutOfMemoryError, MemoryError) as error:
        raise TrainingError(
            "There was not enough memory to train.",
            hint="Lower training.micro_batch_tokens; of a recipe --micro-batch-tokens.",
        ) from error
    except Exception as error:
        raise TrainingError(f"Computing failed: {type(error).__name__}: {error}") from error


def check(datums: Sequence[Datum], vocabulary: int) -> None:
    """Refuse what a text model of so many tokens cannot be trained on.

    Raises:
        TrainingError: a datum has no targets, no tokens, an image, or tokens of another model.
    """
    for number, datum in enumerate(datums, start=1):
        targets = datum.loss_fn_inputs.get("target_tokens")
        if targets is None or not datum.model_input.is_text or not len(datum.model_input):
            what = "no target_tokens" if targets is None else "no token"
            what = what if datum.model_input.is_text else "an image, and the model reads text"
            raise TrainingError(f"Datum {number} of {len(datums)} has {what}.")
        given = targets.data
        most = max(max(datum.model_input.tokens), int(given.max(initial=0)))
        if most >= vocabulary or int(given.min(initial=0)) < 0:
            wrong = most if most >= vocabulary else int(given.min())
            raise TrainingError(
                f"Datum {number} of {len(datums)} has the token {wrong}, and the model knows "
                f"{vocabulary}.",
                hint="It was made with another model's tokenizer.",
            )
