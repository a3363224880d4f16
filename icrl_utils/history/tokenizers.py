"""The two tokenizers of the course: the tiny Llama's words, and a small stand-in for Llama 3's byte-level BPE."""

from __future__ import annotations

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from icrl_utils.history.compact import COMPACT_WORDS
from icrl_utils.lake.maps import ACTIONS

LLAMA3_SPECIAL_TOKENS = (
    "<|begin_of_text|>",
    "<|end_of_text|>",
    "<|start_header_id|>",
    "<|end_header_id|>",
    "<|eot_id|>",
    "<|finetune_right_pad_id|>",
)
# Byte-level tokenizers first cut a text into words, numbers of up to three digits, punctuation and white space.
_WORDS_AND_NUMBERS = r"[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


def make_compact_tokenizer() -> PreTrainedTokenizerFast:
    """One token for each word of the ``compact`` format, with the ids of ``COMPACT_WORDS``. Splits at white space.

    It has no unknown token, so an unknown word is an error and not an id; ``HistoryFormat("compact").tokenize``
    explains such errors. Padding is the word ``reset``: it adds no id, and resets after the end of a history hold no
    decision.
    """
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(COMPACT_WORDS)}))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="reset", padding_side="right")


def make_paper_tokenizer(special_tokens: tuple[str, ...] = LLAMA3_SPECIAL_TOKENS) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Llama 3's special tokens, made in a moment, without a download.

    As in Llama 3, the action words, the roles and the numbers 0..999 are one token each, ``1.0`` is three, and no
    text is unknown. It costs what Llama 3 does: 10 tokens a step, 6 a reset, 7 a reward, 1 an end.
    """
    words = [*ACTIONS, *(f" {word}" for word in ACTIONS), "observation", "action", "reward", "edit", "..."]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS_AND_NUMBERS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=2000,  # training stops earlier, when every word and number is one token
        min_frequency=1,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=list(special_tokens),
        show_progress=False,
    )
    tokenizer.train_from_iterator([*words, *map(str, range(1000))], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)
