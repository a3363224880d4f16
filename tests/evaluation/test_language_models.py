"""The experiment of a real language model: who plays what, on tables small enough to check by hand."""

import numpy as np
import pytest

from icrl_utils.evaluation import experiments, language_model
from icrl_utils.evaluation.language_model import LAKES_OF_SLOW_PLAYERS, MEMORY_LESS, SETTINGS, UNTOUCHED
from icrl_utils.lake.held_out import held_out_maps
from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION
from icrl_utils.play.baselines import OraclePolicy, RandomPolicy

FIRST, *OTHERS = SETTINGS


class Slow(RandomPolicy):
    name = UNTOUCHED


@pytest.fixture(scope="module")
def table():
    lakes = language_model.lakes_of_settings(LAKES_OF_SLOW_PLAYERS + 2)
    return experiments.language_models([OraclePolicy(), Slow()], lakes)


def test_settings_are_held_out_lakes_of_both_sizes_and_both_schedules():
    lakes = language_model.lakes_of_settings()
    assert [len(group) for group in lakes.values()] == [language_model.LAKES] * 4
    assert lakes[FIRST] == held_out_maps("in_distribution")[: language_model.LAKES]
    assert {(s.lakes, s.schedule) for s in SETTINGS.values()} == {
        (lakes, schedule) for lakes in ("in_distribution", "out_of_distribution") for schedule in ("paper", "greedy")
    }


def test_slow_players_play_a_part_of_the_first_setting(table):
    for setting, part in experiments.by_law(table).items():
        maps = {policy: len(values[0]) for policy, values in experiments.by_policy(part).items()}
        slow = {UNTOUCHED: LAKES_OF_SLOW_PLAYERS} if setting == FIRST else {}
        assert maps == {"oracle": LAKES_OF_SLOW_PLAYERS + 2} | slow


def test_the_summary_names_each_setting_and_its_episodes(table):
    text = experiments.describe_settings(table)
    assert f"{FIRST}: episodes 20 to 29" in text and text.count("first five") == 2
    assert text.count("episodes 10 to 14") == 2 and text.count(UNTOUCHED) == 1
    assert "oracle               1.00 1.00-1.00" in text


def test_the_figure_has_a_panel_a_setting_and_says_how_many_lakes(table):
    figure = experiments.plot_experiment(table, "language_model")
    assert [ax.get_title() or ax.get_title(loc="left") for ax in figure.axes][:4] == list(SETTINGS)
    note = figure._suptitle.get_text()
    assert f"{LAKES_OF_SLOW_PLAYERS + 2} or {LAKES_OF_SLOW_PLAYERS} held-out lakes" in note


def test_a_missing_adapter_of_stage_one_is_named_with_its_command(monkeypatch, tmp_path):
    monkeypatch.setattr(language_model, "STAGE_ONE", tmp_path)
    with pytest.raises(FileNotFoundError, match="finetune --steps 16 --out build/smollm2-stage-one"):
        language_model.players("dqn", PAPER_IN_DISTRIBUTION)


def test_memory_less_and_untrained_players_are_the_slow_ones():
    lakes = held_out_maps("in_distribution")[:50]
    policy = RandomPolicy()
    assert len(language_model.plays(policy, OTHERS[0], lakes)) == 50
    policy.name = MEMORY_LESS
    assert not len(language_model.plays(policy, OTHERS[0], lakes))
    np.testing.assert_array_equal(len(language_model.plays(policy, FIRST, lakes)), LAKES_OF_SLOW_PLAYERS)
