"""The benchmarks report what they measured, and measure what they say. No test here depends on a clock."""

from functools import partial

import pytest
import torch

from icrl_utils.llama import load
from icrl_utils.profiles import PROFILES
from icrl_utils.tools import bench

SMOKE = PROFILES["smoke"]


def test_peak_bytes_is_the_most_that_lived_at_one_time():
    def call():
        a = torch.zeros(1000, 1000)  # 4 MB
        b = a + 1  # 8 MB
        del a
        c = b + 1  # 8 MB again
        del b
        return c.sum()

    assert bench.peak_bytes(call) == pytest.approx(8e6, rel=0.01)


def test_bench_readout_avoids_a_matrix_of_tokens_times_vocabulary(capsys):
    figures = bench.bench_readout(SMOKE)
    full = 128 * bench.LLAMA_3_VOCABULARY * 4 / 1e6
    assert figures["full_mb"] > full > 10 * figures["rows_mb"]
    assert figures["times_smaller"] == pytest.approx(figures["full_mb"] / figures["rows_mb"])
    assert figures["times_faster"] == pytest.approx(figures["full_ms"] / figures["rows_ms"])
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("readout: ") and "128,256" in line


def test_bench_train_reports_every_way_and_goes_on_without_a_compiler(capsys, monkeypatch):
    monkeypatch.setattr(bench, "compile_network", lambda net, device: False)
    figures = bench.bench_train(SMOKE)
    assert set(figures) == {"peft", "folded", "of_peak"} and all(value > 0 for value in figures.values())
    assert capsys.readouterr().out.startswith("train: tokens/s peft ")


@pytest.mark.slow
def test_bench_train_times_the_compiled_network_as_compiled(monkeypatch):
    """Really compiled, but for the last step: the graphs that torch has traced run as they are, and are counted."""
    runs = []

    def backend(graph, inputs):
        return lambda *values: runs.append(1) or graph(*values)

    small = partial(load.new_tiny_llama, hidden=16, layers=1, heads=2)  # what is traced fast
    monkeypatch.setattr(load, "new_tiny_llama", small)
    monkeypatch.setattr(bench, "compile_network", lambda net, device: net.compile(backend=backend) or True)
    try:
        figures = bench.bench_train(SMOKE)
    finally:
        torch._dynamo.reset()
    assert set(figures) == {"peft", "folded", "compiled", "of_peak"} and figures["compiled"] > 0
    assert len(runs) >= 2 * (1 + 5)  # two forward passes in each step: the first, and those on the clock


def test_what_benchmarks_return_becomes_rows_of_one_file():
    assert bench.as_rows("env", {"ratio": 49.123, "ours_us": 0.5}) == [
        {"benchmark": "env", "figure": "ratio", "value": "49.12"},
        {"benchmark": "env", "figure": "ours_us", "value": "0.5"},
    ]
    ways = [{"bench": "step-real", "way": "paper", "seconds": 2.0, "planned_bytes": ""}]
    assert bench.as_rows("step-real", ways) == [{"benchmark": "step-real", "figure": "paper: seconds", "value": "2"}]
