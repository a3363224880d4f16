"""Every knob of the two training loops, with the values of the shipped runs as defaults."""

from __future__ import annotations

import math
import shlex
import typing
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar, Literal, Protocol

from icrl_utils.dqn.replay import check_order
from icrl_utils.llama.readout import OddsReadout, QReadout
from icrl_utils.paths import LANGUAGE_MODEL, portable_path
from icrl_utils.play.collect import Behaviour
from icrl_utils.profiles import PROFILES, Profile
from icrl_utils.ranges import LARGEST_INT16, checked_seed, positive_number, real_number, whole_number

AT_LEAST = {  # the least value of every whole number, and of the real ones that may be 0
    "steps": 1, "slices": 1, "slice_tokens": 4, "warmup": 0, "steps_per_chunk": 1, "workers": 0, "log_every": 1,
    "eval_every": 1, "eval_maps": 1, "eval_step_limit": 1, "save_every": 1, "stretch": 1, "hidden": 4, "layers": 1,
    "heads": 1, "rank": 1, "map_pool": 0, "weight_decay": 0.0, "relabel": 0.0, "lr_matrix": 0.0, "lr_other": 0.0,
    "gamma": 0.0, "world_model": 0.0, "temperature": 0.0, "offset": -math.inf, "stage_one": 0, "first_adapted": 0,
    "trace": 0.0, "asked": 0.0, "decay": 0.0,
}  # fmt: skip
ABOVE_ZERO = ("clip", "minutes", "rope_theta", "lr", "polyak", "scale")
AT_MOST = {"relabel": 1.0, "gamma": 1.0, "polyak": 1.0, "trace": 1.0, "asked": 1.0, "decay": 1.0}


def checked_number(name: str, value: object) -> int | float:
    """The value of the field ``name`` of a config, as a plain int or float. Raises ValueError out of its range."""
    if name == "seed":
        return checked_seed(value)
    if name == "minutes" and value == math.inf:
        return math.inf
    if name in ABOVE_ZERO:
        return positive_number(name, value, AT_MOST.get(name, math.inf))
    low = AT_LEAST[name]
    if isinstance(low, int):
        return whole_number(name, value, low, LARGEST_INT16 if name == "eval_step_limit" else None)
    return real_number(name, value, low, AT_MOST.get(name, math.inf))


@dataclass
class RunConfig:
    """What both loops share. Raises ValueError when a value cannot work."""

    out: str = ""
    base: str = ""
    seed: int = 0
    steps: int = 2400
    slices: int = 10  # of an optimizer step, over all processes
    slice_tokens: int = 640
    warmup: int = 100  # optimizer steps of linear warm-up
    schedule: Literal["cosine", "constant"] = "cosine"  # of the learning rate after it
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
    minutes: float = math.inf  # stop cleanly, with a checkpoint, after this much wall time, and one step at least
    device: Literal["auto", "cpu"] = "auto"

    COMMAND: ClassVar[str]
    # What does not change the result. A run may be resumed with other values of these.
    INDIFFERENT: ClassVar = (
        "out", "workers", "compile", "log_every", "eval_every", "eval_maps", "eval_step_limit", "save_every",
        "minutes", "device", "micro_tokens", "checkpointing", "temperature",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for name, hint in typing.get_type_hints(type(self)).items():
            value, allowed = getattr(self, name), typing.get_args(hint)
            if typing.get_origin(hint) is Literal and value not in allowed:
                raise ValueError(f"{name}={value!r} is unknown; choose one of {', '.join(map(str, allowed))}.")
            if hint is bool and not isinstance(value, bool):
                raise ValueError(f"{name}={value!r}: pass True or False.")
            if hint in (int, float):
                setattr(self, name, checked_number(name, value))
        if self.slice_tokens % 2:
            raise ValueError(f"slice_tokens={self.slice_tokens!r} must be even: compact text has two tokens a step.")

    @property
    def step_tokens(self) -> int:
        """Tokens of one optimizer step."""
        return self.slices * self.slice_tokens

    def slice_shape(self, chunk: int) -> tuple[int, int]:
        """Slices of an optimizer step in this chunk, and tokens of each."""
        return self.slices, self.slice_tokens

    def record(self) -> dict:
        """All fields but those that only say where and when this machine ran it; paths as they hold on any machine."""
        values = {k: v for k, v in asdict(self).items() if k not in ("out", "workers", "minutes", "device")}
        return values | {"base": portable_path(self.base) if self.base else ""}

    def command(self) -> str:
        """The command line that does this run again: all options that differ from their defaults."""
        given = {"out": portable_path(self.out)} | dict(_changed(self.record(), type(self)().record()))
        options = [f"--{name}={value}" if value is not None else f"--{name}" for name, value in given.items()]
        return shlex.join(["python", "-m", "icrl_utils", self.COMMAND, *options])

    def decisive(self) -> dict:
        """The fields that decide the result."""
        return {name: value for name, value in self.record().items() if name not in self.INDIFFERENT}


class Stretched(Protocol):
    slices: int
    slice_tokens: int
    stretch: int


def check_stretch(config: Stretched) -> None:
    if config.slices % config.stretch:
        raise ValueError(
            f"stretch={config.stretch!r} must divide slices={config.slices!r}: so many are joined to one; choose 1 for "
            "slices of one length."
        )


def short_and_long(config: Stretched, chunk: int) -> tuple[int, int]:
    """Slices of a step in this chunk, and tokens of each: short and long slices take turns. Recall is learned fastest
    in short histories, and holds in longer ones only if it was trained there."""
    stretch = config.stretch if chunk % 2 else 1
    return config.slices // stretch, config.slice_tokens * stretch


@dataclass
class PretrainConfig(RunConfig):
    """Prediction of what moves lead to, on random play. Action words carry no loss: the base learns how lakes work."""

    COMMAND = "pretrain"
    out: str = "build/tiny-llama"
    base: str = ""  # folder of a pretrained Llama to go on from, whose size and tokens are kept; "": a new one
    history: Literal["compact", "paper"] = "compact"  # format; "paper" makes a base as real Llamas are
    stretch: int = 1  # in every other chunk slices are so many times longer, and so many times fewer
    hidden: int = 128
    layers: int = 4
    heads: int = 4
    rope_theta: float = 10_000.0  # of the rotary positions; a large one suits long histories
    lr_matrix: float = 0.02  # Muon, on the projections
    lr_other: float = 3e-3  # AdamW, on embedding, head and norms

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.history == "paper" and self.relabel:
            raise ValueError(
                f"history='paper' with relabel={self.relabel!r}: only compact histories have one token for each tile "
                "that could be exchanged; set relabel to 0."
            )
        check_stretch(self)
        if not self.base and self.hidden % (2 * self.heads):  # rotary positions turn features in pairs
            raise ValueError(
                f"hidden={self.hidden!r} with heads={self.heads!r}: the features are shared evenly by the heads, an "
                f"even number for each; choose a multiple of {2 * self.heads}."
            )

    def slice_shape(self, chunk: int) -> tuple[int, int]:
        return short_and_long(self, chunk)


@dataclass
class TrainConfig(RunConfig):
    """Double DQN on an adapter. The base stays frozen; rewards are the only teacher of actions."""

    COMMAND = "train"
    base: str = "assets/tiny-llama"
    out: str = "build/dqn"
    history: Literal["compact", "paper"] = "compact"  # format; "paper" for any Llama but the tiny one
    quantization: Literal["none", "nf4"] = "none"  # of the base, see llama.load.load_llama
    checkpointing: bool = False  # compute activations again in the backward pass instead of keeping them
    micro_tokens: int | None = None  # at most so many tokens in one forward and backward pass; None: all of a step
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
    temperature: float = 0.5  # at play, see `policy.Choice`
    centred: bool = False  # the offset counts from the mean logit that the base has at action words
    world_model: float = 0.03  # weight of the auxiliary next-observation loss
    order: Literal["as_played", "shuffled"] = "as_played"
    quality: Literal["low", "mid", "hi"] = "mid"
    crossing: bool = False  # slices may cross map changes
    map_pool: int = 0  # 0: fresh maps all the time; n: always the same n maps
    behaviour: Behaviour = field(default_factory=Behaviour)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_order(self.order, self.quality)
        if self.micro_tokens is not None and whole_number("micro_tokens", self.micro_tokens, 1) < self.slice_tokens:
            raise ValueError(
                f"micro_tokens={self.micro_tokens!r} is less than slice_tokens={self.slice_tokens!r}, and a slice "
                "cannot be cut: shorten the slices, or leave micro_tokens out."
            )
        if self.history == "paper" and (self.relabel or self.world_model):
            raise ValueError(
                f"history='paper' with relabel={self.relabel!r} and world_model={self.world_model!r}: both need "
                "compact histories, where a tile is one token at a known place; set both to 0."
            )
        if self.history == "compact" and self.quantization != "none":
            raise ValueError(
                f"history='compact' with quantization={self.quantization!r}: the tiny Llama is trained in float32; "
                "choose history='paper' with a real Llama as base."
            )

    @property
    def slices_at_once(self) -> int:
        """Slices in a micro-batch, see ``micro_tokens``."""
        tokens = self.step_tokens if self.micro_tokens is None else self.micro_tokens
        return tokens // self.slice_tokens

    @property
    def may_fold(self) -> bool:
        """Whether `adapters.folded_weights` may stand in for peft's layers, if the precision is float32. It writes all
        weights out once more, which a real Llama has no memory for, and its modules know no checkpointing."""
        return self.history == "compact" and not self.checkpointing

    @property
    def readout(self) -> QReadout:
        return QReadout("sigmoid" if self.loss == "bce" else "identity", self.scale, self.offset)


@dataclass
class FinetuneConfig(RunConfig):
    """A pretrained language model on histories in its own words: first what moves lead to, then what they are worth.
    Only an adapter is trained; values are read after the action word."""

    COMMAND = "finetune"
    base: str = portable_path(LANGUAGE_MODEL)
    out: str = "build/smollm2-dqn"
    random_base: bool = False  # the base's architecture with random weights: says what pretraining is worth
    start: str = ""  # folder of an adapter to go on from; "": a new one
    stage_one: int = 16  # steps of prediction alone, before DQN
    steps: int = 816  # of both stages
    slices: int = 2
    stretch: int = 2  # in every other chunk slices are so many times longer, and so many times fewer
    warmup: int = 8  # steps, in both stages
    schedule: Literal["linear", "constant"] = "linear"  # type: ignore[assignment]  # in DQN's last steps, see decay
    decay: float = 0.7  # the last share of DQN's steps, in which the learning rate falls to a tenth
    weight_decay: float = 0.0
    relabel: float = 0.0  # the words of tiles are drawn anew for every history anyway
    steps_per_chunk: int = 16
    log_every: int = 10
    eval_maps: int = 24
    eval_step_limit: int = 40
    save_every: int = 50
    lr: float = 2e-3
    rank: int = 16
    first_adapted: int = 0  # layers below it have no adapter; their part of a step is computed once
    gamma: float = 0.6
    polyak: float = 0.05  # of the averaged adapter, which plays
    target: bool = False  # targets from the averaged adapter, a second network to run; else from the online one
    trace: float = 0.9  # lambda of Watkins' Q(lambda)
    asked: float = 0.5  # share of the decisions that get a target from the moves that follow
    world_model: float = 0.1  # weight of the prediction of outcomes in DQN
    scale: float = 0.5  # read-out, see `readout.OddsReadout`
    offset: float = 2.0
    temperature: float = 0.5  # at play, see `policy.Choice`
    behaviour: Behaviour = field(default_factory=Behaviour)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.stage_one > self.steps:
            raise ValueError(
                f"stage_one={self.stage_one!r} is more than steps={self.steps!r}, which counts the steps of both "
                "stages; raise steps."
            )
        check_stretch(self)
        if self.relabel:
            raise ValueError(
                f"relabel={self.relabel!r}: words of tiles are drawn anew for every history; leave it out."
            )
        if self.compile:
            raise ValueError("compile=True: the written-out Llama gains nothing by it; leave it out.")
        if self.precision == "fp16":
            raise ValueError("precision='fp16' would need a loss scaler; choose 'bf16' or 'no', or leave it out.")

    def slice_shape(self, chunk: int) -> tuple[int, int]:
        return short_and_long(self, chunk)

    @property
    def odds(self) -> OddsReadout:
        return OddsReadout(self.scale, self.offset)


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


# -------------------------------------------------------------------------------------------------------- recipes

PAPER_RECIPE: dict[str, Any] = {  # arXiv 2501.14176 and its released code, one by one
    "quantization": "none",  # the base in bfloat16
    "adapter": "ia3",
    "optimizer": "adamw",
    "lr": 1e-2,
    "weight_decay": 0.01,
    "warmup": 10,
    "schedule": "constant",
    "clip": 1.0,
    "steps": 956,
    "slices": 10,
    "slice_tokens": 4096,
    "micro_tokens": 5 * 4096,
    "loss": "mse",
    "scale": 1 / 30,  # reward x 30: logit / 30 is compared with the return
    "offset": 0.0,
    "temperature": 0.0,
    "centred": False,
    "gamma": 0.9,
    "polyak": 0.1,
    "consistent": False,
    "world_model": 0.0,
    "relabel": 0.0,
    "map_pool": 250,
    "order": "shuffled",
    "quality": "mid",
    "crossing": True,
    "behaviour": Behaviour(habit_share=0.0, low=0.0, high=1.0),  # a learner, from random to its own greedy play
}
# ours: the defaults of `TrainConfig`, which trained the shipped adapter
RECIPES: dict[str, dict[str, Any]] = {"ours": {}, "paper": PAPER_RECIPE}
UNLIKE_THE_PAPER = (
    "weight decay spares IA3's scales, which it would pull to 0 instead of to their identity 1",
    "the target adapter is float32; in the paper's bfloat16 small Polyak steps are rounded away",
    "the loss is divided by a constant (30 squared) instead of the squared mean target of each sequence",
    "the bootstrap's maximum runs over the four actions instead of over all words",
    "truncation gets no target instead of counting as an end",
    "fresh play on the pool of maps all the time instead of one epoch of a fixed data set",
)


def train_options(profile: Profile, recipe: str = "ours") -> dict[str, Any]:
    """The fields of `TrainConfig` in which a recipe differs from the defaults, on the model of a profile.

    ``ours`` carries the tiny Llama's lessons over to real ones (a bounded loss, LoRA with Muon, the consistent backup,
    fresh maps in the order of play); we have not trained it at 8 billion weights. ``paper`` is `PAPER_RECIPE`;
    `UNLIKE_THE_PAPER` says what it leaves out on purpose.
    """
    if recipe not in RECIPES:
        raise ValueError(f"recipe={recipe!r} is unknown; choose one of {', '.join(RECIPES)}.")
    return (_real_options(profile) if profile.history == "paper" else {}) | RECIPES[recipe] | dict(profile.training)


def _real_options(profile: Profile) -> dict[str, Any]:
    """What is different for every real Llama: sizes, memory, a longer wait between reports, and its read-out."""
    steps = profile.train_tokens // (profile.slices * profile.slice_tokens)
    return {
        "base": profile.base_path,
        "history": profile.history,
        "quantization": profile.quantization or "none",
        "checkpointing": True,
        "steps": steps,
        "warmup": steps // 10,
        "slices": profile.slices,
        "slice_tokens": profile.slice_tokens,
        "micro_tokens": profile.slice_tokens,
        "relabel": 0.0,
        "world_model": 0.0,
        "centred": True,
        "log_every": 5,
        "eval_every": max(1, steps // 5),  # playing is slow: every move reads all weights
        "eval_maps": 8,
        "save_every": 20,
    }


def recipe_table() -> list[dict[str, str]]:
    """Both recipes for the Llama of the profile ``full``, one row a setting: ``setting``, ``paper``, ``ours``."""
    paper, ours = (
        # The temperature is of play alone, and yet a part of the recipe.
        dict(_flat(config.decisive() | {"temperature": config.temperature}))
        for config in (TrainConfig(**train_options(PROFILES["full"], recipe)) for recipe in ("paper", "ours"))
    )
    return [{"setting": name, "paper": _text(paper[name]), "ours": _text(ours[name])} for name in paper]


def _flat(values: dict) -> Iterator[tuple[str, object]]:
    for name, value in values.items():
        yield from (
            ((f"{name}_{inner}", v) for inner, v in value.items()) if isinstance(value, dict) else [(name, value)]
        )


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else f"{value:,}" if type(value) is int else str(value)
