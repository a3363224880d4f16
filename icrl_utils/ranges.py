"""Checks of arguments before any work is done: each error names the argument, its value and what fits instead."""

from __future__ import annotations

import math
import operator
from numbers import Real
from typing import Any

import numpy as np

LARGEST_INT16 = 32_767  # tiles, steps and episodes are kept in 16 bits: beyond it they would wrap


def whole_number(name: str, value: Any, low: int, high: int | None = None, fits: str = "") -> int:
    """``value`` as an int. Raises ValueError unless it is a whole number (True, 1.0 and "1" are none) in the range;
    ``fits`` says what is, where there are better words for it."""
    try:
        number = None if isinstance(value, bool | np.bool_) else operator.index(value)
    except TypeError:
        number = None
    if number is None or number < low or (high is not None and number > high):
        fits = fits or "a whole number " + (f"of at least {low}" if high is None else f"from {low} to {high:,}")
        raise ValueError(f"{name}={value!r}: pass {fits}.")
    return number


def real_number(name: str, value: Any, low: float = -math.inf, high: float = math.inf) -> float:
    """``value`` as a float. Raises ValueError unless it is a finite number (True and "1" are none) in the range."""
    is_number = isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)
    if not is_number or not low <= value <= high:
        fits = "a finite number" if math.isinf(low) else f"a number of at least {low}"
        fits = fits if math.isinf(high) else f"a number from {low} to {high}"
        raise ValueError(f"{name}={value!r}: pass {fits}.")
    return float(value)


def positive_number(name: str, value: Any, high: float = math.inf) -> float:
    """``value`` as a float. Raises ValueError unless it is a finite number above 0, and at most ``high``."""
    if real_number(name, value, high=high) <= 0:
        up_to = "" if math.isinf(high) else f", at most {high}"
        raise ValueError(f"{name}={value!r}: pass a number above 0{up_to}.")
    return float(value)


def checked_seed(seed: Any, name: str = "seed") -> int:
    return whole_number(name, seed, 0, 2**64 - 1)


def whole_numbers(name: str, values: Any) -> np.ndarray:
    """``values`` as an int64 array. Raises ValueError where a cast would change them: 1.7, "1", True."""
    array = np.asarray(values)
    has_bool = isinstance(values, list | tuple) and any(isinstance(value, bool | np.bool_) for value in values)
    if array.size and (array.dtype.kind not in "iu" or has_bool):
        raise ValueError(f"{name}={values!r}: pass whole numbers (an integer array or a list of ints).")
    return array.astype(np.int64, copy=False)
