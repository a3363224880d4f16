"""LoRA as a flat dict of tensors with peft's names: what `frozen.FrozenLlama` multiplies by is what peft would load.

A saved adapter is one that ``PeftModel.from_pretrained`` reads, and one that peft wrote can be read.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from torch import Tensor

from icrl_utils.llama.adapters import PROJECTIONS
from icrl_utils.llama.frozen import Adapter, LoraLayer, Pair, Shape
from icrl_utils.ranges import whole_number

WEIGHTS = "adapter_model.safetensors"


def projection_sizes(shape: Shape) -> dict[str, tuple[int, int]]:
    """(inputs, outputs) of each projection of a decoder block."""
    q, kv = shape.heads * shape.head, shape.kv_heads * shape.head
    sizes = [(shape.width, q), (shape.width, kv), (shape.width, kv), (q, shape.width)]
    return dict(zip(PROJECTIONS, [*sizes, *2 * [(shape.width, shape.inner)], (shape.inner, shape.width)], strict=True))


class Lora:
    """LoRA on all seven projections of ``layers``, float32: W x + 2 B A x. With B = 0, at first, it changes nothing.

    Attributes:
        tensors: A [rank, inputs] and B [outputs, rank] of every projection, by peft's names.
    """

    SCALE = 2.0  # lora_alpha / r

    def __init__(self, shape: Shape, layers: Iterable[int], rank: int = 16, seed: int = 0):
        self.layers, self.rank = list(layers), whole_number("rank", rank, 1)
        draw = torch.Generator().manual_seed(seed)
        self.tensors: dict[str, Tensor] = {}
        for i in self.layers:
            for name, (inputs, outputs) in projection_sizes(shape).items():
                a = (torch.rand(rank, inputs, generator=draw) * 2 - 1) * inputs**-0.5  # as peft draws it
                self.tensors[_key(i, name, "A")], self.tensors[_key(i, name, "B")] = a, torch.zeros(outputs, rank)

    def parameters(self) -> list[Tensor]:
        return list(self.tensors.values())

    def to(self, device: torch.device) -> Lora:
        """In place."""
        self.tensors = {name: tensor.to(device) for name, tensor in self.tensors.items()}
        return self

    def requires_grad_(self) -> Lora:
        for tensor in self.tensors.values():
            tensor.requires_grad_()
        return self

    @torch.no_grad()
    def copy_(self, tensors: dict[str, Tensor]) -> None:
        """Take the values of ``tensors``. Raises ValueError where they are not those of these layers and this rank."""
        sizes, ours = ({n: tuple(t.shape) for n, t in some.items()} for some in (tensors, self.tensors))
        if sizes != ours:
            name = min(n for n in sizes.keys() | ours.keys() if sizes.get(n) != ours.get(n))
            raise ValueError(
                f"adapter: {name} is {sizes.get(name)} there and {ours.get(name)} here, so it belongs to another base "
                "or has another rank; give the base that its run.json names."
            )
        for name, tensor in tensors.items():
            self.tensors[name].copy_(tensor)

    def layer_weights(self, dtype: torch.dtype) -> Adapter:
        """The adapter as `frozen.FrozenLlama` takes it, in the ``dtype`` of the products; gradients flow back."""
        return {i: self._layer(i, dtype) for i in self.layers}

    def _layer(self, i: int, dtype: torch.dtype) -> LoraLayer:
        def join(*names: str) -> Pair:
            a, b = ([self.tensors[_key(i, name, which)] for name in names] for which in "AB")
            scaled = [self.SCALE * part for part in b]
            return torch.cat(a).to(dtype), (torch.block_diag(*scaled) if len(names) > 1 else scaled[0]).to(dtype)

        q, k, v, o, gate, up, down = PROJECTIONS
        return LoraLayer(join(q, k, v), join(o), join(gate, up), join(down))

    def save(self, folder: Path, base: str) -> None:
        """Write a folder that ``PeftModel.from_pretrained`` reads. In bfloat16: half the bytes, and the same play."""
        folder.mkdir(parents=True, exist_ok=True)
        tensors = {name: tensor.detach().bfloat16().cpu().contiguous() for name, tensor in self.tensors.items()}
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})
        config = LoraConfig(
            r=self.rank, lora_alpha=int(self.SCALE * self.rank), target_modules=list(PROJECTIONS),
            layers_to_transform=self.layers, task_type="CAUSAL_LM", base_model_name_or_path=base, inference_mode=True,
        )  # fmt: skip
        config.save_pretrained(str(folder))

    @classmethod
    def load(cls, folder: Path, shape: Shape) -> Lora:
        """The adapter in ``folder``. Raises ValueError where it is not LoRA on all projections of a Llama of ``shape``,
        with scale 2."""
        config = LoraConfig.from_pretrained(str(folder))
        if set(config.target_modules or ()) != set(PROJECTIONS) or config.lora_alpha != cls.SCALE * config.r:
            raise ValueError(
                f"adapter={str(folder)!r} is not LoRA on all seven projections with alpha = {cls.SCALE:g} r; give one "
                "that `python -m icrl_utils finetune` wrote."
            )
        layers = config.layers_to_transform
        layers = range(shape.layers) if layers is None else [layers] if isinstance(layers, int) else layers
        lora = cls(shape, layers, config.r)
        lora.copy_(load_file(folder / WEIGHTS))
        return lora


def _key(layer: int, projection: str, which: str) -> str:
    block = "mlp" if projection in ("gate_proj", "up_proj", "down_proj") else "self_attn"
    return f"base_model.model.model.layers.{layer}.{block}.{projection}.lora_{which}.weight"
