"""A worker that misbehaves in the way its first argument says: what no real one does on request.

Speaks the worker's language (alive, start, progress, result.json) with the standard library alone.
"""

from __future__ import annotations

import hashlib
import json
import os
import struct
import sys
import time
from pathlib import Path

from shammah.models.source import EMBEDDED


def tell(folder: Path, event: str, **values: object) -> None:
    line = json.dumps({"event": event, "time": time.time(), **values})
    with (folder / "events.jsonl").open("a") as events:
        events.write(line + "\n")
    print(line, flush=True)


def weights(folder: Path) -> bytes:
    """One LoRA pair of the embedded model, all zeros but a number of this job."""
    prefix = "base_model.model.model.layers.0.self_attn.q_proj"
    config = json.loads((EMBEDDED / "config.json").read_text())
    hidden = config["hidden_size"]
    header, data = {}, b""
    for name, shape in (("lora_A", [1, hidden]), ("lora_B", [hidden, 1])):
        values = struct.pack(f"<{hidden}f", float(folder.name), *([0.0] * (hidden - 1)))
        header[f"{prefix}.{name}.weight"] = {
            "dtype": "F32",
            "shape": shape,
            "data_offsets": [len(data), len(data) + len(values)],
        }
        data += values
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def learn(folder: Path, seconds: float) -> None:
    spec = json.loads((folder / "job.json").read_text())
    steps = max(1, round(seconds / 0.05))
    for step in range(1, steps + 1):
        time.sleep(seconds / steps)
        tell(
            folder, "progress", epoch=1, epochs=1, step=step, steps=steps, batch=step,
            batches=steps, loss=1.0, learning_rate=0.1, tokens_per_second=1.0, seconds_left=0.0,
        )  # fmt: skip
    content = weights(folder)
    (folder / "adapter.safetensors").write_bytes(content)
    result = {
        "event": "complete",
        "sha256": hashlib.sha256(content).hexdigest(),
        "tensors": 2,
        "parameters": (len(content) - 8) // 4,
        "lora": {
            "rank": 1,
            "alpha": 1.0,
            "dropout": 0.0,
            "target_modules": ["q_proj"],
            "rslora": False,
        },
        "model": spec["model"]["name"],
        "fingerprint": spec["fingerprint"],
        "outcomes": [
            {"feedback_id": lesson["feedback_id"], "learned": True} for lesson in spec["lessons"]
        ],
        "final_loss": 0.1,
        "examples": len(spec["lessons"]),
        "replayed": len(spec["replay"]),
        "steps": steps,
        "epochs": 1,
        "tokens": 10,
        "seconds": seconds,
    }
    (folder / "result.json").write_text(json.dumps(result))
    print(json.dumps(result), flush=True)


def main() -> None:
    mode, folder = sys.argv[1], Path(sys.argv[2])
    with (folder.parent.parent / "runs").open("a") as runs:
        runs.write(f"{folder.name} {os.getpid()}\n")
    tell(folder, "alive", pid=os.getpid())
    if mode.startswith("learn"):
        print("a stray line that is no event", flush=True)
        learn(folder, float(mode.partition(":")[2] or 0))
    elif mode == "rubbish":
        while True:
            sys.stdout.buffer.write(os.urandom(4096) + b"\n")
    elif mode == "endless line":
        while True:
            sys.stdout.buffer.write(b"x" * 65536)
    elif mode == "crash":
        print("something is broken", file=sys.stderr)
        sys.exit(9)
    elif mode == "out of memory":
        tell(folder, "failed", kind="out_of_memory", message="There was not enough memory.")
        sys.exit(71)
    elif mode == "lie":
        tell(folder, "complete", nonsense=True)
    elif mode == "hang":
        time.sleep(3600)


if __name__ == "__main__":
    main()
