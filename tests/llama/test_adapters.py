"""The tiny Llama and its adapters: what they compute, what is trainable, and that folding changes nothing."""

import copy

import pytest
import torch
from peft import PeftModel
from peft.utils import get_peft_model_state_dict

from icrl_utils import paths
from icrl_utils.dqn.dqn import polyak_update
from icrl_utils.history.format import HistoryFormat
from icrl_utils.llama.adapters import (
    ADAPTERS,
    ONLINE,
    TARGET,
    activate,
    adapter_parameters,
    add_adapters,
    backbone,
    bare_backbone,
    folded_weights,
    target_network,
)
from icrl_utils.llama.load import base_folder, load_base, new_tiny_llama, rope

HISTORY = HistoryFormat("compact")
IDS = torch.from_numpy(HISTORY.tokenize("8 right 9 down hole reset 8 right 9 right goal reset 0"))[None]


def tiny_llama(seed=0):
    return new_tiny_llama(HISTORY.vocab_size, HISTORY.action_ids, hidden=16, layers=2, heads=2, seed=seed).eval()


def moved(model, name=ONLINE, seed=0):
    """The same model, its adapter ``name`` away from where it started."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in adapter_parameters(model, name).values():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def trainable(model):
    return {name for name, parameter in model.named_parameters() if parameter.requires_grad}


# ---------------------------------------------------------------------------------------------------- tiny Llama


def test_rope_turns_a_pair_of_features_by_a_power_of_theta():
    model = new_tiny_llama(HISTORY.vocab_size, HISTORY.action_ids, hidden=32, layers=1, heads=2, rope_theta=100.0)
    turn = model.model.rotary_emb.inv_freq  # of a head's 16 features
    torch.testing.assert_close(turn, 100.0 ** (-2 * torch.arange(8) / 16))


def test_a_base_can_be_loaded_with_other_positions(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    turned, same = load_base(tmp_path, rope_parameters=rope(100.0)), load_base(tmp_path)
    assert turned.state_dict().keys() == same.state_dict().keys()
    assert not torch.allclose(logits(turned), logits(same)) and torch.equal(logits(same), logits(tiny_llama()))
    torch.testing.assert_close(logits(load_base(tmp_path, rope_parameters=rope(10_000.0))), logits(same))


def test_action_rows_are_orthogonal_and_half_long():
    rows = tiny_llama().lm_head.weight[torch.as_tensor(HISTORY.action_ids)]
    torch.testing.assert_close(rows @ rows.T, 0.25 * torch.eye(4), atol=1e-6, rtol=0)


def test_same_seed_same_model_and_the_global_stream_is_left_alone():
    torch.manual_seed(7)
    expected = torch.rand(1)
    torch.manual_seed(7)
    first, again, other = tiny_llama(3), tiny_llama(3), tiny_llama(4)
    assert torch.equal(torch.rand(1), expected)
    assert all(torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True))
    assert not torch.equal(first.lm_head.weight, other.lm_head.weight)


def test_the_context_holds_thirty_episodes_of_hundred_step_loops():
    assert tiny_llama().config.max_position_embeddings >= 8192 > 30 * 202


def test_load_base_is_the_saved_model_in_float32_for_evaluation(tmp_path):
    model = tiny_llama()
    model.to(torch.bfloat16).save_pretrained(tmp_path / "base")
    loaded = load_base(tmp_path / "base")
    assert loaded.dtype == torch.float32 and not loaded.training
    torch.testing.assert_close(loaded.lm_head.weight, model.lm_head.weight.float())


def test_unknown_base_says_what_to_name_instead():
    with pytest.raises(FileNotFoundError, match=r"base='no/such/place' holds no config.json.*assets/tiny-llama"):
        load_base("no/such/place")


def test_a_base_in_the_repository_is_found_from_anywhere(monkeypatch, tmp_path):
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").touch()
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    assert base_folder("base") == tmp_path / "base"


# ------------------------------------------------------------------------------------------------------ adapters


@pytest.mark.parametrize("kind", ADAPTERS)
def test_fresh_adapters_leave_the_base_as_it_is(kind):
    """LoRA's B is 0, IA3's factors are 1."""
    expected = logits(tiny_llama())
    model = add_adapters(tiny_llama(), kind, rank=4)
    torch.testing.assert_close(logits(model), expected)
    with target_network(model):
        torch.testing.assert_close(logits(model), expected)
    start = 1.0 if kind == "ia3" else 0.0
    fixed = [p for name, p in adapter_parameters(model, ONLINE).items() if "lora_A" not in name]
    assert fixed and all((p == start).all() for p in fixed)


def test_lora_is_on_all_seven_projections_and_ia3_on_three():
    lora, ia3 = (adapter_parameters(add_adapters(tiny_llama(), kind, rank=4), ONLINE) for kind in ADAPTERS)
    assert len(lora) == 2 * 7 * 2 and len(ia3) == 2 * 3  # two layers; A and B
    assert {name.split(".")[-2] for name in ia3} == {"k_proj", "v_proj", "down_proj"}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_target_adapter_starts_as_a_copy_and_is_not_the_same_memory(kind):
    model = add_adapters(tiny_llama(), kind, rank=4)
    online, target = adapter_parameters(model, ONLINE), adapter_parameters(model, TARGET)
    assert online.keys() == target.keys() and len(online) > 0
    assert all(torch.equal(online[name], target[name]) for name in online)
    before = {name: p.clone() for name, p in target.items()}
    moved(model, ONLINE)
    assert all(torch.equal(before[name], target[name]) for name in target)
    assert not any(torch.equal(online[name], target[name]) for name in target)


def test_lora_adds_twice_the_product_of_its_factors():
    model = moved(add_adapters(tiny_llama(), rank=4))
    layer = backbone(model).layers[1].mlp.down_proj
    change = layer.lora_B[ONLINE].weight @ layer.lora_A[ONLINE].weight
    x = torch.randn(3, change.shape[1])
    torch.testing.assert_close(layer(x) - layer.base_layer(x), 2 * x @ change.T, atol=1e-5, rtol=1e-4)


def test_adapters_are_float32():
    model = add_adapters(tiny_llama().to(torch.bfloat16), rank=4)
    for name in (ONLINE, TARGET):
        assert {p.dtype for p in adapter_parameters(model, name).values()} == {torch.float32}


@pytest.mark.parametrize("kind", ADAPTERS)
def test_only_the_online_adapter_is_trainable_after_every_operation(kind):
    model = add_adapters(tiny_llama(), kind, rank=4)
    names = {name for name, _ in model.named_parameters() if f".{ONLINE}" in name}
    assert names and trainable(model) == names
    activate(model, TARGET)
    assert trainable(model) == names
    activate(model, ONLINE)
    assert trainable(model) == names
    with target_network(model):
        assert trainable(model) == names and not torch.is_grad_enabled()
    assert trainable(model) == names and torch.is_grad_enabled()
    with pytest.raises(RuntimeError, match="in the block"), target_network(model):
        raise RuntimeError("in the block")
    assert trainable(model) == names and torch.is_grad_enabled()
    assert model.active_adapter == ONLINE


@pytest.mark.parametrize("kind", ADAPTERS)
def test_inside_target_network_the_model_is_the_target(kind):
    model = moved(add_adapters(tiny_llama(), kind, rank=4), ONLINE)
    online, base = logits(model), logits(tiny_llama())
    with target_network(model):
        torch.testing.assert_close(logits(model), base)
    torch.testing.assert_close(logits(model), online)
    assert (online - base).abs().max() > 0.01


@pytest.mark.parametrize("kind", ADAPTERS)
def test_the_target_adapter_equals_a_deep_copied_target_network_after_fifty_updates(kind):
    """The other way to have a target network: a second copy of everything. Its LoRA is averaged as A and as B."""
    model = add_adapters(tiny_llama(), kind, rank=4, seed=1)
    copied = copy.deepcopy(model)  # its online adapter plays the target
    online, target = adapter_parameters(model, ONLINE), adapter_parameters(model, TARGET)
    reference = adapter_parameters(copied, ONLINE)
    optimizer = torch.optim.AdamW(online.values(), lr=3e-2)
    for _ in range(50):
        model(input_ids=IDS, labels=IDS).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        polyak_update(target.values(), online.values(), 0.1)
        with torch.no_grad():
            for name, parameter in reference.items():
                parameter.copy_(0.9 * parameter + 0.1 * online[name])
    with target_network(model):
        torch.testing.assert_close(logits(model), logits(copied), atol=1e-4, rtol=1e-4)
        assert (logits(model) - logits(tiny_llama())).abs().max() > 0.1  # the target did move


def test_the_base_stays_frozen_in_training():
    model = add_adapters(tiny_llama(), rank=4)
    before = {name: p.clone() for name, p in model.named_parameters() if "lora" not in name}
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    model(input_ids=IDS, labels=IDS).loss.backward()
    optimizer.step()
    assert all(torch.equal(before[name], p) for name, p in model.named_parameters() if name in before)
    assert all(p.grad is None for p in adapter_parameters(model, TARGET).values())


def test_unknown_adapter_names_the_known_ones():
    with pytest.raises(ValueError, match="adapter='dora' is unknown; choose one of lora, ia3"):
        add_adapters(tiny_llama(), "dora")


def test_a_saved_online_adapter_loads_with_peft(tmp_path):
    model = moved(moved(add_adapters(tiny_llama(), rank=4), ONLINE), TARGET, seed=5)
    model.save_pretrained(tmp_path, selected_adapters=[ONLINE])
    loaded = PeftModel.from_pretrained(tiny_llama(), tmp_path)
    torch.testing.assert_close(logits(loaded), logits(model))
    assert len(get_peft_model_state_dict(loaded)) == len(adapter_parameters(model, ONLINE))


# ------------------------------------------------------------------------------------------------------- folding


@pytest.mark.parametrize("kind", ADAPTERS)
def test_folded_weights_compute_the_same_and_pass_the_same_gradient(kind):
    model = moved(moved(add_adapters(tiny_llama(), kind, rank=4), ONLINE), TARGET, seed=1)
    bare, online = bare_backbone(model), adapter_parameters(model, ONLINE)

    def hidden(folded):
        if not folded:
            return backbone(model)(input_ids=IDS).last_hidden_state
        return torch.func.functional_call(bare, folded_weights(model), (IDS,)).last_hidden_state

    torch.testing.assert_close(hidden(True), hidden(False), atol=1e-5, rtol=1e-5)
    direction = torch.randn(hidden(True).shape, generator=torch.Generator().manual_seed(0))
    gradients = [torch.autograd.grad((hidden(folded) * direction).sum(), online.values()) for folded in (True, False)]
    assert all(g.abs().max() > 0 for g in gradients[1])
    torch.testing.assert_close(*gradients, atol=1e-4, rtol=1e-3)

    was = hidden(True)
    with target_network(model):  # the active adapter is the one that is folded
        torch.testing.assert_close(hidden(True), hidden(False), atol=1e-5, rtol=1e-5)
        assert (hidden(True) - was).abs().max() > 0.01


def test_the_bare_backbone_takes_no_memory():
    model = add_adapters(tiny_llama(), rank=4)
    assert {p.device.type for p in bare_backbone(model).parameters()} == {"meta"}
