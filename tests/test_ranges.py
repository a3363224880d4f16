"""The checks of arguments: what passes stays what it is, and what does not is named before any work."""

import numpy as np
import pytest

from icrl_utils.ranges import checked_seed, real_number, whole_number, whole_numbers


@pytest.mark.parametrize("value", [3, np.int8(3), np.uint64(3), np.array(3)])
def test_whole_numbers_of_every_kind_become_an_int(value):
    number = whole_number("n", value, 0, 3)
    assert number == 3 and type(number) is int


@pytest.mark.parametrize("value", [-1, 4, 1.0, 1.7, "1", True, np.True_, None, [1], np.array([1]), float("nan")])
def test_what_is_no_whole_number_of_the_range_is_named(value):
    with pytest.raises(ValueError, match="^n=.*: pass a whole number from 0 to 3.$"):
        whole_number("n", value, 0, 3)


def test_a_range_may_be_open_above_and_have_its_own_words():
    assert whole_number("n", 10**30, 0) == 10**30
    with pytest.raises(ValueError, match="^n=-3: pass a whole number of at least 0.$"):
        whole_number("n", -3, 0)
    with pytest.raises(ValueError, match="^n=0: pass 1 or more lakes.$"):
        whole_number("n", 0, 1, fits="1 or more lakes")


@pytest.mark.parametrize("value", [0, 1, 0.5, np.float32(0.5), np.int64(1)])
def test_numbers_of_every_kind_become_a_float(value):
    number = real_number("share", value, 0, 1)
    assert number == value and type(number) is float


@pytest.mark.parametrize("value", [-0.1, 1.7, float("nan"), float("inf"), "0.5", True, None, np.array([0.5])])
def test_what_is_no_number_of_the_range_is_named(value):
    with pytest.raises(ValueError, match="^share=.*: pass a number from 0 to 1.$"):
        real_number("share", value, 0, 1)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_a_number_is_finite_also_without_bounds(value):
    with pytest.raises(ValueError, match="pass a finite number"):
        real_number("temperature", value)
    with pytest.raises(ValueError, match="pass a number of at least 0"):
        real_number("temperature", value, 0)


def test_seeds_have_64_bits():
    assert [checked_seed(seed) for seed in (0, 2**64 - 1)] == [0, 2**64 - 1]
    for seed in (-1, 2**64, 1.0, None):
        with pytest.raises(ValueError, match="^seed=.*: pass a whole number from 0 to"):
            checked_seed(seed)


def test_arrays_of_whole_numbers():
    for values in ([1, 2], (1, 2), np.array([1, 2], np.uint8), [np.int16(1), np.int16(2)]):
        array = whole_numbers("actions", values)
        assert array.tolist() == [1, 2] and array.dtype == np.int64
    assert whole_numbers("actions", []).shape == (0,)
    for values in ([1.7, 2], [1.0, 2.0], ["1", "2"], [True, False], [1, True], [None, 1], np.array([1.0]), "12", None):
        with pytest.raises(ValueError, match="^actions=.*pass whole numbers"):
            whole_numbers("actions", values)
