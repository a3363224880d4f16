"""Figures of a changing lake, and of a lake that becomes known."""

import numpy as np
import pytest

from icrl_utils.history.episodes import Episode
from icrl_utils.lake.maps import LakeMap
from icrl_utils.plots.changes import plot_changes, plot_progress


def test_a_change_parts_the_curves():
    success = np.zeros((6, 10))
    success[:, :5] = 1
    epsilon = np.r_[np.ones(5), 0, 0, np.ones(3)]
    figure = plot_changes({"a": {"agent": success}, "b": {"agent": success}}, {"a": epsilon, "b": np.ones(10)}, 5)
    first, second = figure.axes
    assert [len(line.get_xdata()) for line in first.get_lines()] == [2, 5, 5]  # the mark and two halves
    assert first.get_lines()[2].get_ydata().tolist() == [0] * 5  # no average across the change
    assert len(first.patches) == 2 and not second.patches  # shaded where moves are forced


def test_fog_lifts_and_deaths_stay_marked():
    lake = LakeMap(("SFH", "FFF", "FFG"))
    walks = [
        Episode((0, 1, 2), (2, 2), "hole"),
        Episode((0, 3, 0), (1, 3), "limit"),
        Episode((0, 1, 4, 5, 8), (2, 1, 2, 1), "goal"),
    ]
    figure = plot_progress(lake, walks, [0, 1, 2])
    fog = [sum(text.get_text() == "?" for text in ax.texts) for ax in figure.axes]
    crosses = [sum(line.get_marker() == "x" for line in ax.get_lines()) for ax in figure.axes]
    assert fog == [6, 5, 2] and crosses == [0, 1, 1]
    assert figure.axes[1].get_title(loc="left") == "episode 1: cut off, 2 moves"
    with pytest.raises(IndexError):
        plot_progress(lake, walks, [3])
