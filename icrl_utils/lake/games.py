"""Games that are no lakes, told in the same words: what an agent that only ever saw lakes cannot have learned by heart.

    law.sample(n, seed) -> list of games -> everything that plays lakes

Every game is a `TileGame`: numbered tiles, four actions, goals and holes. A law is a frozen dataclass that draws games;
``GAMES`` are those of the course, and they were chosen before any player met them. The first three tell held-out lakes,
the same ones in the same order for the same seed, so that players can be compared game by game:

- *lakes*: the control.
- *numbers permuted*: the same lakes, their tiles numbered at random. Not new to the agents: half of their training
  histories were renumbered too.
- *numbers and words permuted*: and the action words exchanged, so that "left" may lead down.
- *key and door*: two floors. The key leads upstairs, and only there the goals are open.
- *random graphs*: every move leads to any of twelve tiles, three of them deadly. Few moves can be taken back.
- *rivers*: every move drifts downstream, and at the end is a fall with one landing place.
- *bandits* and *slippery lakes*: the same move does not always end alike. The agents were trained where it does, and
  should fail here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Protocol

import numpy as np

from icrl_utils.lake.held_out import held_out_law, held_out_maps
from icrl_utils.lake.maps import (
    FIRM,
    PAPER_IN_DISTRIBUTION,
    SLIPPERY,
    LakeMap,
    MapDistribution,
    TileGame,
    check_letters,
    read_only,
)
from icrl_utils.ranges import LARGEST_INT16, checked_seed, real_number, whole_number, whole_numbers

# What games are made of


@dataclass(frozen=True)
class TableGame(TileGame):
    """A game written out: where each of the four moves leads from each tile.

    Args:
        tiles: one letter a tile, S (start), F (play goes on), H (hole) or G (goal).
        moves: for each tile the tiles after left, down, right, up; goals and holes lead to themselves.
        chances: for each chosen action the probabilities that it turns out as left, down, right, up; as chosen by
            default.

    Raises:
        ValueError: an argument that makes no game, by its name.
    """

    tiles: str
    moves: tuple[tuple[int, ...], ...]
    chances: tuple[tuple[float, ...], ...] = tuple(map(tuple, FIRM.tolist()))

    def __post_init__(self) -> None:
        if not isinstance(self.tiles, str):
            raise ValueError(f"tiles={self.tiles!r}: pass one string, for example 'SFHG'.")
        check_letters(self.tiles, f"tiles={self.tiles!r}")
        n = whole_number("len(tiles)", len(self.tiles), 2, LARGEST_INT16)
        is_table = len(self.moves) == n and all(len(row) == 4 for row in self.moves)
        moves = whole_numbers("moves", self.moves if is_table else [])
        if not is_table or moves.min() < 0 or moves.max() >= n:
            raise ValueError(f"moves={self.moves!r}: pass for each of {n} tiles four tile numbers from 0 to {n - 1}.")
        for tile in (*self.goals, *self.holes):
            if (moves[tile] != tile).any():
                raise ValueError(f"moves[{tile}]={self.moves[tile]!r}: play ends there, pass ({tile},) * 4.")
        chances = np.array(self.chances, float)
        if chances.shape != (4, 4) or chances.min() < 0 or not np.allclose(chances.sum(axis=1), 1):
            raise ValueError(f"chances={self.chances!r}: pass four times four probabilities whose sum is 1.")
        object.__setattr__(self, "moves", tuple(map(tuple, moves.tolist())))
        object.__setattr__(self, "chances", tuple(map(tuple, chances.tolist())))

    @property
    def letters(self) -> str:
        return self.tiles

    @property
    def id(self) -> str:
        tiles = [f"{letter}{','.join(map(str, to))}" for letter, to in zip(self.tiles, self.moves, strict=True)]
        is_firm = np.array_equal(self.slip, FIRM)
        return "/".join(tiles) + ("" if is_firm else f" {self.chances}")

    @cached_property
    def next_tile(self) -> np.ndarray:
        return read_only(np.array(self.moves, np.int16))

    @cached_property
    def slip(self) -> np.ndarray:
        return read_only(np.array(self.chances))


@dataclass(frozen=True)
class RelabelledLake(TileGame):
    """A lake in other words: its tile t is called ``numbers[t]``, its action a ``words[a]``.

    Its starts are in the lake's order, so that equal luck begins both on the same tile.
    """

    original: LakeMap
    numbers: tuple[int, ...]
    words: tuple[int, ...] = (0, 1, 2, 3)

    def __post_init__(self) -> None:
        if not isinstance(self.original, LakeMap):
            raise ValueError(f"original={self.original!r}: pass a LakeMap, e.g. LakeMap(('SFF', 'FFG')).")
        for name, n in (("numbers", self.original.n_tiles), ("words", 4)):
            new = whole_numbers(name, getattr(self, name)).tolist()
            if sorted(new) != list(range(n)):
                raise ValueError(f"{name}={getattr(self, name)!r}: pass each of 0 to {n - 1} once.")
            object.__setattr__(self, name, tuple(new))

    @property
    def lake(self) -> LakeMap:
        return self.original

    @property
    def id(self) -> str:
        return f"{self.original.id} {self.numbers} {self.words}"

    @property
    def starts(self) -> tuple[int, ...]:
        return tuple(self.numbers[tile] for tile in self.original.starts)

    @cached_property
    def letters(self) -> str:
        return "".join(self.original.letters[tile] for tile in np.argsort(self.numbers))

    @cached_property
    def next_tile(self) -> np.ndarray:
        numbers, words = np.array(self.numbers), np.array(self.words)
        next_tile = np.empty((self.n_tiles, 4), np.int16)
        next_tile[numbers[:, None], words] = numbers[self.original.next_tile]
        return read_only(next_tile)


@dataclass(frozen=True)
class SlipperyLake(LakeMap):
    """A lake on slippery ice: one goes in the chosen direction or in one of the two beside it, with 1/3 each."""

    @property
    def id(self) -> str:
        return f"{super().id} slippery"

    @property
    def slip(self) -> np.ndarray:
        return SLIPPERY

    @property
    def lake(self) -> LakeMap:
        return LakeMap(self.rows)


# Laws


class Law(Protocol):
    """Draws games. ``sample(n, seed)`` begins ``sample(more, seed)``."""

    def sample(self, n: int, seed: int) -> Sequence[TileGame]: ...


@dataclass(frozen=True)
class HeldOutLakes:
    """Distinct held-out lakes in an order that the seed draws. No agent was trained on any of them."""

    name: str = "in_distribution"

    @property
    def law(self) -> MapDistribution:
        """The law that they were drawn from: what a player may be told who is given the law of the lakes."""
        return held_out_law(self.name)

    def sample(self, n: int, seed: int) -> list[LakeMap]:
        maps = held_out_maps(self.name)
        order = np.random.default_rng(checked_seed(seed)).permutation(len(maps))
        return [maps[i] for i in order[: whole_number("n", n, 0, len(maps))]]


@dataclass(frozen=True)
class RelabelledLakes:
    """The lakes of ``lakes``, each with its tile numbers permuted at random; ``words``: its action words too."""

    lakes: HeldOutLakes | MapDistribution = HeldOutLakes()
    words: bool = False

    def sample(self, n: int, seed: int) -> list[RelabelledLake]:
        rng = np.random.default_rng([checked_seed(seed), 1])
        games = []
        for lake in self.lakes.sample(n, seed):
            numbers, words = rng.permutation(lake.n_tiles), rng.permutation(4)  # both drawn, so that both laws agree
            games.append(RelabelledLake(lake, tuple(numbers), tuple(words) if self.words else (0, 1, 2, 3)))
        return games


@dataclass(frozen=True)
class SlipperyLakes:
    """The lakes of ``lakes`` on slippery ice."""

    lakes: HeldOutLakes | MapDistribution = HeldOutLakes()

    def sample(self, n: int, seed: int) -> list[SlipperyLake]:
        return [SlipperyLake(lake.rows) for lake in self.lakes.sample(n, seed)]


@dataclass(frozen=True)
class KeyAndDoor:
    """A lake on two floors, with a key on a frozen tile drawn at random; see `key_and_door`.

    Kept if from every start a goal can be reached. It is then at least as far as on the lake.
    """

    lakes: MapDistribution = PAPER_IN_DISTRIBUTION

    def sample(self, n: int, seed: int) -> list[TableGame]:
        return _accepted(self._draw, n, seed)

    def _draw(self, rng: np.random.Generator) -> TableGame | None:
        (lake,) = self.lakes.sample(1, rng)
        frozen = [tile for tile, letter in enumerate(lake.letters) if letter == "F"]
        if not frozen:
            return None
        game = key_and_door(lake, int(rng.choice(frozen)))
        return game if min(map(game.optimal_steps, game.starts)) > 0 else None


def key_and_door(lake: LakeMap, key: int) -> TableGame:
    """Two floors of ``lake``; tile t is t downstairs and n + t upstairs, n the number of tiles.

    Play begins downstairs, where goals are closed: a move against one leads nowhere, as against a wall. Whoever moves
    onto the tile ``key`` downstairs stands on it upstairs, where goals are open. Holes are deadly on both floors.
    """
    if lake.letters[whole_number("key", key, 0, lake.n_tiles - 1)] != "F":
        raise ValueError(f"key={key} lies on {lake.letters[key]!r}: pass a frozen tile (F) of {lake.id!r}.")
    n, stay = lake.n_tiles, np.arange(lake.n_tiles)[:, None]
    downstairs = lake.next_tile.astype(np.int64)
    downstairs = np.where(np.isin(downstairs, lake.goals), stay, downstairs)
    downstairs = np.where(downstairs == key, n + key, downstairs)
    moves = np.concatenate([downstairs, n + lake.next_tile])
    return TableGame(lake.letters.replace("G", "F") + lake.letters.replace("S", "F"), tuple(map(tuple, moves)))


@dataclass(frozen=True)
class RandomGraphs:
    """Every move leads to any tile, each as likely as the others: no neighbours, a way back by chance only.

    One start, one goal and ``holes`` holes on random tiles. Kept if the start is at least ``min_hops`` moves away from
    the goal.
    """

    tiles: int = 12
    holes: int = 3
    min_hops: int = 3

    def __post_init__(self) -> None:
        whole_number("tiles", self.tiles, 2, LARGEST_INT16)
        whole_number("holes", self.holes, 0, self.tiles - 2)
        whole_number("min_hops", self.min_hops, 1)

    def sample(self, n: int, seed: int) -> list[TableGame]:
        return _accepted(self._draw, n, seed)

    def _draw(self, rng: np.random.Generator) -> TableGame | None:
        letters = rng.permutation(list("SG" + "H" * self.holes + "F" * (self.tiles - 2 - self.holes)))
        to = rng.integers(self.tiles, size=(self.tiles, 4))
        is_end = np.isin(letters, ["G", "H"])
        moves = np.where(is_end[:, None], np.arange(self.tiles)[:, None], to)
        game = TableGame("".join(letters), tuple(map(tuple, moves)))
        return game if game.optimal_steps(game.starts[0]) >= self.min_hops else None


@dataclass(frozen=True)
class Rivers:
    """A river that flows to the right: ``rows`` and ``columns`` are drawn from these ranges; see `river`.

    The first column has one start, the last one is a fall (holes) but for one landing place (the goal). Each tile
    between them is a rock (a hole) with probability ``rock_prob``. Kept if the start is at least ``min_hops`` moves
    away from the goal.
    """

    rows: tuple[int, int] = (3, 5)
    columns: tuple[int, int] = (5, 8)
    rock_prob: float = 0.2
    min_hops: int = 4

    def __post_init__(self) -> None:
        for name, fewest in (("rows", 1), ("columns", 2)):
            low, high = getattr(self, name)
            whole_number(f"{name}[1]", high, whole_number(f"{name}[0]", low, fewest))
        real_number("rock_prob", self.rock_prob, 0, 1)
        whole_number("min_hops", self.min_hops, 1)

    def sample(self, n: int, seed: int) -> list[TableGame]:
        return _accepted(self._draw, n, seed)

    def _draw(self, rng: np.random.Generator) -> TableGame | None:
        height, width = rng.integers(self.rows[0], self.rows[1] + 1), rng.integers(self.columns[0], self.columns[1] + 1)
        letters = np.where(rng.random((height, width)) < self.rock_prob, "H", "F")
        letters[:, 0], letters[:, -1] = "F", "H"
        letters[rng.integers(height), 0] = "S"
        letters[rng.integers(height), -1] = "G"
        game = river(LakeMap(tuple("".join(row) for row in letters)))
        return game if game.optimal_steps(game.starts[0]) >= self.min_hops else None


def river(lake: LakeMap) -> TableGame:
    """``lake`` as a river: a move as on ice, unless it ends the episode, and then one tile to the right.

    So "left" keeps one's place, "right" leads two tiles on, and up and down lead downstream at a slant.
    """
    drifted = lake.next_tile[:, 2]
    ends = [*lake.goals, *lake.holes]
    moves = np.where(np.isin(lake.next_tile, ends), lake.next_tile, drifted[lake.next_tile])
    return TableGame(lake.letters, tuple(map(tuple, moves)))


@dataclass(frozen=True)
class Bandits:
    """Four arms, each of which pays with a probability of its own, drawn from U(0, 1); see `bandit`."""

    def sample(self, n: int, seed: int) -> list[TableGame]:
        return _accepted(lambda rng: bandit(tuple(rng.random(4))), n, seed)


def bandit(pays: tuple[float, ...]) -> TableGame:
    """A four-armed bandit told as lakes of one move: action a leads to the goal with probability ``pays[a]``, else into
    a hole."""
    if len(pays) != 4:
        raise ValueError(f"pays={pays!r}: pass four probabilities.")
    chances = [
        (real_number("pays", p, 0, 1), 1 - p, 0, 0) for p in pays
    ]  # "left" happens: it pays; "down": it does not
    return TableGame("SGH", ((1, 2, 2, 2), (1,) * 4, (2,) * 4), tuple(chances))


_MOST_REJECTED = 10_000  # in a row, before we call a law impossible


def _accepted(draw: Callable[[np.random.Generator], TableGame | None], n: int, seed: int) -> list[TableGame]:
    """The first ``n`` games that ``draw`` gives from the stream of ``seed``; None is a game that the law rejects."""
    n, rng = whole_number("n", n, 0), np.random.default_rng(checked_seed(seed))
    games: list[TableGame] = []
    rejected = 0
    while len(games) < n:
        game = draw(rng)
        if game is not None:
            games.append(game)
        rejected = 0 if game is not None else rejected + 1
        if rejected == _MOST_REJECTED:
            raise ValueError(
                f"{getattr(draw, '__self__', draw)} accepted none of {rejected:,} games in a row: lower min_hops, or "
                "have fewer holes."
            )
    return games


GAMES: dict[str, Law] = {
    "lakes": HeldOutLakes(),
    "numbers permuted": RelabelledLakes(),
    "numbers and words permuted": RelabelledLakes(words=True),
    "key and door": KeyAndDoor(),
    "random graphs": RandomGraphs(),
    "rivers": Rivers(),
    "bandits": Bandits(),
    "slippery lakes": SlipperyLakes(),
}
