"""Widgets without a browser: values are set and buttons clicked as a reader does, and the shown picture is compared."""

import base64
import re
from pathlib import Path

import ipywidgets
import matplotlib
import numpy as np
import pytest

from icrl_utils.course import widgets
from icrl_utils.course.widgets import (
    Game,
    episode_slider,
    lake_bench,
    learning_curve_explorer,
    one_lake_explorer,
    parse_walk,
    play_against_agent,
)
from icrl_utils.history.episodes import Episode
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.games import GAMES
from icrl_utils.lake.maps import ACTIONS, LakeMap
from icrl_utils.play.baselines import OraclePolicy, RandomPolicy, TabularPolicy
from icrl_utils.play.rollout import rollout

matplotlib.use("agg")
LAKE = LakeMap(("FFFG", "FFFH", "SFHF", "FHFF"))
LEFT, DOWN, RIGHT, UP = range(4)


@pytest.fixture(scope="module")
def curves():
    maps, policies = [LAKE] * 12, (RandomPolicy(), TabularPolicy())
    return {
        "paper": [rollout(policy, maps, "paper", seed=0) for policy in policies],
        "greedy": {"oracle": rollout(OraclePolicy(), maps, "greedy", seed=0).success, "random": np.zeros((20, 30))},
    }


def one_lake_rows(error) -> list[dict]:
    """As `dqn.one_lake` writes them; the error is that function of link, replay, alpha and seed."""
    return [
        {"link": link, "replay": int(replay), "alpha": alpha, "seed": seed, "step": step,
         "error": error(link, replay, alpha, seed), "reaches_goal": seed % 2 if step == 200 else ""}
        for link in ("none", "sigmoid") for replay in (False, True) for alpha in (0.01, 0.1, 1.0)
        for seed in range(10) for step in (100, 200)
    ]  # fmt: skip


def picture(output) -> bytes:
    """The one picture that an Output widget shows."""
    (shown,) = output.outputs
    png = base64.b64decode(shown["data"]["image/png"])
    assert png.startswith(b"\x89PNG")
    return png


def test_explorer_draws_at_once_and_again_at_every_change(curves):
    explorer = learning_curve_explorer(curves, resamples=20)
    seen = {picture(explorer.output)}
    explorer.smoothing.value = 3
    seen.add(picture(explorer.output))
    explorer.maps.value = 6
    seen.add(picture(explorer.output))
    explorer.policies.value = ("random",)
    seen.add(picture(explorer.output))
    explorer.schedule.value = "greedy"
    seen.add(picture(explorer.output))
    assert len(seen) == 5


def test_explorer_shows_what_its_controls_say(curves):
    explorer = learning_curve_explorer(curves, resamples=0)
    explorer.maps.value, explorer.smoothing.value = 5, 10
    explorer.policies.value = ("tabular Q",)
    (line,) = explorer.figure().axes[0].lines
    success = curves["paper"][1].success[:5]
    assert line.get_label() == "tabular Q"
    assert line.get_ydata()[-1] == pytest.approx(success[:, -10:].mean())
    assert line.get_ydata()[0] == pytest.approx(success[:, 0].mean())
    assert len(explorer.figure().axes) == 2  # the strip of epsilon
    explorer.schedule.value = "greedy"
    assert len(explorer.figure().axes) == 1


def test_explorer_offers_the_players_of_the_schedule(curves):
    explorer = learning_curve_explorer(curves, resamples=0)
    assert explorer.policies.options == ("random", "tabular Q") == explorer.policies.value
    explorer.policies.value = ("random",)
    explorer.schedule.value = "greedy"
    assert explorer.policies.options == ("oracle", "random")
    assert explorer.policies.value == ("random",)  # chosen before, and here too
    explorer.policies.value = ("oracle",)
    explorer.schedule.value = "paper"
    assert explorer.policies.value == ("random", "tabular Q")
    assert explorer.maps.max == 20


def test_explorer_keeps_its_picture_when_nobody_is_chosen(curves):
    explorer = learning_curve_explorer(curves, resamples=0)
    before = picture(explorer.output)
    explorer.policies.value = ()
    assert picture(explorer.output) == before


def test_explorer_of_one_schedule(curves):
    explorer = learning_curve_explorer(curves["paper"], resamples=0)
    assert explorer.schedule.options == ("as played",)
    assert len(explorer.figure().axes) == 2
    by_policy = {records.policy: records for records in curves["paper"]}
    assert learning_curve_explorer(by_policy, resamples=0).policies.options == ("random", "tabular Q")


# -------------------------------------------------------------------------------------------------- play it yourself


def test_game_follows_the_lake_and_writes_what_the_agent_would_read():
    game = Game(LAKE, [8, 8, 8])
    assert [game.move(action) for action in (RIGHT, DOWN)] == [None, "hole"]
    assert game.history == "8 right 9 down hole reset 8"
    assert [game.move(action) for action in (LEFT, UP, RIGHT, RIGHT, UP)] == [None] * 5
    assert game.move(RIGHT) == "goal" and not game.over
    assert [episode.outcome for episode in game.episodes] == ["hole", "goal"]
    assert HistoryFormat("compact").parse(game.history)[1].actions == (LEFT, UP, RIGHT, RIGHT, UP, RIGHT)
    assert [game.move(LEFT) for _ in range(100)][-2:] == [None, "limit"]
    assert game.over and game.move(UP) is None
    assert game.history.endswith("left limit reset")


@pytest.fixture
def player():
    return play_against_agent(OraclePolicy(), LAKE, episodes=2, seed=3)


def test_clicks_move_the_player(player):
    assert ">8</b>" in player.view.value
    player.buttons["right"].click()
    assert ">9</b>" in player.view.value and "8 right 9" in player.view.value
    player.buttons["down"].click()
    assert "A hole" in player.view.value and "Episode 2 of 2" in player.view.value
    assert "✕ 2" in player.table.value


def test_the_opponents_score_is_hidden_until_the_episode_is_played(player):
    assert "★" not in player.table.value.split("<small>")[0]
    player.buttons["right"].click(), player.buttons["down"].click()
    assert player.table.value.split("<small>")[0].count("★ 5") == 1  # of two episodes of the oracle


def test_the_game_ends_and_the_lake_can_be_shown(player):
    player.reveal.click()
    first = picture(player.output)
    for _ in range(2):
        for action in ("right", "down"):
            player.buttons[action].click()
    assert "last episode" in player.view.value
    assert all(button.disabled for button in player.buttons.values())
    player.buttons["up"].click()  # no effect
    assert len(player.game.episodes) == 2
    player.reveal.click()
    assert picture(player.output) != first


@pytest.mark.parametrize("name", GAMES)
def test_every_game_can_be_played_and_shown(name):
    (game,) = GAMES[name].sample(1, 4)
    player = play_against_agent(OraclePolicy(), game, episodes=2)
    assert f">{player.game.starts[0]}</b>" in player.view.value
    is_lake = isinstance(game, LakeMap)
    assert player.reveal.description == f"Show the {'lake' if is_lake else 'game'} (spoiler)"
    before, rng = player.game.tile, np.random.default_rng(0)
    for _ in range(300):
        action = int(rng.integers(4))
        player.buttons[ACTIONS[action]].click()
        if player.game.over:
            break
        if len(player.game.episodes) == 0:
            assert player.game.tile in game.next_tile[before, game.slip[action] > 0]
        before = player.game.tile
    assert player.game.over
    player.reveal.click()
    assert picture(player.output)
    HistoryFormat("compact").parse(player.game.history)


def test_both_players_start_on_the_same_tiles():
    lake = LakeMap(("SFSF", "FFFF", "SFFF", "FFFG"))
    player = play_against_agent(OraclePolicy(), lake, episodes=6, seed=0)
    assert player.game.starts == [episode.tiles[0] for episode in player.records.episodes(0)]
    assert len(set(player.game.starts)) > 1


def test_the_rules_are_the_same_for_both():
    """Nothing is forced on the agent, and both are cut off after as many moves."""
    player = play_against_agent(OraclePolicy(), LAKE)
    assert player.records.epsilon.tolist() == [1] * 8 and len(player.game.starts) == 8
    assert [episode.steps for episode in player.opponent] == [5] * 8
    circling = play_against_agent(Stubborn(), LAKE, episodes=1)
    assert circling.opponent[0].outcome == "limit"
    for _ in range(circling.opponent[0].steps):
        circling.buttons["left"].click()
    assert circling.game.over and circling.game.episodes[0].outcome == "limit"


class Stubborn(RandomPolicy):
    def act(self, step):
        return np.full(len(step.tile), LEFT)


# ------------------------------------------------------------------------------------------------ one lake, many ways


@pytest.fixture(scope="module")
def ways():
    return one_lake_rows(
        lambda link, replay, alpha, seed: alpha * (2 if replay else 1) * (1 if link == "none" else 0.1)
    )


def test_the_explorer_of_ways_draws_at_once_and_again_at_every_change(ways):
    explorer = one_lake_explorer(ways)
    seen = {picture(explorer.output)}
    for control, value in ((explorer.alpha, 1.0), (explorer.link, "sigmoid"), (explorer.replay, True)):
        control.value = value
        seen.add(picture(explorer.output))
    assert len(seen) == 4


@pytest.mark.parametrize("control, value", [("alpha", 1.0), ("link", "sigmoid"), ("replay", True)])
def test_the_explorer_of_ways_shows_the_error_of_every_control_and_lives_on(ways, monkeypatch, control, value):
    explorer = one_lake_explorer(ways)
    with monkeypatch.context() as broken:
        broken.setattr("icrl_utils.course.widgets.plot_one_lake", fails)
        getattr(explorer, control).value = value
        assert error_of(explorer.output) == "ZeroDivisionError: out of luck"
    explorer.alpha.value = 0.01
    assert picture(explorer.output)


# ------------------------------------------------------------------------------------------------- what cannot be done


def error_of(output) -> str:
    """The one error that an Output widget shows, as a reader sees it."""
    (shown,) = output.outputs
    assert shown["output_type"] == "error"
    assert shown["traceback"][-1].strip() == f"{shown['ename']}: {shown['evalue']}"
    return shown["traceback"][-1].strip()


def fails(*arguments, **options):
    raise ZeroDivisionError("out of luck")


@pytest.mark.parametrize(
    "control, value", [("smoothing", 3), ("maps", 6), ("policies", ("random",)), ("schedule", "greedy")]
)
def test_explorer_shows_the_error_of_every_control_and_lives_on(curves, monkeypatch, control, value):
    explorer = learning_curve_explorer(curves, resamples=0)
    with monkeypatch.context() as broken:
        broken.setattr("icrl_utils.course.widgets.plot_learning_curves", fails)
        getattr(explorer, control).value = value
        assert error_of(explorer.output) == "ZeroDivisionError: out of luck"
    explorer.smoothing.value = 5
    assert picture(explorer.output)


@pytest.mark.parametrize("button", ["left", "down", "right", "up", "reveal"])
def test_player_shows_the_error_of_every_button_and_lives_on(player, monkeypatch, button):
    with monkeypatch.context() as broken:
        broken.setattr("icrl_utils.course.widgets.plot_trajectories", fails)
        broken.setattr(Game, "move", fails)
        (player.reveal if button == "reveal" else player.buttons[button]).click()
        assert error_of(player.output) == "ZeroDivisionError: out of luck"
    player.buttons["right"].click()
    assert "8 right 9" in player.view.value
    player.reveal.click()
    assert picture(player.output)


def test_every_callback_is_guarded():
    """A new control that is connected without the guard would fail silently."""
    source = Path(widgets.__file__).read_text(encoding="utf-8")
    connected = re.findall(r"\.(?:observe|on_click)\((?:functools\.partial\()?self\.(\w+)", source)
    assert len(connected) == len(re.findall(r"\.(?:observe|on_click)\(", source)) == 7
    assert all(f"    @callback\n    def {name}(" in source for name in connected)


def lake_of(height: int, width: int) -> LakeMap:
    return LakeMap(("S" + "F" * (width - 1), *["F" * width] * (height - 2), "F" * (width - 1) + "G"))


@pytest.mark.parametrize("size", [(9, 9), (13, 5)])
def test_a_lake_that_the_text_has_no_words_for_is_refused_before_anybody_plays(size, monkeypatch):
    lake = lake_of(*size)
    with pytest.raises(ValueError, match=f"lake_map has {lake.n_tiles} tiles.* words for 64"):
        Game(lake, [0])
    monkeypatch.setattr("icrl_utils.course.widgets.rollout", lambda *args, **kwargs: pytest.fail("played"))
    with pytest.raises(ValueError, match=f"lake_map has {lake.n_tiles} tiles"):
        play_against_agent(OraclePolicy(), lake)


def test_the_last_tile_of_the_largest_lake_is_shown():
    player = play_against_agent(OraclePolicy(), lake_of(8, 8), episodes=2)
    for action in [DOWN] * 7 + [RIGHT] * 6:
        player.buttons[ACTIONS[action]].click()
    assert ">62</b>" in player.view.value
    player.buttons["right"].click()
    assert "Goal!" in player.view.value and not player.output.outputs


def test_only_widgets_that_ipywidgets_7_and_8_share(curves, ways, player):
    def all_of(widget):
        yield widget
        for child in getattr(widget, "children", ()):
            yield from all_of(child)

    kinds = {
        type(widget)
        for root in (player, learning_curve_explorer(curves, 0), one_lake_explorer(ways))
        for widget in all_of(root)
    }
    known = {
        ipywidgets.VBox, ipywidgets.HBox, ipywidgets.Button, ipywidgets.HTML, ipywidgets.Output, ipywidgets.IntSlider,
        ipywidgets.Dropdown, ipywidgets.SelectMultiple, ipywidgets.SelectionSlider,
    }  # fmt: skip
    assert all(kind in known or issubclass(kind, ipywidgets.VBox) for kind in kinds)


# One lake that becomes known, and the bench


def test_the_slider_shows_the_episode_that_it_names():
    episodes = rollout(TabularPolicy(1.0), [LAKE], [1] * 4, seed=1).episodes(0)
    slider = episode_slider(LAKE, episodes)
    seen = {picture(slider.output)}
    for number in (1, 2, 3):
        slider.slider.value = number
        seen.add(picture(slider.output))
    assert slider.slider.max == 3 and len(seen) == 4


def test_walks_are_read_from_words():
    walk = parse_walk(LAKE, "4 right up right right")
    assert walk == Episode((4, 5, 1, 2, 3), (2, 3, 2, 2), "goal")
    assert parse_walk(LAKE, "8 right right").outcome == "hole"
    for text, message in [
        ("16 up", "give a tile below 16"), ("x up", "give a tile"), ("8", "and moves"), ("8 north", "and moves"),
        ("8 up", "must end on a goal or in a hole"), ("8 right right up", "not before its last move"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            parse_walk(LAKE, text)


class Listener(RandomPolicy):
    """Remembers the tiles that it was told."""

    def start(self, maps, rngs):
        super().start(maps, rngs)
        self.told = []

    def act(self, step):
        self.told.append(int(step.tile[0]))
        return super().act(step)


def test_the_bench_shows_walks_and_exchanges_the_lake():
    agent, later = Listener(), LakeMap(("GFFF", "FFFS"))
    bench = lake_bench(agent, LAKE, "4 right up right right\n\n8 right right", episodes=2)
    assert agent.told[:8] == [4, 5, 1, 2, 3, 8, 9, 10] and bench.output_later.outputs == ()
    first = picture(bench.output)
    bench.walks.value, bench.later.value = "", "\n".join(later.rows)
    bench.play.click()
    assert agent.told[0] == 8 and agent.told.count(7) and picture(bench.output) != first
    assert picture(bench.output_later)


def test_the_bench_says_what_it_cannot_read():
    bench = lake_bench(RandomPolicy(), LAKE)
    bench.walks.value = "8 up"
    bench.play.click()
    (shown,) = bench.output.outputs
    assert shown["output_type"] == "error" and "must end on a goal" in shown["evalue"]
