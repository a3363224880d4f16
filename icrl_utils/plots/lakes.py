"""Pictures of lakes and other games, of the ways that players took on them, and of one history as tokens."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap, Normalize, to_rgb
from matplotlib.figure import Figure
from matplotlib.patches import Circle, FancyBboxPatch, Polygon, Rectangle

from icrl_utils.history.compact import COMPACT_WORDS
from icrl_utils.history.episodes import Episode
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.maps import ACTIONS, LakeMap, TileGame
from icrl_utils.plots.style import (
    BLUE,
    FOG_COLOR,
    GOAL_COLOR,
    GREEN,
    GREY,
    ICE_COLOR,
    INK,
    PALE,
    RED,
    START_COLOR,
    WATER_COLOR,
    YELLOW,
    new_figure,
    short_number,
    styled,
)

# ------------------------------------------------------------------------------------------------------------ lakes


@styled
def plot_lake(
    lake_map: LakeMap,
    episode: Episode | None = None,
    q: np.ndarray | None = None,
    known: Collection[int] | None = None,
    title: str = "",
) -> Figure:
    """One lake with its tile numbers.

    Args:
        episode: drawn as a path of numbered steps, pale at its beginning and dark at its end.
        q: float [n_tiles, 4], Q-values in the order left, down, right, up: four triangles to a tile, the darker the
            higher, and an arrow in the direction of the largest. Tiles with a nan, holes and goals stay plain.
        known: numbers of the tiles to show; all others lie in the fog.
    """
    scale = 0.95 if q is None else 1.25
    figure, axes = new_figure(scale * lake_map.width + (1.1 if q is not None else 0.3), scale * lake_map.height + 0.4)
    draw_lake(axes[0, 0], lake_map, known)
    if q is not None:
        q = np.asarray(q, float)
        _draw_q(axes[0, 0], lake_map, q, norm := _norm_of(q), fontsize=9.5, known=known)
        _colour_bar(figure, axes, norm)
    if episode is not None:
        draw_path(axes[0, 0], lake_map, episode)
    axes[0, 0].set_title(title)
    return figure


@styled
def plot_q_lakes(
    lake_map: LakeMap, q: Mapping[str, np.ndarray], known: Mapping[str, Collection[int]] | None = None
) -> Figure:
    """Several sets of Q-values on the same lake, in the same colours: title -> float [n_tiles, 4].

    Each tile says the largest of its four values, and an arrow which move has it.

    Args:
        known: panel title -> tiles to show there; all others lie in the fog. Panels without an entry have none.
    """
    width = min(4.0, 10.4 / len(q))
    figure, axes = new_figure(width * len(q) + 0.7, width * lake_map.height / lake_map.width + 0.45, 1, len(q))
    norm = _norm_of(np.concatenate([np.ravel(values) for values in q.values()]))
    for ax, (title, values) in zip(axes[0], q.items(), strict=True):
        shown = (known or {}).get(title)
        draw_lake(ax, lake_map, shown)
        _draw_q(ax, lake_map, np.asarray(values, float), norm, fontsize=11, known=shown, only_best=True)
        ax.set_title(title, fontsize=12)
    _colour_bar(figure, axes, norm)
    return figure


@styled
def plot_lakes(lakes: Mapping[str, LakeMap], columns: int = 6) -> Figure:
    """Several lakes at the same scale: title -> lake."""
    rows = -(-len(lakes) // columns)
    largest = max(max(lake.height, lake.width) for lake in lakes.values())
    figure, axes = new_figure(9, rows * (9 / columns + 0.35), rows, columns)
    for ax in axes.flat:
        ax.axis("off")
    for ax, (title, lake) in zip(axes.flat, lakes.items(), strict=False):
        draw_lake(ax, lake, small=True)
        ax.set(xlim=(-0.04, largest + 0.04), ylim=(largest + 0.04, -0.04))
        ax.set_title(title, fontsize=9)
    return figure


@styled
def plot_trajectories(
    lake_map: TileGame,
    episodes: Mapping[str, Episode],
    known: Mapping[str, Collection[int]] | None = None,
    deaths: Mapping[str, Collection[int]] | None = None,
) -> Figure:
    """Some episodes on the same lake, or of the same other game, side by side: panel title -> episode.

    Args:
        known: panel title -> tiles to show there, for example those visited until then.
        deaths: panel title -> tiles on which earlier episodes ended in a hole: a cross stays there.
    """
    columns, rows = np.nanmax(tile_places(lake_map), axis=0) + 1
    down, across = (len(episodes), 1) if columns > 10 else (1, len(episodes))  # wide ones one below the other
    width = min(max(3.1, 0.5 * columns), 9.4 / across)
    figure, axes = new_figure(width * across, (width * rows / columns + 0.75) * down, down, across)
    for ax, (title, episode) in zip(axes.flat, episodes.items(), strict=True):
        draw_lake(ax, lake_map, known[title] if known else None)
        for tile in (deaths or {}).get(title, ()):
            _draw_end(ax, tile_places(lake_map)[tile] + 0.5, "hole", size=0.6)
        draw_path(ax, lake_map, episode)
        ending = {"goal": "goal", "hole": "hole", "limit": "step limit", None: "still running"}[episode.outcome]
        moves = f"{episode.steps} move{'s' * (episode.steps != 1)}"
        ax.set_title(f"{title}\n{moves}: {ending}", fontsize=11)
    return figure


def tile_places(game: TileGame) -> np.ndarray:
    """float64 [n_tiles, 2], x and y of the upper left corner of every tile, a unit wide and high, in a picture.

    A lake is a grid. Of other games nobody knows where tiles lie: they stand in columns, the farthest from a goal on
    the left, then the goals, then the holes; nan: no way leads there from a start.
    """
    if isinstance(game, LakeMap):
        row, column = np.divmod(np.arange(game.n_tiles), game.width)
        return np.stack([column, row], axis=1).astype(float)
    reached, frontier = set(game.starts), set(game.starts)
    while frontier:
        frontier = {int(after) for tile in frontier for after in game.next_tile[tile]} - reached
        reached |= frontier
    place, x = np.full((game.n_tiles, 2), np.nan), 0.0
    longest = int(game.distances.max())
    dead_ends = [tile for tile in reached if game.distances[tile] < 0 and tile not in game.holes]
    groups = [dead_ends, *([t for t in reached if game.distances[t] == d] for d in range(longest, -1, -1))]
    for group in [*groups, [tile for tile in reached if tile in game.holes]]:
        for first in range(0, len(group), 5):
            part = sorted(group)[first : first + 5]
            place[part] = [(x, 1.4 * y) for y in range(len(part))]
            x += 1.7
    return place


def draw_lake(ax: Axes, lake_map: TileGame, known: Collection[int] | None = None, small: bool = False) -> None:
    """Tiles with their numbers: ice with a glint, start S, a flag at the goal, dark water in a hole, fog over what is
    not ``known``. ``small``: for little tiles.

    Where tiles are no neighbours (games that are no lakes) pale lines show the moves."""
    shrink = 0.55 if small else 1.0
    places = tile_places(lake_map)
    width, height = np.nanmax(places, axis=0) + 1
    ax.set(xlim=(-0.04, width + 0.04), ylim=(height + 0.04, -0.04), aspect="equal")
    ax.axis("off")
    if not isinstance(lake_map, LakeMap):
        _draw_moves(ax, lake_map, places)
    for tile, letter in enumerate(lake_map.letters):
        corner = places[tile]
        if np.isnan(corner[1]):
            continue
        in_fog = known is not None and tile not in known
        face = FOG_COLOR if in_fog else {"S": START_COLOR, "G": GOAL_COLOR}.get(letter, ICE_COLOR)
        ax.add_patch(Rectangle(tuple(corner), 1, 1, facecolor=face, edgecolor="white", linewidth=2, zorder=0.8))
        if in_fog:
            for x, y, radius in ((0.34, 0.6, 0.19), (0.54, 0.5, 0.24), (0.72, 0.62, 0.17)):
                ax.add_patch(Circle((corner[0] + x, corner[1] + y), radius, color="white", alpha=0.5, linewidth=0))
            ax.text(corner[0] + 0.52, corner[1] + 0.55, "?", ha="center", va="center", color=GREY, fontsize=14 * shrink)
            continue
        if letter == "H":
            ax.add_patch(Circle(tuple(corner + 0.53), 0.36, color="white"))
            ax.add_patch(Circle(tuple(corner + 0.53), 0.31, color=WATER_COLOR))
        elif letter == "G":
            _draw_flag(ax, corner)
        elif letter == "S":
            ax.text(corner[0] + 0.5, corner[1] + 0.54, "S", ha="center", va="center", color=GREY, fontsize=16 * shrink)
        elif not small:
            for x in (0.66, 0.8):
                ax.plot(corner[0] + [x, x + 0.14], corner[1] + [0.92, 0.74], color="white", linewidth=2, zorder=0.9)
        if not small:
            ax.text(
                corner[0] + 0.07, corner[1] + 0.06, str(tile), ha="left", va="top", fontsize=10, color=INK, zorder=5
            )


def _draw_flag(ax: Axes, corner: np.ndarray) -> None:
    """A green flag on its pole, in the tile with this upper left corner."""
    pole = corner + np.array([(0.4, 0.86), (0.4, 0.24)])
    ax.plot(*pole.T, color=INK, linewidth=1.6, zorder=2)
    ax.add_patch(Polygon(corner + np.array([(0.41, 0.24), (0.8, 0.38), (0.41, 0.52)]), color=GREEN, zorder=2))


def _draw_moves(ax: Axes, game: TileGame, places: np.ndarray) -> None:
    """A pale line for every move from one tile to another."""
    for tile in np.flatnonzero(~np.isnan(places[:, 0])):
        for after in set(game.next_tile[tile].tolist()) - {int(tile)}:
            ends = np.stack([places[tile], places[after]]) + 0.5
            ax.plot(*ends.T, color=GREY, alpha=0.22, linewidth=0.8, zorder=0.5)


def draw_path(ax: Axes, lake_map: TileGame, episode: Episode, color: str = BLUE) -> None:
    """The moves of an episode as arrows, numbered where there are few; early ones are pale. A move against a wall is a
    short stub; the end is marked by its outcome, and where there is none yet stands the player."""
    tiles = _known_tiles(lake_map, episode)
    centre = tile_places(lake_map)[tiles] + 0.5
    for step, action in enumerate(episode.actions):
        moved = tiles[step] != tiles[step + 1]
        way = centre[step + 1] - centre[step] if moved else np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])[action]
        # Ways there and back must not cover each other: keep to the right of the line between the centres.
        side = 0.11 * np.array([-way[1], way[0]]) / np.hypot(*way)
        start = centre[step] + side
        end = centre[step + 1] + side if moved else start + 0.42 * way
        age = 0.3 + 0.7 * (step + 1) / len(episode.actions)
        ax.annotate(
            "", end, start, zorder=4,
            arrowprops={"arrowstyle": "-|>" if moved else "-[, widthB=0.3, lengthB=0", "color": color, "alpha": age,
                        "linewidth": 2.4, "shrinkA": 0, "shrinkB": 0, "mutation_scale": 14},
        )  # fmt: skip
        if episode.steps <= MOST_NUMBERED and moved:
            x, y = start + 0.45 * (end - start)
            face = tuple(1 - age * (1 - np.array(to_rgb(color))))  # as pale as the arrow
            ax.text(x, y, str(step + 1), ha="center", va="center", fontsize=9.5, color="white" if age > 0.6 else INK,
                    zorder=5, fontweight="bold", bbox={"boxstyle": "circle,pad=0.14", "facecolor": face,
                                                       "edgecolor": "white", "linewidth": 0.8})  # fmt: skip
    ax.plot(*centre[0], marker="o", markersize=6, color=color, alpha=0.5, zorder=4)
    if episode.outcome:
        _draw_end(ax, centre[-1], episode.outcome)
    else:
        _draw_player(ax, centre[-1], color)


MOST_NUMBERED = 12  # steps of an episode; more numbers would cover each other


def _draw_end(ax: Axes, centre: np.ndarray, outcome: str, size: float = 1.0) -> None:
    marker, points, face = {"goal": ("*", 18, YELLOW), "hole": ("X", 14, RED), "limit": ("s", 10, YELLOW)}[outcome]
    place = centre + (0.2, 0.22) if outcome == "goal" else centre  # beside the flag
    ax.plot(*place, marker=marker, markersize=size * points, color=face, zorder=6,
            markeredgecolor=INK if outcome == "goal" else "white")  # fmt: skip


def _draw_player(ax: Axes, centre: np.ndarray, color: str) -> None:
    """A small figure: head and coat."""
    ax.add_patch(Circle(tuple(centre - (0, 0.16)), 0.1, color=color, zorder=6))
    ax.add_patch(Polygon(centre + np.array([(0, -0.08), (0.17, 0.26), (-0.17, 0.26)]), color=color, zorder=6))


def _known_tiles(lake_map: TileGame, episode: Episode) -> list[int]:
    """The tiles of an episode; one parsed from ``compact`` text does not tell the last, but the map does."""
    tiles = [tile for tile in episode.tiles if tile is not None]
    if len(tiles) < len(episode.tiles):
        tiles.append(int(lake_map.next_tile[tiles[-1], episode.actions[-1]]))
    return tiles


Q_COLOURS = LinearSegmentedColormap.from_list("q", ["#FFFDF0", "#D3ECA8", "#6CBF73", "#1B7A43"])  # low is light


def _norm_of(q: np.ndarray) -> Normalize:
    """From 0 to 1, where returns lie, and further if the values do."""
    return Normalize(float(np.nanmin(q, initial=0)), float(np.nanmax(q, initial=1)))


def _colour_bar(figure: Figure, axes: np.ndarray, norm: Normalize) -> None:
    bar = figure.colorbar(plt.cm.ScalarMappable(norm, Q_COLOURS), ax=axes, shrink=0.7, pad=0.02)
    bar.set_label("Q", rotation=0)
    bar.outline.set_visible(False)


def _draw_q(
    ax: Axes,
    lake_map: LakeMap,
    q: np.ndarray,
    norm: Normalize,
    fontsize: float,
    known: Collection[int] | None = None,
    only_best: bool = False,
) -> None:
    if q.shape != (lake_map.n_tiles, 4):
        raise ValueError(f"q has shape {q.shape}: give [{lake_map.n_tiles}, 4], one row a tile of this map.")
    corners = np.array([(0, 0), (0, 1), (1, 1), (1, 0)])  # action a has the side from corner a to corner a + 1
    for tile in range(lake_map.n_tiles):
        plain = tile in (*lake_map.holes, *lake_map.goals) or (known is not None and tile not in known)
        if plain or np.isnan(q[tile]).any():
            continue
        centre = np.array([tile % lake_map.width, tile // lake_map.width]) + 0.5
        for action, value in enumerate(q[tile]):
            triangle = centre + (corners[[action, (action + 1) % 4]] - 0.5) * 0.97
            patch = Polygon([*triangle, centre], facecolor=Q_COLOURS(norm(value)), edgecolor="white", linewidth=1)
            ax.add_patch(patch)
            if not only_best:
                x, y = triangle.mean(axis=0) * 0.7 + centre * 0.3
                ink = INK if norm(value) < 0.75 else "white"
                ax.text(x, y, short_number(value), ha="center", va="center", fontsize=fontsize, color=ink, zorder=5)
        is_best = q[tile] > q[tile].max() - 1e-9
        for best in np.flatnonzero(is_best & ~is_best.all()):
            way = 2 * corners[[best, (best + 1) % 4]].mean(axis=0) - 1
            base, tip = (0.26, 0.46) if only_best else (0.04, 0.2)  # beyond the number, or around the centre
            side = 0.11 * way[::-1]
            ax.add_patch(Polygon([centre + tip * way, centre + base * way + side, centre + base * way - side],
                                 facecolor=RED, edgecolor="white", linewidth=0.8, zorder=4))  # fmt: skip
        if only_best:
            ax.text(centre[0], centre[1], short_number(q[tile].max()), ha="center", va="center", fontsize=fontsize,
                    color=INK, zorder=5, bbox={"boxstyle": "round,pad=0.12", "facecolor": "white",
                                               "edgecolor": "none", "alpha": 0.85})  # fmt: skip
    for text in ax.texts:
        if text.get_text() == "S":  # its place is taken
            text.set(position=text.get_position() + np.array([-0.17, -0.4]), fontsize=8)
        elif text.get_text().isdigit() and int(text.get_text()) not in (*lake_map.holes, *lake_map.goals):
            text.set(bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.6, "alpha": 0.8}, fontsize=8)


# ---------------------------------------------------------------------------------------------------------- history

TOKEN_COLORS = {  # kind of a token -> colour of its box
    "tile": "#D6E9F5",
    "action": "#FBDFB0",
    "goal": "#BFE5D6",
    "hole": "#F3C6AE",
    "limit": "#F7F1A8",
    "reset": PALE,
    "markup": "white",
}


@styled
def plot_history_tokens(
    history: str | Sequence[int],
    format: HistoryFormat | None = None,
    tokenizer=None,
    width: float = 9,
    ids: bool = True,
    title: str = "",
) -> Figure:
    """A history as the strip of tokens that a model reads; a triangle marks each decision, where Q is read
    (hollow: the history ends here and waits for an action).

    Args:
        history: text, or token ids int [T].
        format: how it is written, by default ``compact``; ``tokenizer``: the model's, needed for ``paper``.
        width: of the figure, in inches; long histories wrap. ids: the token ids below the words.
    """
    format = format or HistoryFormat("compact")
    token_ids = format.tokenize(history) if isinstance(history, str) else np.asarray(history, np.int64)
    words = _words(token_ids, format, tokenizer)
    # With one more action word at its end, a history that waits for an action has a decision there too.
    decisions = format.decisions(np.append(token_ids, format.action_ids[0])[None])
    reads = set(decisions.position[decisions.valid].tolist())

    letters = [max(len(word), 0.9 * len(str(i)) * ids) for word, i in zip(words, token_ids, strict=True)]
    box_width = [0.2 + 0.098 * count for count in letters]
    line_height = 0.82 if ids else 0.6
    places, x, line = [], 0.05, 0
    for wide in box_width:
        if x + wide > width - 0.1:
            x, line = 0.05, line + 1
        places.append((x, line))
        x += wide + 0.05
    height = line_height * (line + 1) + 0.35
    figure, axes = new_figure(width, height + (0.3 if title else 0))
    ax = axes[0, 0]
    ax.set(xlim=(0, width), ylim=(height, 0), aspect="equal", title=title)
    ax.axis("off")
    for t, (word, (x, line), wide) in enumerate(zip(words, places, box_width, strict=True)):
        y = 0.18 + line * line_height
        ax.add_patch(FancyBboxPatch(
            (x + 0.03, y), wide - 0.06, 0.26, boxstyle="round,pad=0.03", facecolor=TOKEN_COLORS[token_kind(word)],
            edgecolor=GREY, linewidth=0.6,
        ))  # fmt: skip
        ax.text(x + wide / 2, y + 0.135, word, ha="center", va="center", fontsize=10.5, color=INK)
        if ids:
            ax.text(x + wide / 2, y + 0.42, str(token_ids[t]), ha="center", va="center", fontsize=9, color=GREY)
        if t in reads:
            face = RED if t < len(words) - 1 else "white"
            ax.plot(x + wide / 2, y - 0.1, marker="v", markersize=6, color=RED, markerfacecolor=face)
    _legend(ax, dict.fromkeys(map(token_kind, words)), height - 0.09)
    return figure


def _legend(ax: Axes, kinds: Collection[str], y: float) -> None:
    ax.plot(0.1, y, marker="v", markersize=6, color=RED)
    ax.text(0.2, y, "decision: Q is read here, just before the action word", fontsize=9, color=GREY, va="center")
    x = 4.3
    for kind in kinds:
        ax.add_patch(Rectangle((x, y - 0.07), 0.14, 0.14, facecolor=TOKEN_COLORS[kind], edgecolor=GREY, linewidth=0.6))
        ax.text(x + 0.2, y, kind, fontsize=9, color=GREY, va="center")
        x += 0.4 + 0.085 * len(kind)


def _words(ids: np.ndarray, format: HistoryFormat, tokenizer) -> list[str]:
    if format.name == "compact":
        return [COMPACT_WORDS[i] for i in ids]
    if tokenizer is None:
        raise ValueError("tokenizer=None: words of the paper format need the tokenizer that made the ids.")
    return [tokenizer.decode([i]).replace("\n", "↵") for i in ids.tolist()]


def token_kind(word: str) -> str:
    word = word.strip()
    if word.isdecimal():
        return "tile"
    if word in ACTIONS:
        return "action"
    return word if word in ("goal", "hole", "limit", "reset") else "markup"
