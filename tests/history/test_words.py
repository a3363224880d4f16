"""A history in a language model's own words: every word one token, tiles drawn anew, nothing lost."""

import numpy as np
import pytest

from icrl_utils.history.compact import COMPACT_TILES, COMPACT_WORDS
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.tokenizers import make_compact_tokenizer, make_paper_tokenizer
from icrl_utils.history.words import NOUNS, Words

COMPACT = HistoryFormat("compact")


class Splitter:
    """A tokenizer that knows ``words`` and spells all others."""

    unk_token_id = None

    def __init__(self, words):
        self.vocabulary = {word: i for i, word in enumerate(words)}

    def __len__(self):
        return len(self.vocabulary)

    def get_vocab(self):
        return self.vocabulary

    def encode(self, text, add_special_tokens, verbose):
        return [self.vocabulary[text]] if text in self.vocabulary else [0] * len(text)

    def decode(self, tokens, skip_special_tokens, clean_up_tokenization_spaces):
        names = list(self.vocabulary)
        return "".join(names[token] for token in tokens)


RULES = [" left", " down", " right", " up", " goal", " hole", " limit", "\n"]
ENGLISH = Splitter(["?", *RULES, *(" " + noun for noun in NOUNS)])


def test_a_history_reads_as_a_story_and_has_two_tokens_a_step():
    words = Words(ENGLISH)
    dictionary = words.dictionary(np.random.default_rng(0))
    ids = COMPACT.tokenize("8 left 8 down goal reset 8 right hole reset 3")
    text = words.text(ids, dictionary)
    eight, three = (words.text(COMPACT.tokenize(tile), dictionary) for tile in ("8", "3"))
    assert text == f"{eight} left{eight} down goal\n{eight} right hole\n{three}"
    assert len(dictionary[ids]) == len(ids)


def test_the_words_of_tiles_are_distinct_nouns_and_differ_from_history_to_history():
    words, rng = Words(ENGLISH), np.random.default_rng(1)
    first, second = words.dictionary(rng), words.dictionary(rng)
    for dictionary in (first, second):
        assert len(set(dictionary[:COMPACT_TILES].tolist())) == COMPACT_TILES
        assert set(dictionary[:COMPACT_TILES]) <= set(words.tiles)
        assert [ENGLISH.decode([t], False, False) for t in dictionary[COMPACT_TILES:]] == RULES
    assert (first[:COMPACT_TILES] != second[:COMPACT_TILES]).mean() > 0.8
    assert not set(words.tiles) & set(words.rules)


def test_the_order_of_the_rules_is_that_of_the_compact_vocabulary():
    assert [word.strip() or "reset" for word in RULES] == COMPACT_WORDS[COMPACT_TILES:]


def test_the_tiny_llama_keeps_its_words():
    words = Words(make_compact_tokenizer())
    np.testing.assert_array_equal(words.rules, np.arange(COMPACT_TILES, COMPACT_TILES + 8))
    assert sorted(words.dictionary(np.random.default_rng(0)).tolist()) == list(range(72))
    assert (words.goal, words.hole) == (COMPACT_WORDS.index("goal"), COMPACT_WORDS.index("hole"))


def test_a_vocabulary_without_the_words_is_refused_with_the_next_step():
    with pytest.raises(ValueError, match=r"' goal' is 5 tokens .* choose a base whose tokenizer knows it"):
        Words(Splitter(["?", *RULES[:4], *(" " + noun for noun in NOUNS)]))
    with pytest.raises(ValueError, match=r"nouns: 40 of these 40 words .* 64 tiles .* pass more words"):
        Words(ENGLISH, NOUNS[:40])
    with pytest.raises(ValueError, match="is 3 tokens|is 2 tokens|is 5 tokens|is 4 tokens"):
        Words(make_paper_tokenizer())
