"""A sentence encoder of transformers: a model made for embedding texts, and for nothing else.

Reads the folders that sentence-transformers writes, without that package. Knows nothing of the
model that answers.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, RootModel, ValidationError

from shammah.errors import EmbeddingError, ModelError, ShammahError
from shammah.models.fingerprint import fingerprint
from shammah.models.load import locate, quiet_transformers
from shammah.models.source import check_folder
from shammah.ports.embedding_client import unit_rows

BATCH = 32
"""Texts read at once."""
LONGEST = 512
"""Tokens of a text at most, where the folder does not say."""


Kind = TypeVar("Kind", bound=BaseModel)


class _Pooling(BaseModel):
    """`1_Pooling/config.json`: how the states of a text become one vector. A mode by its name, or
    one switch a mode, of which several may be on; then their vectors are joined."""

    model_config = ConfigDict(extra="allow")
    __pydantic_extra__: dict[str, Any]

    pooling_mode: str | None = None

    @property
    def modes(self) -> set[str]:
        if self.pooling_mode is not None:
            return {self.pooling_mode}
        prefix = "pooling_mode_"
        switches = (self.__pydantic_extra__ or {}).items()
        return {name.removeprefix(prefix) for name, on in switches
                if on is True and name.startswith(prefix)}  # fmt: skip


class _Module(BaseModel):
    """One of the steps in `modules.json`."""

    model_config = ConfigDict(extra="ignore")

    type: str


class _Modules(RootModel[tuple[_Module, ...]]):
    """`modules.json`: what a text goes through."""

    root: tuple[_Module, ...] = ()


class _Reading(BaseModel):
    """`sentence_bert_config.json`."""

    model_config = ConfigDict(extra="ignore")

    max_seq_length: int | None = None


class SentenceEncoder:
    """An `EmbeddingClient` on an encoder such as all-MiniLM-L6-v2.

    The vector of a text is the mean of its last hidden states, or the first of them where the
    folder says so.

    Args:
        name: a folder, or a name on the Hub.
        device: where it computes.
        threads: how many compute on a CPU; 0 leaves the choice to torch.

    Raises:
        ModelNotFoundError: there is no such model.
        ModelError: it cannot be used.
    """

    def __init__(self, name: str, *, device: str = "cpu", threads: int = 0) -> None:
        path = locate(name)
        check_folder(path)
        _check_modules(path)
        self._device = device
        self._pooling = _pooling(path)
        self._tokenizer, self._model = _load(path, device)
        self._name = f"{path.name} {fingerprint(path)[:16]} {self._pooling}"
        self._longest = min(
            _read(path / "sentence_bert_config.json", _Reading).max_seq_length or LONGEST,
            int(getattr(self._model.config, "max_position_embeddings", None) or LONGEST),
        )
        self._thread = ThreadPoolExecutor(
            1, "shammah-embed", partial(torch.set_num_threads, threads or torch.get_num_threads())
        )

    @property
    def name(self) -> str:
        return self._name

    async def embed(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """The port's `embed`."""
        import asyncio

        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._thread, self.vectors, tuple(texts))

    def vectors(self, texts: Sequence[str]) -> NDArray[np.float32]:
        """`embed` in the calling thread."""
        try:
            if not texts:
                return np.zeros((0, int(self._model.config.hidden_size)), np.float32)
            parts = [
                self._states(texts[start : start + BATCH]) for start in range(0, len(texts), BATCH)
            ]
            return unit_rows(np.concatenate(parts), backend=self._name)
        except ShammahError:
            raise
        except Exception as error:
            raise EmbeddingError(
                f"{type(error).__name__}: {error}",
                backend=self._name,
                hint="The log has the details.",
            ) from error

    @torch.inference_mode()
    def _states(self, texts: Sequence[str]) -> NDArray[np.float32]:
        inputs = self._tokenizer(
            list(texts),
            padding=True,
            truncation=True,
            max_length=self._longest,
            return_tensors="pt",
        ).to(self._device)
        hidden = self._model(**inputs).last_hidden_state.float()
        if self._pooling == "cls":
            states = hidden[:, 0]
        else:
            weights = inputs["attention_mask"][..., None].float()
            states = (hidden * weights).sum(1) / weights.sum(1)
        found: NDArray[np.float32] = states.cpu().numpy()
        return found


def _load(path: Path, device: str) -> tuple[Any, Any]:
    from transformers import AutoModel, AutoTokenizer

    try:
        with quiet_transformers():
            tokenizer = AutoTokenizer.from_pretrained(
                path, local_files_only=True, trust_remote_code=False
            )
            model = AutoModel.from_pretrained(
                path, local_files_only=True, trust_remote_code=False, use_safetensors=True
            )
            return tokenizer, model.to(device).eval().requires_grad_(False)
    except Exception as error:
        raise ModelError(
            f"The encoder in {path} cannot be loaded: {error}",
            hint="It must be a model that transformers' AutoModel knows.",
        ) from error


def _pooling(path: Path) -> Literal["mean", "cls"]:
    if not (path / "1_Pooling" / "config.json").is_file():
        return "mean"
    modes = _read(path / "1_Pooling" / "config.json", _Pooling).modes
    if modes in ({"mean"}, {"mean_tokens"}):
        return "mean"
    if modes in ({"cls"}, {"cls_token"}):
        return "cls"
    raise ModelError(
        f"The encoder in {path} pools in a way that is not known here.",
        hint="The mean over tokens and the first token are.",
    )


def _check_modules(path: Path) -> None:
    """See that nothing comes after the pooling that would be left out (a layer of its own)."""
    steps = {
        module.type.rpartition(".")[2] for module in _read(path / "modules.json", _Modules).root
    }
    if others := steps - {"Transformer", "Pooling", "Normalize"}:
        raise ModelError(
            f"The encoder in {path} has steps that are not known here: "
            f"{', '.join(sorted(others))}.",
            hint="Take one that is a transformer and a pooling.",
        )


def _read(path: Path, kind: type[Kind]) -> Kind:
    try:
        return kind.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return kind()
    except (OSError, ValidationError) as error:
        raise ModelError(f"{path} cannot be read.", hint="Fetch the model again.") from error
