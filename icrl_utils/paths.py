"""Where files are, what tells one from another, and that they are written whole or not at all."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"
BUILD = ROOT / "build"


@contextmanager
def atomically(path: Path) -> Iterator[Path]:
    """``with atomically(path) as part``: write to ``part``, which becomes ``path`` at the end of the block.

    Whoever reads ``path`` finds the old file or the new one, never half of it. Makes the folder where it is missing.
    An error in the block leaves ``path`` as it was and takes ``part`` away.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def in_repository(path: str | Path) -> Path:
    """``path`` as it is, or else relative to the repository: notebooks run in their own folder."""
    return Path(path) if Path(path).exists() else ROOT / path


def portable_path(path: str | Path) -> str:
    """``path`` relative to the repository, as it may stand in a shipped file: never an absolute one of this machine."""
    return Path(os.path.relpath(in_repository(path), ROOT)).as_posix()


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
