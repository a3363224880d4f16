"""Plots are functions of their data: what is drawn is read back from the figure and compared with what went in."""

import io
import re
from dataclasses import replace

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.colors import to_hex, to_rgb
from matplotlib.patches import Patch, Polygon, Rectangle
from matplotlib.text import Annotation, Text

from icrl_utils.history.episodes import Episode
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.tokenizers import make_paper_tokenizer
from icrl_utils.lake.games import RelabelledLake, TableGame, key_and_door
from icrl_utils.lake.maps import LakeMap
from icrl_utils.paths import ASSETS, ROOT
from icrl_utils.play.baselines import OraclePolicy, RandomPolicy, TabularPolicy
from icrl_utils.play.rollout import rollout
from icrl_utils.plots.curves import plot_learning_curves, plot_panels, success_by_policy, trailing_mean
from icrl_utils.plots.lakes import (
    Q_COLOURS,
    plot_history_tokens,
    plot_lake,
    plot_lakes,
    plot_q_lakes,
    plot_trajectories,
    tile_places,
)
from icrl_utils.plots.language_model import MODEL_COLORS, plot_zero_shot
from icrl_utils.plots.matrices import Grid, plot_cuts, plot_matrices
from icrl_utils.plots.style import POLICY_COLORS, RED, WATER_COLOR, color_of
from icrl_utils.plots.values import plot_calibration, plot_one_lake, plot_q_bars, plot_token_costs, plot_training_log
from icrl_utils.statistics import Interval, interval
from icrl_utils.tools import pictures
from icrl_utils.tools.build_notebooks import sources

matplotlib.use("agg")
LAKE = LakeMap(("FFFG", "FFFH", "SFHF", "FHFF"))
DEATH = Episode((8, 9, 13), (2, 1), "hole")
WIN = Episode((8, 4, 5, 6, 2, 3), (3, 2, 2, 3, 2), "goal")


@pytest.fixture(scope="module")
def records():
    maps = [LAKE] * 6
    return [rollout(RandomPolicy(), maps, seed=1), rollout(TabularPolicy(), maps, seed=1)]


def texts(ax) -> list[str]:
    return [text.get_text() for text in ax.texts]


def draws(figure) -> bytes:
    """The picture itself: every artist is really drawn."""
    figure.savefig(buffer := io.BytesIO(), format="rgba")
    return buffer.getvalue()


# ---------------------------------------------------------------------------------------------------- learning curves


def test_learning_curves_show_the_means_and_the_schedule(records):
    figure = plot_learning_curves(records, resamples=50)
    ax, strip = figure.axes
    for line, record in zip(ax.lines, records, strict=True):
        np.testing.assert_allclose(line.get_ydata(), record.success.mean(axis=0))
        assert line.get_label() == record.policy
        assert to_hex(line.get_color()).upper() == POLICY_COLORS[record.policy].upper()
    assert [patch.get_x() for patch in ax.patches] == [-0.5] and ax.patches[0].get_width() == 20
    assert texts(strip) == ["0", ".1", ".2", ".3", ".4", ".5", ".6", ".7", ".8", ".9", "1"]
    assert {"random", "tabular Q"} <= {text.get_text() for text in ax.texts if isinstance(text, Annotation)}
    assert draws(figure)


def test_learning_curves_take_records_names_and_arrays_alike(records):
    one = plot_learning_curves(records, resamples=20)
    named = plot_learning_curves({record.policy: record for record in records}, resamples=20)
    arrays = {record.policy: record.success for record in records}
    plain = plot_learning_curves(arrays, schedule="paper", resamples=20)
    assert draws(one) == draws(named) == draws(plain)
    assert success_by_policy(records[0]).keys() == {"random"}


def test_panels_show_every_group_once_and_share_colours(records):
    random, tabular = records
    panels = {"one": {"agent": np.stack([np.zeros((4, 6)), np.ones((4, 6))])}, "two": records, "three": [tabular]}
    figure = plot_panels(panels, title="Games", note="6 games", columns=2, resamples=20)
    shown = {ax.get_title(loc="left"): ax for ax in figure.axes if ax.lines}
    assert list(shown) == ["one", "two", "three"] and len(figure.axes) == 4 and not figure.axes[3].axison
    (line,) = shown["one"].lines
    np.testing.assert_allclose(line.get_ydata(), 0.5)
    for line, record in zip(shown["two"].lines, records, strict=True):
        np.testing.assert_allclose(line.get_ydata(), record.success.mean(axis=0))
        assert to_hex(line.get_color()).upper() == POLICY_COLORS[record.policy].upper()
    wanted = interval(random.success, resamples=20)
    band = shown["two"].collections[0].get_paths()[0].vertices[:, 1]
    assert band.min() == pytest.approx(wanted.low.min()) and band.max() == pytest.approx(wanted.high.max())
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["agent", "random", "tabular Q"]
    assert figure.get_suptitle() == "Games\n6 games; mean and 95 % bootstrap interval over games"
    assert draws(figure)


def test_greedy_curves_have_no_shade_and_no_strip(records):
    figure = plot_learning_curves({"agent": records[0].success}, resamples=0)
    assert len(figure.axes) == 1 and not figure.axes[0].patches


def test_a_warm_up_in_the_middle_is_shaded_where_it_is():
    epsilon = [1, 1, 0, 0, 0.5, 1, 1, 0, 1]
    figure = plot_learning_curves({"agent": np.ones((3, 9))}, schedule=epsilon, resamples=0)
    shades = [(patch.get_x(), patch.get_x() + patch.get_width()) for patch in figure.axes[0].patches]
    assert shades == [(1.5, 4.5), (6.5, 7.5)]


def test_failures_tell_players_apart_that_nearly_always_succeed():
    """Ten lakes, of which the agent loses one; the oracle none: it lies on the lowest line, which says so."""
    curves = {"agent": np.repeat([[0.0], *[[1.0]] * 9], 8, axis=1), "oracle": np.ones((10, 8))}
    figure = plot_learning_curves(curves, schedule=[0, 1, 1, 1, 1, 1, 1, 1], resamples=20, failures=True)
    success, failures, strip = figure.axes
    agent, oracle = failures.lines
    np.testing.assert_allclose(agent.get_ydata(), 0.1)
    labels = dict(zip(failures.get_yticks(), [label.get_text() for label in failures.get_yticklabels()], strict=True))
    assert labels[oracle.get_ydata()[-1]] == "none" and oracle.get_ydata()[-1] < 0.1
    assert failures.get_yscale() == "log" and texts(strip) == ["0", "1"] and draws(figure)
    assert {"agent", "oracle"} <= set(texts(failures)) and len(success.lines) == 2


def test_the_band_is_the_bootstrap_interval_over_lakes(records):
    figure = plot_learning_curves(records[1], resamples=300, seed=5, smooth=2)
    (band,) = figure.axes[0].collections
    wanted = interval(trailing_mean(records[1].success.astype(float), 2), resamples=300, seed=5)
    height = band.get_paths()[0].vertices[:, 1]
    assert height.min() == pytest.approx(wanted.low.min()) and height.max() == pytest.approx(wanted.high.max())


def test_several_training_seeds_are_averaged():
    runs = np.stack([np.zeros((4, 5)), np.ones((4, 5)), np.ones((4, 5))])
    (line,) = plot_learning_curves({"agent": runs}, resamples=0).axes[0].lines
    np.testing.assert_allclose(line.get_ydata(), 2 / 3)


def test_records_of_equal_name_are_all_drawn(records):
    """Two seeds of one policy have one name: each gets its own curve and label."""
    again = [rollout(RandomPolicy(), [LAKE] * 6, seed=seed) for seed in (2, 3)]
    given = [records[0], again[0], records[1], again[1]]
    success = success_by_policy(given)
    assert list(success) == ["random", "random (2)", "tabular Q", "random (3)"]
    for shown, record in zip(success.values(), given, strict=True):
        np.testing.assert_array_equal(shown, record.success)
    ax = plot_learning_curves(given, resamples=0).axes[0]
    assert [line.get_label() for line in ax.lines] == list(success)
    assert len({line.get_color() for line in ax.lines}) == 4
    named = [replace(records[0], policy=name) for name in ("a", "a", "a (2)")]  # looks like a name of ours
    assert set(success_by_policy(named)) == {"a", "a (2)", "a (3)"}


def test_trailing_mean_by_hand():
    success = np.array([[1.0, 0.0, 1.0, 1.0]])
    np.testing.assert_allclose(trailing_mean(success, 2), [[1, 0.5, 0.5, 1]])
    np.testing.assert_allclose(trailing_mean(success, 1), success)
    with pytest.raises(ValueError, match="smooth=0"):
        trailing_mean(success, 0)


@pytest.mark.parametrize(
    "curves, message",
    [
        ({}, "curves is empty"),
        ({"agent": np.ones(30)}, r"curves\['agent'\] has shape \(30,\)"),
        ({"agent": np.full((2, 3), 1.5)}, "within 0..1"),
        ({"agent": np.ones((2, 3)), "random": np.ones((2, 4))}, r"\[3, 4\] episodes"),
    ],
)
def test_learning_curves_reject(curves, message):
    with pytest.raises(ValueError, match=message):
        plot_learning_curves(curves)


def test_labels_at_the_end_of_equal_curves_do_not_cover_each_other():
    curves = {name: np.ones((3, 10)) for name in ("agent", "R-max", "optimistic tabular Q", "oracle")}
    figure = plot_learning_curves(curves, resamples=0)
    heights = sorted(text.xyann[1] for text in figure.axes[0].texts if isinstance(text, Annotation))
    assert min(np.diff(heights)) > 0.055


def test_the_same_policy_has_the_same_colour_in_any_company(records):
    alone = plot_learning_curves(records[1], resamples=0).axes[0].lines[0]
    beside = plot_learning_curves(records, resamples=0).axes[0].lines[1]
    assert alone.get_color() == beside.get_color()
    same = {  # the same player by two names
        "this run": "agent",
        "this run, memory-less": "memory-less",
        "tiny Llama": "agent",
        "SmolLM2 memory-less": "memory-less",
    }
    assert all(POLICY_COLORS[name] == POLICY_COLORS[other] for name, other in same.items())
    assert len(set(POLICY_COLORS.values())) == len(POLICY_COLORS) - len(same)


# ------------------------------------------------------------------------------------------------------------ lakes


def test_lake_shows_every_tile_number_and_the_fog_hides():
    assert [t for t in texts(plot_lake(LAKE).axes[0]) if t != "S"] == [str(tile) for tile in range(16)]
    shown = texts(plot_lake(LAKE, known={8, 9, 13}).axes[0])
    assert sorted(shown) == sorted(["S", "8", "9", "13"] + ["?"] * 13)


def test_q_triangles_show_the_values_and_an_arrow_points_to_the_best():
    q = LAKE.optimal_values()
    ax = plot_lake(LAKE, q=q).axes[0]
    shown = [text for text in texts(ax) if "." in text]
    ordinary = [tile for tile in range(16) if tile not in (*LAKE.goals, *LAKE.holes)]
    assert shown[:8] == [".73", ".66", ".81", ".73", ".73", ".73", ".90", ".81"]  # tiles 0 and 1, discount .9
    assert [float(text) for text in shown] == pytest.approx([v for tile in ordinary for v in q[tile]], abs=0.005)
    arrows = [patch for patch in ax.patches if to_hex(patch.get_facecolor()).upper() == RED]
    n_best = sum(int((q[tile] > q[tile].max() - 1e-9).sum()) for tile in ordinary if np.ptp(q[tile]) > 0)
    assert len(arrows) == n_best
    centres = [arrow.get_xy()[:-1].mean(axis=0) - (2.5, 1.5) for arrow in arrows]
    on_tile_6 = [centre for centre in centres if np.abs(centre).max() < 0.5]
    best = [np.array([(-1, 0), (0, 1), (1, 0), (0, -1)])[action] for action in np.flatnonzero(q[6] == q[6].max())]
    assert len(on_tile_6) == len(best) and all(arrow @ way > 0.05 for arrow, way in zip(on_tile_6, best, strict=True))


@pytest.mark.parametrize(
    "value, text",
    [
        (0.0, ".00"), (-0.0, ".00"), (0.001, ".00"), (-0.001, ".00"), (0.05, ".05"), (-0.05, "-.05"), (0.5, ".50"),
        (-0.5, "-.50"), (0.996, "1.00"), (-0.996, "-1.00"), (1.0, "1.00"), (10.25, "10.25"), (-10.25, "-10.25"),
        (20.5, "20.50"), (100.0, "100.00"), (-200.04, "-200.04"), (999.99, "999.99"), (999.999, "1000"),
        (1234.5678, "1235"), (-1234.5678, "-1235"), (30_000.07, "30000"), (1.23e6, "1.2e+06"), (-1e10, "-1.0e+10"),
    ],
)  # fmt: skip
def test_q_of_every_magnitude_and_sign_is_written_as_it_is(value, text):
    q = np.full((16, 4), np.nan)
    q[0] = value
    shown = [t for t in texts(plot_lake(LAKE, q=q).axes[0]) if not t.isdigit() or len(t) > 2]
    assert [t for t in shown if t != "S"] == [text] * 4


@pytest.mark.parametrize("action, towards", [(0, (-1, 0)), (1, (0, 1)), (2, (1, 0)), (3, (0, -1))])
def test_q_triangle_of_an_action_lies_on_its_side(action, towards):
    """left is on the left: x grows to the right, y grows downwards, as tile numbers do."""
    q = np.full((16, 4), np.nan)
    q[0] = 0.0
    q[0, action] = 1.0
    ax = plot_lake(LAKE, q=q).axes[0]
    (best,) = [text for text in ax.texts if text.get_text() == "1.00"]
    from_centre = np.array(best.get_position()) - 0.5
    np.testing.assert_allclose(from_centre / np.abs(from_centre).max(), towards, atol=1e-9)
    assert ax.get_ylim()[0] > ax.get_ylim()[1]


def test_q_lakes_share_their_colours_and_say_the_best_value():
    """The same number has the same colour in every panel, also where another panel goes beyond 1."""
    exact = LAKE.optimal_values()
    figure = plot_q_lakes(LAKE, {"exact": exact, "doubled": 2 * exact}, known={"doubled": {8, 9, 13}})

    def colour_of_best(ax):
        triangles = [patch for patch in ax.patches if isinstance(patch, Polygon) and patch.get_linewidth() == 1]
        tile_6 = [patch for patch in triangles if np.abs(patch.get_xy() - (2.5, 1.5)).max() < 0.5]
        return to_hex(tile_6[int(exact[6].argmax())].get_facecolor()) if tile_6 else None

    def numbers(ax):
        return [text for text in texts(ax) if "." in text]

    ordinary = [tile for tile in range(16) if tile not in (*LAKE.goals, *LAKE.holes)]
    assert [float(text) for text in numbers(figure.axes[0])] == pytest.approx(exact[ordinary].max(axis=1), abs=0.005)
    assert numbers(figure.axes[1]) == ["1.31", "1.46"] and texts(figure.axes[1]).count("?") == 13  # tiles 8 and 9
    assert colour_of_best(figure.axes[1]) is None
    alone = plot_q_lakes(LAKE, {"exact": exact})
    assert colour_of_best(alone.axes[0]) != colour_of_best(figure.axes[0])  # the scale is common to all panels


def test_low_values_are_light_and_no_hole():
    """A value of 0 must not look like the dark water of a hole."""
    low, high = (np.mean(to_rgb(Q_COLOURS(value))) for value in (0.0, 1.0))
    assert low > 0.9 > high > np.mean(to_rgb(WATER_COLOR))


def test_q_of_another_map_is_refused():
    with pytest.raises(ValueError, match=r"q has shape \(9, 4\): give \[16, 4\]"):
        plot_lake(LAKE, q=np.zeros((9, 4)))


def test_path_has_an_arrow_for_each_move_and_ends_where_the_episode_did():
    ax = plot_lake(LAKE, episode=WIN).axes[0]
    arrows = [text for text in ax.texts if isinstance(text, Annotation)]
    assert len(arrows) == WIN.steps
    first, last = ax.lines[-2], ax.lines[-1]
    assert (first.get_xdata()[0], first.get_ydata()[0]) == (0.5, 2.5)  # tile 8
    assert (last.get_xdata()[0] // 1, last.get_ydata()[0] // 1) == (3, 0) and last.get_marker() == "*"  # tile 3
    assert [text for text in texts(ax)[-2 * WIN.steps :] if text] == ["1", "2", "3", "4", "5"]
    assert draws(plot_lake(LAKE, episode=Episode((8, 8), (0,), "limit")))


def test_path_of_an_episode_parsed_from_text_finds_its_last_tile():
    (parsed,) = HistoryFormat("compact").parse("8 right 9 down hole reset")
    assert parsed.tiles[-1] is None
    assert draws(plot_lake(LAKE, episode=parsed)) == draws(plot_lake(LAKE, episode=DEATH))


def test_trajectories_have_a_panel_each_with_title_length_and_end():
    figure = plot_trajectories(LAKE, {"early": DEATH, "late": WIN}, known={"early": {8}, "late": range(16)})
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["early\n2 moves: hole", "late\n5 moves: goal"]
    assert texts(figure.axes[0]).count("?") == 15 and texts(figure.axes[1]).count("?") == 0


def test_earlier_deaths_stay():
    figure = plot_trajectories(LAKE, {"early": DEATH, "late": WIN}, deaths={"late": [13, 10]})
    crosses = [[line.get_xydata()[0] for line in ax.lines if line.get_marker() == "X"] for ax in figure.axes]
    assert len(crosses[0]) == 1  # its own
    np.testing.assert_array_equal(crosses[1], [(1.5, 3.5), (2.5, 2.5)])


def test_whoever_is_still_playing_is_seen():
    playing = plot_lake(LAKE, episode=Episode((8, 9), (2,))).axes[0]
    ended = plot_lake(LAKE, episode=Episode((8, 9), (2,), "limit")).axes[0]
    assert len(playing.patches) == len(ended.patches) + 2  # a head and a coat


def test_lakes_side_by_side_have_one_scale():
    small = LakeMap(("SFF", "FFG"))
    figure = plot_lakes({"a": LAKE, "b": small}, columns=3)
    assert [ax.get_title(loc="left") for ax in figure.axes] == ["a", "b", ""]
    assert figure.axes[0].get_xlim() == figure.axes[1].get_xlim()
    assert len([patch for patch in figure.axes[1].patches if isinstance(patch, Rectangle)]) == 6


def test_token_costs_have_a_dot_for_each_player_and_way():
    tokens = {"oracle": {"compact": 100, "paper": 1000}, "loops": {"compact": 6060, "paper": 30000}}
    ax = plot_token_costs(tokens).axes[0]
    dots = {line.get_label(): list(line.get_xdata()) for line in ax.lines if line.get_marker() == "o"}
    assert dots == {"compact": [100, 6060], "paper": [1000, 30000]} and ax.get_xscale() == "log"
    assert [label.get_text() for label in ax.get_yticklabels()] == ["oracle", "loops"]
    assert [line.get_xdata()[0] for line in ax.lines if line.get_marker() != "o"] == [8192]
    assert {"100", "6,060", "1,000", "30,000"} <= set(texts(ax))
    many = {"oracle": {way: 10.0 ** (i + 1) for i, way in enumerate("abcde")}}  # more ways than colours: all are drawn
    assert len([line for line in plot_token_costs(many).axes[0].lines if line.get_marker() == "o"]) == 5


# ---------------------------------------------------------------------------------------------------------- history


def markers(ax):
    return [line for line in ax.lines if line.get_marker() == "v"]


def test_token_strip_shows_words_ids_and_decisions():
    text = "8 right 9 down hole reset 8"
    ax = plot_history_tokens(text).axes[0]
    assert texts(ax)[:14:2] == text.split()
    assert texts(ax)[1:14:2] == ["8", "66", "9", "65", "69", "71", "8"]
    found = markers(ax)
    assert len(found) == 4  # 8, 9, the open end, and the one in the legend
    assert [line.get_markerfacecolor() == "white" for line in found] == [False, False, True, False]
    ended = plot_history_tokens(text.removesuffix(" 8")).axes[0]
    assert len(markers(ended)) == 3  # no open end


def test_token_strip_takes_ids_and_slices():
    history = HistoryFormat("compact")
    text = "right 9 down hole reset 8 up"
    assert draws(plot_history_tokens(history.tokenize(text))) == draws(plot_history_tokens(text))


def test_token_strip_wraps_long_histories():
    short = plot_history_tokens("8 right 9 down hole reset").get_figheight()
    assert plot_history_tokens("8 right 9 down hole reset " * 10).get_figheight() > 2 * short


def test_token_strip_of_the_paper_format():
    tokenizer = make_paper_tokenizer()
    history = HistoryFormat("paper", tokenizer)
    text = history.render([DEATH])
    with pytest.raises(ValueError, match="tokenizer=None"):
        plot_history_tokens(text, history)
    ax = plot_history_tokens(text, history, tokenizer, ids=False).axes[0]
    n = len(history.tokenize(text))
    assert "".join(texts(ax)[:n]) == text
    assert len(markers(ax)) == 2 + 1


# ----------------------------------------------------------------------------------------------------- values, logs


def test_q_bars_show_values_and_the_greedy_action():
    figure = plot_q_bars({"before": [0.1, 0.4, 0.2, 0.3], "after": [0.4, 0.0, 0.2, 0.3]}, exact=np.zeros(4))
    for ax, best in zip(figure.axes, (1, 0), strict=True):
        colours = [to_hex(bar.get_facecolor()) for bar in ax.patches]
        assert colours.count(colours[best]) == 1
        assert ax.patches[best].get_height() == 0.4
    with pytest.raises(ValueError, match=r"q\[''\] has shape \(3,\)"):
        plot_q_bars(np.zeros(3))


def test_calibration_draws_medians_beside_the_exact_value():
    rows = [dict(kind="goal in 1", q=q, exact=1.0) for q in (0.8, 0.9, 1.0)]
    rows += [dict(kind="unseen", q=str(q), exact="") for q in (0.1, 0.3, 0.2)]  # as from a CSV
    figure = plot_calibration(rows)
    ax = figure.axes[0]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["goal in 1  (n = 3)", "unseen  (n = 3)"]
    medians = [(line.get_xdata()[0], line.get_ydata()[0]) for line in ax.lines if line.get_marker() == "o"]
    assert medians == [(0.9, 0.0), (0.2, 1.0)]
    assert len(ax.collections) == 4 + 1  # two bars a kind, and one exact value
    hole = [dict(kind="seen hole", q=0.3, exact=0.0)]  # an exact value of zero is drawn, too
    assert len(plot_calibration(rows + hole).axes[0].collections) == 6 + 2
    both = [dict(row, policy=name) for name in ("base", "agent") for row in rows]
    ax = plot_calibration(both).axes[0]
    assert len([line for line in ax.lines if line.get_marker() == "o"]) == 4
    with pytest.raises(ValueError, match="rows is empty"):
        plot_calibration([])


def test_training_log_leaves_out_what_was_not_measured():
    rows = [dict(tokens="1000000", loss="0.5", td_error="0.04", success_last=""),
            dict(tokens="2000000", loss="0.25", td_error="0.02", success_last="0.6")]  # fmt: skip
    figure = plot_training_log(rows)
    assert [ax.get_title(loc="left") for ax in figure.axes] == [
        "TD error (mean square)", "loss", "success on development lakes",
    ]  # fmt: skip
    loss, success = figure.axes[1].lines[0], figure.axes[2].lines[0]
    np.testing.assert_allclose(loss.get_xydata(), [[1, 0.5], [2, 0.25]])
    np.testing.assert_allclose(success.get_xydata(), [[2, 0.6]])
    one = [{"tokens": row["tokens"], "td_error": row["td_error"]} for row in rows]
    lines = plot_training_log({"this run": one[:1], "shipped run": one}).axes[0].lines
    assert [line.get_color() for line in lines] == [color_of("this run"), color_of("shipped run")]
    five = {f"run {i}": rows for i in range(5)}  # more runs than line styles: all are drawn
    assert len(plot_training_log(five).axes[1].lines) == 5
    with pytest.raises(ValueError, match="logs is empty"):
        plot_training_log([])


def test_figures_are_closed_so_that_a_cell_shows_them_once():
    plt.close("all")
    plot_lake(LAKE), plot_q_bars(np.arange(4.0)), plot_history_tokens("8")
    assert plt.get_fignums() == []


# --------------------------------------------------------------------------------------------------------- pictures


LARGEST_DRIFT = 0.05


def pixels(figure) -> np.ndarray:
    figure.savefig(buffer := io.BytesIO(), dpi=110)
    buffer.seek(0)
    return plt.imread(buffer)[..., :3]


def drift(drawn: np.ndarray, name: str) -> float:
    """Difference from the shipped picture as a share of its ink: 0 is the same, 1 as far off as blank paper."""
    shipped = plt.imread(ASSETS / "figures" / name)[..., :3]
    return float(np.abs(drawn - shipped).sum() / (1 - shipped).sum())


each_picture = pytest.mark.parametrize("name", pictures.PICTURES)


@each_picture
def test_pictures_are_the_shipped_ones(name):
    """Drawn again they have the shipped size and nearly the shipped pixels (fonts differ a little between machines)."""
    assert drift(pixels(pictures.PICTURES[name]()), name) < LARGEST_DRIFT


@each_picture
@pytest.mark.parametrize("kind", [Text, Patch])
def test_a_picture_that_lacks_its_text_or_its_shapes_is_told_apart(name, kind):
    """The measure above would be worth nothing if this passed for the shipped picture."""
    figure = pictures.PICTURES[name]()
    figure.set_dpi(110)
    figure.draw_without_rendering()
    figure.set_layout_engine("none")  # all that is left stays where it was
    for artist in figure.findobj(kind):
        artist.set_visible(artist is figure.patch)
    assert drift(pixels(figure), name) > 2 * LARGEST_DRIFT


@pytest.mark.parametrize("source", sources(), ids=lambda path: path.stem)
def test_every_picture_that_a_notebook_shows_is_there(source):
    for target in re.findall(r"!\[[^\]]*\]\(\.\./([^)]+)\)", source.read_text(encoding="utf-8")):
        assert (ROOT / target).is_file(), target


# ------------------------------------------------------------------------------------------------------------- games


def test_tiles_of_a_lake_lie_on_its_grid_and_those_of_other_games_by_their_distance():
    np.testing.assert_array_equal(
        tile_places(LakeMap(("SFG", "FFH"))), [(0, 0), (1, 0), (2, 0), (0, 1), (1, 1), (2, 1)]
    )
    # 0 -> 1 -> goal 2; 3 is a hole, 4 leads nowhere, 5 is never reached
    game = TableGame("SFGHFF", ((1, 3, 4, 0), (2, 0, 0, 0), (2,) * 4, (3,) * 4, (4,) * 4, (0,) * 4))
    x, y = tile_places(game).T
    assert x[4] < x[0] < x[1] < x[2] < x[3] and (y[:5] == 0).all() and np.isnan([x[5], y[5]]).all()


def test_a_walk_of_another_game_is_drawn_from_tile_to_tile():
    game = RelabelledLake(LAKE, np.roll(np.arange(LAKE.n_tiles), 3), (1, 2, 3, 0))
    walk = rollout(TabularPolicy(1.0), [game], "greedy", episodes=1).episodes(0)[0]
    ax = plot_trajectories(game, {"first": walk}).axes[0]
    arrows = [text for text in ax.texts if isinstance(text, Annotation)]
    assert len(arrows) == walk.steps
    for arrow, start in zip(arrows, tile_places(game)[list(walk.tiles[:-1])] + 0.5, strict=True):
        assert np.hypot(*(np.array(arrow.xyann) - start)) < 0.12
    assert {str(tile) for tile in walk.tiles} <= set(texts(ax))


def test_the_picture_of_a_game_with_two_floors_shows_both():
    game = key_and_door(LAKE, 5)
    walk = rollout(OraclePolicy(), [game], "greedy", episodes=1).episodes(0)[0]
    figure = plot_trajectories(game, {"one": walk, "two": walk})
    assert draws(figure) and len(figure.axes) == 2
    assert any(int(text) >= LAKE.n_tiles for text in texts(figure.axes[0]) if text.isdigit())
    numbers = [text.get_text() for text in figure.axes[0].texts if text.get_ha() == "left"]  # of tiles, not of steps
    assert "5" not in numbers  # nobody ever stands on the key downstairs


# ------------------------------------------------------------------------------------------------- one lake, many ways


def test_one_lake_shows_the_chosen_way_and_where_all_ways_end():
    rows = [
        {"link": link, "replay": str(int(replay)), "alpha": str(alpha), "seed": str(seed), "step": str(step),
         "error": str((seed + 1) * alpha * (1 + replay)), "reaches_goal": "" if step == 100 else str(int(seed < 3))}
        for link in ("none", "sigmoid") for replay in (False, True) for alpha in (1.0, 0.1)
        for seed in range(5) for step in (100, 200)
    ]  # fmt: skip
    figure = plot_one_lake(rows, "sigmoid", True, 0.1)
    course, ends, walks = figure.axes
    assert course.get_title(loc="left").startswith("sigmoid, replay, α = 0.1\n5 networks")
    np.testing.assert_allclose(course.lines[5].get_ydata(), 0.6)  # the median of .2, .4, .6, .8, 1
    (ring,) = [line for line in ends.lines if line.get_fillstyle() == "none"]
    assert ring.get_ydata()[0] == pytest.approx(0.6)
    np.testing.assert_allclose(walks.lines[0].get_ydata(), 0.6)
    assert draws(figure)
    with pytest.raises(ValueError, match=r"alpha=0.5 is not among the rows"):
        plot_one_lake(rows, alpha=0.5)


# ----------------------------------------------------------------------------------------------------- language models


def test_zero_shot_shows_every_share_interval_and_median():
    def shares(*estimates):
        ends = {group: (e, e - 0.1, e + 0.1) for group, e in zip("ab", estimates, strict=True)}
        return {group: Interval(*map(np.array, values)) for group, values in ends.items()}

    rates = {
        question: {"one": shares(0.2, 0.6), "two": shares(0.5, 0.3)} for question in ("shown", "distance", "outcome")
    }
    odds = {name: {"goal": np.arange(11) + shift, "hole": np.array([])} for name, shift in (("one", 0), ("two", -20))}
    figure = plot_zero_shot(rates, odds, "Zero-shot")
    *panels, last = figure.axes
    for ax in panels:
        drawn = [line.get_ydata().tolist() for line in ax.lines]
        assert drawn == [[0.2, 0.6], [0.5, 0.3]]
        assert [to_hex(line.get_color()).upper() for line in ax.lines] == list(MODEL_COLORS[:2])
        ends = [[segment[:, 1].tolist() for segment in bars.get_segments()] for bars in ax.collections]
        np.testing.assert_allclose(ends, [[[0.1, 0.3], [0.5, 0.7]], [[0.4, 0.6], [0.2, 0.4]]])
    medians = [line.get_ydata()[0] for line in last.lines if line.get_marker() == "o"]
    assert medians == [5, -15]  # a group without moves has none
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["one", "two"] and figure.get_suptitle() == "Zero-shot"


# ------------------------------------------------------------------------------------------------------------- matrices


def test_matrices_write_every_number_with_its_interval_into_its_cell():
    values = np.array([[0.25, 1.0], [0.0, 0.5]])
    with_ends = Grid(values, ["a", "b"], ["x", "y"], values - 0.125, values + 0.125)
    figure = plot_matrices({"one": with_ends, "two": Grid(values[:1], ["a"], ["x", "y"])}, "a title", "across", "down")
    one, two = figure.axes
    assert texts(one) == [".25\n.12–.38", "1.00\n.88–1.12", ".00\n-.12–.12", ".50\n.38–.62"]
    assert texts(two) == [".25", "1.00"]
    assert [label.get_text() for label in one.get_yticklabels()] == ["a", "b"]
    assert [label.get_text() for label in one.get_xticklabels()] == ["x", "y"]
    assert {text.get_color() for text in one.texts} == {"white", "#222222"}  # readable on dark cells
    assert draws(figure)
    with pytest.raises(ValueError, match=r"values has shape \(2, 2\): give \[1, 2\]"):
        plot_matrices({"one": Grid(values, ["a"], ["x", "y"])})


def test_cuts_show_means_beside_single_heads():
    means = {"nothing": interval(np.array([0.5, 0.7])), "question, at the goal": interval(np.array([0.1, 0.1]))}
    figure = plot_cuts(means, {"question, at the goal": np.array([[0.0, 0.2], [0.1, 0.05]])}, "a title")
    dots, heads = figure.axes
    assert [line.get_xdata()[0] for line in dots.lines] == pytest.approx([0.6, 0.1])
    assert [label.get_text() for label in dots.get_yticklabels()] == list(means)
    assert texts(heads) == [".00", ".20", ".10", ".05"]
    assert [label.get_text() for label in heads.get_yticklabels()] == ["layer 1", "layer 2"]
    assert draws(figure)
