"""Sessions of training on this machine: settings in, a client out.

Each session has a base model of its own, since the adapter is put into its layers; of a checkpoint
in its own number format the pages are shared all the same. Where several processes were launched,
all create the same. Knows nothing about what is trained.
"""

from __future__ import annotations

from pathlib import Path

from shammah.errors import ShammahError, TrainingError
from shammah.settings import LoraSettings, ModelSettings, TrainingSettings
from shammah.training.local_client import LocalTrainingClient
from shammah.training.parallel import base_of, client_of


class LocalTrainingService:
    """A `TrainingService`.

    Args:
        micro_batch_tokens: how many tokens are computed at once; 0 chooses by the model's size.
    """

    def __init__(self, *, micro_batch_tokens: int = 0) -> None:
        self._micro_batch_tokens = micro_batch_tokens

    async def create(
        self, model: ModelSettings, lora: LoraSettings, *, seed: int = 0, parent: Path | None = None
    ) -> LocalTrainingClient:
        """The port's `create`; what fails is the cause of a `TrainingError`."""
        try:
            settings = TrainingSettings(seed=seed, micro_batch_tokens=self._micro_batch_tokens)
            return client_of(base_of(model), lora, settings, parent=parent)
        except TrainingError:
            raise
        except ShammahError as error:
            raise TrainingError(error.message, hint=error.hint) from error
