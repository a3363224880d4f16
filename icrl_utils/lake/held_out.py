"""Lists of lakes: held-out ones for every figure, development ones for tuning, and training lakes without both.

Nothing is ever trained on a held-out lake. They are shipped as a file because numpy promises no equal random streams
across its versions.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Sequence
from functools import cache

import numpy as np

from icrl_utils.lake.maps import (
    PAPER_IN_DISTRIBUTION,
    PAPER_OUT_OF_DISTRIBUTION,
    LakeMap,
    MapDistribution,
    TileGame,
    checked_maps,
)
from icrl_utils.paths import ASSETS, atomically
from icrl_utils.ranges import whole_number

HELD_OUT_FILE = ASSETS / "held_out_maps.json"
HELD_OUT_SHA256 = "72e231988852f4b7b7e8458ab294f0c56e3ae1fe532291257bdfb88893e5ec80"
_LAWS = {"in_distribution": PAPER_IN_DISTRIBUTION, "out_of_distribution": PAPER_OUT_OF_DISTRIBUTION}
_HELD_OUT_SEEDS = {"in_distribution": 2501, "out_of_distribution": 14176}
_DEVELOPMENT_SEEDS = {"in_distribution": 7001, "out_of_distribution": 7002}
_HELD_OUT_SIZE = 500

# The lake of the lessons: the first of the held-out lakes ``in_distribution``, four by four with one start and one
# goal, on which in the shipped records of the experiment ``exploration`` the memory-less agent fails in all of the
# first ten episodes and the agent of each training run fails in the first two and succeeds in the last five of them. So
# learning can be seen on it; it says nothing about how often that is so. A test holds it to this rule.
COURSE_LAKE_NUMBER = 23
COURSE_LAKE = LakeMap(("SHGF", "FFFF", "HFFF", "FFFF"))
_DEVELOPMENT_SIZE = 200


def held_out_maps(name: str) -> list[LakeMap]:
    """The 500 distinct maps of ``in_distribution`` (3..5 wide and high) or ``out_of_distribution`` (6..7).

    Raises:
        ValueError: unknown name, or the shipped file was altered.
        FileNotFoundError: the shipped file is missing.
    """
    return list(_held_out()[_checked_name(name)])


def held_out_law(name: str) -> MapDistribution:
    """The law that ``held_out_maps(name)`` were drawn from."""
    return _LAWS[_checked_name(name)]


def development_maps(name: str, n: int = _DEVELOPMENT_SIZE) -> list[LakeMap]:
    """``n`` distinct maps of the same law as ``held_out_maps(name)``, none of them held out: for tuning."""
    law = _LAWS[_checked_name(name)]
    return _distinct(law, whole_number("n", n, 0), _DEVELOPMENT_SEEDS[name], exclude=_all_held_out())


def training_maps(distribution: MapDistribution, n: int, seed: int | np.random.Generator) -> list[LakeMap]:
    """``n`` maps of any law without the held-out maps and without the 200 + 200 default development maps."""
    if not isinstance(distribution, MapDistribution):
        raise ValueError(f"distribution={distribution!r}: pass a MapDistribution, for example TRAINING_MAPS.")
    development = [lake for name in _LAWS for lake in _default_development_maps(name)]
    return distribution.sample(n, seed, exclude=_all_held_out().union(development))


def reject_held_out(maps: Sequence[TileGame], argument: str = "maps") -> None:
    """Raises a ValueError that names ``argument`` if any of ``maps`` is held out, in whatever words, or if there is
    none."""
    maps = checked_maps(maps, argument)
    found = [i for i, game in enumerate(maps) if game.lake in _all_held_out()]
    if found:
        raise ValueError(
            f"{argument}[{found[0]}]={maps[found[0]].id!r} is a held-out map ({len(found)} of {len(maps)} are): "
            "train on other maps, for example training_maps(TRAINING_MAPS, n, seed), which leaves them out."
        )


def _checked_name(name: str) -> str:
    if name not in _LAWS:
        raise ValueError(f"name={name!r}: unknown list of maps; choose one of {', '.join(_LAWS)}.")
    return name


def _distinct(distribution: MapDistribution, n: int, seed: int, exclude: Collection[LakeMap] = ()) -> list[LakeMap]:
    """The first ``n`` different maps of ``distribution.sample(..., seed)``."""
    drawn = n
    while len(maps := list(dict.fromkeys(distribution.sample(drawn, seed, exclude)))) < n:
        drawn *= 2
    return maps[:n]


@cache
def _held_out() -> dict[str, tuple[LakeMap, ...]]:
    remake = "python -m icrl_utils remake held-out-maps"
    remedy = f"restore it with 'git checkout -- assets/held_out_maps.json' or remake it with '{remake}'."
    try:
        text = HELD_OUT_FILE.read_text(encoding="utf-8")  # line ends are normalised here, git may change them
    except FileNotFoundError:
        raise FileNotFoundError(f"{HELD_OUT_FILE} is missing: {remedy}") from None
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != HELD_OUT_SHA256:
        raise ValueError(
            f"{HELD_OUT_FILE} was altered (sha256 {digest[:12]}..., not {HELD_OUT_SHA256[:12]}...): {remedy}"
        )
    return {name: tuple(LakeMap(id.split("/")) for id in ids) for name, ids in json.loads(text).items()}


@cache
def _all_held_out() -> frozenset[LakeMap]:
    return frozenset(lake for maps in _held_out().values() for lake in maps)


@cache
def _default_development_maps(name: str) -> tuple[LakeMap, ...]:
    return tuple(development_maps(name))


def make_held_out_file() -> None:
    """Draw the held-out maps again and write the file, if they are still the maps of HELD_OUT_SHA256."""
    lists = {name: _distinct(law, _HELD_OUT_SIZE, _HELD_OUT_SEEDS[name]) for name, law in _LAWS.items()}
    text = json.dumps({name: [lake.id for lake in maps] for name, maps in lists.items()}, indent=0) + "\n"
    digest = hashlib.sha256(text.encode()).hexdigest()
    if digest != HELD_OUT_SHA256:
        raise SystemExit(
            f"numpy {np.__version__} draws other maps (sha256 {digest}) than those of all published figures "
            f"(sha256 {HELD_OUT_SHA256}): nothing written. Restore {HELD_OUT_FILE.name} from the repository."
        )
    with atomically(HELD_OUT_FILE) as part:
        part.write_text(text, encoding="utf-8", newline="\n")
    print(f"Wrote {HELD_OUT_FILE}.")
