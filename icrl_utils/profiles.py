"""One table of sizes and budgets: the same cells and commands run in every profile.

``smoke`` proves that the code runs, ``cpu`` is the course on a laptop, ``t4`` and ``full`` train a real Llama on
one GPU. The choice is made by ``--profile`` or the environment variable ``ICRL_PROFILE``; ``cpu`` is the default.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from icrl_utils.paths import ASSETS


@dataclass(frozen=True)
class Profile:
    """Sizes and budgets of one way to run the course."""

    name: str
    device: str  # "cpu": runs anywhere; "gpu": needs a CUDA device
    base: str  # folder in assets/, or a model name on the Hugging Face Hub
    adapter: str | None  # folder in assets/adapters/, None where no trained adapter is shipped
    history: str  # history format: "compact" (tiny Llama) or "paper" (real tokenizers)
    quantization: str | None  # "nf4" or None
    maps: int  # maps played live for a figure
    bootstrap: int  # resamples for an interval
    train_tokens: int  # live DQN training in notebook 04 ends after so many tokens,
    train_minutes: float  # or after so much time
    slice_tokens: int  # length of one training slice
    slices: int  # slices per update
    training: Mapping[str, Any] = field(default_factory=dict, hash=False)  # fields of the pretrain and train
    # configs that differ from their defaults, which are those of the shipped runs

    @property
    def base_path(self) -> str:
        """What ``from_pretrained`` takes: the shipped folder, or the name on the Hub."""
        return str(ASSETS / self.base) if (ASSETS / self.base).is_dir() else self.base


PROFILES = {
    profile.name: profile
    for profile in (
        Profile(
            name="smoke", device="cpu", base="tiny-llama", adapter="dqn", history="compact", quantization=None,
            maps=8, bootstrap=200, train_tokens=20_000, train_minutes=0.25, slice_tokens=128, slices=4,
            training={"steps": 6, "slices": 4, "slice_tokens": 128, "warmup": 2, "log_every": 2,
                      "eval_every": 6, "eval_maps": 4, "save_every": 3},
        ),
        Profile(
            name="cpu", device="cpu", base="tiny-llama", adapter="dqn", history="compact", quantization=None,
            maps=100, bootstrap=2_000, train_tokens=20_000_000, train_minutes=9.0, slice_tokens=640, slices=10,
        ),
        Profile(
            name="t4", device="gpu", base="HuggingFaceTB/SmolLM2-135M-Instruct", adapter=None, history="paper",
            quantization="nf4", maps=50, bootstrap=2_000, train_tokens=2_000_000, train_minutes=60.0,
            slice_tokens=4_096, slices=2,
        ),
        Profile(
            name="full", device="gpu", base="meta-llama/Llama-3.1-8B-Instruct", adapter=None, history="paper",
            quantization="nf4", maps=100, bootstrap=2_000, train_tokens=40_000_000,
            train_minutes=24 * 60.0, slice_tokens=4_096, slices=10,
        ),
    )
}  # fmt: skip


def get_profile(name: str | None = None) -> Profile:
    """The profile ``name``, else the one in ``ICRL_PROFILE``, else ``cpu``.

    Raises:
        ValueError: no such profile.
        RuntimeError: the profile needs a GPU and there is none.
    """
    source = "ICRL_PROFILE" if name is None else "--profile"
    if name is None:
        name = os.environ.get("ICRL_PROFILE") or "cpu"  # an empty variable counts as none, as in a shell
    if name not in PROFILES:
        raise ValueError(f"{source}={name!r}: unknown profile; choose one of {', '.join(PROFILES)}.")
    profile = PROFILES[name]
    if profile.device == "gpu":
        import torch  # only here: the table itself must load fast

        if not torch.cuda.is_available():
            raise RuntimeError(
                f"{source}={name!r} trains {profile.base} and needs a CUDA GPU; torch sees none. "
                "Without a GPU use --profile cpu: every notebook runs there, on the tiny Llama that is shipped. "
                "A free T4 is on Google Colab (Runtime > Change runtime type)."
            )
    return profile
