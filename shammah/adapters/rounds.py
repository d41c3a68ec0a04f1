"""Taking one round out of an adapter that was trained in rounds (`training.mode = "delta"`).

A round is some ranks of every A and B; without them the adapter is the exact sum of the others.
Imports torch on use only.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.errors import AdapterError
from shammah.files import write_atomic


def without_round(adapter: Adapter, number: int, library: AdapterLibrary) -> Adapter:
    """Publish an adapter like this one, without its round `number`, counted from 1.

    Raises:
        AdapterError: the adapter has no such round, or only one.
        AdapterInvalidError: it is broken.
        StorageError: the library cannot be written; it is as it was.
    """
    import torch
    from safetensors.torch import save

    from shammah.adapters.weights import load_weights

    about = adapter.require_metadata()
    rounds = about.parts
    if len(rounds) < 2:
        raise AdapterError(
            f"{adapter.name} was trained in one piece: nothing can be taken out of it.",
            hint='With training.mode = "delta" every job adds a round that can be. '
            "/adapters rebuild trains the lessons that stand anew.",
        )
    if not 1 <= number <= len(rounds):
        raise AdapterError(
            f"{adapter.name} has no round {number}.", hint=f"It has rounds 1 to {len(rounds)}."
        )
    ends = [sum(part.rank for part in rounds[:count]) for count in range(len(rounds) + 1)]
    kept = torch.tensor(
        [
            rank
            for place, (start, end) in enumerate(pairwise(ends), start=1)
            if place != number
            for rank in range(start, end)
        ]
    )
    tensors = {}
    for module, (a, b) in load_weights(adapter.path, about).modules.items():
        tensors[f"base_model.model.{module}.lora_A.weight"] = a[kept].contiguous()
        tensors[f"base_model.model.{module}.lora_B.weight"] = b[:, kept].contiguous()
    gone = set(rounds[number - 1].lessons)
    left = [part for place, part in enumerate(rounds, start=1) if place != number]
    share = (len(kept) / about.lora.rank) ** (0.5 if about.lora.rslora else 1.0)
    metadata = about.model_copy(
        update={
            "name": "",
            "created_at": datetime.now(UTC),
            "parent": adapter.name,
            # alpha / rank, what it is scaled by, stays.
            "lora": about.lora.model_copy(
                update={"rank": len(kept), "alpha": about.lora.alpha * share}
            ),
            "lessons": [item for item in about.lessons if item.feedback_id not in gone],
            "rounds": left if len(left) > 1 else [],
            "metrics": {},
            "failures": [],
            "sha256": "",
        }
    )
    with tempfile.TemporaryDirectory(prefix="shammah-rounds-") as folder:
        path = Path(folder) / "adapter.safetensors"
        write_atomic(path, save(tensors, {"format": "pt"}))
        return library.publish(path, metadata)
