"""The figure of what a language model knows shows the numbers that it is given."""

import numpy as np
from matplotlib.colors import to_hex

from icrl_utils.plots.language_model import MODEL_COLORS, plot_zero_shot
from icrl_utils.statistics import Interval


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
