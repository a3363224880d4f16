"""Every knob of the two training loops, with the values of the shipped runs as defaults."""

from __future__ import annotations

import math
import shlex
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import ClassVar, Literal

from icrl_utils.models import portable_path
from icrl_utils.qvalues import QReadout
from icrl_utils.replay import Behaviour, check_order


@dataclass
class RunConfig:
    """What both loops share. Raises ValueError when a value cannot work."""

    out: str
    seed: int = 0
    steps: int = 1200
    slices: int = 10  # of an optimizer step, over all processes
    slice_tokens: int = 640
    warmup: int = 100  # optimizer steps of linear warm-up; then cosine to 0
    clip: float = 1.0  # gradient norm
    weight_decay: float = 0.01
    relabel: float = 0.5  # share of slices with permuted tile numbers
    steps_per_chunk: int = 20  # optimizer steps whose maps are sampled and played together
    workers: int = 0  # processes that make data ahead of time
    precision: Literal["auto", "no", "bf16", "fp16"] = "auto"  # autocast
    compile: bool = False
    log_every: int = 20
    eval_every: int = 200
    eval_maps: int = 64
    eval_step_limit: int = 30  # in evaluations during training: loops are cut off early, success is a lower bound
    save_every: int = 200
    minutes: float = math.inf  # stop cleanly, with a checkpoint, after this much wall time
    device: Literal["auto", "cpu"] = "auto"

    COMMAND: ClassVar[str]
    # What does not change the result. A run may be resumed with other values of these.
    INDIFFERENT: ClassVar = (
        "out", "workers", "compile", "log_every", "eval_every", "eval_maps", "eval_step_limit", "save_every",
        "minutes", "device",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            value, allowed = getattr(self, name), typing.get_args(hint)
            if typing.get_origin(hint) is Literal and value not in allowed:
                raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(str, allowed))}.")
        for name in "steps slices steps_per_chunk log_every eval_every eval_maps eval_step_limit save_every".split():
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)!r} must be at least 1.")
        if self.slice_tokens < 4 or self.slice_tokens % 2:
            raise ValueError(f"slice_tokens={self.slice_tokens!r} must be even (two tokens a step) and at least 4.")
        if not 0 <= self.relabel <= 1:
            raise ValueError(f"relabel={self.relabel!r} is a share of the slices: pass a number from 0 to 1.")

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.slices * self.slice_tokens

    def record(self) -> dict:
        """All fields but those that only say where and when this machine ran it."""
        return {k: v for k, v in asdict(self).items() if k not in ("out", "workers", "minutes", "device")}

    def command(self) -> str:
        """The command line that does this run again: all options that differ from their defaults."""
        given = {"out": portable_path(self.out)} | dict(_changed(self.record(), type(self)().record()))
        options = [f"--{name}={value}" if value is not None else f"--{name}" for name, value in given.items()]
        return shlex.join(["python", "-m", "icrl_utils", self.COMMAND, *options])

    def decisive(self) -> dict:
        """The fields that decide the result."""
        return {name: value for name, value in self.record().items() if name not in self.INDIFFERENT}


@dataclass
class PretrainConfig(RunConfig):
    """Prediction of what moves lead to, on random play. Action words carry no loss: the base learns how lakes work."""

    COMMAND = "pretrain"
    out: str = "build/tiny-llama"
    steps: int = 2400
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    lr_matrix: float = 0.02  # Muon, on the projections
    lr_other: float = 3e-3  # AdamW, on embedding, head and norms


@dataclass
class TrainConfig(RunConfig):
    """Double DQN on an adapter. The base stays frozen; rewards are the only teacher of actions."""

    COMMAND = "train"
    base: str = "assets/tiny-llama"
    out: str = "build/dqn"
    adapter: Literal["lora", "ia3"] = "lora"
    rank: int = 32
    optimizer: Literal["muon", "adamw"] = "muon"
    lr: float = 4e-3
    loss: Literal["bce", "mse"] = "bce"
    gamma: float = 0.6  # a lower one than the paper's .9 widens the gap between a way and a circle, notebook 04
    polyak: float = 0.1
    consistent: bool = True  # a move against a wall is backed up as if it were repeated, see dqn.td_targets
    offset: float = 1.0  # read-out, see QReadout
    scale: float = 1.0
    world_model: float = 0.1  # weight of the auxiliary next-observation loss
    order: Literal["as_played", "shuffled"] = "as_played"
    quality: Literal["low", "mid", "hi"] = "mid"
    crossing: bool = False  # slices may cross map changes
    map_pool: int = 0  # 0: fresh maps all the time; n: always the same n maps
    behaviour: Behaviour = field(default_factory=Behaviour)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.order, self.quality)
        if not 0 <= self.gamma <= 1:
            raise ValueError(f"gamma={self.gamma!r} is not a discount factor: pass a number from 0 to 1.")
        if not 0 < self.polyak <= 1:
            raise ValueError(f"polyak={self.polyak!r}: pass a number above 0 (never moves) up to 1 (no lag).")

    def record(self) -> dict:
        """The base as a path that holds on every machine."""
        return super().record() | {"base": portable_path(self.base)}

    @property
    def readout(self) -> QReadout:
        return QReadout("sigmoid" if self.loss == "bce" else "identity", self.scale, self.offset)


def _changed(values: dict, defaults: dict) -> Iterator[tuple[str, object]]:
    """(option, value) of the entries that differ from ``defaults``, named as the command line names them."""
    for name, value in values.items():
        option = name.replace("_", "-")
        if isinstance(value, dict):
            yield from ((f"{option}-{inner}", v) for inner, v in _changed(value, defaults[name]))
        elif value != defaults[name] and isinstance(value, bool):
            yield option if value else f"no-{option}", None
        elif value != defaults[name]:
            yield option, value
