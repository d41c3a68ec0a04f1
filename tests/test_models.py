"""Finding, checking, fingerprinting and loading base models."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import tiny_models
from hub_server import HubServer

from shammah.errors import ModelError, ModelNotFoundError, NotEnoughMemoryError
from shammah.models.describe import describe
from shammah.models.device import choose_device, choose_dtype
from shammah.models.find import find_model
from shammah.models.fingerprint import fingerprint
from shammah.models.load import BaseModel, load_base_model
from shammah.models.source import EMBEDDED
from shammah.settings import LoraSettings, ModelSettings
from shammah.training.lora import trainable_parameters


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("qwen2", tmp_path_factory.mktemp("qwen2"))


def copy(folder: Path, to: Path) -> Path:
    to.mkdir()
    for file in folder.iterdir():
        (to / file.name).write_bytes(file.read_bytes())
    return to


def test_names_lead_to_the_embedded_model_a_folder_or_the_hub(folder: Path) -> None:
    assert find_model("embedded").path == EMBEDDED
    assert find_model(str(folder)).path == folder
    assert find_model("Qwen/Qwen2.5-0.5B-Instruct").hub_id == "Qwen/Qwen2.5-0.5B-Instruct"
    assert find_model("gpt2").hub_id == "gpt2"


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "", "a b", "x/y/z", "embeded"])
def test_a_name_that_leads_nowhere_says_what_to_give(name: str) -> None:
    with pytest.raises(ModelNotFoundError) as caught:
        find_model(name)
    assert "embedded" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("missing", "words"),
    [
        ("config.json", "config.json is missing"),
        ("model.safetensors", "no .safetensors"),
        ("tokenizer.json", "no tokenizer"),
    ],
)
def test_an_incomplete_folder_is_refused(
    folder: Path, tmp_path: Path, missing: str, words: str
) -> None:
    broken = copy(folder, tmp_path / "broken")
    (broken / missing).unlink()
    with pytest.raises(ModelNotFoundError, match=words):
        load_base_model(ModelSettings(name=str(broken)))


def test_a_pickle_is_refused(folder: Path, tmp_path: Path) -> None:
    pickled = copy(folder, tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    with pytest.raises(ModelError, match="pickled") as caught:
        load_base_model(ModelSettings(name=str(pickled)))
    assert "safetensors" in str(caught.value.hint)


@pytest.mark.parametrize("keep", [0, 7, 400, 20_000])
def test_a_truncated_checkpoint_is_refused(folder: Path, tmp_path: Path, keep: int) -> None:
    broken = copy(folder, tmp_path / "broken")
    whole = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(whole[:keep])
    with pytest.raises(ModelError, match=r"cut short|not a whole"):
        load_base_model(ModelSettings(name=str(broken)))


def test_a_config_of_no_known_model_is_refused(folder: Path, tmp_path: Path) -> None:
    broken = copy(folder, tmp_path / "broken")
    (broken / "config.json").write_text('{"model_type": "no_such_thing"}')
    with pytest.raises(ModelError, match="cannot be used"):
        load_base_model(ModelSettings(name=str(broken)))


def test_too_little_memory_is_said_with_figures_before_loading(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        available = 1000

    monkeypatch.setattr(psutil, "virtual_memory", Full)
    with pytest.raises(NotEnoughMemoryError, match=r"needs about .* MB .* 0 MB are free"):
        load_base_model(ModelSettings(name=str(folder), device="cpu"))


def test_a_device_that_is_not_there_is_refused() -> None:
    import torch

    if not torch.backends.mps.is_available():
        with pytest.raises(ModelError, match="'mps' is not available"):
            choose_device("mps")
    assert choose_device("cpu") == "cpu"


def test_the_number_format_is_the_checkpoints_where_that_is_fast(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import torch

    from shammah.models import device

    monkeypatch.setattr(device, "cpu_has_bf16", lambda: True)
    assert choose_dtype("auto", "cpu", torch.bfloat16) == torch.bfloat16
    assert choose_dtype("auto", "cpu", torch.float32) == torch.float32
    assert choose_dtype("auto", "cpu", torch.float32, 10**9) == torch.bfloat16
    assert choose_dtype("fp32", "cpu", torch.bfloat16) == torch.float32
    monkeypatch.setattr(device, "cpu_has_bf16", lambda: False)
    assert choose_dtype("auto", "cpu", torch.bfloat16) == torch.float32
    assert choose_dtype("auto", "cpu", torch.float32, 10**9) == torch.float32


def test_fingerprints_tell_models_apart_and_copies_not(folder: Path, tmp_path: Path) -> None:
    first = fingerprint(folder)
    assert fingerprint(copy(folder, tmp_path / "copy")) == first
    assert fingerprint(tiny_models.build("qwen2", tmp_path / "seed", seed=1)) != first
    changed = copy(folder, tmp_path / "changed")
    weights = bytearray((changed / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed / "model.safetensors").write_bytes(weights)
    assert fingerprint(changed) != first
    scaled = copy(folder, tmp_path / "scaled")
    config = json.loads((scaled / "config.json").read_text())
    (scaled / "config.json").write_text(json.dumps({**config, "rms_norm_eps": 0.5}))
    assert fingerprint(scaled) != first
    (scaled / "config.json").write_text(json.dumps({**config, "use_cache": False}))
    assert fingerprint(scaled) == first


def test_shards_are_the_same_model_as_one_file(folder: Path, tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    sharded = copy(folder, tmp_path / "sharded")
    (sharded / "model.safetensors").unlink()
    AutoModelForCausalLM.from_pretrained(folder).save_pretrained(sharded, max_shard_size="30KB")
    assert len(list(sharded.glob("model-*.safetensors"))) > 1
    assert fingerprint(sharded) == fingerprint(folder)
    assert load_base_model(ModelSettings(name=str(sharded))).shape.modules
    next(sharded.glob("model-00002*")).unlink()
    with pytest.raises(ModelNotFoundError, match="weight files are missing"):
        load_base_model(ModelSettings(name=str(sharded)))


def test_a_loaded_model_is_frozen_and_described(folder: Path) -> None:
    base = load_base_model(ModelSettings(name=str(folder)))
    assert not base.model.training
    assert not any(parameter.requires_grad for parameter in base.model.parameters())
    assert base.context_length == 512
    assert base.shape.modules["model.layers.0.mlp.down_proj"] == (64, 32)
    assert "lm_head" not in base.shape.modules
    assert len(base.shape.modules) == 2 * 7
    lora = LoraSettings(rank=4, target_modules=["q_proj", "down_proj"], layers=1.0)
    description = describe(base, trainable_parameters(base.model, lora))
    assert description.trainable == 2 * 4 * ((32 + 32) + (64 + 32))
    assert description.special_tokens["stop"] == "<|im_end|>"
    assert (
        description.memory["fp32"]["inference_bytes"]
        > description.memory["bf16"]["inference_bytes"]
    )
    assert description.parameters == sum(p.numel() for p in base.model.parameters())
    assert dict(description.rows())["architecture"] == "Qwen2ForCausalLM"
    assert json.loads(json.dumps(description.to_dict()))["fingerprint"] == base.fingerprint


@pytest.mark.parametrize("kind", tiny_models.KINDS)
def test_every_architecture_loads_with_its_linear_layers(kind: str, tmp_path: Path) -> None:
    base = load_base_model(ModelSettings(name=str(tiny_models.build(kind, tmp_path / kind))))
    assert len(base.shape.modules) >= 2 * 4
    for path, (inputs, outputs) in base.shape.modules.items():
        assert sorted(base.model.get_submodule(path).weight.shape) == sorted((inputs, outputs))


def test_two_processes_share_the_pages_of_a_checkpoint(tmp_path: Path) -> None:
    folder = tiny_models.build(
        "qwen2", tmp_path / "wide", hidden_size=256, intermediate_size=4096, num_hidden_layers=4
    )
    code = (
        "import sys; from shammah.models.load import load_base_model\n"
        "from shammah.settings import ModelSettings\n"
        "base = load_base_model(ModelSettings(name=sys.argv[1], dtype=sys.argv[2]))\n"
        "sum(float(p.sum()) for p in base.model.parameters())\n"
        "print(base.model.model.layers[0].mlp.up_proj.weight.data_ptr(), flush=True)\n"
        "inside = False\n"
        "for line in open('/proc/self/smaps'):\n"
        "    if 'model.safetensors' in line: inside = True\n"
        "    elif '-' in line.split()[0]: inside = False\n"
        "    elif inside and line.startswith('Anonymous:'): print('anonymous', line.split()[1])\n"
        "    elif inside and line.startswith('Rss:'): print('rss', line.split()[1])\n"
    )
    if not Path("/proc/self/smaps").exists():
        pytest.skip("needs /proc/self/smaps")
    done = subprocess.run(
        [sys.executable, "-c", code, str(folder), "auto"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    figures = [line.split() for line in done.stdout.splitlines() if " " in line]
    size = (folder / "model.safetensors").stat().st_size / 1024
    assert sum(int(kib) for what, kib in figures if what == "rss") > 0.9 * size
    assert sum(int(kib) for what, kib in figures if what == "anonymous") == 0


def test_the_embedded_model_is_small_quiet_and_complete(
    embedded_model: BaseModel, capsys: pytest.CaptureFixture[str]
) -> None:
    assert embedded_model.tokenizer.chat_template
    assert embedded_model.stop_tokens
    assert {"q_proj", "v_proj"} <= {path.split(".")[-1] for path in embedded_model.shape.modules}
    load_base_model(ModelSettings())
    assert capsys.readouterr() == ("", "")


def test_a_pretrained_llama_loads(shared_data: Callable[[str], Path]) -> None:
    base = load_base_model(ModelSettings(name=str(shared_data("models/stories260K"))))
    assert any("chat template" in note for note in base.notes)


@pytest.fixture
def hub(folder: Path) -> Iterator[HubServer]:
    with HubServer() as server:
        files = {f.name: f.read_bytes() for f in folder.iterdir() if f.is_file()}
        server.commit("models/me/tiny", files)
        yield server


FETCH = """
import sys
from shammah.errors import ShammahError
from shammah.models.load import locate
lines = []
for name in sys.argv[1:]:
    try:
        path = locate(name, lines.append)
        print("path", path)
    except ShammahError as error:
        print(type(error).__name__, str(error).replace(chr(10), " "))
print("progress", *lines[-1:])
"""


def fetch(home: Path, endpoint: str, *names: str) -> list[str]:
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "NO_PROXY": "*"}
    done = subprocess.run(
        [sys.executable, "-c", FETCH, *names],
        env=environment, capture_output=True, text=True, check=True, timeout=120,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout.splitlines()


def test_a_hub_model_is_downloaded_once_and_then_needs_no_network(
    hub: HubServer, folder: Path, tmp_path: Path
) -> None:
    lines = fetch(tmp_path, hub.endpoint, "me/tiny", "me/none", "me/gated")
    kind, _, place = lines[0].partition(" ")
    assert kind == "path"
    assert fingerprint(Path(place)) == fingerprint(folder)
    assert lines[1].startswith("ModelNotFoundError There is no model me/none on the Hub")
    assert "must be granted first" in lines[2]
    assert "downloading me/tiny" in lines[3]
    before = len(hub.requests)
    again = fetch(tmp_path, hub.endpoint, "me/tiny")
    assert again[0] == lines[0]
    assert len(hub.requests) == before
    offline = fetch(tmp_path, "http://127.0.0.1:9", "me/tiny", "me/other")
    assert offline[0] == lines[0]
    assert "the Hub cannot be reached" in offline[1]
