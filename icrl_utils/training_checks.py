"""The checks of notebooks 03 to 05; what they print, and how, is told in ``checks.py``."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from icrl_utils.checks import Wrong, _answer, _as_list, _numbers, require, student_check

# ---------------------------------------------------------------------------------- 03 replay and target networks


@student_check
def check_td_targets(td_targets: Callable[..., torch.Tensor], seed: int = 0) -> str:
    """td_targets(q_online [B, D, 4], q_target, reward [B, D], terminated bool, gamma) -> [B, D] without gradient."""
    for k in range(10):
        generator = torch.Generator().manual_seed(1_000 * seed + k)
        b, d, gamma = 3, 4 + k % 3, (0.9, 0.7)[k % 2]
        online, target = torch.rand(2, b, d, 4, generator=generator)
        terminated = torch.rand(b, d, generator=generator) < 0.4
        terminated[0], terminated[1, 0], terminated[1, 1] = False, True, False  # every kind of row is there
        reward = (terminated & (torch.rand(b, d, generator=generator) < 0.5)).float()
        reward[1, 0] = 1.0
        given = _answer(td_targets, online.requires_grad_(), target.requires_grad_(), reward, terminated, gamma)
        require(isinstance(given, torch.Tensor), f"td_targets gives a {type(given).__name__}, it has to be a tensor.")
        shape = f"one target for each of {b} x {d} decisions, shape ({b}, {d}); yours has shape {tuple(given.shape)}"
        require(given.shape == (b, d), f"{shape}. The maximum runs over the last axis, the four actions.")
        batch = online.detach(), target.detach(), reward, terminated, gamma
        wanted = _td_targets(*batch)
        if not torch.allclose(given.detach().float(), wanted, atol=1e-5):
            raise Wrong(_td_mistake(given.detach().float(), wanted, *batch))
        require(not given.requires_grad, "the numbers are right, but gradient flows through the target: the network "
                "could then shrink its error by moving the *target*. Compute it under torch.no_grad().")  # fmt: skip
    return "ten random batches: chosen by one network, valued by the other, ends respected, no gradient."


def _td_targets(choose, value, reward, terminated, gamma, shift: int = 1, axis: int = -1):
    """The right targets, or with other arguments the wrong ones that students write; ``shift``: whose value is used."""
    here = value.gather(-1, choose.argmax(axis, keepdim=True)).flatten(1)
    padded = torch.nn.functional.pad(here, (1, 1))
    return reward + gamma * padded[:, 1 + shift : 1 + shift + here.shape[1]] * ~terminated


def _td_mistake(given, wanted, online, target, reward, over, gamma) -> str:
    never = torch.zeros_like(over)
    mistakes = [
        (_td_targets(online, target, reward, never, gamma), "you bootstrap through the end of an episode. There the "
         "next decision belongs to *another* episode: where terminated, the target is the reward alone"),
        (_td_targets(target, target, reward, over, gamma), "the target network both chooses and values, so its lucky "
         "errors are chosen. In double DQN the *online* network chooses the action, the target network values it"),
        (_td_targets(online, online, reward, over, gamma), "the value comes from the online network. It only chooses; "
         "the target network values"),
        (_td_targets(target, online, reward, over, gamma), "the roles are exchanged: online chooses, target values"),
        (_td_targets(online, target, reward, over, gamma, shift=0), "off by one: you use the values at the decision "
         "itself; wanted are those of the next decision, d + 1"),
        (_td_targets(online, target, reward, over, gamma, shift=-1), "off by one: you use the values of the decision "
         "before; wanted are those of the next one, d + 1"),
        (_td_targets(online, target, reward, over, 1.0), "gamma is missing: the next value counts for gamma times as "
         "much as a reward now"),
        (_td_targets(online, target, 0 * reward, over, gamma), "the reward is missing: y = r + ..."),
    ]  # fmt: skip
    if online.shape[1] == 4:
        axis = _td_targets(online, target, reward, over, gamma, axis=1)
        mistakes.append((axis, "your argmax runs over the decisions (axis 1); wanted is the best of four *actions*"))
    for mistake, reason in mistakes:
        if torch.allclose(given, mistake, atol=1e-5):
            return f"{reason}."
    if torch.allclose(given[:, :-1], wanted[:, :-1], atol=1e-5):
        return ("all right but the last decision of a row: it has no successor in the row, so bootstrap from 0 there "
                "(torch.roll would go around to the first decision).")  # fmt: skip
    row, column = divmod(int((given - wanted).abs().argmax()), given.shape[1])
    how = "terminated" if over[row, column] else "not terminated"
    facts = f"reward {reward[row, column]:.0f}, {how}, gamma {gamma}"
    if column + 1 < given.shape[1]:
        facts += f", next online {_numbers(online[row, column + 1])}, next target {_numbers(target[row, column + 1])}"
    return f"decision {column} ({facts}) has the target {wanted[row, column]:.3f}, yours is {given[row, column]:.3f}."


@student_check
def check_gets_target(gets_target: Callable[[list], list[bool]], seed: int = 0) -> str:
    """gets_target(outcomes of the steps after the decisions of a slice) -> may each decision be learned from?"""
    cases = [
        ([None, "goal", None, "hole", None], [True, True, True, True, False], "the last decision's successor lies "
         "beyond the slice: there is nothing to bootstrap from, and r = 0 alone would be false"),
        ([None, None, "goal"], [True, True, True], "the slice ends with a goal: there the reward is the whole truth, "
         "no successor is needed. Dropping it throws away the most valuable step (the paper's code does)"),
        (["hole"], [True], "the slice ends with a hole: there the reward is the whole truth, no successor is needed"),
        ([None, "limit", None, "hole"], [True, False, True, True], "a step that was cut off ('limit') gets no target: "
         "the game would have gone on, and the text does not show the next decision"),
        ([None, "limit"], [True, False], "a cut-off at the end of a slice is a cut-off: no target"),
    ]  # fmt: skip
    rng = np.random.default_rng(seed)
    kinds = [None, None, None, "goal", "hole", "limit"]
    for _ in range(20):
        outcomes = [kinds[i] for i in rng.integers(6, size=rng.integers(1, 9))]
        wanted = [o in ("goal", "hole") or (o is None and i + 1 < len(outcomes)) for i, o in enumerate(outcomes)]
        cases.append((outcomes, wanted, "ends get a target, cut-offs none, the others if a decision follows"))
    for outcomes, wanted, reason in cases:
        answer = _answer(gets_target, outcomes)
        given = [bool(value) for value in _as_list(answer)]
        require(len(given) == len(wanted), f"{outcomes}: {len(wanted)} decisions, but you return {len(given)} values.")
        require(given == wanted, f"{outcomes} -> you say {given}, it is {wanted}: {reason}.")
    return "ends, cut-offs and the last decision of a slice, on 25 slices."


@student_check
def check_alpha_for(alpha_for: Callable[..., float], seed: int = 0) -> str:
    """alpha_for(steps, share=0.99) -> Polyak factor that makes ``share`` of the way in ``steps`` updates."""
    rng = np.random.default_rng(seed)
    cases = [(1, 0.5), (2, 0.75), (100, 0.99)]
    cases += [(int(rng.integers(2, 2000)), float(rng.uniform(0.1, 0.999))) for _ in range(10)]
    for steps, share in cases:
        alpha = float(_answer(alpha_for, steps, share))
        require(0 < alpha <= 1, f"steps={steps}, share={share:.3g}: alpha = {alpha:.3g} is not in (0, 1].")
        made = 1 - (1 - alpha) ** steps
        if abs(made - share) < 1e-3:
            continue
        require(abs(alpha - share / steps) > 1e-9, "the way is not made in equal pieces: each update makes alpha of "
                "what is *left*, so after n updates (1 - alpha)^n is left.")  # fmt: skip
        require(abs(alpha - (1 - share ** (1 / steps))) > 1e-9, "you have exchanged what is made and what is left: "
                "(1 - alpha)^n is what is *left* of the way.")  # fmt: skip
        raise Wrong(f"with alpha = {alpha:.4g}, {steps} updates make {made:.1%} of the way; wanted is {share:.1%}.")
    return "after n updates (1 - alpha)^n of the way is left."


# ------------------------------------------------------------------------------------------- 04 LoRA DQN training


@student_check
def check_lora_weights(lora_weights: Callable[..., int], seed: int = 0) -> str:
    """lora_weights(hidden, mlp, layers, heads, key_value_heads, rank) -> trainable weights of LoRA on 7 projections."""
    rng = np.random.default_rng(seed)
    shapes = [("our tiny Llama", (128, 336, 4, 4, 4, 32)), ("Llama 3.1 8B", (4096, 14336, 32, 32, 8, 32))]
    for _ in range(5):
        kv, head = int(rng.integers(1, 4)), int(rng.integers(8, 64))
        heads, mlp = kv * int(rng.integers(2, 5)), int(rng.integers(100, 999))
        shapes.append(("a Llama", (heads * head, mlp, int(rng.integers(2, 9)), heads, kv, int(rng.integers(1, 17)))))
    for name, (hidden, mlp, layers, heads, kv, rank) in shapes:
        key = hidden * kv // heads
        attention = 2 * (hidden + hidden) + 2 * (hidden + key)
        wanted = layers * rank * (attention + 3 * (hidden + mlp))
        given = _answer(lora_weights, hidden, mlp, layers, heads, kv, rank)
        mistakes = [
            (wanted // layers, "you count one layer only"),
            (layers * rank * (3 * hidden + 2 * key + 2 * mlp), "you count B (outputs x r), but not A (r x inputs)"),
            (layers * rank * (6 * hidden + mlp), "you count A (r x inputs), but not B (outputs x r)"),
            (layers * (2 * hidden**2 + 2 * hidden * key + 3 * hidden * mlp), "these are the weights of the matrices "
             "themselves; LoRA has rank * (inputs + outputs) for each"),
            (layers * rank * attention, "you count the attention only: gate, up and down of the MLP carry LoRA, too"),
            (layers * rank * (4 * 2 * hidden + 3 * (hidden + mlp)), "keys and values are smaller than queries: they "
             "have hidden * key_value_heads / heads outputs (grouped-query attention)"),
            (layers * rank * 2 * (hidden + hidden), "you count q and v only; LoRA is on all seven projections here"),
        ]  # fmt: skip
        if given != wanted:
            for mistake, reason in mistakes:
                require(given != mistake, f"{name}: {reason}.")
            shape = f"hidden {hidden}, mlp {mlp}, {layers} layers, {heads} heads, {kv} for keys and values, rank {rank}"
            raise Wrong(f"{name} ({shape}) has {wanted:,}, you count {given!r}.")
    return "right on our tiny Llama (309,248), on Llama 3.1 8B (83,886,080), and on five shapes in between."


@student_check
def check_rate_factor(rate_factor: Callable[[int, int, int], float], seed: int = 0) -> str:
    """rate_factor(step, steps, warmup) -> warm-up in equal stairs to 1, then half a cosine down to 0 at ``steps``."""
    rng = np.random.default_rng(seed)
    for _ in range(10):
        warmup = int(rng.integers(2, 50))
        steps = warmup + int(rng.integers(10, 500))
        rate = [float(_answer(rate_factor, step, steps, warmup)) for step in range(steps)]
        where = f"steps={steps}, warmup={warmup}"
        require(rate[0] != 0, f"{where}: the first update has the factor 0, it would change nothing. Begin with "
                "1 / warmup.")  # fmt: skip
        rising = np.arange(1, warmup + 1) / warmup
        require(np.allclose(rate[:warmup], rising), f"{where}: the warm-up has equal stairs, {rising[0]:.3f}, "
                f"{rising[1]:.3f}, ... up to 1; yours begins with {rate[0]:.3f}, {rate[1]:.3f}.")  # fmt: skip
        x = np.arange(steps)[warmup:]
        late = 0.5 * (1 + np.cos(np.pi * x / steps))
        require(not np.allclose(rate[warmup:], late), f"{where}: your cosine counts from step 0, so it begins at "
                f"{rate[warmup]:.3f}; it must begin at 1 where the warm-up ends.")  # fmt: skip
        progress = (x - warmup) / (steps - warmup)
        require(not np.allclose(rate[warmup:], 1 - progress), f"{where}: this falls on a straight line; half a cosine "
                "wave is slow at both ends.")  # fmt: skip
        require(not np.allclose(rate[warmup:], np.cos(np.pi * progress)), f"{where}: this goes down to -1. Half a wave "
                "from 1 to 0 is (1 + cos) / 2.")  # fmt: skip
        require(not np.allclose(rate[warmup:], np.cos(np.pi / 2 * progress)), f"{where}: this is a quarter of a wave; "
                "it arrives at 0 in full speed. Half a wave from 1 to 0 is (1 + cos) / 2.")  # fmt: skip
        wanted = 0.5 * (1 + np.cos(np.pi * progress))
        k = int(np.argmax(np.abs(np.array(rate[warmup:]) - wanted)))
        require(np.allclose(rate[warmup:], wanted), f"{where}: step {warmup + k} has the factor {wanted[k]:.3f}, yours "
                f"is {rate[warmup + k]:.3f}.")  # fmt: skip
    return "ten schedules: stairs up to 1, then half a cosine that ends at 0."


# --------------------------------------------------------------------------------------------- 05 generalization


@student_check
def check_improvement(improvement: Callable[..., float], seed: int = 0) -> str:
    """improvement(success [maps, 30], epsilon [30]) -> growth from epsilon = 0 to epsilon = 1, 9.0 for 900 %."""
    rng = np.random.default_rng(seed)
    epsilon = np.concatenate([np.arange(10).repeat(2) / 10, np.ones(10)])
    for _ in range(5):
        success = rng.random((40, 30)) < np.linspace(0.15, rng.uniform(0.4, 1), 30)
        success[0, 0] = True
        early, late = success[:, :2].mean(), success[:, 20:].mean()
        given = float(_answer(improvement, success, epsilon))
        mistakes = [
            (late / early, "this is the ratio. 'Improves by 100 %' means twice as much: ratio - 1"),
            (late - early, "this is the difference in points; wanted is the growth relative to the beginning"),
            ((late - early) / late, "growth is relative to the *beginning*"),
            ((late / early - 1) * 100, "write 9.0 for 900 %"),
            (success[:, 20:].mean() / success[:, :10].mean() - 1, "the beginning are the episodes with epsilon = 0: "
             "two of them, not ten"),
            (success[:, -1].mean() / success[:, 0].mean() - 1, "take *all* episodes with epsilon = 0 and all with 1"),
        ]  # fmt: skip
        wanted = late / early - 1
        if abs(given - wanted) > 1e-9:
            for mistake, reason in mistakes:
                require(abs(given - mistake) > 1e-9, f"{reason}.")
            raise Wrong(f"success {early:.3f} at epsilon = 0 and {late:.3f} at 1 is a growth of {wanted:.3f}, yours is "
                        f"{given:.3f}.")  # fmt: skip
    return "growth from forced play to free play, on five made-up players."


@student_check
def check_paired_interval(paired_interval: Callable[..., tuple], seed: int = 0) -> str:
    """paired_interval(success_a, success_b [maps, episodes], resamples, rng) -> 95 % bootstrap interval of a - b."""
    rng = np.random.default_rng(seed)
    maps, episodes = 120, 10
    easy = 0.5 * rng.beta(0.3, 0.3, (maps, 1))  # for both players: some lakes are easy, some hard ...
    gift = 0.45 * (rng.random((maps, 1)) < 0.5)  # ... and half of them suit player a
    a = rng.random((maps, episodes)) < easy + gift
    b = rng.random((maps, episodes)) < easy
    answer = _answer(paired_interval, a, b, 4000, np.random.default_rng(1))
    require(isinstance(answer, tuple | list | np.ndarray) and len(answer) == 2, "return two numbers: low, high.")
    low, high = map(float, answer)
    difference = (a.astype(float) - b).mean(1)
    draws = rng.integers(maps, size=(4000, maps))
    mean, spread = difference.mean(), difference[draws].mean(1).std()
    require(low < mean < high, f"the difference is {mean:.3f}, but your interval is [{low:.3f}, {high:.3f}].")
    width, wanted = high - low, 2 * 1.96 * spread
    unpaired = 2 * 1.96 * np.hypot(a.mean(1).std(), b.mean(1).std()) / maps**0.5
    by_episode = 2 * 1.96 * (a.astype(float) - b).std() / (maps * episodes) ** 0.5
    facts = f"your interval is {width:.3f} wide, it should be about {wanted:.3f}"
    require(width < 4 * wanted, f"{facts}: yours is how much single lakes differ, not how sure the mean is. Each "
            "resample is a *mean* over as many lakes as there are.")  # fmt: skip
    if not 0.9 < width / wanted < 1.1:
        mistakes = [
            (unpaired, "you draw the lakes of a and b independently. Both played the *same* lakes: draw lakes, and "
                       "take a and b of the lakes drawn"),
            (by_episode, "you draw single episodes. Episodes of one lake are alike, so they are not independent: draw "
                         "whole lakes"),
            (2 * spread, "this is one standard error to each side, which holds about 68 %; take the 2.5 % and 97.5 % "
                         "quantiles of the resampled means"),
            (2 * 1.645 * spread, "this holds 90 %: 2.5 % must lie outside on *each* side"),
        ]  # fmt: skip
        nearest = min(mistakes, key=lambda mistake: abs(np.log(max(width, 1e-9) / mistake[0])))
        require(abs(np.log(max(width, 1e-9) / nearest[0])) > 0.1, f"{facts}: {nearest[1]}.")
        raise Wrong(f"{facts}.")
    ends = f"[{low:.3f}, {high:.3f}] instead of about [{mean - wanted / 2:.3f}, {mean + wanted / 2:.3f}]"
    is_central = abs(low - (mean - wanted / 2)) < 0.09 * wanted
    require(is_central, f"the ends are not the 2.5 % and 97.5 % quantiles: {ends}.")
    return "lakes are drawn, pairs stay together, and 95 % of the resampled means lie inside."


@student_check
def check_objections(objections: Callable[[], list[tuple[str, str]]], seed: int = 0) -> str:
    """objections() -> at least four different pairs (objection, what would answer it)."""
    answer = list(_answer(objections))
    pairs = [tuple(map(str, pair)) for pair in answer if isinstance(pair, tuple | list) and len(pair) == 2]
    require(len(pairs) == len(answer), "each entry is a pair: (objection, what would answer it).")
    require(all(len(part.split()) >= 2 for pair in pairs for part in pair), "write a few words for each part of a pair")
    different = len({pair[0].lower() for pair in pairs})
    require(different >= 4, f"{different} so far; find four different ones. Look at the beginning of the curve, at who "
            "else might play, at the number of lakes, at the training.")  # fmt: skip
    return f"{len(pairs)} objections. Nobody but you can grade them: compare with the solution below."
