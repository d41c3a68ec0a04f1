"""Merging adapters: against the weighted sum of whole matrices, and against PEFT's own."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny_models
import torch
from command import shammah, shammah_json
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save

from shammah.adapters.combination import combine, relative_error, truncated, weighted_sum
from shammah.adapters.library import Adapter, AdapterLibrary
from shammah.adapters.merge_methods import EXACT, METHODS, OF_ONE_RANK, PRUNING
from shammah.adapters.merging import MergeOptions, merge
from shammah.adapters.metadata import AdapterMetadata, LessonRecord, LoraConfigRecord
from shammah.adapters.peft_format import export_peft
from shammah.adapters.weights import LoraWeights, load_checked
from shammah.errors import (
    AdapterExistsError,
    AdapterInvalidError,
    AdapterNotFoundError,
    ShammahError,
    UsageError,
)
from shammah.models.load import load_base_model, load_shape
from shammah.models.shape import ModelShape
from shammah.settings import ModelSettings
from shammah.storage.database import Database

SIZES = {"model.q": (12, 9), "model.k": (12, 5), "model.down": (7, 12)}


def weights(seed: int, rank: int, scaling: float, layers: str = "qkd") -> LoraWeights:
    random = torch.Generator().manual_seed(seed)
    return LoraWeights(
        {
            path: (
                torch.randn(rank, inputs, generator=random),
                torch.randn(outputs, rank, generator=random),
            )
            for path, (inputs, outputs) in SIZES.items()
            if path[6] in layers
        },
        scaling,
    )


def delta(adapter: LoraWeights, path: str) -> torch.Tensor:
    inputs, outputs = SIZES[path]
    if path not in adapter.modules:
        return torch.zeros(outputs, inputs, dtype=torch.float64)
    a, b = adapter.modules[path]
    return adapter.scaling * b.double() @ a.double()


def total(parts: list[LoraWeights], shares: list[float], path: str) -> torch.Tensor:
    return torch.stack([w * delta(p, path) for p, w in zip(parts, shares, strict=True)]).sum(0)


@settings(max_examples=8, deadline=None)
@given(
    ranks=st.lists(st.integers(1, 6), min_size=2, max_size=4),
    shares=st.lists(st.floats(0.05, 3.0), min_size=4, max_size=4),
    layers=st.lists(st.sampled_from(["qkd", "q", "kd"]), min_size=4, max_size=4),
)
def test_cat_is_the_weighted_sum_whatever_the_ranks_and_layers(
    ranks: list[int], shares: list[float], layers: list[str]
) -> None:
    parts = [weights(n, rank, 0.5 + n, layers[n]) for n, rank in enumerate(ranks)]
    shares = shares[: len(parts)]
    merged = combine(parts, shares, "cat")
    assert merged.scaling == 1.0
    for path in {path for part in parts for path in part.modules}:
        a, b = merged.modules[path]
        assert a.dtype == b.dtype == torch.float32
        assert a.shape[0] == b.shape[1] == sum(ranks)
        torch.testing.assert_close(
            delta(merged, path), total(parts, shares, path), rtol=1e-5, atol=1e-5
        )
    assert relative_error(merged, weighted_sum(parts, shares)) < EXACT


def test_linear_is_not_the_weighted_sum_and_the_error_says_by_how_much() -> None:
    parts, shares = [weights(1, 4, 2.0), weights(2, 4, 0.5)], [0.7, 0.3]
    merged = combine(parts, shares, "linear")
    apart = whole = 0.0
    for path in SIZES:
        wanted = total(parts, shares, path)
        apart += float((delta(merged, path) - wanted).norm() ** 2)
        whole += float(wanted.norm() ** 2)
    error = relative_error(merged, weighted_sum(parts, shares))
    assert error == pytest.approx(math.sqrt(apart / whole), rel=1e-4)
    assert error > 0.3


@pytest.mark.parametrize("rank", [1, 3, 5, 8])
def test_svd_is_the_best_of_its_rank(rank: int) -> None:
    parts, shares = [weights(1, 5, 2.0), weights(2, 3, 0.5)], [0.7, 0.3]
    merged = combine(parts, shares, "svd", rank=rank)
    for path in SIZES:
        left, values, right = torch.linalg.svd(total(parts, shares, path), full_matrices=False)
        best = left[:, :rank] @ torch.diag(values[:rank]) @ right[:rank]
        torch.testing.assert_close(delta(merged, path), best, rtol=1e-4, atol=1e-4)
        assert merged.modules[path][0].shape[0] == rank
    # PEFT's own svd makes whole matrices.
    peft = by_peft(parts, shares, "svd", rank)
    assert relative_error(merged, peft) < 1e-5


def by_peft(
    parts: list[LoraWeights], shares: list[float], method: str, rank: int | None, **more: Any
) -> LoraWeights:
    """What PEFT computes on a model with real weights, given the adapters as they are."""
    from peft import LoraConfig
    from peft.tuners.lora import LoraModel

    model: Any = torch.nn.Module()
    for path, (inputs, outputs) in SIZES.items():
        model.add_module(path[6:], torch.nn.Linear(inputs, outputs, bias=False))
    lora: Any = None
    for number, part in enumerate(parts):
        name, own = str(number), next(iter(part.modules.values()))[0].shape[0]
        config = LoraConfig(
            r=own, lora_alpha=part.scaling * own, target_modules=[p[6:] for p in part.modules]
        )
        if lora is None:
            lora = LoraModel(model, {name: config}, name)
        else:
            lora.peft_config[name] = config
            lora.inject_adapter(model, name)
        for path, (a, b) in part.modules.items():
            layer = getattr(model, path[6:])
            layer.lora_A[name].weight.data, layer.lora_B[name].weight.data = a, b
    torch.manual_seed(0)
    names = [str(number) for number in range(len(parts))]
    more["svd_full_matrices"] = False  # else it fails where a layer is smaller than the rank
    lora.add_weighted_adapter(names, shares, "m", method, svd_rank=rank, **more)
    layers = {path: getattr(model, path[6:]) for path in SIZES}
    return LoraWeights(
        {p: (x.lora_A["m"].weight.data, x.lora_B["m"].weight.data) for p, x in layers.items()}, 1.0
    )


@pytest.mark.parametrize("method", ["linear", "ties", "magnitude_prune", "ties_svd"])
def test_the_other_methods_are_pefts(method: str) -> None:
    parts, shares = [weights(1, 4, 2.0), weights(2, 4, 0.5)], [0.7, 0.3]
    density = 0.5 if method in PRUNING else None
    merged = combine(parts, shares, method, density=density)
    peft = by_peft(parts, shares, method, None, **({"density": density} if density else {}))
    assert relative_error(merged, peft) < 1e-5


@pytest.mark.parametrize("method", METHODS)
def test_every_method_gives_one_finite_rank_and_the_same_twice(method: str) -> None:
    torch.manual_seed(5)
    parts, shares = [weights(1, 6, 2.0), weights(2, 6, 0.5, "qk")], [0.7, 0.3]
    density = 0.5 if method in PRUNING else None
    state = torch.random.get_rng_state()
    first = combine(parts, shares, method, density=density)
    assert torch.equal(torch.random.get_rng_state(), state)
    again = combine(parts, shares, method, density=density)
    rank = 12 if method == "cat" else 6  # a layer of 5 outputs has not more, and gets zeros
    for path, (inputs, outputs) in SIZES.items():
        a, b = first.modules[path]
        assert (a.shape, b.shape) == ((rank, inputs), (outputs, rank))
        assert torch.isfinite(a).all() and torch.isfinite(b).all()
        assert torch.equal(a, again.modules[path][0]) and torch.equal(b, again.modules[path][1])


def test_hundreds_of_layers_keep_their_places() -> None:
    random = torch.Generator().manual_seed(0)
    layers = [f"model.layers.{n}.{name}" for n in range(40) for name in ("q", "k", "up")]
    parts = [
        LoraWeights(
            {
                path: (
                    torch.randn(2, 6, generator=random),
                    torch.randn(4, 2, generator=random),
                )
                for path in layers[::step]
            },
            2.0,
        )
        for step in (1, 3)
    ]
    merged = combine(parts, [0.6, 0.4], "cat")
    assert sorted(merged.modules) == sorted(layers)
    assert relative_error(merged, weighted_sum(parts, [0.6, 0.4])) < EXACT


# --- in the library ---------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_models.build("qwen2", tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def shape(folder: Path) -> ModelShape:
    return load_shape(str(folder))


@pytest.fixture
def library(tmp_path: Path) -> Iterator[AdapterLibrary]:
    database = Database(tmp_path / "shammah.db")
    yield AdapterLibrary(tmp_path / "adapters", database)
    database.close()


Publish = Callable[..., Adapter]


@pytest.fixture
def publish(library: AdapterLibrary, shape: ModelShape, tmp_path: Path) -> Publish:
    return lambda name, seed, rank=4, **changes: published(
        library, shape, tmp_path, name, seed, rank, **changes
    )


def published(
    library: AdapterLibrary,
    shape: ModelShape,
    folder: Path,
    name: str,
    seed: int,
    rank: int = 4,
    *,
    only: str = "",
    rslora: bool = False,
    lessons: list[LessonRecord] | None = None,
    **changes: Any,
) -> Adapter:
    """An adapter of random numbers in a library."""
    random = torch.Generator().manual_seed(seed)
    tensors = {}
    for path, (inputs, outputs) in shape.modules.items():
        if only in path:
            key = f"base_model.model.{path}.lora_"
            tensors[f"{key}A.weight"] = torch.randn(rank, inputs, generator=random) * 0.1
            tensors[f"{key}B.weight"] = torch.randn(outputs, rank, generator=random) * 0.1
    file = folder / f"{name}.safetensors"
    file.write_bytes(save(tensors, {"format": "pt"}))
    names = sorted({path.rpartition(".")[2] for path in shape.modules if only in path})
    values = {
        "name": "",
        "created_at": "2026-02-06T14:30:25Z",
        "base_model": shape.name,
        "base_fingerprint": shape.fingerprint,
        "lora": LoraConfigRecord(rank=rank, alpha=8.0, target_modules=names, rslora=rslora),
        "lessons": lessons or [],
        "sha256": "",
        "tensors": len(tensors),
        "parameters": 0,
    }
    return library.publish(file, AdapterMetadata.model_validate(values | changes), name)


def lesson(number: int, *, weight: float = 1.0, learned: bool = True) -> LessonRecord:
    return LessonRecord(
        feedback_id=number, query=f"q{number}", target=f"t{number}", weight=weight, learned=learned
    )


def test_the_shape_needs_no_weights(folder: Path, shape: ModelShape) -> None:
    assert shape == load_base_model(ModelSettings(name=str(folder))).shape
    assert all(size > 0 for sizes in shape.modules.values() for size in sizes)


def test_a_merged_adapter_is_published_whole(
    library: AdapterLibrary, publish: Publish, shape: ModelShape
) -> None:
    first = publish("one", 1, lessons=[lesson(1), lesson(2, learned=False)])
    # Another rank, other layers, and rsLoRA: alpha / sqrt(rank).
    second = publish(
        "two", 2, 2, only="q_proj", rslora=True, lessons=[lesson(2, weight=3.0), lesson(3)]
    )
    made = merge([first, second], MergeOptions(weights=(0.7, 0.3)), shape, library)
    about = library.get(made.name).require_metadata()
    assert about.origin == "merged" and about.parents == ("one", "two")
    assert about.merge is not None and about.merge.method == "cat"
    assert about.merge.relative_error < EXACT
    assert about.lora.rank == 6 and about.lora.scaling == 1.0
    assert about.lora.target_modules == first.require_metadata().lora.target_modules
    assert [(x.query, x.weight, x.learned) for x in about.lessons] == [
        ("q1", 1.0, True), ("q2", 3.0, True), ("q3", 1.0, True),
    ]  # fmt: skip
    parts = [load_checked(x.path, x.require_metadata(), shape) for x in (first, second)]
    assert parts[1].scaling == pytest.approx(8 / math.sqrt(2))
    whole = load_checked(made.path, about, shape)
    assert relative_error(whole, weighted_sum(parts, [0.7, 0.3])) < EXACT
    # It is one like any other: renamed with its parents, active, merged again.
    library.rename("one", "first")
    assert library.get(made.name).require_metadata().parents == ("first", "two")
    library.activate(shape.fingerprint, made.name)
    small = merge(
        [library.get(made.name), second], MergeOptions(rank=3, name="small"), shape, library
    )
    exported = export_peft(small, library.folder.parent / "out")
    assert json.loads((exported / "adapter_config.json").read_text())["r"] == 3
    about = small.require_metadata()
    assert small.name == "small" and about.merge is not None
    assert (about.merge.method, about.lora.rank) == ("svd", 3)
    assert [parent.weight for parent in about.merge.parents] == [0.5, 0.5]
    again = truncated(load_checked(small.path, about, shape), 3)
    assert relative_error(again, load_checked(small.path, about, shape)) < 1e-5


GOOD = MergeOptions()


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        (replace(GOOD, weights=(1.0,)), UsageError, "2 adapters and 1 weights"),
        (replace(GOOD, weights=(0.5, math.nan)), UsageError, "nan is no weight"),
        (replace(GOOD, weights=(0.5, math.inf)), UsageError, "inf is no weight"),
        (replace(GOOD, weights=(0.5, -0.1)), UsageError, "-0.1 is no weight"),
        (replace(GOOD, weights=(0.5, 0.0)), UsageError, "0 is no weight"),
        (replace(GOOD, weights=(1e300, 1e300)), UsageError, "infinities"),
        (replace(GOOD, method="tis", density=0.5), UsageError, "Did you mean ties?"),
        (replace(GOOD, method="ties"), UsageError, "needs a density"),
        (replace(GOOD, method="cat", density=0.5), UsageError, "takes no density"),
        (replace(GOOD, method="ties", density=0.0), UsageError, "density is 0"),
        (replace(GOOD, method="dare_linear", density=1.5), UsageError, "density is 1.5"),
        (replace(GOOD, method="ties", density=math.nan), UsageError, "density is nan"),
        (replace(GOOD, method="linear", rank=2), UsageError, "use svd"),
        (replace(GOOD, method="ties", density=0.5, rank=2), UsageError, "use ties_svd"),
        (replace(GOOD, rank=0), UsageError, "rank is 0"),
        (replace(GOOD, rank=9), UsageError, "at most 8"),
        (replace(GOOD, name="one"), AdapterExistsError, "already"),
        (replace(GOOD, name="none"), ShammahError, "not a name"),
        (replace(GOOD, name="../x"), ShammahError, "not a name"),
    ],
)
def test_what_cannot_be_merged_is_refused_and_leaves_nothing(
    library: AdapterLibrary,
    publish: Publish,
    shape: ModelShape,
    options: MergeOptions,
    error: type[ShammahError],
    words: str,
) -> None:
    adapters = [publish("one", 1), publish("two", 2)]
    before = sorted(path.name for path in library.folder.iterdir())
    with pytest.raises(error, match=re.escape(words)):
        merge(adapters, options, shape, library)
    assert sorted(path.name for path in library.folder.iterdir()) == before


def test_adapters_that_do_not_go_together_are_refused(
    library: AdapterLibrary, publish: Publish, shape: ModelShape
) -> None:
    one = publish("one", 1)
    with pytest.raises(UsageError, match="two adapters or more"):
        merge([one], GOOD, shape, library)
    with pytest.raises(UsageError, match="named twice"):
        merge([one, one], GOOD, shape, library)
    lower = publish("lower", 2, 2)
    for method in OF_ONE_RANK:
        density = 0.5 if method in PRUNING else None
        with pytest.raises(UsageError, match="one rank: one has 4, lower has 2"):
            merge([one, lower], MergeOptions(method=method, density=density), shape, library)
    other = publish("other", 3, base_fingerprint="e" * 64, base_model="another")
    with pytest.raises(AdapterInvalidError, match="different base models"):
        merge([one, other], GOOD, shape, library)
    broken = publish("broken", 4)
    broken.path.write_bytes(broken.path.read_bytes()[:-4])
    with pytest.raises(AdapterInvalidError, match="cut short"):
        merge([one, broken], GOOD, shape, library)
    # The name of an adapter that was deleted stays its own.
    library.activate(shape.fingerprint, "lower")
    library.activate(shape.fingerprint, None)
    library.delete("lower")
    with pytest.raises(AdapterExistsError, match="history tells of it"):
        merge([one, publish("five", 5)], replace(GOOD, name="lower"), shape, library)
    with pytest.raises(AdapterNotFoundError):
        library.get("lower")


def test_the_command_merges_activates_and_warns(tmp_path: Path, folder: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / "config.toml").write_text(f'[model]\nname = "{folder}"\n')
    shape = load_shape(str(folder))
    database = Database(home / "shammah.db")
    library = AdapterLibrary(home / "adapters", database)
    for number, name in enumerate(("one", "two", "three")):
        published(library, shape, tmp_path, name, number)
    database.close()

    options = ["--method", "linear", "--name", "all", "--activate", "--json"]
    done = shammah(home, "adapters", "merge", "one", "two", "--weights", "0.7,0.3", *options)
    assert done.returncode == 0, done.stderr
    made = json.loads(done.stdout)
    assert (made["name"], made["active"], made["lora"]["rank"]) == ("all", True, 4)
    assert f"{made['merge']['relative_error']:.1%} off the weighted sum" in done.stderr
    listed = {row["name"]: row for row in shammah_json(home, "adapters", "list")}
    assert listed["all"]["active"] and listed["all"]["parent"] == "one"
    assert (listed["one"]["learned"], listed["all"]["learned"]) == (0, None)

    lines = [
        "/adapters merge one two three --name chatty --activate",
        "/adapters merge one two --rank 4",
        "/adapters list",
    ]
    chat = shammah(home, "chat", "--no-train", given="\n".join(lines))
    assert chat.returncode == 0, chat.stderr
    assert "chatty is 0.3333 x one + 0.3333 x two + 0.3333 x three (cat, rank 12)" in chat.stdout
    assert "off the weighted sum" in chat.stdout.partition("(svd, rank 4)")[2]
    assert "*  chatty" in chat.stdout and "?/0" in chat.stdout
    done = shammah(home, "adapters", "merge", "one", "two", "--name", "three")
    assert done.returncode == 5 and "already" in done.stderr
