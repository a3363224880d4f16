"""Load any Llama, from a folder or from the Hub: a frozen base, in 4 bits if asked for, with two float32 adapters.

What cannot work is refused before weights are downloaded or memory is taken: everything that decides it stands in
the checkpoint's config.json and tokenizer.

A saved adapter can be shared by peft's own ``PeftModel.from_pretrained(base, folder).push_to_hub("you/name")`` and
loaded by ``PeftModel.from_pretrained(base, "you/name")``. Nothing here needs that.
"""

from __future__ import annotations

import hashlib
import importlib.util
from collections.abc import Callable
from pathlib import Path

import torch
from huggingface_hub.errors import GatedRepoError
from peft import PeftModel
from peft.tuners.ia3 import IA3Layer
from torch import nn
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PretrainedConfig,
    PreTrainedModel,
)

from icrl_utils.attention import attention_for
from icrl_utils.hardware import has_ampere, resolve_precision
from icrl_utils.history import HistoryFormat
from icrl_utils.models import CONTEXT, add_adapters, check_adapter, file_sha256, in_repository, never_repack
from icrl_utils.profiles import PROFILES
from icrl_utils.tokenizers import make_paper_tokenizer
from icrl_utils.versions import INSTALL

QUANTIZATIONS = (None, "nf4")
DTYPES = {"no": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def load_model(
    name_or_path: str | Path,
    quantization: str | None = "nf4",
    adapter: str = "lora",
    rank: int = 32,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
    history: str = "paper",
    seed: int = 0,
) -> tuple[PeftModel, HistoryFormat]:
    """A frozen Llama with an online and a target adapter in float32, and the history format of its tokenizer.

    Args:
        name_or_path: a folder (also relative to the repository) or a name on the Hugging Face Hub.
        quantization: ``"nf4"`` keeps the projections in 4 bits (about 0.52 bytes a weight, with double quantization);
            embedding, norms and lm_head stay in ``dtype``. None: all of the base in ``dtype``.
        adapter, rank, seed: see `models.add_adapters`.
        device: by default the GPU where there is one.
        dtype: of the base's computation; by default what the device has in hardware, see `compute_dtype`.
        history: ``"paper"``, or ``"compact"`` for the tiny Llama.

    The model is in training mode (Llama has no dropout), which `models.checkpoint_activations` needs.

    Raises:
        ValueError: a checkpoint that is no causal Llama or is quantized already, a tokenizer that splits the action
            words, bfloat16 on a card without it, no such device, an unknown adapter or quantization.
            FileNotFoundError: no such checkpoint. PermissionError: gated weights. ImportError: no bitsandbytes.
    """
    check_adapter(adapter, rank)
    load = plan_load(name_or_path, quantization, device, dtype)
    text = load_history(name_or_path, history)
    model = add_adapters(load(), adapter, rank, seed)
    return keep_dtype(model).train(), text


def load_llama(
    name_or_path: str | Path,
    quantization: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """The base alone, in evaluation mode; arguments and errors as in `load_model`."""
    return plan_load(name_or_path, quantization, device, dtype)()


def plan_load(
    name_or_path: str | Path, quantization: str | None, device: str | torch.device | None, dtype: torch.dtype | None
) -> Callable[[], PreTrainedModel]:
    """All checks of `load_llama`; what it returns does the loading."""
    if quantization not in QUANTIZATIONS:
        raise ValueError(f"quantization={quantization!r} is unknown; choose 'nf4' or None.")
    if quantization and importlib.util.find_spec("bitsandbytes") is None:
        raise ImportError(
            f"quantization={quantization!r} needs bitsandbytes: run `{INSTALL} bitsandbytes`, or "
            "pass quantization=None (four times the memory for the weights)."
        )
    device = existing_device(device)
    dtype = compute_dtype(device, dtype)
    check_checkpoint(name_or_path)

    def load() -> PreTrainedModel:
        nf4 = quantization and BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
        )
        model = AutoModelForCausalLM.from_pretrained(
            _source(name_or_path),
            dtype=dtype,
            quantization_config=nf4,
            device_map={"": device},  # straight to the device: a whole 8B model may not fit into main memory
            attn_implementation=attention_for(device, dtype),
        )
        return never_repack(model).eval()

    return load


def existing_device(device: str | torch.device | None) -> torch.device:
    """``device``, or by default the GPU where there is one. Raises ValueError where it is neither a GPU that torch
    sees nor the CPU."""
    gpus = torch.cuda.device_count()
    try:
        found = torch.device(device or ("cuda" if gpus else "cpu"))
    except RuntimeError:
        found = None
    if found and (found.type == "cpu" or found.type == "cuda" and (found.index or 0) < gpus):
        return found
    raise ValueError(
        f"device={str(device)!r} is not here: torch sees the CPU and {gpus} CUDA GPUs; leave device out, or pass 'cpu'."
    )


def compute_dtype(device: torch.device, dtype: torch.dtype | None = None) -> torch.dtype:
    """``dtype``, or by default what ``device`` multiplies fast: bfloat16 from Ampere on, float16 on older cards such
    as the T4 (which emulates bfloat16 and calls that supported), float32 on a CPU.

    Raises ValueError for a dtype that ``device`` does not have.
    """
    cpu = device.type == "cpu"
    if dtype is None:
        return DTYPES[resolve_precision("auto", cpu)]
    if dtype not in DTYPES.values():
        raise ValueError(
            f"dtype={dtype!r} cannot be computed in; choose one of {', '.join(map(str, DTYPES.values()))}."
        )
    if dtype == torch.float16 and cpu:
        raise ValueError("dtype=torch.float16 needs a CUDA GPU; leave dtype out, or pass torch.float32.")
    if dtype == torch.bfloat16 and not cpu and not has_ampere(device):
        raise ValueError(
            f"dtype=torch.bfloat16: {torch.cuda.get_device_name(device)} has no bfloat16 in hardware and would emulate "
            "it slowly; leave dtype out, or pass torch.float16."
        )
    return dtype


def check_checkpoint(name_or_path: str | Path, argument: str = "name_or_path") -> dict:
    """The checkpoint's config.json, the only file that is read here. Raises the errors of `load_model` about it, which
    call it ``argument``."""
    shown = f"{argument}={str(name_or_path)!r}"
    try:
        config, _ = PretrainedConfig.get_config_dict(_source(name_or_path))
    except OSError as error:
        if isinstance(error.__cause__, GatedRepoError):
            raise PermissionError(
                f"{shown} is gated: accept its licence on https://huggingface.co/{name_or_path} and run `hf auth "
                f"login`, or name an ungated Llama, for example {PROFILES['t4'].base!r}."
            ) from error
        config = {}
    if not config:
        raise FileNotFoundError(
            f"{shown} is neither a folder with a config.json nor a checkpoint that the Hugging Face Hub has or that "
            "was downloaded before; check the spelling and the connection."
        )
    if config.get("model_type") != "llama":
        raise ValueError(
            f"{shown} is a {config.get('model_type')!r} model, but adapters and read-out know the modules of Llama "
            f"only; name a checkpoint whose config.json says model_type 'llama', for example {PROFILES['t4'].base!r}."
        )
    if "LlamaForCausalLM" not in (config.get("architectures") or []):
        raise ValueError(
            f"{shown} is a {config.get('architectures')}, which has no next-token logits to read as Q-values; name a "
            "checkpoint with the architecture LlamaForCausalLM."
        )
    if "quantization_config" in config:
        raise ValueError(
            f"{shown} is quantized already; name the original checkpoint and pass quantization='nf4' for 4 bits."
        )
    return config


def load_history(name_or_path: str | Path, history: str, argument: str = "name_or_path") -> HistoryFormat:
    """The history format named ``history`` with the checkpoint's tokenizer; weights are not touched.

    Raises ValueError if the checkpoint cannot read that format, and the errors of `check_checkpoint`.
    """
    rows = check_checkpoint(name_or_path, argument)["vocab_size"]
    tokenizer = AutoTokenizer.from_pretrained(_source(name_or_path)) if history == "paper" else None
    text = HistoryFormat(history, tokenizer)
    fits = rows >= text.vocab_size if tokenizer else rows == text.vocab_size
    if not fits:
        other = "resize the embeddings to the tokenizer and save both" if tokenizer else "use the format 'paper'"
        raise ValueError(
            f"history={history!r} has {text.vocab_size} tokens, but {str(name_or_path)!r} has {rows} embedding rows: "
            f"{other}."
        )
    return text


def save_small_llama(folder: str | Path, seed: int = 0) -> Path:
    """A checkpoint to try everything with: random, small, and saved as Llama 3 is, with bfloat16 weights, heads that
    share keys and values, scaled RoPE, and a byte-level tokenizer with Llama 3's special tokens. Returns ``folder``."""
    tokenizer = make_paper_tokenizer()
    rope = {"rope_type": "llama3", "rope_theta": 500_000.0, "factor": 8.0, "low_freq_factor": 1.0,
            "high_freq_factor": 4.0, "original_max_position_embeddings": 256}  # fmt: skip
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=CONTEXT, rope_parameters=rope,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name or "embed" in name:
                parameter.mul_(6)  # what comes out depends on the whole history
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)


def checkpoint_id(name_or_path: str | Path) -> str:
    """What tells one base from another: the sha256 of a folder's weights, or the commit of a checkpoint on the Hub."""
    if not in_repository(name_or_path).is_dir():
        return f"commit {check_checkpoint(name_or_path)['_commit_hash']}"
    hashes = [file_sha256(file) for file in sorted(in_repository(name_or_path).glob("model*.safetensors"))]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def keep_dtype(model: nn.Module) -> nn.Module:
    """Let 4-bit layers with IA3 answer in the dtype in which they were asked, as all others do.

    Without it peft returns float32 for them, and attention refuses keys and queries of different dtypes.
    """
    for module in model.modules():
        if isinstance(module, IA3Layer):
            module.register_forward_hook(lambda _, inputs, output: output.to(inputs[0].dtype))
    return model


def _source(name_or_path: str | Path) -> str:
    """What ``from_pretrained`` takes: a folder, also one in the repository, or a name on the Hub."""
    folder = in_repository(name_or_path)
    return str(folder if folder.is_dir() else name_or_path)
