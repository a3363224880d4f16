"""A history in a language model's own words: two tokens a step, words for the tiles drawn anew for every history.

     river left apple down hole
     river right apple ...

Stride and order are those of the ``compact`` format: tile, action, tile, action, ..., the last tile of an episode
replaced by how it ended, then a line break. Every word is one token. Which word stands for which tile differs from
history to history, so nothing but the history tells what a tile is.

Code that plays, finds decisions or computes targets works on ``compact`` ids. A *dictionary*, int64 [72], translates
them into the tokens of one history.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from icrl_utils.history.compact import COMPACT_TILES, COMPACT_WORDS
from icrl_utils.history.text import Tokenizer

RULE_WORDS = (" left", " down", " right", " up", " goal", " hole", " limit", "\n")  # in the order of compact's ids
# Names of things: a model that has read about them copies them from its context more surely than other words.
NOUNS = """
    apple river stone tree house garden bridge road forest mountain island beach desert valley cave tower castle
    church school market street village city farm field barn mill door window wall roof floor room kitchen table
    chair bed lamp mirror clock book paper pen letter map box bag basket bottle cup plate bowl knife spoon fork
    bread milk cheese butter egg meat fish bird horse cow sheep goat dog cat mouse rabbit fox wolf lion tiger
    elephant monkey snake frog turtle bee spider butterfly flower rose grass leaf root seed fruit lemon banana
    cherry grape corn rice wheat sugar salt honey tea coffee wine beer water ice snow rain wind storm cloud sun moon
    star sky fire smoke ash sand clay iron gold silver copper glass wood rope wheel boat ship train car bus plane
    engine hammer saw needle thread cloth shirt coat hat shoe crown sword shield flag drum bell guitar piano violin
    song dance toy ball doll kite king queen prince soldier farmer doctor teacher baker hunter sailor pirate ghost
    giant dragon angel robot planet rocket camera phone radio screen button chain candle pillow blanket carpet
    curtain ladder bucket shovel pencil marble pearl diamond crystal shell coral ocean harbor tunnel station airport
    palace temple museum library theater hotel office factory prison hospital pocket finger nose tooth beard feather
    tail wing horn bone skin heart brain nerve tongue cotton silk wool leather rubber plastic metal oil gas coal
    pepper onion potato tomato carrot bean cake cookie soup salad sauce
""".split()


class Words:
    """The words of the game in a tokenizer's vocabulary, each of them one token.

    A tokenizer whose vocabulary is that of the ``compact`` format (the tiny Llama's) keeps its words; tiles still get
    other numbers in every history.

    Attributes:
        rules: int64 [8], the tokens of left, down, right, up, goal, hole, limit and the line break.
        tiles: int64 [P], P >= 64, tokens that can stand for tiles.

    Raises ValueError where a word of the rules is not one token, or too few nouns are.
    """

    def __init__(self, tokenizer: Tokenizer, nouns: Sequence[str] = NOUNS) -> None:
        self.tokenizer = tokenizer
        is_compact = set(COMPACT_WORDS) == set(tokenizer.get_vocab())
        rules = COMPACT_WORDS[COMPACT_TILES:] if is_compact else RULE_WORDS
        names = COMPACT_WORDS[:COMPACT_TILES] if is_compact else [" " + noun for noun in nouns]
        self.rules = np.array([self.one_token(word) for word in rules])
        tokens = [self._encode(name) for name in names]
        self.tiles = np.array([ids[0] for ids in tokens if len(ids) == 1])
        if len(self.tiles) < COMPACT_TILES:
            raise ValueError(
                f"nouns: {len(self.tiles)} of these {len(names)} words are one token for this tokenizer, and the "
                f"{COMPACT_TILES} tiles of an 8 x 8 map need as many; pass more words (history.words.NOUNS suits "
                "tokenizers that read English)."
            )

    def _encode(self, word: str) -> list[int]:
        return self.tokenizer.encode(word, add_special_tokens=False, verbose=False)

    def one_token(self, word: str) -> int:
        """The token of ``word``. Raises ValueError where it is not one."""
        ids = self._encode(word)
        if len(ids) != 1:
            raise ValueError(
                f"{word!r} is {len(ids)} tokens for this tokenizer, not one, so histories of two tokens a step cannot "
                "be written; choose a base whose tokenizer knows it, or history='paper'."
            )
        return ids[0]

    @property
    def goal(self) -> int:
        """The token of goal."""
        return int(self.rules[4])

    @property
    def hole(self) -> int:
        """The token of hole."""
        return int(self.rules[5])

    def dictionary(self, rng: np.random.Generator) -> np.ndarray:
        """int64 [72]: the token of each ``compact`` id in one history; those of the tiles are drawn."""
        return np.concatenate([rng.choice(self.tiles, COMPACT_TILES, replace=False), self.rules])

    def text(self, ids: np.ndarray, dictionary: np.ndarray) -> str:
        """What the model reads of ``compact`` ids, int64 [T]."""
        tokens = dictionary[ids].tolist()
        return str(self.tokenizer.decode(tokens, skip_special_tokens=False, clean_up_tokenization_spaces=False))
