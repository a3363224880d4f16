"""An online and a target adapter on one frozen Llama.

The base model is frozen. Everything that DQN learns lives in one small peft adapter, ``ONLINE``; the target
network of DQN is a second adapter, ``TARGET``, on the *same* base weights: a copy of the weights would double
the memory, a second adapter costs a few megabytes (arXiv 2501.14176, section 3).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import chain
from typing import Any, TypeVar, cast
from weakref import WeakSet

import torch
from peft import IA3Config, LoraConfig, PeftConfig, PeftModel, get_peft_model
from peft.tuners.ia3 import IA3Layer
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import Tensor, nn
from transformers import AutoModel, LlamaForCausalLM, PreTrainedModel

from icrl_utils.llama.attention import attention_of
from icrl_utils.ranges import whole_number

ONLINE, TARGET = "default", "target"  # "default" is peft's own name for the adapter that save_pretrained writes
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
ADAPTERS = ("lora", "ia3")
Model = TypeVar("Model", bound=nn.Module)
_IN_TRAINING_MODE: WeakSet[nn.Module] = WeakSet()  # the 4-bit layers of never_repack


def check_adapter(kind: str, rank: int) -> None:
    """Raises ValueError if there can be no such adapter."""
    if kind not in ADAPTERS:
        raise ValueError(f"adapter={kind!r} is unknown; choose one of {', '.join(ADAPTERS)}.")
    whole_number("rank", rank, 1)


def add_adapters(base: PreTrainedModel, kind: str = "lora", rank: int = 32, seed: int = 0) -> PeftModel:
    """Freeze ``base`` and add two adapters with equal weights: ``ONLINE`` (trainable) and ``TARGET`` (frozen).

    Args:
        kind: ``"lora"`` on all seven projections (scale alpha / r = 2), or ``"ia3"`` on k, v and down (the paper's).
        rank: LoRA's r; ignored by IA3.

    At the start both adapters leave the base unchanged: LoRA has B = 0, IA3's scales are 1.
    """
    check_adapter(kind, rank)
    config: PeftConfig
    if kind == "lora":
        config = LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM")
    else:
        config = IA3Config(
            target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"], task_type="CAUSAL_LM"
        )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = get_peft_model(base, config)
        model.add_adapter(TARGET, config)
    activate(model, ONLINE)
    # LoRA draws A at random for each adapter: without this copy the target would start as another network.
    online, target = adapter_parameters(model, ONLINE), adapter_parameters(model, TARGET)
    with torch.no_grad():
        for name, parameter in target.items():
            parameter.copy_(online[name])
    return keep_dtype(model)


def activate(model: PeftModel, name: str) -> None:
    """Make adapter ``name`` the one that the forward pass uses. Only ``ONLINE`` is ever trainable."""
    model.set_adapter(name)
    for parameter in adapter_parameters(model, TARGET).values():
        parameter.requires_grad_(False)
    for parameter in adapter_parameters(model, ONLINE).values():
        parameter.requires_grad_(True)


@contextmanager
def target_network(model: PeftModel) -> Iterator[None]:
    """Inside the block the model *is* the target network, without gradient; afterwards the online one again."""
    activate(model, TARGET)
    try:
        with torch.no_grad():
            yield
    finally:
        activate(model, ONLINE)


def checkpoint_activations(model: PeftModel) -> None:
    """Keep only the input of each decoder block for the backward pass, which computes the rest again.

    Recomputation uses the adapter that is active *then*: with another one than in the forward pass gradients would be
    wrong without a word, so it raises RuntimeError. The library checkpoints in training mode only: this turns it on.
    """

    @contextmanager
    def recomputation() -> Iterator[None]:
        if model.active_adapter != ONLINE:
            raise RuntimeError(
                f"backward() was called while the adapter {model.active_adapter!r} was active, with which activations "
                f"cannot be recomputed; call it outside of target_network(), with {ONLINE!r} active."
            )
        yield

    # Only the online network is ever differentiated, so every recomputation is one of its.
    arguments = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), recomputation())}
    base = causal_lm(model)
    enable = getattr(base, "activation_checkpointing_enable", None) or base.gradient_checkpointing_enable  # older name
    enable(arguments)
    model.train()


def never_repack(model: Model) -> Model:
    """Keep bitsandbytes from repacking 4-bit weights in place.

    It does so in the first evaluation-mode forward on CPUs with AVX512-BF16, and later gradients are wrong: present,
    finite and wrong. So 4-bit layers stay in training mode, in which they compute the same (they have no dropout).
    """
    if getattr(model, "is_loaded_in_4bit", False):
        from bitsandbytes.nn import Linear4bit  # only here: a model in full precision needs no bitsandbytes

        for module in model.modules():
            if isinstance(module, Linear4bit) and module not in _IN_TRAINING_MODE:
                module.register_forward_pre_hook(_enter_training_mode)
                _IN_TRAINING_MODE.add(module)
    return model


def _enter_training_mode(layer: nn.Module, _inputs) -> None:
    layer.train()


def adapter_parameters(model: PeftModel, name: str) -> dict[str, nn.Parameter]:
    """The parameters of one adapter, keyed by their name without the adapter's: equal keys are twins."""
    marker = f".{name}"
    return {
        key.replace(marker, ""): parameter
        for key, parameter in model.named_parameters()
        if key.endswith(marker) or f"{marker}." in key
    }


def causal_lm(model: nn.Module) -> LlamaForCausalLM:
    """The Llama itself, of a plain or a peft-wrapped one: ``config``, ``model`` (decoder blocks) and ``lm_head``."""
    return cast(LlamaForCausalLM, model.get_base_model() if isinstance(model, PeftModel) else model)


def backbone(model: nn.Module) -> nn.Module:
    """The stack of decoder blocks below lm_head, of a plain or a peft-wrapped causal model."""
    return causal_lm(model).model


def bare_backbone(model: nn.Module) -> nn.Module:
    """The backbone's modules without adapters and without memory (all tensors on the meta device): a form into which
    `torch.func.functional_call` can pour `folded_weights`."""
    with torch.device("meta"):
        return AutoModel.from_config(causal_lm(model).config, attn_implementation=attention_of(model)).eval()


def folded_weights(model: nn.Module) -> dict[str, Tensor]:
    """Tensors of `bare_backbone` that compute what backbone and active adapter compute together.

    LoRA's weight is W + scale B A, IA3's is W with scaled rows or columns; gradients flow through them to the adapter.
    peft's layers multiply every token by A and by B instead. In a small model that costs a quarter to a half more
    than multiplying once by the sum. Only in float32: in bfloat16 a small B A would vanish in the sum with W.

    Raises ValueError for a base in half precision or in 4 bits.
    """
    body = backbone(model)
    if model.dtype != torch.float32 or getattr(model, "is_quantized", False):
        raise ValueError(
            "adapters can be folded into a float32 base only: in fewer bits their part of the sum is lost; use "
            "QNetwork(..., fold=False)."
        )
    # Any: of which kind a layer is, is asked below.
    layers: dict[str, Any] = {n: layer for n, layer in body.named_modules() if isinstance(layer, BaseTunerLayer)}
    weights = {
        name.replace(".base_layer", ""): tensor
        for name, tensor in chain(body.named_parameters(), body.named_buffers())
        if not any(part in name for part in ("lora_", "ia3_"))
    }
    for name, layer in layers.items():
        (adapter,) = layer.active_adapters
        weight = layer.get_base_layer().weight
        if isinstance(layer, IA3Layer):
            weights[f"{name}.weight"] = weight * layer.ia3_l[adapter]
        else:
            weights[f"{name}.weight"] = weight + layer.get_delta_weight(adapter)
    return weights


def keep_dtype(model: Model) -> Model:
    """Let 4-bit layers with IA3 answer in the dtype in which they were asked, as all others do.

    Without it peft returns float32 for them, and attention refuses keys and queries of different dtypes.
    """
    for module in model.modules():
        if isinstance(module, IA3Layer):
            module.register_forward_hook(lambda _, inputs, output: output.to(inputs[0].dtype))
    return model
