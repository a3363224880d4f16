"""Get a Llama, tiny or real: from a folder or the Hub, in 4 bits if asked for, or a new one with random weights.

What cannot work is refused before weights are downloaded or memory is taken: everything that decides it stands in
the checkpoint's config.json and tokenizer.

A saved adapter can be shared by peft's own ``PeftModel.from_pretrained(base, folder).push_to_hub("you/name")`` and
loaded by ``PeftModel.from_pretrained(base, "you/name")``. Nothing here needs that.
"""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path

import torch
from huggingface_hub.errors import GatedRepoError
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

from icrl_utils.hardware import compute_dtype, existing_device
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.tokenizers import make_paper_tokenizer
from icrl_utils.llama.adapters import never_repack
from icrl_utils.llama.attention import attention_for
from icrl_utils.paths import LANGUAGE_MODEL, converted_from, file_sha256, in_repository
from icrl_utils.profiles import PROFILES
from icrl_utils.versions import INSTALL

QUANTIZATIONS = (None, "nf4")
CONTEXT = 8192  # tokens; thirty episodes of 100-step loops are 6,060 in the compact format


def load_llama(
    name_or_path: str | Path,
    quantization: str | None = None,
    device: str | torch.device | None = None,
    dtype: torch.dtype | None = None,
) -> PreTrainedModel:
    """A Llama in evaluation mode, to be frozen and trained by `adapters.add_adapters`.

    Args:
        name_or_path: a folder (also relative to the repository) or a name on the Hugging Face Hub.
        quantization: ``"nf4"`` keeps the projections in 4 bits (about 0.52 bytes a weight, with double quantization);
            embedding, norms and lm_head stay in ``dtype``. None: all of the base in ``dtype``.
        device: by default the GPU where there is one.
        dtype: of the base's computation; by default what the device has in hardware, see `compute_dtype`.

    Raises, before weights are loaded:
        ValueError: a checkpoint that is no causal Llama or is quantized already, bfloat16 on a card without it, no such
            device, an unknown quantization.
        FileNotFoundError: no such checkpoint. PermissionError: gated weights. ImportError: no bitsandbytes.
    """
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


def check_checkpoint(name_or_path: str | Path, argument: str = "name_or_path") -> dict:
    """The checkpoint's config.json, the only file that is read here. Raises the errors of `load_llama` about it, which
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
    if not config and in_repository(name_or_path) == LANGUAGE_MODEL:
        raise FileNotFoundError(f"{shown} is not there yet: make it with `python -m icrl_utils language-model`.")
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


def load_base(path: str | Path, device: str | torch.device = "cpu", **config) -> PreTrainedModel:
    """Load a causal Llama checkpoint in float32 from a local folder (the tiny Llama), in evaluation mode.

    ``config`` replaces entries of its config.json.
    """
    model = AutoModelForCausalLM.from_pretrained(base_folder(path), dtype=torch.float32, **config)
    nn.Module.to(model, device)  # model.to is the same, but wrongly typed
    return model.eval()


def base_folder(path: str | Path) -> Path:
    """The folder of a checkpoint, see `in_repository`. Raises FileNotFoundError where there is none."""
    folder = in_repository(path)
    if not (folder / "config.json").exists():
        raise FileNotFoundError(
            f"base={str(path)!r} holds no config.json; name a folder with a Hugging Face checkpoint, "
            "for example assets/tiny-llama (remade by `python -m icrl_utils pretrain`)."
        )
    return folder


def checkpoint_id(name_or_path: str | Path) -> str:
    """What tells one base from another: the sha256 of a folder's weights, or of the GGUF that they were converted from
    (`language_model`), or the commit of a checkpoint on the Hub. Raises ValueError where converted weights were
    altered."""
    folder = in_repository(name_or_path)
    if not folder.is_dir():
        return f"commit {check_checkpoint(name_or_path)['_commit_hash']}"
    if gguf := converted_from(folder):
        return gguf
    hashes = [file_sha256(file) for file in sorted(folder.glob("model*.safetensors"))]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def _source(name_or_path: str | Path) -> str:
    """What ``from_pretrained`` takes: a folder, also one in the repository, or a name on the Hub."""
    folder = in_repository(name_or_path)
    return str(folder if folder.is_dir() else name_or_path)


def parameter_count(model: nn.Module) -> int:
    """Number of weights. In 4 bits two of them share a byte."""
    return sum(p.numel() * (2 if p.dtype == torch.uint8 else 1) for p in model.parameters())


def new_tiny_llama(
    vocab_size: int,
    action_ids,
    hidden: int = 128,
    layers: int = 4,
    heads: int = 4,
    rope_theta: float = 10_000.0,
    seed: int = 0,
) -> LlamaForCausalLM:
    """A randomly initialised Llama small enough for a laptop CPU.

    The output rows of the four action words are set to orthonormal rows (times 0.5). Pretraining puts no loss on
    actions, so it never moves these rows; otherwise the softmax would push all four the same way, and a frozen
    read-out with parallel rows cannot tell the actions apart.

    Args:
        vocab_size: number of token ids. action_ids: the four ids whose logits will be read as Q-values.
        hidden: width of the residual stream. layers: decoder blocks. heads: attention heads (hidden % heads == 0).
        rope_theta: see `rope`.
    """
    config = LlamaConfig(
        vocab_size=vocab_size,
        hidden_size=hidden,
        intermediate_size=hidden * 8 // 3 // 8 * 8,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=heads,
        max_position_embeddings=CONTEXT,
        rope_parameters=rope(rope_theta),
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
        rows = torch.linalg.qr(torch.randn(hidden, len(action_ids)))[0].T
    with torch.no_grad():
        model.lm_head.weight[torch.as_tensor(action_ids)] = 0.5 * rows
    return model


def random_twin(model: PreTrainedModel, seed: int = 0) -> PreTrainedModel:
    """The same architecture with the weights that training begins with."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        twin = type(model)(model.config)
    nn.Module.to(twin, model.device, model.dtype)  # model.to is the same, but wrongly typed
    return twin.eval()


def rope(theta: float) -> dict[str, object]:
    """Rotary positions as a Llama's config has them: pair i of a head's c features turns by theta^(-2i/c) a token.

    Features that hardly turn find a tile however far back it was: with a large theta (Llama 3: 500,000) there are more
    of them, and recall holds in histories longer than those trained on.
    """
    return {"rope_type": "default", "rope_theta": theta}


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
    model.bfloat16().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return Path(folder)
