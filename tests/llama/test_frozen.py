"""The written-out Llama computes what transformers and peft compute, in each of its three ways through the layers."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM

from icrl_utils.llama.adapters import PROJECTIONS
from icrl_utils.llama.frozen import CHUNK, FrozenLlama, causal
from icrl_utils.llama.lora import Lora
from icrl_utils.llama.readout import OddsReadout

TOKENS = 24


@pytest.fixture(scope="module")
def model(llama3_folder):
    """Grouped heads, Llama 3's scaled positions, in float32."""
    return AutoModelForCausalLM.from_pretrained(llama3_folder, dtype=torch.float32).eval()


def trained_lora(llama, seed=0):
    lora = Lora(llama.shape, range(llama.shape.layers), rank=3, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    for tensor in lora.parameters():
        tensor.copy_(0.1 * torch.randn(tensor.shape, generator=draw))
    return lora


def some_tokens(llama, n=2, tokens=TOKENS, seed=0):
    return torch.randint(len(llama.embedding), (n, tokens), generator=torch.Generator().manual_seed(seed))


def forward(llama, ids, adapter):
    x = llama.history(llama.embed(ids), 0, llama.shape.layers, adapter)
    return llama.logits(x, torch.arange(len(llama.output)))


def test_logits_are_those_of_transformers(model):
    llama = FrozenLlama(model)
    ids = some_tokens(llama)
    with torch.no_grad():
        torch.testing.assert_close(forward(llama, ids, {}), model(ids).logits, atol=1e-4, rtol=1e-4)


def test_the_tiny_llama_too_whose_head_is_not_tied():
    from icrl_utils.llama.load import load_base

    model = load_base("assets/tiny-llama")
    llama = FrozenLlama(model)
    ids = some_tokens(llama)
    with torch.no_grad():
        torch.testing.assert_close(forward(llama, ids, {}), model(ids).logits, atol=1e-4, rtol=1e-4)


def test_a_saved_adapter_is_the_one_that_peft_loads(model, llama3_folder, tmp_path):
    llama = FrozenLlama(model)
    lora = trained_lora(llama)
    for tensor in lora.parameters():
        tensor.copy_(tensor.bfloat16())  # the file's precision
    lora.save(tmp_path, str(llama3_folder))
    again = Lora.load(tmp_path, llama.shape)
    base = AutoModelForCausalLM.from_pretrained(llama3_folder, dtype=torch.float32)
    peft = PeftModel.from_pretrained(base, tmp_path).eval()
    ids = some_tokens(llama)
    with torch.no_grad():
        expected = peft(ids).logits
        untouched = model(ids).logits
        for ours in (lora, again):
            found = forward(llama, ids, ours.layer_weights(torch.float32))
            torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)
    assert (expected - untouched).abs().max() > 0.1


def test_gradients_are_those_of_peft(llama3_folder):
    base = AutoModelForCausalLM.from_pretrained(llama3_folder, dtype=torch.float32)
    llama = FrozenLlama(base)
    lora = trained_lora(llama)
    config = LoraConfig(r=3, lora_alpha=6, target_modules=list(PROJECTIONS), task_type="CAUSAL_LM")
    peft = get_peft_model(base, config).eval()
    with torch.no_grad():
        for name, parameter in peft.named_parameters():
            if "lora_" in name:
                parameter.copy_(lora.tensors[name.replace(".default", "")])
    ids = some_tokens(llama)
    peft(ids).logits[:, ::3, ::7].square().mean().backward()
    lora.requires_grad_()
    forward(llama, ids, lora.layer_weights(torch.float32))[:, ::3, ::7].square().mean().backward()
    for name, parameter in peft.named_parameters():
        if "lora_" in name:
            torch.testing.assert_close(
                lora.tensors[name.replace(".default", "")].grad, parameter.grad, atol=1e-4, rtol=1e-3
            )


def test_a_branch_is_the_next_token_of_the_history_up_to_there(model):
    llama = FrozenLlama(model)
    adapter = trained_lora(llama).layer_weights(torch.float32)
    ids, branch = some_tokens(llama, n=1), torch.tensor([[5, 6, 7, 5]])
    behind = torch.tensor([[3, 3, 11, TOKENS - 1]])
    layers = llama.shape.layers
    with torch.no_grad():
        x, branches = llama.branched(llama.embed(ids), llama.embed(branch), behind, 0, layers, adapter)
        torch.testing.assert_close(x, llama.history(llama.embed(ids), 0, layers, adapter), atol=1e-4, rtol=1e-4)
        for n, (token, place) in enumerate(zip(branch[0], behind[0], strict=True)):
            text = torch.cat([ids[:, : place + 1], token.view(1, 1)], 1)
            alone = llama.history(llama.embed(text), 0, layers, adapter)[:, -1]
            torch.testing.assert_close(branches[:, n], alone, atol=1e-4, rtol=1e-4)


def test_no_gradient_flows_through_branches(model):
    llama = FrozenLlama(model)
    lora = trained_lora(llama).requires_grad_()
    ids, behind = some_tokens(llama, n=1), torch.tensor([[3]])
    adapter = lora.layer_weights(torch.float32)
    x, branches = llama.branched(llama.embed(ids), llama.embed(ids[:, :1]), behind, 0, llama.shape.layers, adapter)
    assert x.requires_grad and not branches.requires_grad


def test_lower_layers_without_an_adapter_are_computed_once_for_all(model):
    llama = FrozenLlama(model)
    lora = trained_lora(llama)
    adapter = {1: lora.layer_weights(torch.float32)[1]}
    ids, branch, behind = some_tokens(llama), some_tokens(llama, tokens=3, seed=1), torch.tensor([[0, 5, 9]] * 2)
    with torch.no_grad():
        below = llama.lower(ids, branch, behind, 1)
        halves = llama.branched(*below, behind, 1, 2, adapter)
        whole = llama.branched(llama.embed(ids), llama.embed(branch), behind, 0, 2, adapter)
    for found, expected in zip(halves, whole, strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.parametrize("tokens", [1, CHUNK - 1, CHUNK, 2 * CHUNK + 5])
def test_causal_attention_over_several_chunks(tokens):
    draw = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, heads, tokens, 8, generator=draw) for heads in (4, 2, 2))
    expected = torch.nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
    torch.testing.assert_close(causal(q, k, v), expected, atol=1e-5, rtol=1e-5)


def test_bfloat16_products_are_close_to_float32(model):
    exact, fast = FrozenLlama(model), FrozenLlama(model, torch.bfloat16)
    ids = some_tokens(exact)
    with torch.no_grad():
        a, b = forward(exact, ids, {}), forward(fast, ids, {})
    assert b.dtype == torch.float32
    assert 0 < (a - b).abs().mean() < 0.05 * a.abs().mean()


def test_the_read_out_is_the_log_odds_of_goal_against_hole(model):
    llama = FrozenLlama(model)
    ids = some_tokens(llama)
    with torch.no_grad():
        hidden = llama.history(llama.embed(ids), 0, llama.shape.layers, {})
        z = OddsReadout(scale=0.5, offset=2.0).z(llama, hidden, goal=7, hole=9)
        logits = model(ids).logits
    torch.testing.assert_close(z, 0.5 * (logits[..., 7] - logits[..., 9]) - 2, atol=1e-4, rtol=1e-4)


def test_what_does_not_fit_is_refused(model, tmp_path):
    llama = FrozenLlama(model)
    Lora(llama.shape, [0, 1], rank=2).save(tmp_path, "some/base")
    other = Lora(llama.shape._replace(width=128), [0, 1], rank=2)
    with pytest.raises(ValueError, match=r"adapter: .* belongs to another base or has another rank"):
        other.copy_(Lora.load(tmp_path, llama.shape).tensors)
    with pytest.raises(ValueError, match="scale=0 must be positive"):
        OddsReadout(scale=0)
    get_peft_model(
        AutoModelForCausalLM.from_config(model.config), LoraConfig(r=2, lora_alpha=2, target_modules=["q_proj"])
    ).save_pretrained(tmp_path / "q")
    with pytest.raises(ValueError, match="is not LoRA on all seven projections"):
        Lora.load(tmp_path / "q", llama.shape)
