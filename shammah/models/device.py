"""Which device and number format a model runs in. Knows hardware, not models."""

from __future__ import annotations

from functools import cache
from typing import TYPE_CHECKING, Literal

from shammah.errors import ModelError

if TYPE_CHECKING:
    import torch

Device = Literal["cuda", "mps", "cpu"]
_LARGE = 200_000_000
# Below this many bytes of weights a second thread gains nothing, and waiting for it costs a lot as
# soon as anything else runs: 20 instead of 300 tokens/s were measured beside two busy processes.
_ONE_THREAD = 64_000_000


def choose_device(setting: str) -> Device:
    """`auto` takes CUDA where it is there, then MPS, then the CPU.

    Raises:
        ModelError: a device was asked for that is not there.
    """
    import torch

    there: dict[str, bool] = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if setting != "auto" and not there.get(setting, False):
        raise ModelError(
            f"The device {setting!r} is not available here.",
            hint="Set model.device to auto: it takes the fastest device there is.",
        )
    if (setting == "auto" and there["cuda"]) or setting == "cuda":
        return "cuda"
    return "mps" if (setting == "auto" and there["mps"]) or setting == "mps" else "cpu"


def choose_dtype(
    setting: str, device: Device, checkpoint_dtype: torch.dtype, parameters: int = 0
) -> torch.dtype:
    """The number format to compute in.

    `auto` keeps the checkpoint's own format wherever it is fast on the device, so that its pages
    stay those of the file and are shared between processes. A half-precision checkpoint becomes
    fp32 on a CPU without bf16 arithmetic, and fp16 on a GPU without it. A large fp32 checkpoint
    becomes bf16 where that is fast: it takes half the memory and decodes twice as fast.

    Args:
        setting: `auto`, `bf16`, `fp16` or `fp32`.
        parameters: how many the model has, as far as it is known.
    """
    import torch

    explicit = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
    if setting in explicit:
        return explicit[setting]
    if checkpoint_dtype == torch.float32 and parameters < _LARGE:
        return torch.float32
    if device == "cpu":
        # fp16 on a CPU has no fast matrix product; bf16 has where the instructions are there.
        return torch.bfloat16 if cpu_has_bf16() else torch.float32
    if device == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    half = checkpoint_dtype in (torch.bfloat16, torch.float16)
    return checkpoint_dtype if half else torch.bfloat16


def choose_threads(weights_bytes: int) -> int:
    """Threads to compute an answer with: one for a small model, else torch's own choice."""
    usual = _torch_threads()
    return 1 if weights_bytes < _ONE_THREAD else usual


@cache
def _torch_threads() -> int:
    # Asked once, before any thread calls `set_num_threads`: threads started later inherit that.
    import torch

    return torch.get_num_threads()


@cache
def cpu_has_bf16() -> bool:
    """Whether the CPU multiplies bf16 in hardware (AVX512-BF16 or AMX)."""
    import torch

    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        supported = getattr(torch.cpu, name, None)
        if supported is not None and supported():
            return True
    return False
