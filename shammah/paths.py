"""Where things are on disk. Knows names and places, not contents."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from shammah.files import private_folder


@dataclass(frozen=True, slots=True)
class Paths:
    """The two folders everything lives in, and the places inside them."""

    data: Path
    config: Path
    settings_file: Path | None = None
    """A settings file chosen by name; None is `config.toml` in the config folder."""

    @classmethod
    def default(cls) -> Paths:
        """`SHAMMAH_HOME` puts data and config into one folder; else the platform's own places."""
        home = os.environ.get("SHAMMAH_HOME")
        if home:
            folder = Path(home).expanduser().absolute()
            return cls(data=folder, config=folder)
        import platformdirs

        return cls(
            data=Path(platformdirs.user_data_dir("shammah", appauthor=False)),
            config=Path(platformdirs.user_config_dir("shammah", appauthor=False)),
        )

    def ensure(self) -> Paths:
        """Make the folders (0700).

        Raises:
            StorageError: a folder cannot be made.
        """
        for folder in (self.data, self.config, self.adapters, self.jobs):
            private_folder(folder)
        return self

    @property
    def database(self) -> Path:
        return self.data / "shammah.db"

    @property
    def adapters(self) -> Path:
        return self.data / "adapters"

    def anchors(self, fingerprint: str) -> Path:
        """The anchors that were sampled from a base model that ships none."""
        return self.data / "anchors" / f"{fingerprint[:32]}.jsonl"

    @property
    def embeddings(self) -> Path:
        """Vectors of what adapters were taught; made again where they are missing."""
        return self.data / "embeddings"

    @property
    def jobs(self) -> Path:
        return self.data / "jobs"

    @property
    def runs(self) -> Path:
        """Runs of recipes, one in each folder."""
        return self.data / "runs"

    @property
    def evaluations(self) -> Path:
        """Runs of `shammah eval` that were given no folder, one in each."""
        return self.data / "evaluations"

    @property
    def history(self) -> Path:
        return self.data / "history"

    @property
    def log(self) -> Path:
        return self.data / "shammah.log"

    @property
    def config_file(self) -> Path:
        return self.settings_file or self.config / "config.toml"

    @property
    def models_file(self) -> Path:
        """The models that have a short name."""
        return self.config / "models.toml"
