"""A `HubClient` on the Hugging Face Hub, or a server that speaks its interface.

`huggingface_hub` does the transfers and keeps the cache; `HF_ENDPOINT`, `HF_HOME`, `HF_TOKEN` and
`HF_HUB_OFFLINE` mean here what they mean there. Knows repositories, not what is in them.
"""

from __future__ import annotations

import asyncio
import errno
import io
import shutil
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from shammah.errors import HubError
from shammah.files import storage_error
from shammah.ports.hub_client import HubFile, Progress, RepoKind

Result = TypeVar("Result")

NAME = "Hugging Face Hub"
PICKLES = ("*.bin", "*.pt", "*.pth", "*.pkl", "*.pickle", "*.ckpt", "*.joblib")
"""Files that are, or may be, pickles: none is fetched."""
DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS)


class HuggingFaceHub:
    """The port on `huggingface_hub`.

    Args:
        endpoint: the server; None is `HF_ENDPOINT`, or the Hub itself.
        cache: the folder of the cache; None is the one all of `huggingface_hub` uses.
        token: None is the one of `hf auth login` or `HF_TOKEN`.
    """

    def __init__(
        self, endpoint: str | None = None, *, cache: Path | None = None, token: str | None = None
    ) -> None:
        self._endpoint = endpoint
        self._cache = cache
        self._token = token

    @property
    def name(self) -> str:
        return f"{NAME} ({self._endpoint})" if self._endpoint else NAME

    async def list_files(
        self, repo: str, *, revision: str | None = None, kind: RepoKind = "model"
    ) -> tuple[HubFile, ...]:
        """The port's `list_files`."""

        def ask() -> tuple[HubFile, ...]:
            about = self._api().repo_info(
                repo, revision=revision, repo_type=kind, files_metadata=True
            )
            files = [HubFile(item.rfilename, item.size or 0) for item in about.siblings or ()]
            return tuple(sorted(files, key=lambda file: file.path))

        return await asyncio.to_thread(self._told, repo, kind, ask)

    async def download(
        self, repo: str, path: str, *, revision: str | None = None, kind: RepoKind = "model"
    ) -> Path:
        """The port's `download`."""

        def fetch() -> Path:
            if any(Path(path.lower()).match(pattern) for pattern in PICKLES):
                raise HubError(
                    f"{path} of {repo} may be a pickle, and a pickle can run any code when read.",
                    backend=self.name,
                    hint="Take a .safetensors file instead.",
                )
            return Path(
                self._api().hf_hub_download(
                    repo,
                    path,
                    revision=revision,
                    repo_type=kind,
                    cache_dir=self._cache,
                    tqdm_class=_progress_bar(None),
                )
            )

        return await asyncio.to_thread(self._told, repo, kind, fetch, path)

    async def snapshot(
        self,
        repo: str,
        *,
        revision: str | None = None,
        kind: RepoKind = "model",
        allow: Sequence[str] | None = None,
        cached: bool = False,
        on_progress: Progress | None = None,
    ) -> Path:
        """The port's `snapshot`."""
        return await asyncio.to_thread(
            partial(
                self.blocking_snapshot,
                repo,
                revision=revision,
                kind=kind,
                allow=allow,
                cached=cached,
                on_progress=on_progress,
            )
        )

    def blocking_snapshot(
        self,
        repo: str,
        *,
        revision: str | None = None,
        kind: RepoKind = "model",
        allow: Sequence[str] | None = None,
        cached: bool = False,
        on_progress: Progress | None = None,
    ) -> Path:
        """`snapshot` in the calling thread."""

        def fetch() -> Path:
            get = partial(
                self._api().snapshot_download,
                repo,
                revision=revision,
                repo_type=kind,
                cache_dir=self._cache,
                allow_patterns=None if allow is None else list(allow),
                ignore_patterns=[*PICKLES],
            )
            if cached:
                return Path(get(local_files_only=True))
            try:
                planned = get(dry_run=True, tqdm_class=_progress_bar(None))
            except OSError as error:
                if not _unreachable(error):
                    raise
                try:
                    return Path(get(local_files_only=True))
                except FileNotFoundError:
                    raise error from error.__cause__
            self._check_disk(repo, planned)
            return Path(get(tqdm_class=_progress_bar(on_progress)))

        return self._told(repo, kind, fetch)

    async def upload(
        self,
        repo: str,
        source: Path,
        *,
        to: str = "",
        revision: str | None = None,
        kind: RepoKind = "model",
        message: str = "",
        private: bool = True,
    ) -> str:
        """The port's `upload`; links are followed, a folder's `.git` and cache are left out."""

        def publish() -> str:
            from huggingface_hub import CommitOperationAdd

            files = self._files(source, to)
            api = self._api()
            api.create_repo(repo, repo_type=kind, private=private, exist_ok=True)
            done = api.create_commit(
                repo,
                [CommitOperationAdd(place, path) for place, path in files],
                commit_message=message or f"Upload {source.name}",
                repo_type=kind,
                revision=revision,
            )
            return str(done.commit_url)

        return await asyncio.to_thread(self._told, repo, kind, publish)

    def _files(self, source: Path, to: str) -> list[tuple[str, Path]]:
        """Places in the repository, and the files that go there."""
        from huggingface_hub.utils import DEFAULT_IGNORE_PATTERNS, filter_repo_objects

        if source.is_file():
            return [(to or source.name, source)]
        prefix = f"{to.strip('/')}/" if to.strip("/") else ""
        found = {
            path.relative_to(source).as_posix(): path
            for path in sorted(source.rglob("*"))
            if path.is_file()
        }
        kept = filter_repo_objects(found, ignore_patterns=[*DEFAULT_IGNORE_PATTERNS])
        files = [(prefix + place, found[place]) for place in kept]
        if not files:
            raise HubError(f"there is nothing to publish in {source}.", backend=self.name)
        return files

    def _api(self) -> Any:
        from huggingface_hub import HfApi
        from huggingface_hub.utils import disable_progress_bars

        disable_progress_bars()  # an upload's; a download reports to its own
        return HfApi(endpoint=self._endpoint, token=self._token)

    def _told(
        self, repo: str, kind: RepoKind, call: Callable[[], Result], path: str = ""
    ) -> Result:
        """The call; what goes wrong as the port's error."""
        try:
            return call()
        except HubError:
            raise
        except Exception as error:  # the HTTP library has errors of its own: no name, no route, ...
            cause = _cause(error)
            what = f"{path} of {repo}" if path else repo
            raise self._explain(what, repo, kind, cause) from cause

    def _explain(self, what: str, repo: str, kind: RepoKind, error: BaseException) -> HubError:
        from huggingface_hub import errors

        wrong = partial(HubError, backend=self.name)
        if isinstance(error, errors.GatedRepoError):
            return wrong(
                f"Access to {repo} must be granted first.",
                hint=f"Accept its terms at huggingface.co/{repo}, then run `hf auth login`.",
            )
        if isinstance(error, errors.RepositoryNotFoundError):
            return wrong(
                f"There is no {kind} {repo} on the Hub, or it is private.",
                hint="Check the name; for a private one run `hf auth login` first.",
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return wrong(f"{repo} has no such revision.", hint="Give a branch, a tag or a commit.")
        if isinstance(error, errors.RemoteEntryNotFoundError):
            return wrong(f"There is no {what}.")
        if isinstance(error, errors.HfHubHTTPError):
            return wrong(
                f"{repo}: {str(error).strip().splitlines()[0]}",
                hint="For what needs an account run `hf auth login` first.",
            )
        if isinstance(error, errors.HFValidationError | ValueError):
            return wrong(f"{repo}: {error}")
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            told = storage_error(error, self._cache_folder())
            return wrong(told.message, hint=told.hint)
        if isinstance(error, errors.LocalEntryNotFoundError) and error.__cause__ is None:
            return wrong(f"{what} is not in the local cache.", hint="Fetch it from the Hub first.")
        return wrong(
            f"{what} is not in the local cache and the Hub cannot be reached.",
            hint="Connect and try again, or use a local folder, or `embedded` as the model.",
        )

    def _cache_folder(self) -> Path:
        from huggingface_hub import constants

        return self._cache or Path(constants.HF_HUB_CACHE)

    def _check_disk(self, repo: str, planned: list[Any]) -> None:
        needed = sum(file.file_size or 0 for file in planned if file.will_download)
        folder = self._cache_folder().absolute()
        while not folder.exists():
            folder = folder.parent
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise HubError(
                f"{repo} needs {needed / 1e9:.1f} GB on disk and {folder} has {free / 1e9:.1f} GB.",
                backend=self.name,
                hint="Free some space, or point HF_HOME to a larger disk.",
            ) from OSError(errno.ENOSPC, "No space left on device")


def _cause(error: BaseException) -> BaseException:
    """What stopped a dry run, which tells only of itself."""
    from huggingface_hub.errors import DryRunError

    return error.__cause__ or error if isinstance(error, DryRunError) else error


def _unreachable(error: BaseException) -> bool:
    """Whether the hub gave no answer, rather than one that says no."""
    from huggingface_hub.errors import DryRunError, HfHubHTTPError

    return isinstance(error, DryRunError) and not isinstance(_cause(error), HfHubHTTPError)


def _progress_bar(on_progress: Progress | None) -> type[Any]:
    """A tqdm class that reports bytes to the callback and prints nothing."""
    from tqdm.std import tqdm

    class Bar(tqdm):  # type: ignore[type-arg, misc, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            kwargs.pop("name", None)
            kwargs.update(file=io.StringIO(), mininterval=0.5, disable=False)
            super().__init__(*args, **kwargs)

        def display(self, *args: Any, **kwargs: Any) -> bool:
            if on_progress is not None and self.unit == "B" and self.total:
                on_progress(int(self.n), int(self.total))
            return True

    return Bar
