"""The shell and git answers of the corpus: their bash blocks parse and do what they say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "scripts"))

from embedded_model.corpus import Answer, load_corpus  # noqa: E402

FENCE = re.compile(r"```bash\n(.*?)```", re.DOTALL)
SECONDS = 10

pytestmark = pytest.mark.skipif(
    not (shutil.which("bash") and shutil.which("git")), reason="needs bash and git"
)


def fences(topic: str) -> list[tuple[Answer, str]]:
    """Every bash block of a topic's answers, follow-ups and rewrites, with its answer."""
    found = []
    for answer in load_corpus().answers:
        if answer.topic != topic:
            continue
        texts = [answer.text]
        texts += [follow.answer for follow in answer.follow_ups]
        texts += [revision.answer for revision in answer.revisions]
        found += [(answer, code) for text in texts for code in FENCE.findall(text)]
    return found


def environment(home: Path) -> dict[str, str]:
    """An environment in which neither bash nor git sees the files of the user."""
    kept = {name: os.environ[name] for name in ("PATH", "TMPDIR") if name in os.environ}
    return kept | {
        "HOME": str(home),
        "USER": "me",
        "LC_ALL": "C.UTF-8",
        "GIT_CONFIG_GLOBAL": str(home / ".gitconfig"),
        "GIT_CONFIG_NOSYSTEM": "1",
        "GIT_EDITOR": "true",
        "GIT_PAGER": "cat",
        "GIT_TERMINAL_PROMPT": "0",
    }


def bash(code: str, folder: Path, home: Path, *options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", "--noprofile", "--norc", *options, "-c", code],
        cwd=folder,
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=SECONDS,
        check=False,
    )


REPOSITORY = """
git config --global user.name Me
git config --global user.email me@example.org
git config --global init.defaultBranch main
git init -q
echo one > a.txt
git add a.txt
git commit -qm first
echo two >> a.txt
git commit -qam second
"""


@pytest.mark.parametrize("topic", ["shell", "git"])
def test_bash_blocks_parse_and_run(topic: str, tmp_path: Path) -> None:
    home = tmp_path / "home"
    start = tmp_path / "start"
    home.mkdir()
    start.mkdir()
    if topic == "git":
        done = bash(REPOSITORY, start, home, "-e")
        assert done.returncode == 0, done.stdout
    failed = []
    count = 0
    for number, (answer, code) in enumerate(fences(topic)):
        done = bash(code, tmp_path, home, "-n")
        if done.returncode == 0 and answer.run:
            count += 1
            # Each block gets a folder and a home of its own, so that none helps another.
            work, house = tmp_path / f"{number}" / "work", tmp_path / f"{number}" / "home"
            shutil.copytree(start, work)
            shutil.copytree(home, house)
            done = bash(f"{answer.setup}\n{code}", work, house, "-e")
        if done.returncode != 0:
            failed.append(f"{answer.id}: {code}{done.stdout}")
    assert not failed, "\n".join(failed)
    assert count > 5
