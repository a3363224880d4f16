"""Notebooks 03 to 05: the students' checks tell wrong answers apart, the code shown is the package's, and the
diagnostics are right on histories made by hand."""

import ast
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import jupytext
import numpy as np
import pytest
import torch
from test_checks import assert_passes, assert_rejected, broken, open_stub, verdict

from icrl_utils import training_checks as checks
from icrl_utils.calibration import GOAL, HOLE, edge_kind, known_graph, known_graph_values, moves_to_goal
from icrl_utils.history import Episode
from icrl_utils.notebooks import sources

LEFT, DOWN, RIGHT, UP = range(4)
ALL_CHECKS = [check for name, check in vars(checks).items() if name.startswith("check_")]
each_check = pytest.mark.parametrize("check", ALL_CHECKS, ids=lambda check: check.__name__)


@each_check
def test_every_check_knows_an_open_stub_and_reports_errors_of_the_student(check, capsys):
    assert verdict(capsys, check, open_stub).startswith("Open: ")
    text = verdict(capsys, check, broken)
    assert text.startswith("Not yet: ") and "ZeroDivisionError" in text and "broken" in text


@each_check
@pytest.mark.parametrize("answer", [None, -1, "goal"])
def test_no_check_accepts_nonsense(check, answer, capsys):
    assert verdict(capsys, check, lambda *arguments: answer).startswith("Not yet: ")


# ---------------------------------------------------------------------------------- 03 replay and target networks


def td_targets(
    online, target, reward, terminated, gamma, chooser="online", valuer="target", shift=1, ends=True, roll=False,
    grad=False, rewards=1.0, axis=-1,
):  # fmt: skip
    """Right by default; each other argument makes one mistake."""
    networks = {"online": online, "target": target}
    value = networks[valuer].gather(-1, networks[chooser].argmax(axis, keepdim=True)).flatten(1)
    following = value.roll(-shift, dims=1)
    if shift == 1 and not roll:
        following = torch.cat([following[:, :-1], torch.zeros_like(following[:, :1])], 1)
    if shift == -1:
        following = torch.cat([torch.zeros_like(following[:, :1]), following[:, 1:]], 1)
    y = rewards * reward + gamma * following * (~terminated if ends else 1)
    return y if grad else y.detach()


def test_td_targets_right(capsys):
    assert_passes(capsys, checks.check_td_targets, td_targets)


@pytest.mark.parametrize(
    "mistake, reason",
    [
        (dict(ends=False), "through the end of an episode"),
        (dict(chooser="target"), "both chooses and values"),
        (dict(valuer="online"), "comes from the online network"),
        (dict(chooser="target", valuer="online"), "roles are exchanged"),
        (dict(shift=0), "values at the decision itself"),
        (dict(shift=-1), "decision before"),
        (dict(roll=True), "torch.roll would go around"),
        (dict(rewards=0.0), "reward is missing"),
        (dict(grad=True), "gradient flows through the target"),
        (dict(rewards=2.0), "has the target"),
    ],
    ids=str,
)
def test_td_targets_wrong(mistake, reason, capsys):
    assert_rejected(capsys, checks.check_td_targets, lambda *a: td_targets(*a, **mistake), reason)


def test_td_targets_wrong_without_gamma_and_along_the_wrong_axis(capsys):
    def no_gamma(online, target, reward, terminated, gamma):
        return td_targets(online, target, reward, terminated, 1.0)

    def best_decision(online, target, reward, terminated, gamma):
        return td_targets(online, target, reward, terminated, gamma, axis=1)

    assert_rejected(capsys, checks.check_td_targets, no_gamma, "gamma is missing")
    assert_rejected(capsys, checks.check_td_targets, best_decision, "argmax runs over the decisions")
    assert_rejected(capsys, checks.check_td_targets, lambda q, *rest: q, "last axis, the four actions")
    assert_rejected(capsys, checks.check_td_targets, lambda *arguments: [0.0], "it has to be a tensor")


def gets_target(outcomes, cut=False, last_end=True, last_running=False):
    last = len(outcomes) - 1
    ends = ("goal", "hole", "limit") if cut else ("goal", "hole")
    return [
        (outcome in ends and (last_end or d < last)) or (outcome is None and (last_running or d < last))
        for d, outcome in enumerate(outcomes)
    ]


def test_gets_target_right(capsys):
    assert_passes(capsys, checks.check_gets_target, gets_target)
    assert_passes(capsys, checks.check_gets_target, lambda outcomes: np.array(gets_target(outcomes)))


@pytest.mark.parametrize(
    "wrong, reason",
    [
        (lambda o: gets_target(o, cut=True), "the game would have gone on"),
        (lambda o: gets_target(o, last_end=False), "reward is the whole truth"),
        (lambda o: gets_target(o, last_running=True), "beyond the slice"),
        (lambda o: gets_target(o)[:-1], "decisions, but you return"),
        (lambda o: [True] * len(o), "beyond the slice"),
    ],
    ids=["truncation as termination", "last dropped", "last kept", "one short", "all"],
)
def test_gets_target_wrong(wrong, reason, capsys):
    assert_rejected(capsys, checks.check_gets_target, wrong, reason)


def test_alpha_for(capsys):
    assert_passes(capsys, checks.check_alpha_for, lambda steps, share=0.99: 1 - (1 - share) ** (1 / steps))
    for wrong, reason in (
        (lambda steps, share=0.99: share / steps, "not made in equal pieces"),
        (lambda steps, share=0.99: 1 - share ** (1 / steps), "exchanged what is made and what is left"),
        (lambda steps, share=0.99: 0.1, "of the way; wanted is"),
        (lambda steps, share=0.99: 2.0, "is not in (0, 1]"),
    ):
        assert_rejected(capsys, checks.check_alpha_for, wrong, reason)


# ------------------------------------------------------------------------------------------- 04 LoRA DQN training


def lora_weights(hidden, mlp, layers, heads, kv, rank, grouped=True, mlp_too=True, of_pair=(1, 1)):
    key = hidden * kv // heads if grouped else hidden
    shapes = [(hidden, hidden), (hidden, key), (hidden, key), (hidden, hidden)]
    shapes += [(hidden, mlp), (hidden, mlp), (mlp, hidden)] if mlp_too else []
    return layers * sum(rank * (of_pair[0] * n + of_pair[1] * m) for n, m in shapes)


def test_lora_weights(capsys):
    assert_passes(capsys, checks.check_lora_weights, lora_weights)
    for wrong, reason in (
        (lambda *a: lora_weights(*a, grouped=False), "grouped-query attention"),
        (lambda *a: lora_weights(*a, mlp_too=False), "attention only"),
        (lambda *a: lora_weights(*a, of_pair=(0, 1)), "but not A"),
        (lambda *a: lora_weights(*a, of_pair=(1, 0)), "but not B"),
        (lambda *a: lora_weights(*a) // a[2], "one layer only"),
        (lambda h, m, n, heads, kv, r: n * (2 * h * h + 2 * h * (h * kv // heads) + 3 * h * m), "of the matrices"),
        (lambda *a: lora_weights(*a) + 1, "you count"),
    ):
        assert_rejected(capsys, checks.check_lora_weights, wrong, reason)


def test_the_formula_of_lora_weights_counts_what_peft_makes():
    from icrl_utils.models import ONLINE, adapter_parameters, add_adapters, new_tiny_llama

    model = add_adapters(new_tiny_llama(72, [64, 65, 66, 67], hidden=48, layers=2, heads=4), rank=8)
    mlp = model.config.intermediate_size
    count = sum(p.numel() for p in adapter_parameters(model, ONLINE).values())
    assert count == lora_weights(48, mlp, 2, 4, 4, 8)


def rate_factor(step, steps, warmup, first=1, count_from_warmup=True, shape=lambda p: 0.5 * (1 + np.cos(np.pi * p))):
    if step < warmup:
        return (step + first) / warmup
    return shape((step - warmup) / (steps - warmup) if count_from_warmup else step / steps)


def test_rate_factor(capsys):
    assert_passes(capsys, checks.check_rate_factor, rate_factor)
    for wrong, reason in (
        (lambda *a: rate_factor(*a, first=0), "first update has the factor 0"),
        (lambda *a: rate_factor(*a, first=2), "equal stairs"),
        (lambda *a: rate_factor(*a, count_from_warmup=False), "counts from step 0"),
        (lambda *a: rate_factor(*a, shape=lambda p: 1 - p), "straight line"),
        (lambda *a: rate_factor(*a, shape=lambda p: np.cos(np.pi * p)), "goes down to -1"),
        (lambda *a: rate_factor(*a, shape=lambda p: np.cos(np.pi * p / 2)), "quarter of a wave"),
        (lambda *a: rate_factor(*a, shape=lambda p: 1.0), "yours is 1.000"),
    ):
        assert_rejected(capsys, checks.check_rate_factor, wrong, reason)


# --------------------------------------------------------------------------------------------- 05 generalization


def test_improvement(capsys):
    def early_late(success, epsilon):
        return success[:, epsilon == 0].mean(), success[:, epsilon == 1].mean()

    def growth(success, epsilon):
        early, late = early_late(success, epsilon)
        return late / early - 1

    assert_passes(capsys, checks.check_improvement, growth)
    for wrong, reason in (
        (lambda s, e: growth(s, e) + 1, "ratio - 1"),
        (lambda s, e: 100 * growth(s, e), "9.0 for 900 %"),
        (lambda s, e: early_late(s, e)[1] - early_late(s, e)[0], "difference in points"),
        (lambda s, e: 1 - early_late(s, e)[0] / early_late(s, e)[1], "relative to the *beginning*"),
        (lambda s, e: s[:, 20:].mean() / s[:, :10].mean() - 1, "two of them, not ten"),
        (lambda s, e: 3.21, "yours is"),
    ):
        assert_rejected(capsys, checks.check_improvement, wrong, reason)


def test_paired_interval(capsys):
    def interval(a, b, resamples, rng, ends=(0.025, 0.975), paired=True, unit="lakes"):
        a, b = np.asarray(a, float), np.asarray(b, float)
        if unit == "episodes":
            a, b = a.reshape(-1, 1), b.reshape(-1, 1)
        draw = rng.integers(len(a), size=(resamples, len(a)))
        other = draw if paired else rng.integers(len(a), size=draw.shape)
        if unit == "single lakes":
            draw, other = draw[:, :1], other[:, :1]
        means = a.mean(1)[draw].mean(1) - b.mean(1)[other].mean(1)
        return np.quantile(means, ends)

    assert_passes(capsys, checks.check_paired_interval, interval)
    for mistake, reason in (
        (dict(paired=False), "lakes of a and b independently"),
        (dict(unit="episodes"), "Episodes of one lake are alike"),
        (dict(unit="single lakes"), "how much single lakes differ"),
        (dict(ends=(0.16, 0.84)), "68 %"),
        (dict(ends=(0.05, 0.95)), "90 %"),
        (dict(ends=(0.006, 0.953)), "quantiles"),
        (dict(ends=(0.0, 1.0)), "it should be about"),
    ):
        assert_rejected(capsys, checks.check_paired_interval, lambda *a, m=mistake: interval(*a, **m), reason)


def test_objections(capsys):
    pairs = [(f"objection {i}", "an answer to it") for i in range(4)]
    assert_passes(capsys, checks.check_objections, lambda: pairs)
    for wrong, reason in (
        (lambda: pairs[:3], "3 so far"),
        (lambda: pairs[:1] * 4, "1 so far"),
        (lambda: [("a", "b")] * 4, "a few words"),
        (lambda: ["only an objection"] * 4, "each entry is a pair"),
    ):
        assert_rejected(capsys, checks.check_objections, wrong, reason)


# -------------------------------------------------------------------------------------------------- the notebooks


def source_cells(number):
    return jupytext.read(sources([number])[0]).cells


@pytest.mark.parametrize("number", ["03", "04", "05"])
def test_solutions_pass_their_checks(number, capsys):
    """Without running the notebook: a solution needs nothing but numpy, torch and itself."""
    cells = source_cells(number)
    solutions = [cell.source for cell in cells if "solution" in cell.metadata.get("tags", [])]
    asked = [cell.source for cell in cells if "check" in cell.metadata.get("tags", [])]
    assert solutions
    for solution, check in zip(solutions, asked, strict=True):
        names = {"np": np, "torch": torch, "checks": checks}
        exec(solution, names)
        exec(check, names)
        assert capsys.readouterr().out.startswith("Passed: ")


def statements(body):
    return [ast.dump(node) for node in body]


def blocks(tree):
    """Every list of statements inside a function, nested ones too."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            if isinstance(getattr(node, name, None), list):
                yield statements(getattr(node, name))


@pytest.mark.parametrize("number", ["03", "04", "05"])
def test_code_that_a_notebook_shows_as_the_packages_is_the_packages(number):
    """A cell tagged ``from:module.function`` holds consecutive statements of that function, letter for letter but for
    comments and line breaks."""
    shown = 0
    for cell in source_cells(number):
        for tag in cell.metadata.get("tags", []):
            if not tag.startswith("from:"):
                continue
            module, name = tag.removeprefix("from:").rsplit(".", 1)
            function = getattr(importlib.import_module(f"icrl_utils.{module}"), name)
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
            wanted = statements(ast.parse(cell.source).body)
            found = any(block[i : i + len(wanted)] == wanted for block in blocks(tree) for i in range(len(block)))
            assert found, f"{number}: not in {module}.{name}:\n{cell.source}"
            shown += 1
    assert shown >= (6 if number == "04" else 0)


@pytest.mark.parametrize("number", ["03", "04", "05"])
def test_tests_that_a_notebook_names_exist(number):
    prose = "\n".join(cell.source for cell in source_cells(number) if cell.cell_type == "markdown")
    named = re.findall(r"`(test_\w+)`", prose)
    ours = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.glob("test_*.py"))
    assert named and all(f"def {name}(" in ours for name in named)


@pytest.mark.parametrize("number", ["03", "04", "05"])
def test_cells_are_short(number):
    for cell in source_cells(number):
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 15, cell.source


# ------------------------------------------------------------------------------------------------------ calibration


PAST = [
    Episode((0, 1, 2, 3), (RIGHT, RIGHT, RIGHT), "goal"),
    Episode((0, 0, 4), (UP, DOWN), "hole"),
    Episode((1, 5, 5), (DOWN, LEFT), "limit"),
]


def test_known_graph():
    assert known_graph(PAST) == {
        (0, RIGHT): 1, (1, RIGHT): 2, (2, RIGHT): GOAL, (0, UP): 0, (0, DOWN): HOLE, (1, DOWN): 5, (5, LEFT): 5,
    }  # fmt: skip


def test_a_last_tile_that_the_text_does_not_tell_is_no_edge():
    assert known_graph([Episode((1, 5, None), (DOWN, LEFT), "limit")]) == {(1, DOWN): 5}


def test_moves_to_goal_on_the_known_graph():
    assert moves_to_goal(known_graph(PAST)) == {2: 1, 1: 2, 0: 3}


@pytest.mark.parametrize(
    "tile, action, kind, value",
    [
        (2, RIGHT, "goal next", 1.0),
        (1, RIGHT, "goal in 2", 0.9),
        (0, RIGHT, "goal in 3", 0.81),
        (0, DOWN, "seen hole", 0.0),
        (0, UP, "wall", 0.0),
        (5, LEFT, "wall", 0.0),
        (1, DOWN, "no way known", np.nan),
        (1, UP, "never tried", np.nan),
    ],
)
def test_kinds_of_moves_and_their_exact_values(tile, action, kind, value):
    found, exact = edge_kind(known_graph(PAST), tile, action, gamma=0.9)
    assert found == kind
    assert exact == pytest.approx(value, nan_ok=True)


def test_known_graph_values_asks_the_agent_where_it_stands(monkeypatch):
    """An agent that answers from the text alone, by looking up the graph, is perfectly calibrated."""
    from icrl_utils.baselines import RandomPolicy
    from icrl_utils.history import HistoryFormat
    from icrl_utils.lake import PAPER_IN_DISTRIBUTION

    class LooksUp:
        name, format = "looks up", HistoryFormat("compact")

        def q_values(self, text):
            *past, running = self.format.parse(text)
            graph = known_graph(past)
            return np.array([edge_kind(graph, running.tiles[-1], action, gamma=0.7)[1] for action in range(4)])

    rows = known_graph_values(LooksUp(), PAPER_IN_DISTRIBUTION.sample(4, 0), gamma=0.7, episodes=6)
    assert {"seen hole", "wall", "never tried"} <= {row["kind"] for row in rows}
    np.testing.assert_allclose([row["q"] for row in rows], [row["exact"] for row in rows])
    assert RandomPolicy.name not in {row["policy"] for row in rows}
