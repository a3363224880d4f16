"""A student's answer on its way to a check: asked for safely, read strictly, compared in the open.

Three things can happen before there is a value to compare, and none may end in an error of the course's own:
nothing was written yet, the function failed, or it returned something that cannot be right (most often None). `ask`
tells these apart. The readers of `Answer` then make one kind of value of everything that means the same (a list, a
set, an array, a tensor, a generator) and refuse what is no value at all, such as nan. `compare` says what differs.
"""

from __future__ import annotations

import copy
import inspect
import traceback
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
import torch

LONGEST = 100_000  # entries read from a generator, which may never end
LARGEST = 1e300  # whole numbers of Python have no end, float64 has


class Wrong(Exception):
    """An answer that is not right yet: for which input, what came, what should have come, and what to do about it."""

    def __init__(self, asked: str, given: str, wanted: str, advice: str) -> None:
        super().__init__(f"{asked}: yours is {given}, it should be {wanted}. {advice}")


class Failed(Exception):
    """There is no answer to look at, because the student's function raised an error or returned None."""


class NotAttempted(Exception):
    """The function is still the stub of the exercise."""


# ------------------------------------------------------------------------------------------------------------ asking


def ask(function: Callable, *inputs) -> Answer:
    """Calls the student's function with copies of the inputs, so that an answer in place leaves the check's own alone.

    Raises:
        NotAttempted: the function raises a bare NotImplementedError, as the stub does.
        Failed: it raises anything else, or returns None.
        Wrong: it is no function, or one that does not take these inputs.
    """
    name = getattr(function, "__name__", "your function")
    if not callable(function):
        raise Wrong("the check", show(function), "a function", "Hand over its name alone, without brackets behind it.")
    asked = f"{name}({', '.join(map(show, inputs))})"
    _require_signature(function, inputs, asked)
    copies = copy.deepcopy(inputs)
    # Only the student's code runs inside this `try`. An error anywhere else is a bug of the course and stays one.
    try:
        value = function(*copies)
        if isinstance(value, Iterator):  # a generator runs the student's code while it is read
            value = list(islice(value, LONGEST))
    except Exception as error:
        if isinstance(error, NotImplementedError) and not error.args:  # torch raises some of its own, with a text
            raise NotAttempted from None
        raise Failed(f"{asked} raised {_describe(error, function)}. Call it yourself with this input.") from error
    if value is None:
        raise Failed(
            f"{asked}: your function returned None. Python does so when a function ends without `return`: let its last "
            "line be `return` and the answer (`print` only shows it)."
        )
    return Answer(asked, value)


def _require_signature(function: Callable, inputs: tuple, asked: str) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # functions written in C may have none
        return
    try:
        signature.bind(*inputs)
    except TypeError:
        advice = "Keep the line that begins with `def` as the exercise has it."
        raise Wrong(asked, f"a function of {signature}", f"one that takes {len(inputs)} inputs", advice) from None


def _describe(error: Exception, function: Callable) -> str:
    """The error and its place: the last line of the student's own file or cell, however deep in a library it arose."""
    frames = traceback.extract_tb(error.__traceback__)
    code = getattr(inspect.unwrap(function), "__code__", None)
    own = [frame for frame in frames if code and frame.filename == code.co_filename]
    text = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
    if not own:  # a function of a library, say
        return text
    return f"{text} (line {own[-1].lineno}, in {own[-1].name}: {own[-1].line})"


def show(value: object) -> str:
    """A value for a message: short ones as Python writes them, long ones by their beginning or their shape."""
    if isinstance(value, torch.Tensor | np.ndarray):
        dtype = str(value.dtype).removeprefix("torch.")
        return show(value.tolist()) if value.ndim <= 1 and len(value.reshape(-1)) <= 8 else f"{dtype} {[*value.shape]}"
    if isinstance(value, list | tuple | set | frozenset):
        is_words = len(value) > 0 and all(isinstance(entry, str) and entry.isalnum() for entry in value)
        most = 20 if is_words else 10
        entries = [show(entry) for entry in islice(value, most)]
        if len(value) > most:
            entries.append(f"... {len(value)} in all")
        return f"[{', '.join(entries)}]"
    if isinstance(value, float | np.floating):
        return f"{value:.4g}"
    if isinstance(value, np.random.Generator):
        return "rng"
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


# ----------------------------------------------------------------------------------------------------------- reading


@dataclass(frozen=True)
class Answer:
    """What the student's function returned, and the call that it answers. Each reader raises `Wrong` if it cannot read.

    Attributes:
        asked: the call as a reader would write it, such as ``next_tile(7, 1, 3, 5)``.
        value: never None, never an iterator.
    """

    asked: str
    value: Any

    def number(self) -> float:
        """One finite number, from Python, NumPy or torch."""
        return _finite(self.asked, plain(self.value))

    def whole(self) -> int:
        """One whole number; 7.0 is one."""
        return _whole(self.asked, plain(self.value))

    def numbers(self, names: str) -> list[float]:
        """As many finite numbers as there are ``names``, which are separated by commas."""
        entries = self.entries()
        count = names.count(",") + 1
        if len(entries) != count:
            raise Wrong(self.asked, show(self.value), f"{count} numbers: {names}", f"Return `{names}` in this order.")
        return [_finite(self.asked, entry) for entry in entries]

    def wholes(self) -> list[int]:
        """A list of whole numbers. A set has no order of its own and is read in rising order."""
        entries = [_whole(self.asked, entry) for entry in self.entries()]
        return sorted(entries) if isinstance(self.value, set | frozenset) else entries

    def truths(self) -> list[bool]:
        """A list of bool; 0 and 1 stand for False and True."""
        for entry in self.entries():
            if isinstance(entry, bool | int | float) and entry in (0, 1):
                continue
            raise Wrong(self.asked, f"a list with {show(entry)}", "a list of bool", "Every entry is True or False.")
        return [bool(entry) for entry in self.entries()]

    def entries(self) -> list:
        """A list of whatever it holds, from any container with an order, or a set."""
        entries = plain(self.value)
        if not isinstance(entries, list):
            advice = f"What you return is of type {type(self.value).__name__}; collect the answers in a list."
            raise Wrong(self.asked, show(self.value), "a list", advice)
        return entries

    def tensor(self, shape: tuple[int, ...], advice: str) -> np.ndarray:
        """The finite float64 values of a torch tensor of this shape; ``advice`` says what its axes are."""
        if not isinstance(self.value, torch.Tensor):
            advice = "The course goes on computing with it in torch."
            raise Wrong(self.asked, f"of type {type(self.value).__name__}", "a torch tensor", advice)
        if self.value.shape != shape:
            raise Wrong(self.asked, f"of shape {[*self.value.shape]}", f"of shape {[*shape]}", advice)
        values = self.value.detach().cpu().double().numpy()
        if not np.isfinite(values).all():
            place = np.argwhere(~np.isfinite(values))[0].tolist()
            raise Wrong(f"{self.asked} at {place}", show(values[tuple(place)]), "a finite number", FIND_NAN)
        return values


FIND_NAN = "Look for a division by zero, the logarithm of zero or less, or a mean over nothing."


def plain(value: object) -> object:
    """Python's own numbers and lists in place of NumPy's and torch's, at any depth."""
    if isinstance(value, torch.Tensor):
        return value.detach().cpu().tolist()
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    if isinstance(value, Iterable) and not isinstance(value, str | bytes | Mapping):
        return [plain(entry) for entry in value]
    return value


def _finite(asked: str, number: object) -> float:
    if isinstance(number, bool) or not isinstance(number, int | float):
        advice = f"What you return is of type {type(number).__name__}."
        raise Wrong(asked, show(number), "a number", advice)
    if not abs(number) < LARGEST:  # so that nan is refused, too
        raise Wrong(asked, show(number), "a finite number", FIND_NAN)
    return float(number)


def _whole(asked: str, number: object) -> int:
    value = _finite(asked, number)
    if value != int(value):
        raise Wrong(asked, show(number), "a whole number", "Divide with `//`, not with `/`, where things are counted.")
    return number if isinstance(number, int) else int(value)


# --------------------------------------------------------------------------------------------------------- comparing

Mistakes = Iterable[tuple[object, str]]  # wrong answers that students give, and what to tell those who give them


def compare(asked: str, given: object, wanted: object, mistakes: Mistakes, otherwise: str) -> None:
    """Raises `Wrong` unless ``given == wanted``, with the advice of the first mistake that gives the same."""
    if given != wanted:
        advice = next((advice for mistake, advice in mistakes if given == mistake), otherwise)
        raise Wrong(asked, show(given), show(wanted), advice)


def compare_numbers(asked: str, given, wanted, mistakes: Mistakes, otherwise: str, tolerance: float = 1e-5) -> None:
    """`compare` for float numbers and arrays [...] of one shape; the message shows the entry that is most wrong.

    Args:
        tolerance: how far an entry may be off, in units of the largest entry that is wanted.
    """
    given, wanted = np.asarray(given, dtype=float), np.asarray(wanted, dtype=float)
    margin = tolerance * np.abs(wanted).max()

    def is_close(values) -> bool:
        return bool((np.abs(given - np.asarray(values, dtype=float)) <= margin).all())

    if is_close(wanted):
        return
    advice = next((advice for mistake, advice in mistakes if is_close(mistake)), otherwise)
    place = np.unravel_index(np.abs(given - wanted).argmax(), wanted.shape)
    where = f"{asked} at {list(map(int, place))}" if place else asked
    raise Wrong(where, show(float(given[place])), show(float(wanted[place])), advice)
