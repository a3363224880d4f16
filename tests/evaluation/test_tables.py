"""Tables of single questions: rows become columns, and a mean map by map, on hand-made cases."""

import numpy as np
import pytest

from icrl_utils.evaluation.experiments import read_table, write_table
from icrl_utils.evaluation.tables import KINDS, per_map, table_of, training_seed
from icrl_utils.play.baselines import RandomPolicy

TABLE = table_of(
    [
        {"training_seed": 0, "cut": "nothing", "map": np.array([0, 1]), "q": np.array([0.25, 0.5])},
        {"training_seed": 1, "cut": "nothing", "map": np.array([1, 0]), "q": np.array([0.75, 0.25])},
        {"training_seed": 0, "cut": "all", "map": 0, "q": 0.0},
        {"training_seed": 0, "cut": "all", "map": 1, "q": 1.0},
    ]
)


def test_a_row_with_arrays_stands_for_several():
    assert list(TABLE) == ["training_seed", "cut", "map", "q"]
    assert TABLE["training_seed"].tolist() == [0, 0, 1, 1, 0, 0] and TABLE["map"].tolist() == [0, 1, 1, 0, 0, 1]
    assert TABLE["cut"].tolist() == ["nothing"] * 4 + ["all"] * 2


def test_per_map_averages_training_seeds_on_each_map():
    found = per_map(TABLE, ("cut",), "q")
    assert list(found) == [("nothing",), ("all",)]
    np.testing.assert_array_equal(found["nothing",], [0.25, 0.625])
    np.testing.assert_array_equal(found["all",], [0, 1])
    by_seed = per_map({name: column[:4] for name, column in TABLE.items()}, ("cut", "training_seed"), "q")
    np.testing.assert_array_equal(by_seed["nothing", 1], [0.25, 0.75])


def test_per_map_refuses_missing_maps():
    with pytest.raises(ValueError, match="no row of {'cut': 'all'} on some of 2 maps"):
        per_map({name: column[:5] for name, column in TABLE.items()}, ("cut",), "q")


def test_tables_of_single_questions_come_back_from_disk(tmp_path):
    write_table(path := tmp_path / "a.csv.gz", TABLE)
    for name, column in read_table(path).items():
        np.testing.assert_array_equal(column, TABLE[name])
        assert name in ("training_seed", "map") or KINDS[name] in (str, float)


def test_training_seed_of_who_was_not_trained():
    policy = RandomPolicy()
    assert training_seed(policy) == -1
    policy.training_seed = None
    assert training_seed(policy) == -1
    policy.training_seed = 2
    assert training_seed(policy) == 2
