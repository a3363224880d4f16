"""Where files are, what tells one from another, and that they are written whole or not at all."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
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


def write_csv(path: str | Path, rows: Iterable[Mapping[str, object]], columns: Sequence[str] | None = None) -> None:
    """Write ``rows`` whole or not at all, gzipped where ``path`` ends in .gz (the same rows give the same file).

    The columns are by default all that occur, in the order of their first appearance.
    """
    rows, text = list(rows), io.StringIO()
    if columns is None:
        columns = list(dict.fromkeys(name for row in rows for name in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    data = text.getvalue().encode()
    with atomically(Path(path)) as part:
        part.write_bytes(gzip.compress(data, mtime=0) if Path(path).suffix == ".gz" else data)


def in_repository(path: str | Path) -> Path:
    """``path`` as it is, or else relative to the repository: notebooks run in their own folder."""
    return Path(path) if Path(path).exists() else ROOT / path


def portable_path(path: str | Path) -> str:
    """``path`` relative to the repository, as it may stand in a shipped file: never an absolute one of this machine."""
    return Path(os.path.relpath(in_repository(path), ROOT)).as_posix()


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
