"""Thin ipywidgets skins: every picture comes from ``plots/``, every rule from ``lake/`` and ``play/``.

Only what ipywidgets 7.7 (Colab) and 8 have in common is used.
"""

from __future__ import annotations

import base64
import functools
import html
import io
import traceback
from collections.abc import Callable, Mapping, Sequence
from typing import cast

import ipywidgets
import numpy as np
from matplotlib.figure import Figure

from icrl_utils.history.compact import COMPACT_TILES
from icrl_utils.history.episodes import OUTCOMES, Episode, Outcome
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.env import STEP_LIMIT
from icrl_utils.lake.maps import ACTIONS, LakeMap, TileGame
from icrl_utils.play.policy import Policy
from icrl_utils.play.rollout import Records, rollout
from icrl_utils.plots.changes import plot_progress
from icrl_utils.plots.curves import Curves, plot_learning_curves, success_by_policy
from icrl_utils.plots.lakes import plot_trajectories
from icrl_utils.plots.style import ARROWS
from icrl_utils.plots.values import plot_one_lake


def show_figure(output: ipywidgets.Output, figure: Figure) -> None:
    """Replace what ``output`` shows by a picture, at once: no flicker, and the same with and without a kernel."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    picture = base64.b64encode(buffer.getvalue()).decode("ascii")
    output.outputs = ({"output_type": "display_data", "data": {"image/png": picture}, "metadata": {}},)


def show_error(output: ipywidgets.Output, error: Exception) -> None:
    """Replace what ``output`` shows by the error, as a cell shows one."""
    lines = traceback.format_exception(error)
    name = type(error).__name__
    output.outputs = ({"output_type": "error", "ename": name, "evalue": str(error), "traceback": lines},)


def callback(method: Callable) -> Callable:
    """A method that a widget calls. Jupyter would swallow its errors, or hide them in a log, and the reader would see a
    display that stands still: they are shown in ``self.output``, and the widget lives on."""

    @functools.wraps(method)
    def call(self, *arguments) -> None:
        try:
            method(self, *arguments)
        except Exception as error:
            show_error(self.output, error)

    return call


# ------------------------------------------------------------------------------------------- learning-curve explorer


class LearningCurveExplorer(ipywidgets.VBox):
    """See ``learning_curve_explorer``. Attributes ``smoothing, maps, schedule, policies, output`` are its widgets."""

    def __init__(self, curves: Mapping[str, Curves], resamples: int):
        self.curves, self.resamples = dict(curves), resamples
        longest = max(len(values) for group in curves.values() for values in success_by_policy(group).values())
        wide = {"description_width": "10em"}
        layout = ipywidgets.Layout(width="26em")
        self.smoothing = ipywidgets.IntSlider(
            value=1, min=1, max=10, description="mean of episodes", style=wide, layout=layout, continuous_update=False
        )
        self.maps = ipywidgets.IntSlider(
            value=longest, min=min(5, longest), max=longest, description="number of lakes", style=wide, layout=layout,
            continuous_update=False,
        )  # fmt: skip
        self.schedule = ipywidgets.Dropdown(options=list(curves), description="schedule", style=wide, layout=layout)
        self.policies = ipywidgets.SelectMultiple(description="players", layout=ipywidgets.Layout(width="22em"))
        self.output = ipywidgets.Output()
        self._offer_policies()
        for widget in (self.smoothing, self.maps, self.policies):
            widget.observe(self._on_control, "value")
        self.schedule.observe(self._on_schedule, "value")
        controls = ipywidgets.VBox([self.smoothing, self.maps, self.schedule])
        super().__init__([ipywidgets.HBox([controls, self.policies]), self.output])
        self._draw()

    def figure(self) -> Figure:
        """What the controls ask for, drawn by ``plot_learning_curves``."""
        name = self.schedule.value
        group = self.curves[name]
        success = success_by_policy(group)
        chosen = {policy: success[policy][: self.maps.value] for policy in self.policies.value}
        return plot_learning_curves(
            chosen, _epsilon(group, name), smooth=self.smoothing.value,
            title=f"Schedule: {name}" if len(self.curves) > 1 else "", resamples=self.resamples,
        )  # fmt: skip

    @callback
    def _on_control(self, change: object) -> None:
        self._draw()

    @callback
    def _on_schedule(self, change: object) -> None:
        self._offer_policies()

    def _offer_policies(self) -> None:
        """The players of the chosen schedule; those that were chosen before stay chosen."""
        offered = list(success_by_policy(self.curves[self.schedule.value]))
        kept = [policy for policy in self.policies.value if policy in offered]
        self.policies.options = offered
        self.policies.rows = min(8, max(3, len(offered)))
        self.policies.value = kept or offered  # new options have emptied it: this draws

    def _draw(self) -> None:
        if self.policies.value:
            show_figure(self.output, self.figure())


def learning_curve_explorer(curves: Mapping[str, Curves] | Curves, resamples: int = 500) -> LearningCurveExplorer:
    """Success by episode with four controls: players, schedule, number of lakes, smoothing.

    Args:
        curves: schedule -> what ``plot_learning_curves`` takes, for example
            ``{"paper": [records, ...], "greedy": {"agent": success, ...}}``; or for one schedule only that.
        resamples: bootstrap samples for a band; fewer than in a printed figure, so that it answers at once.
    """
    one_schedule = not isinstance(curves, Mapping) or any(isinstance(v, Records | np.ndarray) for v in curves.values())
    schedules = {"as played": curves} if one_schedule else curves
    return LearningCurveExplorer(cast(Mapping[str, Curves], schedules), resamples)


def _epsilon(group: Curves, name: str) -> np.ndarray | str | None:
    if isinstance(group, Records):
        group = [group]
    for records in group.values() if isinstance(group, Mapping) else group:
        if isinstance(records, Records):
            return records.epsilon
    return name if name in ("paper", "greedy") else None


# ------------------------------------------------------------------------------------------------ one lake, many ways


class OneLakeExplorer(ipywidgets.VBox):
    """See ``one_lake_explorer``. Attributes ``alpha, link, replay, output`` are its widgets."""

    def __init__(self, rows: Sequence[Mapping]):
        self.rows = rows
        alphas = sorted({float(row["alpha"]) for row in rows})
        wide = {"description_width": "9em"}
        self.alpha = ipywidgets.SelectionSlider(
            options=[(f"{alpha:g}", alpha) for alpha in alphas], value=0.1, description="α of the slow copy",
            style=wide, continuous_update=False,
        )  # fmt: skip
        links = [("none, squared error", "none"), ("sigmoid, cross-entropy", "sigmoid")]
        self.link = ipywidgets.Dropdown(options=links, description="link", style=wide)
        self.replay = ipywidgets.Dropdown(options=[("off", False), ("on", True)], description="replay", style=wide)
        self.output = ipywidgets.Output()
        for widget in (self.alpha, self.link, self.replay):
            widget.observe(self._on_way, "value")
        super().__init__([ipywidgets.HBox([self.alpha, self.link, self.replay]), self.output])
        self._draw()

    @callback
    def _on_way(self, change: object) -> None:
        self._draw()

    def _draw(self) -> None:
        show_figure(self.output, plot_one_lake(self.rows, self.link.value, self.replay.value, self.alpha.value))


def one_lake_explorer(rows: Sequence[Mapping]) -> OneLakeExplorer:
    """``plot_one_lake`` with three controls: how slow the copy is, the link, replay. ``rows`` as there."""
    return OneLakeExplorer(rows)


# -------------------------------------------------------------------------------------------------- play it yourself


class Game:
    """A few episodes on one lake, or of another game, played by hand. It knows the rules and no widgets.

    Args:
        starts: the start tile of every episode.

    Raises:
        ValueError: the lake has more tiles than the compact text has words for.
    """

    def __init__(self, lake_map: TileGame, starts: list[int]):
        check_words(lake_map)
        self.lake_map, self.starts = lake_map, starts
        self._rng = np.random.default_rng(0)  # where moves slip
        self.episodes: list[Episode] = []  # those that have ended
        self._tiles = [starts[0]]
        self._actions: list[int] = []

    @property
    def over(self) -> bool:
        return len(self.episodes) == len(self.starts)

    @property
    def tile(self) -> int:
        return self._tiles[-1]

    @property
    def history(self) -> str:
        """All that the player has seen, in the compact text that the agent reads."""
        running = [] if self.over else [Episode(tuple(self._tiles), tuple(self._actions))]
        return HistoryFormat("compact").render([*self.episodes, *running])

    def move(self, action: int) -> str | None:
        """Take ``action`` 0..3. Returns how the episode ended, None if it goes on. After the last one nothing moves."""
        if self.over:
            return None
        happening = self._rng.choice(4, p=self.lake_map.slip[action])
        tile = int(self.lake_map.next_tile[self.tile, happening])
        self._tiles.append(tile)
        self._actions.append(action)
        outcome: Outcome | None = None
        if tile in self.lake_map.goals:
            outcome = "goal"
        elif tile in self.lake_map.holes:
            outcome = "hole"
        elif len(self._actions) == STEP_LIMIT:
            outcome = "limit"
        if outcome:
            self.episodes.append(Episode(tuple(self._tiles), tuple(self._actions), outcome))
            if not self.over:
                self._tiles, self._actions = [self.starts[len(self.episodes)]], []
        return outcome


def check_words(lake_map: TileGame) -> None:
    """Raises ValueError where the compact text, in which the game is told, has too few words."""
    if lake_map.n_tiles > COMPACT_TILES:
        raise ValueError(
            f"lake_map has {lake_map.n_tiles} tiles, and the compact text has words for {COMPACT_TILES}: play on a "
            "lake of at most 8 x 8."
        )


class PlayAgainstAgent(ipywidgets.VBox):
    """See ``play_against_agent``. Attributes: ``game``, ``records`` of the agent, ``buttons``, ``reveal``."""

    def __init__(self, lake_map: TileGame, records: Records):
        self.records = records
        self._noun = "lake" if isinstance(lake_map, LakeMap) else "game"
        self.opponent = records.episodes(0)
        self.game = Game(lake_map, records.tiles[0, :, 0].tolist())
        self.buttons = {
            action: ipywidgets.Button(
                description=f"{ARROWS[action]} {action}", layout=ipywidgets.Layout(width="7em", height="3em")
            )
            for action in ACTIONS
        }
        for action, button in enumerate(self.buttons.values()):
            button.on_click(functools.partial(self._on_move, action))
        self.reveal = ipywidgets.Button(
            description=f"Show the {self._noun} (spoiler)", button_style="info", layout=ipywidgets.Layout(width="14em")
        )
        self.reveal.on_click(self._on_reveal)
        self.view, self.table, self.output = ipywidgets.HTML(), ipywidgets.HTML(), ipywidgets.Output()
        self._message = "Where is the goal? Nobody tells you: try."
        self._refresh()
        keys = ipywidgets.HBox([self.buttons[action] for action in ("left", "down", "up", "right")])
        super().__init__([self.view, keys, self.table, self.reveal, self.output])

    @callback
    def _on_move(self, action: int, button: object) -> None:
        self._move(action)

    @callback
    def _on_reveal(self, button: object) -> None:
        self._reveal()

    def _move(self, action: int) -> None:
        outcome = self.game.move(action)
        self._message = {
            "goal": f"★ Goal! A new episode begins, on the same {self._noun}.",
            "hole": f"✕ A hole. A new episode begins, on the same {self._noun}: it is where it was.",
            "limit": f"… {STEP_LIMIT} moves without an end: cut off. A new episode begins, on the same {self._noun}.",
            None: f"You moved {ACTIONS[action]}.",
        }[outcome]
        if self.game.over:
            self._message = f"That was the last episode. Now look at the {self._noun}."
        self._refresh()

    def _refresh(self) -> None:
        words = self.game.history.split()
        shown = " ".join(words[-60:])
        number = len(self.game.episodes) + (not self.game.over)
        place = "–" if self.game.over else self.game.tile
        self.view.value = (
            f"<div style='font-size:110%'>Episode {number} of {len(self.game.starts)}. You stand on tile "
            f"<b style='font-size:200%'>{place}</b> &nbsp; {html.escape(self._message)}</div>"
            f"<div style='font-family:monospace; max-width:60em; opacity:.75'>"
            f"{'… ' if len(words) > 60 else ''}{html.escape(shown)}</div>"
        )
        self.table.value = self._score_table()
        for button in self.buttons.values():
            button.disabled = self.game.over

    def _score_table(self) -> str:
        played = len(self.game.episodes)
        header = "".join(f"<th style='padding:0 .6em'>{i + 1}</th>" for i in range(len(self.opponent)))
        yours = [_score(episode) for episode in self.game.episodes] + [""] * (len(self.opponent) - played)
        # The agent's score of an episode stays hidden until you have played it, or you could copy its way.
        theirs = [_score(episode) for episode in self.opponent[:played]] + [""] * (len(self.opponent) - played)
        rows = "".join(
            f"<tr><td style='padding-right:1em'>{name}</td>"
            + "".join(f"<td style='text-align:center; padding:0 .6em'>{cell}</td>" for cell in cells)
            + "</tr>"
            for name, cells in (("you", yours), (html.escape(self.records.policy), theirs))
        )
        return (
            f"<table><tr><td>episode</td>{header}</tr>{rows}</table>"
            f"<small>★ goal, ✕ hole, … cut off after {STEP_LIMIT} moves; the number says how many moves</small>"
        )

    def _reveal(self) -> None:
        lake_map, episodes = self.game.lake_map, {}
        if self.game.episodes:
            last = len(self.game.episodes) - 1
            episodes[f"you, episode {last + 1}"] = self.game.episodes[last]
            episodes[f"{self.records.policy}, episode {last + 1}"] = self.opponent[last]
        else:
            episodes[f"{self.records.policy}, last episode"] = self.opponent[-1]
        show_figure(self.output, plot_trajectories(lake_map, episodes))


def play_against_agent(agent: Policy, lake_map: TileGame, episodes: int = 8, seed: int = 0) -> PlayAgainstAgent:
    """Play a lake, or another game, by its tile numbers alone, and compare yourself with ``agent``.

    The same rules for both: every move is the player's own from the first on, the starts are the same, and an episode
    ends after as many moves. The agent plays all its ``episodes`` when the widget is made, with a fresh history.

    Raises:
        ValueError: the lake has more than 64 tiles.
    """
    check_words(lake_map)  # before the agent plays it
    return PlayAgainstAgent(lake_map, rollout(agent, [lake_map], "greedy", seed=seed, episodes=episodes))


def _score(episode: Episode) -> str:
    symbol = dict(zip(OUTCOMES, ("", "★", "✕", "…"), strict=True))[episode.outcome]
    return f"{symbol} {episode.steps}"


# ---------------------------------------------------------------------- one lake that becomes known, and a bench


class EpisodeSlider(ipywidgets.VBox):
    """See ``episode_slider``. Attributes: ``slider``, ``output``."""

    def __init__(self, lake_map: LakeMap, episodes: Sequence[Episode]):
        self.lake_map, self.episodes = lake_map, list(episodes)
        self.slider = ipywidgets.IntSlider(value=0, min=0, max=len(self.episodes) - 1, description="episode")
        self.slider.observe(self._on_slider, "value")
        self.output = ipywidgets.Output()
        super().__init__([self.slider, self.output])
        self._draw()

    @callback
    def _on_slider(self, change: object) -> None:
        self._draw()

    def _draw(self) -> None:
        show_figure(self.output, plot_progress(self.lake_map, self.episodes, [self.slider.value]))


def episode_slider(lake_map: LakeMap, episodes: Sequence[Episode]) -> EpisodeSlider:
    """Go through the episodes of one history by a slider: the fog lifts, and deaths stay marked."""
    return EpisodeSlider(lake_map, episodes)


def parse_walk(lake_map: LakeMap, text: str) -> Episode:
    """The walk ``8 right right down`` on a lake. It must end on a goal or in a hole, at its last move.

    Raises:
        ValueError: another word, a tile that the lake does not have, or another end.
    """
    first, *words = text.split()
    if not first.isdecimal() or int(first) >= lake_map.n_tiles or not words or not set(words) <= set(ACTIONS):
        raise ValueError(f"walk={text!r}: give a tile below {lake_map.n_tiles} and moves, for example '8 right down'.")
    actions = [ACTIONS.index(word) for word in words]
    tiles = [int(first)]
    for action in actions:
        tiles.append(int(lake_map.next_tile[tiles[-1], action]))
    ends = {**dict.fromkeys(lake_map.goals, "goal"), **dict.fromkeys(lake_map.holes, "hole")}
    if tiles[-1] not in ends or any(tile in ends for tile in tiles[:-1]):
        raise ValueError(
            f"walk={text!r} goes over {tiles}: it must end on a goal or in a hole, not before its last move."
        )
    return Episode(tuple(tiles), tuple(actions), cast(Outcome, ends[tiles[-1]]))


class LakeBench(ipywidgets.VBox):
    """See ``lake_bench``. Attributes: ``lake, walks, later, play, output, output_later``."""

    def __init__(self, agent: Policy, lake: str, walks: str, later: str, episodes: int):
        self.agent, self.episodes = agent, episodes
        layout, wide = ipywidgets.Layout(width="22em", height="9em"), {"description_width": "7em"}
        self.lake, self.walks, self.later = (
            ipywidgets.Textarea(value=text, description=name, layout=layout, style=wide)
            for text, name in ((lake, "lake"), (walks, "walks shown"), (later, "lake later"))
        )
        self.play = ipywidgets.Button(description="Play", button_style="info")
        self.play.on_click(self._on_play)
        self.output, self.output_later = ipywidgets.Output(), ipywidgets.Output()
        super().__init__([
            ipywidgets.HBox([self.lake, self.walks, self.later]), self.play, self.output, self.output_later
        ])  # fmt: skip
        self._play()

    @callback
    def _on_play(self, button: object) -> None:
        self._play()

    def _play(self) -> None:
        lake = LakeMap(tuple(self.lake.value.split()))
        shown = [parse_walk(lake, line) for line in self.walks.value.splitlines() if line.strip()]
        later = LakeMap(tuple(self.later.value.split())) if self.later.value.strip() else None
        for game in (lake, later):
            if game:
                check_words(game)
        changes = {self.episodes: [later]} if later else None
        schedule = np.ones(self.episodes * (2 if later else 1)).tolist()
        played = rollout(self.agent, [lake], schedule, shown=[shown], changes=changes).episodes(0)
        chosen = range(len(shown), len(shown) + self.episodes)
        show_figure(self.output, plot_progress(lake, [*shown, *played[: self.episodes]], chosen))
        self.output_later.outputs = ()
        if later:
            show_figure(self.output_later, plot_progress(later, played[self.episodes :], range(self.episodes)))


def lake_bench(
    agent: Policy, lake: LakeMap, walks: str = "", later: LakeMap | None = None, episodes: int = 6
) -> LakeBench:
    """Draw a lake, walks that the agent is shown before it plays, and a lake that takes the first one's place.

    Args:
        walks: one a line, a tile and moves: ``2 down down down``. They need not begin at a start.
        later: played without notice after ``episodes`` episodes; None (or an empty field): the lake stays.
    """
    return LakeBench(agent, "\n".join(lake.rows), walks, "\n".join(later.rows) if later else "", episodes)
