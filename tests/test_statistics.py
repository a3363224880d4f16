"""Every metric on cases small enough to count by hand; intervals against what is known of them."""

import numpy as np
import pytest

from icrl_utils.statistics import (
    episodes_to_first_streak,
    episodes_to_first_success,
    interval,
    median_interval,
    never_solved,
    new_pairs,
    repeat_deaths,
    retention,
    shortest_path_rate,
)

SUCCESS = np.array([[0, 1, 1, 0, 1], [0, 0, 0, 0, 0], [1, 1, 1, 1, 1]], bool)


def test_success_by_episode():
    np.testing.assert_allclose(interval(SUCCESS).estimate, [1 / 3, 2 / 3, 2 / 3, 1 / 3, 2 / 3])


def test_episodes_to_first_success():
    np.testing.assert_array_equal(episodes_to_first_success(SUCCESS), [2, 6, 1])


def test_retention():
    kept, chances = retention(SUCCESS)
    np.testing.assert_array_equal(kept, [1, 0, 4])
    np.testing.assert_array_equal(chances, [2, 0, 4])  # the last success of a map has no episode after it
    assert interval(kept, chances).estimate == pytest.approx(5 / 6)


def test_shortest_path_rate():
    steps, optimal = np.array([[4, 6, 4]]), np.array([[4, 4, 4]])
    shortest, reached = shortest_path_rate(np.array([[True, True, False]]), steps, optimal)
    assert (shortest[0], reached[0]) == (1, 2)


def deaths(*episodes):
    """Rows of (tiles, actions, died) for one map, padded with -1 as in Records."""
    longest = max(len(actions) for _, actions, _ in episodes)
    tiles = np.full((1, len(episodes), longest + 1), -1)
    actions = np.full((1, len(episodes), longest), -1)
    for e, (visited, taken, _) in enumerate(episodes):
        tiles[0, e, : len(visited)], actions[0, e, : len(taken)] = visited, taken
    steps = np.array([[len(taken) for _, taken, _ in episodes]])
    return repeat_deaths(tiles, actions, steps, np.array([[died for *_, died in episodes]]))[0].tolist()


def test_repeat_deaths():
    dies = ([0, 1, 5], [2, 1], True)  # down from 1 into the hole 5
    same_edge_later = ([1, 5], [1], True)
    same_hole_other_edge = ([4, 5], [2], True)
    same_tile_other_action = ([1, 2], [2], True)
    limit_on_the_same_edge = ([0, 1, 5], [2, 1], False)
    assert deaths(dies, same_edge_later) == [False, True]
    assert deaths(dies, same_hole_other_edge, same_tile_other_action) == [False] * 3
    assert deaths(limit_on_the_same_edge, dies, limit_on_the_same_edge, dies) == [False, False, False, True]
    assert deaths(dies, dies, dies) == [False, True, True]


def test_deaths_of_other_maps_do_not_count():
    tiles, actions = np.array([[[0, 1]], [[0, 1]]]), np.array([[[2]], [[2]]])
    assert not repeat_deaths(tiles, actions, np.ones((2, 1), int), np.ones((2, 1), bool)).any()


def test_interval_of_a_mean_is_that_of_the_normal_law():
    """n = 400 numbers: the bootstrap is close to mean +- 1.96 standard errors."""
    values = np.random.default_rng(0).random(400)
    estimate, low, high = interval(values, resamples=20_000)
    error = values.std() / 20
    assert estimate == pytest.approx(values.mean())
    assert low == pytest.approx(values.mean() - 1.96 * error, abs=0.05 * error)
    assert high == pytest.approx(values.mean() + 1.96 * error, abs=0.05 * error)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    success = rng.random((300, 60)) < 0.7  # 300 studies of 60 maps
    covered = [low <= 0.7 <= high for _, low, high in (interval(study, resamples=500) for study in success)]
    assert 0.90 <= np.mean(covered) <= 0.98


def test_maps_are_the_units_not_episodes():
    """Episodes that all agree within a map add nothing: the interval stays that of 50 maps."""
    per_map = np.arange(50) % 2 == 0
    many_episodes = interval(np.repeat(per_map[:, None], 100, axis=1).mean(1))
    np.testing.assert_allclose(many_episodes, interval(per_map))
    assert many_episodes.high - many_episodes.low > 0.2


def test_paired_difference_is_sharper_than_two_intervals():
    rng = np.random.default_rng(2)
    easy = rng.random(200)
    better = np.clip(easy + 0.05 + 0.01 * rng.standard_normal(200), 0, 1)
    difference, apart = interval(better - easy), interval(better)
    assert difference.low > 0 and difference.high - difference.low < 0.2 * (apart.high - apart.low)


def test_ratio_is_of_sums_not_a_mean_of_ratios():
    assert interval([1.0, 9.0], [1.0, 99.0]).estimate == 0.1
    ratio = interval([1.0, 9.0, 0.0], [1.0, 99.0, 0.0])
    assert ratio.estimate == 0.1 and np.isfinite(ratio.low) and np.isfinite(ratio.high)


def test_nothing_eligible_is_nan():
    assert np.isnan(interval([0.0, 0.0], [0.0, 0.0])).all()


def test_seeds_repeat_and_matter():
    values = np.random.default_rng(3).random(30)
    assert interval(values, seed=1) == interval(values, seed=1)
    assert interval(values, seed=1).low != interval(values, seed=2).low


def test_bad_input():
    with pytest.raises(ValueError, match="values has shape"):
        interval([])
    with pytest.raises(ValueError, match="level=95"):
        interval([1.0], level=95)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"resamples": 0}, "resamples=0: pass a whole number of at least 1"),
        ({"resamples": 2.5}, "resamples=2.5"),
        ({"seed": -1}, "seed=-1"),
        ({"seed": 2**64}, "seed=18446744073709551616"),
        ({"level": 1.5}, "level=1.5 must lie between 0 and 1"),
        ({"level": float("nan")}, "level=nan"),
    ],
)
def test_numbers_that_cannot_work_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        interval([0.0, 1.0], **arguments)


def test_first_streak_by_hand():
    success = [[0, 1, 0, 1, 1], [1, 1, 0, 0, 0], [1, 0, 1, 0, 1], [0, 0, 0, 0, 0]]
    assert episodes_to_first_streak(success).tolist() == [4, 1, 6, 6]
    assert episodes_to_first_streak(success, 1).tolist() == [2, 1, 1, 6]


def test_never_solved_by_hand():
    assert never_solved([[0, 1, 0], [0, 0, 0], [1, 0, 1]]).tolist() == [[1, 0, 0], [1, 1, 1], [0, 0, 0]]


def test_new_pairs_by_hand():
    """Map 0: right, right; the same again and down at its end; map 1: left three times against a wall."""
    tiles = np.array([[[0, 1, 2, -1], [0, 1, 2, 3]], [[0, 0, 0, 0], [0, 0, -1, -1]]])
    actions = np.array([[[2, 2, -1], [2, 2, 1]], [[0, 0, 0], [0, -1, -1]]])
    assert new_pairs(tiles, actions).tolist() == [[2, 1], [1, 0]]


def test_median_interval_by_hand():
    """Of ten values the second and the ninth: P(at most 1 below) = 11/1024 = .011 <= .025 < P(at most 2) = .055."""
    found = median_interval(np.array([7, 1, 9, 3, 10, 2, 8, 4, 6, 5]))
    assert found == (5.5, 2, 9)
    columns = median_interval(np.arange(20.0).reshape(10, 2))
    np.testing.assert_array_equal(columns.estimate, [9, 10])
    assert median_interval(np.array([3.0, 1.0, 2.0])) == (2, 1, 3)  # too few for any interval
    with pytest.raises(ValueError, match=r"values has shape \(0,\)"):
        median_interval(np.zeros(0))


def test_median_interval_holds_the_median_as_often_as_it_says():
    draws = np.random.default_rng(0).exponential(size=(32, 4000))
    found = median_interval(draws)
    held = ((found.low <= np.log(2)) & (np.log(2) <= found.high)).mean()
    assert held == pytest.approx(0.980, abs=0.008)  # 1 - 2 P(Bin(32, .5) <= 9): the tightest of at least .95
