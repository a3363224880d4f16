"""Notebooks 03 to 05: the students' checks tell wrong answers apart."""

import jupytext
import numpy as np
import pytest
import torch
from test_checks import assert_passes, assert_rejected, broken, open_stub, verdict

from icrl_utils import training_checks as checks
from icrl_utils.notebooks import sources

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
