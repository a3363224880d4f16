"""Where files are, what tells one from another, and that they are written whole or not at all."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
ASSETS = ROOT / "assets"
BUILD = ROOT / "build"
LANGUAGE_MODEL = BUILD / "smollm2-135m"  # made by llama/language_model.py
CONVERSION = "conversion.json"  # beside weights that were converted: from what, and what came out


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
    """``path`` relative to the repository, as it may stand in a shipped file. From another drive of Windows, and only
    from there, no relative path leads here: then it is absolute."""
    found = in_repository(path)
    try:
        return Path(os.path.relpath(found, ROOT)).as_posix()
    except ValueError:
        return found.resolve().as_posix()


def check_writable(folder: str | Path, argument: str) -> None:
    """Raises PermissionError naming ``argument`` where no file can be made in ``folder``. It is looked at before work
    begins, so that its results can be saved. A folder that is not there yet is not made."""
    folder = Path(folder)
    place = next((place for place in (folder, *folder.parents) if place.exists()), folder)
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        raise PermissionError(
            f"{argument}={str(folder)!r}: no file can be written in {place} ({error.strerror}); choose a folder of "
            "your own, or copy the course to where you may write."
        ) from error


def read_json(path: Path, *names: str) -> dict[str, Any]:
    """The object in a JSON file. Raises ValueError naming the file where it is cut or has no entry of ``names``."""
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        missing = [name for name in names if name not in facts] if isinstance(facts, dict) else ["object"]
        fault = f"no {', '.join(missing)}" if missing else ""
    except ValueError as error:
        fault = str(error)
    if fault:
        raise ValueError(
            f"{path} is damaged ({fault}): restore it from a copy (a shipped one with `git checkout`), or remove its "
            "folder and make it again."
        )
    return facts


def json_sha256(path: Path, without: tuple[str, ...] = ()) -> str:
    """sha256 of what a JSON file says, however it is written down, but for the entries ``without``."""
    said = {name: value for name, value in read_json(path).items() if name not in without}
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def config_sha256(folder: Path) -> str:
    """`json_sha256` of the config beside the weights in ``folder``, of an adapter or of a whole model. Both together
    are a function; left out is what only says where and by what they were made."""
    adapter = folder / "adapter_config.json"
    made_by = ("base_model_name_or_path", "revision", "peft_version", "transformers_version", "_name_or_path")
    return json_sha256(adapter if adapter.exists() else folder / "config.json", without=made_by)


def file_sha256(path: str | Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def converted_from(folder: Path) -> str | None:
    """sha256 of the GGUF from which `llama.language_model` converted the checkpoint in ``folder``; None for others.

    Raises ValueError where its weights are not those that were written then.
    """
    if not (folder / CONVERSION).exists():
        return None
    made = read_json(folder / CONVERSION, "sha256", "weights_sha256")
    weights = folder / "model.safetensors"
    if not weights.exists() or file_sha256(weights) != made["weights_sha256"]:
        raise ValueError(
            f"{weights} is not what was converted from {made.get('file')} (sha256 differs): remove the folder and make "
            "it again with `python -m icrl_utils language-model`."
        )
    return str(made["sha256"])
