"""What a model knows before any training: counted by hand, and asked of a model that is known to know."""

import numpy as np
import pytest
import torch

from icrl_utils.__main__ import main
from icrl_utils.evaluation import experiments, zero_shot
from icrl_utils.evaluation.tables import parts_of
from icrl_utils.evaluation.zero_shot import (
    COLUMNS,
    DISTANCE,
    SHOWN,
    Subject,
    groups,
    histories,
    random_twin,
    share,
    told_moves,
)
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.tokenizers import make_compact_tokenizer
from icrl_utils.history.words import Words
from icrl_utils.lake.held_out import reject_held_out
from icrl_utils.lake.maps import TRAINING_MAPS
from icrl_utils.llama.load import load_base

COMPACT = HistoryFormat("compact")


@pytest.fixture(scope="module")
def tiny():
    """The tiny Llama, pretrained to say what moves lead to, and a random twin."""
    model, words = load_base("assets/tiny-llama"), Words(make_compact_tokenizer())
    return [Subject("tiny", model, words), Subject("random weights", random_twin(model), words)]


@pytest.fixture(scope="module")
def table(tiny):
    return zero_shot.zero_shot(tiny, histories(5))


def test_told_moves_by_hand():
    """8 right -> 9, 9 down -> hole; again 8 right -> 9, 9 right -> wall, 9 down -> hole; 8 right -> 9 a third time."""
    text = "8 right 9 down hole reset 8 right 9 right 9 down hole reset 8 right 9 up"
    found = list(told_moves(COMPACT.tokenize(text)[None]))
    assert [(m.position, m.shown, m.distance, m.outcome) for m in found] == [
        (1, 0, 0, "tile"), (3, 0, 0, "hole"), (7, 1, 6, "tile"), (9, 0, 0, "wall"), (11, 1, 8, "hole"),
        (15, 2, 8, "tile"),
    ]  # fmt: skip
    words = text.split()
    assert [m.observed for m in found] == [COMPACT.tokenize(words[m.position + 1])[0] for m in found]


def test_a_timed_out_move_tells_nothing_and_histories_are_apart():
    first, second = (
        COMPACT.tokenize(text) for text in ("8 left limit reset 8 up 8 up", "8 up goal reset 8 up goal reset")
    )
    moves = list(told_moves(np.stack([first, second])))
    assert [(m.history, m.position, m.shown, m.outcome) for m in moves] == [
        (0, 5, 0, "wall"), (1, 1, 0, "goal"), (1, 5, 1, "goal"),
    ]  # fmt: skip


def test_groups_take_every_move_once(table):
    part = parts_of(table, "model")["tiny"]
    for question, masks in groups(part).items():
        counted = np.sum(list(masks.values()), axis=0)
        wanted = np.ones(len(counted)) if question in ("all", "shown") else part["shown"] > 0
        np.testing.assert_array_equal(counted, wanted, question)
    assert list(SHOWN)[0] == "0" and [low for low, _ in DISTANCE.values()] == [2, 10, 34, 98]


def test_a_share_is_of_all_moves_together():
    part = {name: np.array([], kind) for name, kind in COLUMNS.items()}
    part |= {"history": np.array([0, 0, 0, 1, 1]), "right": np.array([1, 1, 1, 0, 0])}
    found = share(part, np.array([True, True, True, True, False]))
    assert found.estimate == pytest.approx(3 / 4) and (found.low, found.high) == (0, 1)


def test_a_model_that_predicts_outcomes_is_found_to_and_its_random_twin_not(table):
    parts = parts_of(table, "model")
    for name, low, high in (("tiny", 0.9, 1), ("random weights", 0, 0.2)):
        seen = groups(parts[name])["all"]["seen"]
        assert low <= share(parts[name], seen).estimate <= high
        assert share(parts[name], seen, "right_of_all").estimate <= share(parts[name], seen).estimate
    odds, masks = parts["tiny"]["log_odds"], groups(parts["tiny"])["outcome"]
    assert odds[masks["goal"]].mean() > 5 and odds[masks["hole"]].mean() < -5


def test_answers_are_those_of_whole_logits(tiny):
    """One history by hand: the model's own logits at the action words."""
    ids, subject = histories(2), tiny[0]
    table = zero_shot.zero_shot([subject], ids, seed=3)
    dictionary = subject.words.dictionary(np.random.default_rng([3, 1]))
    with torch.no_grad():
        logits = subject.model(torch.from_numpy(dictionary[ids[1]])[None]).logits[0].numpy()
    rows = table["history"] == 1
    moves = [move for move in told_moves(ids) if move.history == 1]
    at = logits[table["position"][rows]]
    truth = dictionary[[move.observed for move in moves]]
    np.testing.assert_array_equal(table["right_of_all"][rows], at.argmax(1) == truth)
    allowed = np.full(at.shape, -np.inf)
    of_game = dictionary[[*range(64), 68, 69]]
    allowed[:, of_game] = at[:, of_game]
    np.testing.assert_array_equal(table["right"][rows], allowed.argmax(1) == truth)
    np.testing.assert_allclose(table["log_odds"][rows], at[:, dictionary[68]] - at[:, dictionary[69]], atol=0.01)


def test_histories_are_fixed_and_on_no_held_out_lake():
    assert (zero_shot.HISTORIES, zero_shot.TOKENS, zero_shot.SEED) == (48, 384, 1312)
    ids = histories()
    assert ids.shape == (48, 384) and len({row.tobytes() for row in ids}) == 48
    np.testing.assert_array_equal(histories(3), ids[:3])
    reject_held_out(zero_shot.training_maps(TRAINING_MAPS, 48, 1312))
    kinds = [move.outcome for move in told_moves(ids)]
    assert all(kinds.count(outcome) > 100 for outcome in zero_shot.OUTCOMES)


def test_evaluate_writes_table_and_figure(tiny, monkeypatch, tmp_path, capsys):
    row = experiments.EXPERIMENTS["zero_shot"]._replace(players=lambda adapter, law: tiny)
    monkeypatch.setitem(experiments.EXPERIMENTS, "zero_shot", row)
    monkeypatch.setattr(experiments, "BUILD", tmp_path)
    assert main(["evaluate", "zero_shot", "--profile", "smoke"]) == 0
    table = experiments.read_table(tmp_path / "results" / "zero_shot.csv.gz")
    wanted = zero_shot.zero_shot(tiny, histories(8))
    assert table.keys() == COLUMNS.keys()
    for name, column in wanted.items():
        np.testing.assert_array_equal(table[name], column)
    assert (tmp_path / "figures" / "zero_shot.png").stat().st_size > 10_000
    out = capsys.readouterr().out
    assert "tiny                  seen" in out and "shown 9+" in out and "outcome hole" in out
