"""From a model's name to a model that can compute.

Everything that can be refused is refused before the first weight is read. The weights stay
memory-mapped where the checkpoint's own number format is computed in, so that a second process
which loads the same folder shares their pages.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shammah.errors import ModelError
from shammah.models.device import choose_device, choose_dtype, choose_threads, cpu_has_bf16
from shammah.models.find import find_model
from shammah.models.memory import MemoryEstimate, context_length, estimate, require_memory
from shammah.models.source import ModelSource, check_folder, weight_files
from shammah.settings import ModelSettings

if TYPE_CHECKING:
    import torch

    from shammah.models.safetensors_header import StoredTensor
    from shammah.models.shape import ModelShape

log = logging.getLogger("shammah")

Progress = Callable[[str], None]
"""Called with a line of text that says what is being done."""


@dataclass(frozen=True, slots=True)
class BaseModel:
    """A frozen causal language model with its tokenizer.

    `model` is a transformers `PreTrainedModel` in eval mode whose parameters need no gradient;
    `notes` are what the user should know about how it was loaded. `threads` is how many should
    compute an answer; `renderer` is how conversations are written for it: what
    the settings say, else what it was registered with, else `auto`.
    """

    name: str
    path: Path
    model: Any
    tokenizer: Any
    device: str
    dtype: torch.dtype
    fingerprint: str
    shape: ModelShape
    context_length: int
    notes: tuple[str, ...]
    threads: int
    renderer: str = "auto"

    @property
    def stop_tokens(self) -> tuple[int, ...]:
        """What the checkpoint's generation config says ends an answer."""
        stops = getattr(self.model.generation_config, "eos_token_id", None)
        if stops is None:
            return ()
        return tuple(stops) if isinstance(stops, list) else (int(stops),)


def load_base_model(settings: ModelSettings, on_progress: Progress | None = None) -> BaseModel:
    """Find, check and load the model of the settings.

    Args:
        on_progress: called with what is being done, from the calling thread (while downloading,
            from the downloading threads).

    Raises:
        ModelNotFoundError: no such folder, no such model on the Hub, or no way to reach it.
        NotEnoughMemoryError: it would not fit; nothing was loaded.
        ModelError: the files cannot be used.
        StorageError: a download does not fit on the disk.
    """
    from shammah.models.fingerprint import fingerprint
    from shammah.models.safetensors_header import stored_tensors

    source = find_model(settings.name)
    path = _folder(source, on_progress)
    check_folder(path)
    if on_progress is not None:
        on_progress(f"loading {settings.name}")
    with quiet_transformers():
        config = _read_config(path)
        tensors = stored_tensors(weight_files(path))
        stored = checkpoint_dtype(tensors)
        parameters = sum(tensor.parameters for tensor in tensors)
        device = choose_device(settings.device)
        dtype = choose_dtype(settings.dtype, device, stored, parameters)
        require_memory(settings.name, estimate(tensors, config, dtype), device)
        tokenizer = _load_tokenizer(path)
        model = _load_model(path, config, dtype, device)
    mark = fingerprint(path)
    from shammah.models.shape import model_shape

    return BaseModel(
        name=source.name,
        path=path,
        model=model,
        tokenizer=tokenizer,
        device=device,
        dtype=dtype,
        fingerprint=mark,
        shape=model_shape(source.name, mark, model),
        context_length=context_length(config),
        notes=tuple(_notes(tokenizer, device, dtype, stored)),
        threads=settings.threads or choose_threads(parameters * dtype.itemsize),
        renderer=settings.renderer if settings.renderer != "auto" else source.renderer or "auto",
    )


def load_shape(name: str) -> ModelShape:
    """The shape of a model, from its configuration alone: no weight is read.

    Raises:
        ModelNotFoundError, ModelError: as `load_base_model`.
    """
    import torch
    from transformers import AutoModelForCausalLM

    from shammah.models.fingerprint import fingerprint
    from shammah.models.shape import model_shape

    source = find_model(name)
    path = _folder(source, None)
    check_folder(path)
    with quiet_transformers(), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(_read_config(path), trust_remote_code=False)
    return model_shape(source.name, fingerprint(path), model)


def load_tokenizer(name: str) -> tuple[Any, tuple[int, ...]]:
    """The tokenizer of a model, or of a folder that holds nothing else, without the model, and the
    tokens that end generation according to its generation configuration.

    Raises:
        ModelNotFoundError, ModelError: as `load_base_model`.
    """
    path = locate(name)
    with quiet_transformers():
        tokenizer = _load_tokenizer(path)
        stops = _generation_stops(path)
    return tokenizer, stops


def estimate_memory(settings: ModelSettings) -> MemoryEstimate:
    """What the model of the settings will take, from its files; nothing is loaded.

    Raises:
        ModelNotFoundError, ModelError: as `load_base_model`.
    """
    from shammah.models.safetensors_header import stored_tensors

    path = locate(settings.name)
    check_folder(path)
    with quiet_transformers():
        config = _read_config(path)
    tensors = stored_tensors(weight_files(path))
    parameters = sum(tensor.parameters for tensor in tensors)
    device = choose_device(settings.device)
    dtype = choose_dtype(settings.dtype, device, checkpoint_dtype(tensors), parameters)
    return estimate(tensors, config, dtype)


def locate(name: str, on_progress: Progress | None = None) -> Path:
    """The folder of a model, downloaded from the Hub if that is where its name leads.

    Raises:
        ModelNotFoundError: as `load_base_model`.
    """
    return _folder(find_model(name), on_progress)


def _folder(source: ModelSource, on_progress: Progress | None) -> Path:
    if source.path is not None:
        return source.path
    from shammah.models.hub import fetch

    return fetch(str(source.hub_id), on_progress, revision=source.revision)


def checkpoint_dtype(tensors: list[StoredTensor]) -> torch.dtype:
    """The number format that most of a checkpoint's bytes are stored in."""
    import torch

    known = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
    sizes: dict[str, int] = {}
    for tensor in tensors:
        sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.size
    most = max(sizes, key=lambda name: sizes[name], default="F32")
    if most not in known:
        raise ModelError(
            f"The weights are stored as {most}, which is not computed in here.",
            hint="Use a checkpoint in bf16, fp16 or fp32.",
        )
    return known[most]


def _read_config(path: Path) -> Any:
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"The configuration in {path} cannot be used: {_first_line(error)}",
            hint="The model may need a newer transformers, or code of its own, which is never run.",
        ) from error


def _load_tokenizer(path: Path) -> Any:
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(path, local_files_only=True, trust_remote_code=False)
    except Exception as error:
        raise ModelError(
            f"The tokenizer in {path} cannot be loaded: {_first_line(error)}",
            hint="Fetch the model again; its tokenizer may need an extra package.",
        ) from error


def _generation_stops(path: Path) -> tuple[int, ...]:
    from transformers import GenerationConfig

    if not (path / "generation_config.json").is_file():
        return ()
    try:
        found = GenerationConfig.from_pretrained(path, local_files_only=True).eos_token_id
    except Exception as error:
        raise ModelError(
            f"generation_config.json in {path} cannot be read: {_first_line(error)}"
        ) from error
    if found is None:
        return ()
    return tuple(found) if isinstance(found, list) else (int(found),)


def _load_model(path: Path, config: Any, dtype: torch.dtype, device: str) -> Any:
    from transformers import AutoModelForCausalLM

    try:
        # Attention is left to transformers' choice, which is sdpa wherever the model can do it.
        model = AutoModelForCausalLM.from_pretrained(
            path,
            config=config,
            dtype=dtype,
            local_files_only=True,
            trust_remote_code=False,
            use_safetensors=True,
        )
        model = model.to(device)
    except Exception as error:
        raise ModelError(
            f"The model in {path} cannot be loaded: {_first_line(error)}",
            hint="It must be a causal language model that transformers knows.",
        ) from error
    model.eval()
    model.requires_grad_(False)
    return model


def _notes(tokenizer: Any, device: str, dtype: torch.dtype, stored: torch.dtype) -> Iterator[str]:
    import torch

    if not tokenizer.chat_template:
        yield "No chat template: the conversation is written as User: and Assistant:."
    if dtype != stored:
        yield (
            f"Converted from {_short(stored)} to {_short(dtype)}: its pages are not shared with "
            "the training process."
        )
    if device == "cpu" and dtype == torch.bfloat16 and not cpu_has_bf16():
        yield "This CPU has no bf16 arithmetic: model.dtype = fp32 is likely to be faster."


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


@contextlib.contextmanager
def quiet_transformers() -> Iterator[None]:
    """Transformers' messages go to our log, and its progress bars nowhere. One thread at a time:
    while a model is loaded, transformers changes what torch makes of every tensor."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    import transformers

    transformers.utils.logging.disable_progress_bar()
    theirs = logging.getLogger("transformers")
    transformers.utils.logging.disable_default_handler()
    theirs.handlers = [handler for handler in theirs.handlers if handler is not _forward]
    theirs.addHandler(_forward)
    theirs.propagate = False
    with _ALONE:
        yield


class _Forward(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        log.log(min(record.levelno, logging.INFO), "transformers: %s", record.getMessage())


_forward = _Forward()
_ALONE = threading.RLock()
