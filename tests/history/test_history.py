"""Histories: the two texts byte for byte, there and back, and the decisions in every kind of slice."""

import json
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from icrl_utils.history.compact import COMPACT_WORDS
from icrl_utils.history.episodes import GOAL, HOLE, LIMIT, OUTCOMES, RESET, RUNNING, Episode
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.paper import LLAMA3_TOKENS
from icrl_utils.history.tokenizers import make_compact_tokenizer, make_paper_tokenizer
from icrl_utils.lake.maps import LakeMap, MapDistribution
from icrl_utils.play.collect import RANDOM_PLAY, collect

COMPACT = HistoryFormat("compact")
PAPER = HistoryFormat("paper", make_paper_tokenizer())
PLAIN = HistoryFormat("paper", make_paper_tokenizer(special_tokens=("<|endoftext|>",)))
FORMATS = pytest.mark.parametrize("form", [COMPACT, PAPER, PLAIN], ids=["compact", "paper", "plain"])

SUCCESS = (
    "<|begin_of_text|><|start_header_id|>observation<|end_header_id|>8<|eot_id|>"
    "<|start_header_id|>action<|end_header_id|>right<|eot_id|>"
    "<|start_header_id|>observation<|end_header_id|>9<|eot_id|>"
    "<|start_header_id|>action<|end_header_id|>down<|eot_id|>"
    "<|start_header_id|>observation<|end_header_id|>13<|eot_id|>"
    "<|start_header_id|>reward<|end_header_id|>1.0<|eot_id|><|end_of_text|>"
)
TRUNCATED = (
    "<|begin_of_text|><|start_header_id|>observation<|end_header_id|>8<|eot_id|>"
    "<|start_header_id|>action<|end_header_id|>left<|eot_id|>"
    "<|start_header_id|>observation<|end_header_id|>8<|eot_id|>"
    "<|start_header_id|>edit<|end_header_id|>...<|eot_id|><|end_of_text|>"
)
GOLDEN = [Episode((8, 9, 13), (2, 1), "goal"), Episode((8, 8), (0,), "limit")]
DEATH_AND_RUNNING = [Episode((8, 9, 13), (2, 1), "hole"), Episode((8, 9), (2,), None)]


def random_play(seed: int, n_episodes: int, step_limit: int, last_runs: bool) -> list[Episode]:
    """Random play on a first and then on a second map. Short limits make truncations common."""
    rng = np.random.default_rng(seed)
    maps = MapDistribution(2, 8, min_hops=1).sample(2, seed)
    episodes = []
    for k in range(n_episodes):
        lake = maps[2 * k >= n_episodes]
        tiles, actions, outcome = [int(rng.choice(lake.starts))], [], None
        while outcome is None:
            actions.append(int(rng.integers(4)))
            tiles.append(int(lake.next_tile[tiles[-1], actions[-1]]))
            kind = {**dict.fromkeys(lake.goals, "goal"), **dict.fromkeys(lake.holes, "hole")}
            outcome = kind.get(tiles[-1]) or ("limit" if len(actions) == step_limit else None)
        episodes.append(Episode(tiles, actions, outcome))
    if last_runs:
        steps = int(rng.integers(episodes[-1].steps))
        episodes[-1] = Episode(episodes[-1].tiles[: steps + 1], episodes[-1].actions[:steps], None)
    return episodes


PLAY = st.builds(random_play, st.integers(0, 2**32), st.integers(1, 6), st.integers(1, 12), st.booleans())


def as_read_from(form: HistoryFormat, episode: Episode) -> Episode:
    """What a text can tell: compact text replaces the last tile by the outcome."""
    if form is COMPACT and episode.outcome:
        return Episode((*episode.tiles[:-1], None), episode.actions, episode.outcome)
    return episode


# --- text ---


def test_paper_text_is_the_papers_byte_for_byte():
    assert PAPER.render(GOLDEN[:1]) == SUCCESS
    assert PAPER.render(GOLDEN[1:]) == TRUNCATED
    assert PAPER.render(GOLDEN) == SUCCESS + TRUNCATED
    assert HistoryFormat("paper").parse(SUCCESS + TRUNCATED) == GOLDEN  # text alone needs no tokenizer


def test_paper_text_of_a_death_has_no_reward_and_a_running_episode_asks_for_an_action():
    death = SUCCESS.replace("<|start_header_id|>reward<|end_header_id|>1.0<|eot_id|>", "")
    asks = SUCCESS[: SUCCESS.index("down")]
    assert PAPER.render(DEATH_AND_RUNNING) == death + asks


def test_plain_text_for_other_tokenizers():
    assert PLAIN.render(GOLDEN) == (
        "begin\nobservation: 8\naction: right\nobservation: 9\naction: down\nobservation: 13\nreward: 1.0\nend\n"
        "begin\nobservation: 8\naction: left\nobservation: 8\nedit: ...\nend\n"
    )


def test_compact_text():
    assert COMPACT.render(GOLDEN) == "8 right 9 down goal reset 8 left limit reset"
    assert COMPACT.render(DEATH_AND_RUNNING) == "8 right 9 down hole reset 8 right 9"
    assert COMPACT.tokenize("8 right 9 down hole reset 8 ").tolist() == [8, 66, 9, 65, 69, 71, 8]
    assert COMPACT.action_ids.tolist() == [64, 65, 66, 67]
    assert COMPACT.vocab_size == len(COMPACT_WORDS) == 72


@FORMATS
@settings(deadline=None, max_examples=60)
@given(episodes=PLAY)
def test_text_and_tokens_of_random_play_there_and_back(form, episodes):
    text = form.render(episodes)
    assert form.parse(text) == [as_read_from(form, episode) for episode in episodes]
    assert form.render(form.parse(text)) == text if form is not COMPACT else True
    whole = form.tokenize(text)
    assert whole.dtype == np.int64
    np.testing.assert_array_equal(whole, np.concatenate([form.encode_episode(episode) for episode in episodes]))


@FORMATS
@settings(deadline=None, max_examples=30)
@given(episodes=PLAY)
def test_bulk_and_stepwise_encoding_equal_the_tokens_of_the_text(form, episodes):
    whole = form.tokenize(form.render(episodes))
    tiles = np.concatenate([episode.tiles for episode in episodes])
    actions = np.concatenate([np.array(episode.actions, int) for episode in episodes])  # an empty one, too
    steps = [episode.steps for episode in episodes]
    outcomes = [OUTCOMES.index(episode.outcome) for episode in episodes]

    ids, offsets = form.encode_episodes(tiles, actions, steps, outcomes)
    np.testing.assert_array_equal(ids, whole)
    assert offsets[0] == 0 and offsets[-1] == len(ids)
    for e, episode in enumerate(episodes):
        np.testing.assert_array_equal(ids[offsets[e] : offsets[e + 1]], form.encode_episode(episode))

    # In lock-step play the reset belongs to the step that begins an episode, not to the one that ended.
    rows = []
    for episode, outcome in zip(episodes, outcomes, strict=True):
        row_outcomes = [RUNNING] * episode.steps + [outcome]
        rows += zip((RESET, *episode.actions), episode.tiles, row_outcomes, strict=True)
    stepwise = form.encode_steps(*np.array(rows).T)
    stepwise = stepwise[stepwise >= 0]
    if form is COMPACT:
        stepwise, whole = stepwise[1:], whole[:-1] if outcomes[-1] else whole
    np.testing.assert_array_equal(stepwise, whole)


@FORMATS
def test_an_action_that_is_not_answered_yet(form):
    episodes = [GOLDEN[0], Episode((8, None), (3,), None)]
    text = form.render(episodes)
    assert form.parse(text)[1] == episodes[1]
    np.testing.assert_array_equal(form.tokenize(text), np.concatenate([form.encode_episode(e) for e in episodes]))


def test_cost_in_tokens():
    loop = Episode([0] * 101, [0] * 100, "limit")
    one_step, two_steps = (Episode([8] * n + [9], [0] * n, "hole") for n in (1, 2))
    assert len(COMPACT.encode_episode(loop)) * 30 == 6060
    reset_step_end = len(PAPER.encode_episode(one_step))
    assert len(PAPER.encode_episode(two_steps)) - reset_step_end == 10  # a step
    assert reset_step_end == 6 + 10 + 1  # a reset, a step, an end
    assert len(PAPER.encode_episode(Episode((8, 9), (0,), "goal"))) - reset_step_end == 7  # a reward


# --- decisions ---


def expected_decisions(form, episodes, begin, end) -> list[tuple]:
    """The slow way, from the texts: the text of a running episode ends where Q is read."""
    found = []
    for k, episode in enumerate(episodes):
        after_episode = len(form.tokenize(form.render(episodes[: k + 1])))
        for t, action in enumerate(episode.actions):
            so_far = [*episodes[:k], Episode(episode.tiles[: t + 1], episode.actions[:t], None)]
            position = len(form.tokenize(form.render(so_far))) - 1
            is_last = t == episode.steps - 1
            # The outcome is told by the third token in compact text, by the episode's end in the others.
            told = position + 2 if form is COMPACT else after_episode - 1
            ends = is_last and episode.outcome in ("goal", "hole") and told < end
            if begin <= position and position + 1 < end:
                truncated = is_last and episode.outcome == "limit"
                found.append([position - begin, action, float(ends and episode.reward), ends, ends, truncated])
    for this, successor in zip(found, found[1:], strict=False):
        this[4] = this[3] or not this[5]  # a step that goes on has a target if its successor is in the slice
        assert successor[0] > this[0]
    return [tuple(row[:5]) for row in found]


def listed(decisions, row: int = 0) -> list[tuple]:
    assert all(array.shape == decisions.valid.shape for array in decisions)
    assert (np.diff(decisions.valid[row].astype(int)) <= 0).all(), "padding has to be on the right"
    for array in decisions:
        assert not array[row][~decisions.valid[row]].any(), "padding has to be 0"
    columns = [array[row][decisions.valid[row]].tolist() for array in decisions[:5]]
    return list(zip(*columns, strict=True))


@FORMATS
@settings(deadline=None, max_examples=60)
@given(episodes=PLAY, data=st.data())
def test_decisions_in_slices_that_begin_and_end_anywhere(form, episodes, data):
    ids = form.tokenize(form.render(episodes))
    cut = st.integers(0, len(ids))
    slices = [sorted(pair) for pair in data.draw(st.lists(st.tuples(cut, cut), min_size=1, max_size=4))]
    slices.append([0, len(ids)])
    batch = np.full((len(slices), max(end - begin for begin, end in slices)), -1)  # negative ids are padding
    for row, (begin, end) in enumerate(slices):
        batch[row, : end - begin] = ids[begin:end]
    found = form.decisions(batch)
    for row, (begin, end) in enumerate(slices):
        assert listed(found, row) == expected_decisions(form, episodes, begin, end)


def test_decisions_by_hand():
    text = "8 right 9 down goal reset 8 left limit reset 0 up 0 down hole reset 3 left 2 left"
    found = COMPACT.decisions(COMPACT.tokenize(text)[None])
    assert listed(found) == [  # position, action, reward, terminated, has_target
        (0, 2, 0.0, False, True),
        (2, 1, 1.0, True, True),
        (6, 0, 0.0, False, False),  # truncated: no next decision to bootstrap from
        (10, 3, 0.0, False, True),
        (12, 1, 0.0, True, True),
        (16, 0, 0.0, False, True),
        (18, 0, 0.0, False, False),  # its outcome is not in the text
    ]
    assert [array.dtype.name for array in found] == ["int64", "int64", "float32", "bool", "bool", "bool"]


def test_decisions_of_the_golden_paper_text():
    tokens = PAPER.tokenize(SUCCESS + TRUNCATED)
    assert listed(PAPER.decisions(tokens[None])) == [
        (8, 2, 0.0, False, True),
        (18, 1, 1.0, True, True),
        (42, 0, 0.0, False, False),
    ]
    assert tokens[[9, 19, 43]].tolist() == PAPER.action_ids[[2, 1, 0]].tolist()
    # One token short of the end of the first episode the row does not tell yet that it is over.
    assert listed(PAPER.decisions(tokens[None, :33]))[-1] == (18, 1, 0.0, False, False)
    # The second half of an action header is enough of it; the action word alone is not.
    assert [row[0] for row in listed(PAPER.decisions(tokens[None, 8:]))] == [0, 10, 34]
    assert [row[0] for row in listed(PAPER.decisions(tokens[None, 9:]))] == [9, 33]


@FORMATS
@pytest.mark.parametrize("length", [0, 1, 2])
def test_decisions_of_very_short_rows(form, length):
    found = form.decisions(np.zeros((3, length), dtype=int))
    assert found.valid.shape[0] == 3 and not found.valid.any()


@FORMATS
def test_padding_on_the_left_decides_nothing(form):
    ids = form.tokenize(form.render(GOLDEN))
    begins_with_action = ids[int(np.argmax(np.isin(ids, form.action_ids))) :]
    padded = np.concatenate([np.full(7, -1), begins_with_action])
    expected = [(row[0] + 7, *row[1:]) for row in listed(form.decisions(begins_with_action[None]))]
    assert listed(form.decisions(padded[None])) == expected
    assert len(expected) == 2


@pytest.mark.parametrize(("form", "width"), [(COMPACT, 30), (PAPER, 6)], ids=["compact", "paper"])
def test_the_width_of_decisions_depends_on_the_row_length_alone(form, width):
    loop = form.encode_episode(Episode([0] * 101, [0] * 100, "limit"))
    densest = loop[int(form.decisions(loop[None]).position[0, 0]) :][:60]
    assert form.decisions(densest[None]).valid.sum() == width
    assert form.decisions(np.full((2, 60), -1)).valid.shape == (2, width)


# --- context ---


def test_fit_drops_whole_oldest_episodes_and_says_so_once():
    form = HistoryFormat("compact")
    episodes = [Episode([k] * 3, [0, 0], "limit") for k in range(5)]  # 6 tokens each
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert form.fit(episodes, 30) == episodes
        assert form.fit([], 30) == []
    with pytest.warns(UserWarning, match="30 tokens, the context 29: the oldest 1 of 5 episodes") as caught:
        assert form.fit(episodes, 29) == episodes[1:]
        assert form.fit(episodes, 13) == episodes[3:]
    assert len(caught) == 1
    with pytest.warns(UserWarning):  # another instance speaks for itself
        HistoryFormat("compact").fit(episodes, 12)
    with pytest.raises(ValueError, match="max_tokens=5 is less than the 6 tokens of the last episode"):
        form.fit(episodes, 5)


# --- bad input ---


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8 rihgt 9", "word 1 of the history is 'rihgt', which the compact vocabulary does not have"),
        ("8 right 64", "tile 64 is not in the compact vocabulary, 0..63: maps larger than 8 x 8 .* smaller map"),
        ("08 right 9", "word 0 of the history is '08'"),
        ("8 -1", "word 1 of the history is '-1'"),
        (SUCCESS, "word 0 of the history is '<|begin"),
    ],
)
def test_compact_words_that_do_not_exist(text, message):
    for method in (COMPACT.tokenize, COMPACT.parse):
        with pytest.raises(ValueError, match=message.replace("|", r"\|")):
            method(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("right 9", "word 0 of the history is 'right': a tile number has to stand there"),
        ("8 9", "word 1 of the history is '9': an action has to"),
        ("8 right down", "word 2 of the history is 'down': a tile number or goal, hole or limit has to"),
        ("8 right goal 8", "word 3 of the history is '8': reset has to"),
        ("8 reset", "word 1 of the history is 'reset': an action has to"),
    ],
)
def test_compact_words_in_the_wrong_place(text, message):
    with pytest.raises(ValueError, match=message):
        COMPACT.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SUCCESS.replace("right", "rihgt"), "character 75 of the history: .*rihgt.* is not a message"),
        (SUCCESS + "\n", "is not a message of the paper format"),
        (SUCCESS.replace("1.0", "2.0"), "is not a message of the paper format"),
        (SUCCESS.replace("8", "-8"), "character 17 of the history: .* is not a message"),
    ],
)
def test_paper_messages_that_do_not_exist(text, message):
    for method in (PAPER.tokenize, PAPER.parse):
        with pytest.raises(ValueError, match=message):
            method(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (SUCCESS[17:], "character 0 of the history: observation cannot follow end; begin can"),
        (SUCCESS + SUCCESS[17:], "observation cannot follow end; begin can"),
        (SUCCESS.replace("<|end_of_text|>", "") + SUCCESS, "begin cannot follow reward; end can"),
        (
            TRUNCATED.replace("action", "observation").replace("left", "8"),
            "observation cannot follow first observation",
        ),
    ],
)
def test_paper_messages_in_the_wrong_place(text, message):
    with pytest.raises(ValueError, match=message):
        PAPER.parse(text)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((8,), (2,), None), "tiles has 1 entries for 1 actions"),
        (((8, 9), (4,), None), r"actions \(4,\): use 0, 1, 2, 3 for left, down, right, up"),
        (((8, -1), (2,), "hole"), r"tiles \(8, -1\): give tile numbers"),
        (((None, 8), (2,), None), "may be None"),
        (((None,), (), None), "may be None"),
        (((8, 9), (2,), "won"), "outcome 'won' after 1 actions"),
        (((8,), (), "goal"), "outcome 'goal' after 0 actions"),
        (((8, 9.5), (2,)), r"tiles=\[8, 9.5\]: pass whole numbers"),
        (((8, 9), (1.7,)), r"actions=\[1.7\]: pass whole numbers"),
        (((8, 9), ("1",)), r"actions=\['1'\]"),
        (((8, 9), (True,)), r"actions=\[True\]"),
    ],
)
def test_impossible_episodes(arguments, message):
    with pytest.raises(ValueError, match=message):
        Episode(*arguments)


@FORMATS
def test_bad_arguments(form):
    with pytest.raises(ValueError, match="episode 0 of 2 has no outcome, but only the last one"):
        form.render(DEATH_AND_RUNNING[::-1])
    with pytest.raises(ValueError, match="episode 1 of 3 has no outcome"):
        form.encode_episodes([8, 9] * 3, [2] * 3, [1] * 3, [GOAL, RUNNING, HOLE])
    with pytest.raises(ValueError, match="5 tiles, 3 actions, 3 episodes in steps and 3 outcomes do not fit"):
        form.encode_episodes([8, 9, 8, 9, 8], [2] * 3, [1] * 3, [GOAL] * 3)
    with pytest.raises(ValueError, match="action 5 with outcome 0: use actions 0..3, or RESET = 4"):
        form.encode_steps([0, 5], [8, 8], [RUNNING, RUNNING])
    with pytest.raises(ValueError, match="action 4 with outcome 3"):
        form.encode_steps([RESET], [8], [LIMIT])
    with pytest.raises(ValueError, match=r"action=\[1.7\]: pass whole numbers"):
        form.encode_steps([1.7], [8], [RUNNING])
    with pytest.raises(ValueError, match=r"tiles=\[8, 9.5\]: pass whole numbers"):
        form.encode_episodes([8, 9.5], [2], [1], [HOLE])
    with pytest.raises(ValueError, match="ids=.*: pass whole numbers"):
        form.decisions(np.zeros((1, 4)))
    with pytest.raises(ValueError, match="max_tokens=-1"):
        form.fit(DEATH_AND_RUNNING, -1)
    with pytest.raises(ValueError, match=r"ids has shape \(3,\): give \[B, T\]"):
        form.decisions(np.zeros(3, dtype=int))


def test_tiles_that_a_format_cannot_write():
    with pytest.raises(ValueError, match="tile 64 is not in the compact vocabulary.*HistoryFormat..paper"):
        COMPACT.encode_episode(Episode((8, 64), (2,), None))
    with pytest.raises(ValueError, match="tile 80 is not in the compact vocabulary"):
        COMPACT.render([Episode((80, 8), (2,), "hole")])
    from_compact = COMPACT.parse("8 right hole reset")
    for method in (lambda: PAPER.render(from_compact), lambda: PAPER.encode_episode(from_compact[0])):
        with pytest.raises(ValueError, match="the last tile of an ended episode is not known"):
            method()


def test_unknown_format_and_missing_tokenizer():
    with pytest.raises(ValueError, match="name='json' is no history format: use 'compact'"):
        HistoryFormat("json")
    bare, ids = HistoryFormat("paper"), np.zeros((1, 5), int)
    for call in (
        lambda: bare.tokenize(SUCCESS),
        lambda: bare.decisions(ids),
        lambda: bare.tiles(ids, ids),
        lambda: bare.encode_steps([RESET], [8], [RUNNING]),
        lambda: bare.encode_episode(Episode((8, 9), (2,))),
        lambda: bare.fit([Episode((8, 9), (2,))], 100),
    ):
        with pytest.raises(ValueError, match=r"tokenizer is None: HistoryFormat\('paper', tokenizer\)"):
            call()


@pytest.mark.parametrize("by_digits", [False, True], ids=["whole numbers", "digit by digit"])
@pytest.mark.parametrize("special", [True, False], ids=["special tokens", "plain text"])
def test_paper_text_tells_the_tiles_of_lakes_of_any_size(special, by_digits):
    tokenizer = make_paper_tokenizer() if special else make_paper_tokenizer(special_tokens=("<|endoftext|>",))
    if by_digits:
        backend = tokenizer.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), backend.pre_tokenizer])
    form = HistoryFormat("paper", tokenizer)
    tiles = [0, 7, 63, 64, 80, 99, 100, 999, 1000, 6480, 12_345, 32_766]
    ids = form.encode_episode(Episode((*tiles, 5), (2,) * len(tiles), "hole"))[None]
    found = form.decisions(ids)
    assert form.tiles(ids, found.position)[found.valid].tolist() == tiles
    # Rows that begin anywhere tell a tile whole or not at all.
    for first in range(ids.shape[1]):
        part = ids[:, first:]
        found = form.decisions(part)
        told, n = form.tiles(part, found.position)[found.valid].tolist(), int(found.valid.sum())
        assert told == tiles[len(tiles) - n :] or [-1, *told[1:]] == told == [-1, *tiles[len(tiles) - n + 1 :]]
    padded = np.pad(ids, ((0, 0), (3, 2)), constant_values=-1)
    found = form.decisions(padded)
    assert form.tiles(padded, found.position)[found.valid].tolist() == tiles
    nothing = form.decisions(ids[:, :2])
    assert form.tiles(ids[:, :2], nothing.position).shape == nothing.position.shape


def test_paper_text_tells_where_random_play_stood_on_a_large_lake():
    lake = LakeMap(("S" + "F" * 10, *["F" * 11] * 9, "F" * 10 + "G"))
    play = collect([lake] * 3, RANDOM_PLAY, np.random.default_rng(0), episodes=(5, 5))
    ids, _ = PAPER.encode_episodes(play.tiles, play.actions, play.steps, play.outcome)
    found = PAPER.decisions(ids[None])
    stood = np.concatenate([part[:-1] for part in np.split(play.tiles, np.cumsum(play.steps + 1)[:-1])])
    assert stood.max() >= 64
    np.testing.assert_array_equal(PAPER.tiles(ids[None], found.position)[found.valid], stood)


# --- tokenizers ---


def test_compact_tokenizer_has_the_ids_of_the_words_and_survives_saving(tmp_path):
    made = make_compact_tokenizer()
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    for tokenizer in (made, AutoTokenizer.from_pretrained(tmp_path)):
        assert tokenizer.convert_tokens_to_ids(COMPACT_WORDS) == list(range(72))
        assert len(tokenizer) == 72
        text = COMPACT.render(GOLDEN + DEATH_AND_RUNNING)
        assert tokenizer(text)["input_ids"] == COMPACT.tokenize(text).tolist()
        assert tokenizer.decode(COMPACT.tokenize(text)) == text
        with pytest.raises(Exception, match="UNK"):
            tokenizer("8 rihgt 9")
        # Padding changes no decision.
        padded = np.array(tokenizer(["8 left 7", text], padding=True)["input_ids"])
        assert listed(COMPACT.decisions(padded)) == listed(COMPACT.decisions(COMPACT.tokenize("8 left 7")[None]))
        HistoryFormat("compact", tokenizer)
    with pytest.raises(ValueError, match="does not number the compact words as COMPACT_WORDS does"):
        HistoryFormat("compact", make_paper_tokenizer())


def test_paper_tokenizer_is_like_llama_3(tmp_path):
    made = make_paper_tokenizer()
    made.save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama"}))
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    single = ["left", "down", "right", "up", "observation", "action", "reward", "edit", "...", *map(str, range(1000))]
    single += ["<|begin_of_text|>", "<|eot_id|>", "<|finetune_right_pad_id|>"]
    for tokenizer in (made, loaded):
        for word in single:
            assert len(tokenizer.encode(word)) == 1, word
        assert tokenizer.convert_ids_to_tokens(tokenizer.encode("1.0")) == ["1", ".", "0"]
        text = "any text, even ünïcode: 12345"
        assert tokenizer.decode(tokenizer.encode(text)) == text
    np.testing.assert_array_equal(HistoryFormat("paper", loaded).tokenize(SUCCESS), PAPER.tokenize(SUCCESS))
    assert PAPER.vocab_size == len(made)


def byte_tokenizer(pre_tokenizer=None, special_tokens=()) -> PreTrainedTokenizerFast:
    """Knows bytes and a few pieces of words, so that every action word is split."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer or pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special_tokens),
        show_progress=False,
    )
    tokenizer.train_from_iterator(["e"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@pytest.mark.parametrize("special_tokens", [(), sorted(LLAMA3_TOKENS)], ids=["plain", "llama3"])
def test_split_action_words_are_rejected_and_the_named_fix_works(special_tokens):
    tokenizer = byte_tokenizer(special_tokens=special_tokens)
    space = "" if special_tokens else " "
    words = [f"{space}{word}" for word in ("left", "down", "right", "up")]
    with pytest.raises(ValueError, match="splits the action words .*'left', 'down', 'right', 'up'") as error:
        HistoryFormat("paper", tokenizer)
    assert f"tokenizer.add_tokens({words})" in str(error.value)
    tokenizer.add_tokens(words)
    form = HistoryFormat("paper", tokenizer)
    assert form.action_ids.tolist() == tokenizer.convert_tokens_to_ids(words)
    episodes = random_play(3, 4, 6, True)
    ids = form.tokenize(form.render(episodes))
    assert listed(form.decisions(ids[None])) == expected_decisions(form, episodes, 0, len(ids))


def test_a_tokenizer_that_joins_messages_is_rejected_and_the_named_fix_works():
    tokenizer = Tokenizer(models.BPE(unk_token=None))
    text = PLAIN.render([*GOLDEN, *random_play(0, 20, 20, False)])
    trainer = trainers.BpeTrainer(vocab_size=400, initial_alphabet=list(map(chr, range(256))), show_progress=False)
    tokenizer.train_from_iterator([text], trainer)  # no pre-tokenizer: tokens run across words and lines
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    tokenizer.add_tokens([" left", " down", " right", " up"])
    with pytest.raises(ValueError, match="joins or changes tokens where one message ends"):
        HistoryFormat("paper", tokenizer)
    tokenizer.add_special_tokens({"extra_special_tokens": sorted(LLAMA3_TOKENS)})
    tokenizer.add_tokens(["left", "down", "right", "up"])
    form = HistoryFormat("paper", tokenizer)
    assert form.render(GOLDEN) == SUCCESS + TRUNCATED
    assert [row[1:] for row in listed(form.decisions(form.tokenize(SUCCESS + TRUNCATED)[None]))] == [
        (2, 0.0, False, True),
        (1, 1.0, True, True),
        (0, 0.0, False, False),
    ]


def test_a_tokenizer_with_an_unknown_token_is_rejected():
    tokenizer = Tokenizer(models.WordLevel({"[UNK]": 0, "right": 1}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    with pytest.raises(ValueError, match="unknown tokens in .*byte-level"):
        HistoryFormat("paper", PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]"))


def test_a_tokenizer_of_words_is_rejected():
    with pytest.raises(ValueError, match="unknown tokens in .*byte-level"):
        HistoryFormat("paper", make_compact_tokenizer())
