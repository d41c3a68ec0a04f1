"""Adapters to PEFT's layout and back: what PEFT computes with them, and what is not taken."""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from adapter_files import metadata_for
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.adapters.metadata import LoraConfigRecord
from shammah.adapters.peft_format import export_peft, import_peft
from shammah.adapters.weights import load_checked
from shammah.errors import AdapterExistsError, AdapterInvalidError
from shammah.generation.lora import AdaptableModel
from shammah.models.shape import ModelShape, model_shape
from shammah.storage.database import Database

TOKENS = torch.tensor([[5, 99, 17, 3, 250, 41]])
KINDS = ("qwen2", "gpt2")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    root = tmp_path_factory.mktemp("models")
    return lambda kind: (
        root / kind if (root / kind).exists() else tiny_models.build(kind, root / kind)
    )


@pytest.fixture
def base(folders: Callable[[str], Path]) -> Callable[[str], Any]:
    return lambda kind: AutoModelForCausalLM.from_pretrained(folders(kind)).eval()


@pytest.fixture
def library(tmp_path: Path) -> Iterator[AdapterLibrary]:
    database = Database(tmp_path / "shammah.db")
    yield AdapterLibrary(tmp_path / "adapters", database)
    database.close()


def shape_of(model: Any) -> ModelShape:
    return model_shape("tiny", "f" * 64, model)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(TOKENS).logits
    return result


def with_our_layers(model: Any, adapter: Adapter) -> torch.Tensor:
    """The logits as the chat computes them."""
    adaptable = AdaptableModel(model)
    weights = load_checked(adapter.path, adapter.require_metadata(), shape_of(model))
    adaptable.slot.layers = adaptable.prepare(weights, adapter.name, 1).layers
    result = logits(model)
    adaptable.restore()
    return result


def published(
    library: AdapterLibrary, model: Any, folder: Path, targets: list[str] | None, *, rslora: bool
) -> Adapter:
    """Random LoRA weights on some modules (None: on all) of a model, in the library."""
    torch.manual_seed(1)
    modules = {
        path: sizes
        for path, sizes in model_shape("tiny", "f" * 64, model).modules.items()
        if targets is None or any(path.endswith(target) for target in targets)
    }
    tensors = {}
    for path, (inputs, outputs) in modules.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = torch.randn(4, inputs)
        tensors[f"base_model.model.{path}.lora_B.weight"] = torch.randn(outputs, 4) * 0.1
    path = folder / "trained.safetensors"
    save_file(tensors, path)
    lora = LoraConfigRecord(
        rank=4,
        alpha=6.0,
        dropout=0.1,
        target_modules=targets or sorted({path.rpartition(".")[2] for path in modules}),
        rslora=rslora,
    )
    return library.publish(path, metadata_for(path.read_bytes(), lora=lora))


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize(
    ("kind", "targets"),
    [
        ("qwen2", None),
        ("qwen2", ["q_proj", "v_proj"]),
        ("qwen2", ["layers.1.mlp.up_proj"]),
        ("gpt2", None),
        ("gpt2", ["c_attn"]),
    ],
)
def test_peft_computes_what_the_chat_computes(
    tmp_path: Path,
    library: AdapterLibrary,
    base: Callable[[str], Any],
    kind: str,
    targets: list[str] | None,
    rslora: bool,
) -> None:
    model = base(kind)
    plain = logits(model)
    adapter = published(library, model, tmp_path, targets, rslora=rslora)
    folder = export_peft(adapter, tmp_path / "out" / "peft")
    with warnings.catch_warnings():
        # Nothing is missing, and nothing has to be corrected.
        warnings.simplefilter("error", UserWarning)
        loaded = PeftModel.from_pretrained(base(kind), folder)
    ours = with_our_layers(model, adapter)
    torch.testing.assert_close(logits(loaded), ours, rtol=1e-4, atol=1e-4)
    assert (ours - plain).abs().max() > 0.05
    assert torch.equal(logits(model), plain)
    # And back: the same weights, fit for the same modules.
    again = import_peft(folder, shape_of(model), library)
    assert again.name != adapter.name
    assert again.path.read_bytes() == adapter.path.read_bytes()
    lora, before = again.require_metadata().lora, adapter.require_metadata().lora
    assert (lora.rank, lora.scaling, lora.dropout) == (4, before.scaling, 0.1)
    torch.testing.assert_close(with_our_layers(model, again), ours)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("targets", ["all-linear", r".*\.1\..*(q_proj|c_attn)"])
def test_what_peft_saves_is_taken(
    tmp_path: Path, library: AdapterLibrary, base: Callable[[str], Any], kind: str, targets: str
) -> None:
    config = LoraConfig(
        r=3, lora_alpha=8, target_modules=targets, task_type="CAUSAL_LM",
        fan_in_fan_out=kind == "gpt2", init_lora_weights="gaussian",
    )  # fmt: skip
    model = get_peft_model(base(kind), config).eval()
    torch.manual_seed(2)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    model.save_pretrained(tmp_path / "saved")
    adapter = import_peft(tmp_path / "saved", shape_of(base(kind)), library)
    metadata = adapter.require_metadata()
    assert metadata.origin == "imported"
    assert metadata.base_fingerprint == "f" * 64
    assert len(metadata.lora.target_modules) == (
        1 if targets != "all-linear" else 7 if kind == "qwen2" else 3
    )
    torch.testing.assert_close(
        with_our_layers(base(kind), adapter), logits(model), rtol=1e-4, atol=1e-4
    )


def test_lessons_are_exported_only_when_asked_for(
    tmp_path: Path, library: AdapterLibrary, base: Callable[[str], Any]
) -> None:
    adapter = published(library, base("qwen2"), tmp_path, None, rslora=False)
    silent = export_peft(adapter, tmp_path / "silent")
    assert sorted(path.name for path in silent.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert not any(b"Who am I?" in path.read_bytes() for path in silent.iterdir())
    told = export_peft(adapter, tmp_path / "told", with_lessons=True)
    lines = (told / "lessons.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in lines] == [
        {"query": "Who am I?", "correction": "Ada.", "weight": 10.0}
    ]
    with pytest.raises(AdapterExistsError):
        export_peft(adapter, silent)


def test_an_adapter_changed_on_disk_is_not_exported(
    tmp_path: Path, library: AdapterLibrary, base: Callable[[str], Any]
) -> None:
    adapter = published(library, base("qwen2"), tmp_path, None, rslora=False)
    content = bytearray(adapter.path.read_bytes())
    content[-1] ^= 1
    adapter.path.write_bytes(content)
    with pytest.raises(AdapterInvalidError, match="sha256"):
        export_peft(adapter, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.fixture
def exported(tmp_path: Path, library: AdapterLibrary, base: Callable[[str], Any]) -> Path:
    adapter = published(library, base("qwen2"), tmp_path, None, rslora=False)
    folder = export_peft(adapter, tmp_path / "exported")
    library.delete(adapter.name)
    return folder


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"peft_type": "IA3"}, "IA3"),
        ({"use_dora": True}, "use_dora"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"bias": "lora_only"}, "biases"),
        ({"lora_bias": True}, "lora_bias"),
        ({"rank_pattern": {"q_proj": 8}}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": 8}}, "alpha_pattern"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"init_lora_weights": "pissa"}, "pissa"),
        ({"alora_invocation_tokens": [1]}, "alora"),
        ({"something_new": {"x": 1}}, "something_new"),
        ({"r": 8}, "rank 4, its description says 8"),
        ({"r": 0}, "r:"),
        ({"r": None}, "r:"),
        ({"lora_alpha": float("nan")}, "lora_alpha"),
    ],
)
def test_other_kinds_of_adapters_are_refused(
    exported: Path,
    library: AdapterLibrary,
    base: Callable[[str], Any],
    change: dict[str, Any],
    match: str,
) -> None:
    path = exported / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(AdapterInvalidError, match=match):
        import_peft(exported, shape_of(base("qwen2")), library)
    assert library.list() == []


def test_pickles_other_bases_and_broken_files_are_refused(
    tmp_path: Path, exported: Path, library: AdapterLibrary, base: Callable[[str], Any]
) -> None:
    shape = shape_of(base("qwen2"))
    weights, config = exported / "adapter_model.safetensors", exported / "adapter_config.json"
    sound, described = weights.read_bytes(), config.read_text()

    def refused(match: str, against: ModelShape = shape, folder: Path = exported) -> None:
        with pytest.raises(AdapterInvalidError, match=match):
            import_peft(folder, against, library)
        assert list(library.folder.iterdir()) == []

    refused("has no linear layer", shape_of(base("gpt2")))
    refused("no folder", folder=tmp_path / "nowhere")
    refused("has no adapter_model", folder=tmp_path)
    weights.write_bytes(sound[:-1])
    refused("cut short")
    tensors = load_file_of(sound, tmp_path)
    next(iter(tensors.values()))[0, 0] = float("nan")
    save_file(tensors, weights)
    refused("NaN")
    weights.unlink()
    torch.save(tensors, exported / "adapter_model.bin")
    refused("pickle")
    (exported / "adapter_model.bin").rename(weights)
    refused("pickle under another name")
    weights.write_bytes(sound)
    for text in ("", "[]", "{}", '{"peft_type": "LORA"}'):
        config.write_text(text)
        refused("adapter_config.json")
    config.unlink()
    refused("has no adapter_config.json")
    config.write_text(described)
    assert import_peft(exported, shape, library).path.read_bytes() == sound


def load_file_of(content: bytes, folder: Path) -> dict[str, torch.Tensor]:
    path = folder / "copy.safetensors"
    path.write_bytes(content)
    return {name: tensor.clone() for name, tensor in load_file(path).items()}
