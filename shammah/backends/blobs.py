"""Which `BlobStore` a path or URL leads to. Knows the backends; they do not know it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from shammah.ports.blob_store import BlobStore


def open_blobs(location: str | Path, **options: Any) -> BlobStore:
    """The store at a folder's path, or at a URL such as `s3://bucket/folder`.

    Args:
        options: what fsspec's file system takes beside the URL.

    Raises:
        BlobError: the URL's protocol is not known here, or options were given with a path.
    """
    from shammah.backends.file_blobs import FileBlobs
    from shammah.backends.fsspec_blobs import FsspecBlobs
    from shammah.errors import BlobError

    if isinstance(location, str) and "://" in location and not location.startswith("file://"):
        return FsspecBlobs(location, **options)
    if options:
        raise BlobError(f"a folder takes no options: {', '.join(options)}.", backend=str(location))
    return FileBlobs(str(location).removeprefix("file://"))
