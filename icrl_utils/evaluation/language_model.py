"""A real language model beside the tiny Llama and the baselines, on held-out lakes of both sizes and both schedules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from icrl_utils.lake.held_out import held_out_maps
from icrl_utils.lake.maps import LakeMap
from icrl_utils.llama.agent import load_agent
from icrl_utils.llama.words_agent import load_words_agent
from icrl_utils.paths import ASSETS, BUILD, LANGUAGE_MODEL
from icrl_utils.play.baselines import RandomPolicy, RMaxPolicy, TabularPolicy
from icrl_utils.play.policy import Policy

SHIPPED = ASSETS / "adapters" / "smollm2-dqn"
STAGE_ONE = BUILD / "smollm2-stage-one"
TRAINED, MEMORY_LESS, PREDICTING, UNTOUCHED = "SmolLM2", "SmolLM2 memory-less", "SmolLM2 stage one", "SmolLM2 untouched"
LAKES = 100  # held-out lakes of each setting, the first ones of the list; chosen before the first look
LAKES_OF_SLOW_PLAYERS = 32  # of players that walk to the step limit in most episodes, in the first setting only


Lakes = Mapping[str, Sequence[LakeMap]]  # by setting


class Setting(NamedTuple):
    lakes: str  # list of held-out lakes
    schedule: str
    episodes: int


SETTINGS = {
    "3 to 5 wide, paper's schedule": Setting("in_distribution", "paper", 30),
    "6 and 7 wide, paper's schedule": Setting("out_of_distribution", "paper", 30),
    "3 to 5 wide, decides alone": Setting("in_distribution", "greedy", 15),
    "6 and 7 wide, decides alone": Setting("out_of_distribution", "greedy", 15),
}


def lakes_of_settings(n: int | None = None) -> dict[str, list[LakeMap]]:
    """setting -> its lakes."""
    return {name: held_out_maps(setting.lakes)[: LAKES if n is None else n] for name, setting in SETTINGS.items()}


def players() -> list[Policy]:
    """The language model at every stage, the tiny Llama, and baselines that know as little about lakes.

    Raises FileNotFoundError where the adapter of stage one is missing, which is not shipped.
    """
    if not (STAGE_ONE / "run.json").exists():
        raise FileNotFoundError(
            "build/smollm2-stage-one is missing; make it by `python -m icrl_utils finetune --steps 16 --out "
            "build/smollm2-stage-one` (a minute)."
        )
    return [
        load_agent(SHIPPED, name=TRAINED),
        load_agent(SHIPPED, memory=False, name=MEMORY_LESS),
        load_agent(STAGE_ONE, name=PREDICTING),
        load_words_agent(LANGUAGE_MODEL, name=UNTOUCHED, temperature=0.5),
        load_agent(ASSETS / "adapters" / "dqn", name="tiny Llama"),
        RandomPolicy(),
        TabularPolicy(),
        TabularPolicy(1.0),
        RMaxPolicy(),
    ]


def plays(policy: Policy, setting: str, lakes: Sequence[LakeMap]) -> Sequence[LakeMap]:
    """The lakes of ``setting`` that ``policy`` plays: all, or for players that walk to the step limit a part of the
    first setting's."""
    if policy.name not in (MEMORY_LESS, PREDICTING, UNTOUCHED):
        return lakes
    return lakes[:LAKES_OF_SLOW_PLAYERS] if setting == next(iter(SETTINGS)) else []
