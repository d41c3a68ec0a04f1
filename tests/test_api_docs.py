"""docs/api.md has every name of the public Python API and nothing else, and its examples run."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import inspect
import io
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from command import BEGAN, ROOT

import shammah

PAGE = (ROOT / "docs" / "api.md").read_text("utf-8")
NAMES = re.compile(r"^- `(\w+)\(([^`]*)\)`:", re.MULTILINE)
EXAMPLES = re.compile(
    r"^```python\n(.*?)^```\n(?:\n^```text\n(.*?)^```\n)?", re.MULTILINE | re.DOTALL
)
TYPED = """
import asyncio
from pathlib import Path

import shammah


@shammah.stage(needs=("rows",), gives=("count",))
def count(context: shammah.Context) -> None:
    context.state["count"] = len(context.state["rows"])


class Word:
    name = "word"

    async def score(self, output: str, target: str, metadata: object) -> shammah.Score:
        return shammah.Score(float(output == target), {"said": output})


class Kept(shammah.RunLogger):
    tool = "kept"

    def log_metrics(self, metrics: object, step: int) -> None:
        print(step)


async def main() -> None:
    recipe = shammah.SupervisedFineTuning(
        data="faq.csv", epochs=3, lora=shammah.LoraConfig(rank=8), hooks=("norm",)
    )
    result: shammah.Result = await recipe.run(run_id="a")
    loss: float = result.metrics["final_loss"]
    adapter: Path = result.artifacts["adapter"]
    flow = shammah.workflow("flow", count, shammah.loop(count, over="rows"), recipe.workflow())
    again = await shammah.run(flow, {}, state={"rows": [1]}, folder=Path("run"), resume=True)
    text: str = shammah.describe(flow)
    async with shammah.Assistant() as helper:
        said: str = await helper.ask("What is a tuple?").text()
    async with shammah.local_completer("embedded", max_tokens=20) as model:
        examples = list(shammah.open_dataset("faq.csv").take(3).examples())
        results = await shammah.evaluate(examples, model, [shammah.scorer("exact_match"), Word()])
        passed: bool = shammah.validate_quality(shammah.report(results), {"word": 0.5}).passed
    try:
        await shammah.DPO(data="pairs.jsonl", loss="dpo:beta=0.2").run()
    except shammah.WorkflowError as error:
        print(error.stage, loss, adapter, again.ended, text, said, passed)


shammah.register_logger("kept", lambda run: Kept())
shammah.register_hook("count", lambda gradients: {"tensors": float(len(gradients.names))})
shammah.register_loss("half", lambda logprobs, inputs: -(logprobs * inputs["weights"]).sum() / 2)
asyncio.run(main())
"""


def test_the_page_has_every_name_and_its_parameters() -> None:
    described = dict(NAMES.findall(PAGE))
    assert sorted(described) == sorted(shammah._PLACES)
    assert len(NAMES.findall(PAGE)) == len(described)
    for name, text in described.items():
        part = text.removesuffix(", ...")
        (function,) = ast.parse(f"def described({part}): ...").body
        assert isinstance(function, ast.FunctionDef)
        given = function.args
        parameters = (*given.args, *given.kwonlyargs, given.vararg, given.kwarg)
        said = {each.arg for each in parameters if each is not None}
        found = getattr(shammah, name)
        fields = getattr(found, "model_fields", {})
        known = set(fields) or _parameters(found)
        if part == text:
            assert said == known, name
        else:
            needed = {key for key, field in fields.items() if field.is_required()}
            assert needed <= said <= known, name
    # The examples use each of them.
    code = "".join(example for example, _ in EXAMPLES.findall(PAGE))
    unused = {name for name in described if f"shammah.{name}" not in code}
    recipes = {"DPO", "RewardModeling", "Reinforcement", "Distillation", "FeedbackLoop"}
    assert unused <= {*recipes, "Gradients", "Renderer", "Result", "RunIdentity"}


def test_the_examples_print_what_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SHAMMAH_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    examples = EXAMPLES.findall(PAGE)
    assert len(examples) >= 8 and all(printed for _, printed in examples)
    printed = _run([code for code, _ in examples])
    for (code, wanted), found in zip(examples, printed, strict=True):
        assert found == wanted, code


def test_importing_it_imports_next_to_nothing() -> None:
    code = (
        "import sys; before = set(sys.modules); import shammah; shammah.__version__; dir(shammah);"
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    done = _python("-c", code)
    ours = set(done.stdout.split()) - set(sys.stdlib_module_names)
    assert ours == {"shammah"}
    heavy = {"torch", "transformers", "peft", "sqlalchemy", "datasets"}
    # Nor do the names that a script begins with: what they stand for is loaded when it works.
    for name in ("Assistant", "SupervisedFineTuning", "workflow", "open_dataset", "Settings"):
        done = _python("-c", f"import sys, shammah; shammah.{name}; print(*sys.modules)")
        assert not heavy & set(done.stdout.split()), name


def test_what_type_checkers_see_is_what_is_there() -> None:
    tree = ast.parse(Path(inspect.getfile(shammah)).read_text())
    (block,) = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        each.asname: f"{node.module}:{each.name}"
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for each in node.names
    }
    assert seen == shammah._PLACES
    assert sorted(shammah.__all__) == sorted(shammah._PLACES)
    assert all(getattr(shammah, name) is not None for name in shammah._PLACES)
    assert set(shammah._PLACES) <= set(dir(shammah))
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = shammah.nothing


def test_a_program_of_a_user_passes_mypy_strict(tmp_path: Path) -> None:
    # As it is where the package is installed: beside others, and without this project's settings.
    site = tmp_path / "site"
    site.mkdir()
    (site / "shammah").symlink_to(ROOT / "shammah", target_is_directory=True)
    assert (ROOT / "shammah" / "py.typed").is_file()
    config = tmp_path / "mypy.ini"
    # What the API is made of takes mypy a minute to read, and is in none of its signatures.
    skipped = "torch.*,transformers.*,peft.*,sqlalchemy.*,rich.*,prompt_toolkit.*,numpy.*"
    config.write_text(f"[mypy]\nstrict = true\n[mypy-{skipped}]\nfollow_imports = skip\n")

    def checked(text: str) -> subprocess.CompletedProcess[str]:
        program = tmp_path / "program.py"
        program.write_text(text)
        options = ["--config-file", config, "--cache-dir", tmp_path / "cache", program]
        arguments = ("-m", "mypy", "--follow-imports", "silent", *map(str, options))
        return _python(*arguments, MYPYPATH=str(site))

    done = checked(TYPED)
    assert done.returncode == 0, done.stdout
    assert "Incompatible types" in checked(TYPED.replace("loss: float", "loss: str")).stdout


def _parameters(found: Any) -> set[str]:
    return set() if found is shammah.Renderer else set(inspect.signature(found).parameters)


def _run(blocks: list[str]) -> list[str]:
    """What each block prints, one after the other in one loop, as `python -m asyncio` has it."""
    names: dict[str, Any] = {"__name__": "__main__"}
    printed = []

    async def work() -> None:
        for code in blocks:
            flags = ast.PyCF_ALLOW_TOP_LEVEL_AWAIT
            compiled = compile(code, "docs/api.md", "exec", flags, dont_inherit=True)
            out = io.StringIO()
            with contextlib.redirect_stdout(out):
                waited = eval(compiled, names)
                if inspect.isawaitable(waited):
                    await waited
            printed.append(out.getvalue())

    asyncio.run(work())
    return printed


def _python(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    wanted = {**BEGAN, **environment}
    return subprocess.run(
        [sys.executable, *arguments], cwd=ROOT, env=wanted, capture_output=True, text=True,
        timeout=300, check=False,
    )  # fmt: skip
