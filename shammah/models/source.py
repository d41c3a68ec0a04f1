"""Where a model's name leads: the embedded model, a folder, or the Hub.

Looks at names and folders only; reads no weights and needs no network.
"""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from shammah.errors import ModelError, ModelNotFoundError

EMBEDDED = Path(__file__).parent / "embedded"
_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "tekken.json")


@dataclass(frozen=True, slots=True)
class ModelSource:
    """A model's name and where to get it: a folder here, or an id on the Hub.

    `revision` is that of the Hub (None: its default branch), `renderer` how the model is to be
    spoken to (None: as it says itself).
    """

    name: str
    path: Path | None
    hub_id: str | None
    revision: str | None = None
    renderer: str | None = None


def source_of(name: str) -> ModelSource:
    """What a name that is not registered stands for.

    Raises:
        ModelNotFoundError: it is neither `embedded`, nor a folder, nor shaped like a Hub id.
    """
    name = name.strip()
    if name == "embedded":
        return ModelSource(name, EMBEDDED, None)
    folder = Path(name).expanduser()
    if name and folder.is_dir():
        return ModelSource(name, folder.absolute(), None)
    if name.startswith((".", "/", "~")) or "\\" in name or name.count("/") > 1 or folder.exists():
        what = "is a file, not a folder" if folder.is_file() else "does not exist"
        raise ModelNotFoundError(
            f"The model folder {folder} {what}.",
            hint="Give a folder with config.json and safetensors, a Hub id, or `embedded`.",
        )
    if not _HUB_ID.fullmatch(name) or difflib.get_close_matches(name, ["embedded"], cutoff=0.8):
        raise ModelNotFoundError(
            f"{name!r} is not the name of a model.",
            hint="Give `embedded`, a registered name, a local folder, or a Hub id such as "
            "Qwen/Qwen2.5-0.5B-Instruct.",
        )
    return ModelSource(name, None, name)


def check_folder(path: Path) -> None:
    """See that a folder holds a model that can be loaded, before anything is loaded.

    Raises:
        ModelNotFoundError: config, weights or tokenizer are missing.
        ModelError: the weights are pickled, which is never read.
    """
    if not (path / "config.json").is_file():
        raise ModelNotFoundError(
            f"There is no model in {path}: config.json is missing.",
            hint="Give the folder that config.json and the weights are in.",
        )
    if not weight_files(path):
        if any(path.glob("pytorch_model*.bin")) or any(path.glob("*.pt")):
            raise ModelError(
                f"The weights in {path} are pickled, and a pickle can run any code when read.",
                hint="Convert them: load with transformers, `save_pretrained` writes safetensors.",
            )
        raise ModelNotFoundError(
            f"There are no weights in {path}: no .safetensors file.",
            hint="The download may be incomplete; fetch the model again.",
        )
    if not any((path / name).is_file() for name in _TOKENIZER_FILES):
        raise ModelNotFoundError(
            f"There is no tokenizer in {path}.",
            hint=f"One of {', '.join(_TOKENIZER_FILES)} belongs beside the weights.",
        )


def weight_files(path: Path) -> list[Path]:
    """The safetensors files of a model folder, in order of name.

    Raises:
        ModelNotFoundError: the index names a file that is not there.
    """
    index = path / "model.safetensors.index.json"
    if not index.is_file():
        single = path / "model.safetensors"
        return [single] if single.is_file() else []
    names = sorted(set(_weight_map(index).values()))
    missing = [name for name in names if not (path / name).is_file()]
    if missing:
        raise ModelNotFoundError(
            f"{len(missing)} of {len(names)} weight files are missing in {path}: {missing[0]}.",
            hint="The download is incomplete; fetch the model again.",
        )
    return [path / name for name in names]


def _weight_map(index: Path) -> dict[str, str]:
    from pydantic import BaseModel, ValidationError

    class Index(BaseModel):
        weight_map: dict[str, str]

    try:
        found = Index.model_validate_json(index.read_bytes()).weight_map
    except ValidationError as error:
        raise ModelError(
            f"{index} is not an index of weight files.", hint="Fetch the model again."
        ) from error
    if any(Path(name).name != name for name in found.values()):
        raise ModelError(f"{index} names files outside its folder.", hint="Do not use this model.")
    return found
