"""Merging adapters of the library into a new one, published like a trained one.

What cannot be done exactly is refused or measured: the description says how far the merged change
is from the weighted sum of the changes it was made of. Imports torch on use only.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.adapters.merge_methods import CAT, METHODS, OF_DELTAS, OF_ONE_RANK, PRUNING, SVD
from shammah.adapters.metadata import (
    AdapterMetadata,
    LessonRecord,
    LoraConfigRecord,
    MergedParent,
    MergeRecord,
)
from shammah.adapters.peft_format import target_names
from shammah.adapters.validate import BaseModelShape, check_against, sha256_of
from shammah.errors import AdapterInvalidError, UsageError
from shammah.files import write_atomic
from shammah.settings import nearest


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """How to merge.

    `weights` None: equal shares. `method` None: `cat`, or `svd` where a rank is given. `rank` is
    that of the result, `density` the share of the numbers that the methods that prune keep. `name`
    None: the time, as for a trained one.
    """

    weights: tuple[float, ...] | None = None
    method: str | None = None
    rank: int | None = None
    density: float | None = None
    name: str | None = None


def merge(
    adapters: Sequence[Adapter],
    options: MergeOptions,
    base: BaseModelShape,
    library: AdapterLibrary,
) -> Adapter:
    """Publish the weighted combination of adapters of one base model.

    Raises:
        UsageError: the options do not go together, or not with these adapters.
        AdapterInvalidError: one of the adapters is broken, or for another base model.
        AdapterExistsError: the name is taken; nothing was computed.
        StorageError: the library cannot be written; it is as it was.
    """
    from safetensors.torch import save

    from shammah.adapters.combination import combine, is_finite, relative_error, weighted_sum
    from shammah.adapters.weights import load_checked

    weights, method = check(adapters, options, library)
    parts = [load_checked(item.path, item.require_metadata(), base) for item in adapters]
    wanted = weighted_sum(parts, weights)
    _check_rank(adapters, method, options, base, list(wanted.modules))
    merged = combine(parts, weights, method, rank=options.rank, density=options.density)
    if not is_finite(merged):
        raise UsageError("The merged adapter would hold infinities.", hint="Use smaller weights.")
    rank = next(iter(merged.modules.values()))[0].shape[0]
    record = MergeRecord(
        parents=[
            MergedParent(name=item.name, weight=weight, sha256=item.require_metadata().sha256)
            for item, weight in zip(adapters, weights, strict=True)
        ],
        method=method,
        rank=rank,
        density=options.density,
        relative_error=relative_error(merged, wanted),
    )
    with tempfile.TemporaryDirectory(prefix="shammah-merge-") as folder:
        path = Path(folder) / "merged.safetensors"
        modules = [module for module in base.modules if module in merged.modules]
        tensors = {}
        for module in modules:
            a, b = merged.modules[module]
            tensors[f"base_model.model.{module}.lora_A.weight"] = a
            tensors[f"base_model.model.{module}.lora_B.weight"] = b * merged.scaling
        write_atomic(path, save(tensors, {"format": "pt"}))
        metadata = AdapterMetadata(
            name="",
            created_at=datetime.now(UTC),
            base_model=base.name,
            base_fingerprint=base.fingerprint,
            lora=LoraConfigRecord(
                rank=rank,
                alpha=float(rank),
                dropout=0.0,
                target_modules=target_names(modules, base),
            ),
            lessons=joined([item.require_metadata() for item in adapters]),
            sha256=sha256_of(path),
            tensors=len(tensors),
            parameters=sum(tensor.numel() for tensor in tensors.values()),
            origin="merged",
            merge=record,
        )
        check_against(path, metadata, base)
        return library.publish(path, metadata, options.name)


def check(
    adapters: Sequence[Adapter], options: MergeOptions, library: AdapterLibrary
) -> tuple[tuple[float, ...], str]:
    """The weights and the method, once everything is in order that needs no tensor.

    Raises:
        UsageError, AdapterInvalidError, AdapterExistsError: as for `merge`.
    """
    _check_parts(adapters)
    weights = _weights(options, len(adapters))
    method = _method(options)
    ranks = {item.name: item.require_metadata().lora.rank for item in adapters}
    if method in OF_ONE_RANK and len(set(ranks.values())) > 1:
        shown = ", ".join(f"{name} has {rank}" for name, rank in ranks.items())
        other = f", or {method}_svd" if f"{method}_svd" in OF_DELTAS else ""
        raise UsageError(
            f"{method} takes adapters of one rank: {shown}.",
            hint=f"Use cat, which is exact, or svd{other}.",
        )
    if options.name is not None:
        library.check_name(options.name)
    return weights, method


def joined(parents: Sequence[AdapterMetadata]) -> list[LessonRecord]:
    """The lessons of all, each once: with its largest weight, and learned where a parent has
    learned it. Whether the merged one still has, only its answers tell."""
    found: dict[tuple[int | None, str, str], LessonRecord] = {}
    for parent in parents:
        for lesson in parent.lessons:
            key = (lesson.feedback_id, lesson.query, lesson.aim)
            known = found.get(key)
            if known is not None:
                lesson = lesson.model_copy(
                    update={
                        "weight": max(known.weight, lesson.weight),
                        "learned": known.learned or lesson.learned,
                    }
                )
            found[key] = lesson
    return list(found.values())


def _check_parts(adapters: Sequence[Adapter]) -> None:
    if len(adapters) < 2:
        raise UsageError("Merging takes two adapters or more.")
    names = [item.name for item in adapters]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(f"{name} is named twice.", hint="Give it a larger weight instead.")
    if len({item.require_metadata().base_fingerprint for item in adapters}) > 1:
        shown = ", ".join(f"{i.name} for {i.require_metadata().base_model}" for i in adapters)
        raise AdapterInvalidError(
            f"These adapters were made for different base models: {shown}.",
            hint="Only adapters of one base model can be merged.",
        )


def _weights(options: MergeOptions, count: int) -> tuple[float, ...]:
    weights = options.weights or (1 / count,) * count
    if len(weights) != count:
        raise UsageError(
            f"There are {count} adapters and {len(weights)} weights.",
            hint="Give one weight for each adapter, in their order: --weights 0.7,0.3",
        )
    for weight in weights:
        if not math.isfinite(weight) or weight <= 0:
            raise UsageError(
                f"{weight:g} is no weight for an adapter.", hint="Weights are numbers above 0."
            )
    return weights


def _method(options: MergeOptions) -> str:
    method = options.method or CAT
    if method not in METHODS:
        raise UsageError(
            f"There is no method {method!r}.",
            hint=nearest(method, list(METHODS)) or f"It is one of {', '.join(METHODS)}.",
        )
    if options.rank is not None:
        if method in OF_ONE_RANK:
            other = f"{method}_svd" if f"{method}_svd" in OF_DELTAS else SVD
            raise UsageError(
                f"{method} keeps the rank of the adapters.", hint=f"With --rank use {other}."
            )
        # What lies side by side, recompressed, is the svd of the sum.
        method = SVD if method == CAT else method
    density = options.density
    if (method in PRUNING) != (density is not None):
        raise UsageError(
            f"{method} needs a density: the share of the numbers that it keeps."
            if method in PRUNING
            else f"{method} drops nothing: it takes no density.",
            hint=f"--density is for {', '.join(PRUNING)}; 0.5 keeps half.",
        )
    if density is not None and not 0 < density <= 1:
        raise UsageError(f"The density is {density:g}.", hint="It is above 0 and at most 1.")
    return method


def _check_rank(
    adapters: Sequence[Adapter],
    method: str,
    options: MergeOptions,
    base: BaseModelShape,
    modules: Sequence[str],
) -> None:
    """Whether the rank asked for is one that the result can have."""
    if options.rank is None:
        return
    most = max(min(base.modules[module]) for module in modules)
    if method == SVD:
        most = min(most, sum(item.require_metadata().lora.rank for item in adapters))
    if not 1 <= options.rank <= most:
        raise UsageError(
            f"The rank is {options.rank}.", hint=f"It is at least 1 and here at most {most}."
        )
