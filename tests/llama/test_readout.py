"""Reading Q at decisions: known logits, agreement with the full vocabulary, and none of its cost."""

import types

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from icrl_utils.history.format import HistoryFormat
from icrl_utils.llama.adapters import ONLINE, adapter_parameters, add_adapters, backbone, target_network
from icrl_utils.llama.load import new_tiny_llama
from icrl_utils.llama.readout import QNetwork, QReadout, action_logits, take

HISTORY = HistoryFormat("compact")
ACTION_IDS = torch.from_numpy(HISTORY.action_ids)
TEXT = "8 right 9 down hole reset 8 right 9 right goal reset 0 up"
IDS = torch.from_numpy(HISTORY.tokenize(TEXT))[None]


def tiny_llama(sharpness=1.0):
    model = new_tiny_llama(HISTORY.vocab_size, HISTORY.action_ids, hidden=32, layers=2, heads=2).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name or "embed" in name:
                parameter.mul_(sharpness)
    return model


class KnownLogits(nn.Module):
    """A stub: the hidden state at a token is one-hot of its id, so row i of the head is what token i predicts."""

    def __init__(self, logits):
        super().__init__()
        self.lm_head = nn.Linear(*logits.shape, bias=False)
        self.lm_head.weight = nn.Parameter(logits.T)
        self.model = lambda input_ids, use_cache: types.SimpleNamespace(
            last_hidden_state=nn.functional.one_hot(input_ids, len(logits)).float()
        )

    def get_output_embeddings(self):
        return self.lm_head


# ------------------------------------------------------------------------------------------------------- read-out


def test_readout_by_hand():
    logits = torch.tensor([22.0, 20.0])
    z = QReadout("identity", scale=0.5, offset=10.0).z(logits)
    assert z.tolist() == [1.0, 0.0]
    assert QReadout("identity", 0.5, 10.0).q(z).tolist() == [1.0, 0.0]
    torch.testing.assert_close(QReadout("sigmoid", 0.5, 10.0).q(z), torch.tensor([0.7310586, 0.5]))


def test_readout_never_changes_the_greedy_action():
    logits = torch.randn(200, 4, generator=torch.Generator().manual_seed(0))
    for link in ("sigmoid", "identity"):
        readout = QReadout(link, scale=0.05, offset=3.0)
        assert torch.equal(readout.q(readout.z(logits)).argmax(-1), logits.argmax(-1))


def test_readout_is_float32_whatever_the_model_computes_in():
    assert QReadout().z(torch.ones(4, dtype=torch.bfloat16)).dtype == torch.float32


@pytest.mark.parametrize("arguments", [{"link": "tanh"}, {"scale": 0.0}, {"scale": -1.0}, {"scale": float("nan")}])
def test_readout_rejects_what_would_break_greedy_play(arguments):
    with pytest.raises(ValueError, match=f"{next(iter(arguments))}="):
        QReadout(**arguments)


# ------------------------------------------------------------------------------------------------------ Q-network


def test_take():
    hidden = torch.arange(2 * 3 * 2.0).reshape(2, 3, 2)
    assert take(hidden, torch.tensor([[2, 0], [1, 1]])).tolist() == [[[4, 5], [0, 1]], [[8, 9], [8, 9]]]


def test_known_logits_come_out_in_the_order_of_the_actions():
    logits = torch.zeros(HISTORY.vocab_size, HISTORY.vocab_size)
    logits[8, 64:68] = torch.tensor([1.0, 2.0, 3.0, 4.0])  # after tile 8: left, down, right, up
    logits[9, 64:68] = torch.tensor([-1.0, 0.0, 7.0, 0.5])
    logits[:, 68:] = 99.0  # words that are no actions play no part
    net = QNetwork(KnownLogits(logits), HISTORY.action_ids, QReadout("identity", scale=2.0, offset=1.0))
    z, _ = net(IDS, torch.tensor([[0, 2]]))
    assert z.tolist() == [[[1.0, 3.0, 5.0, 7.0], [-3.0, -1.0, 13.0, 0.0]]]


@pytest.mark.parametrize("fold", [None, False, True])
def test_z_equals_the_action_columns_of_the_full_vocabulary(fold):
    model = tiny_llama(4.0)
    if fold is not None:
        model = add_adapters(model, rank=4)
        with torch.no_grad():
            for parameter in adapter_parameters(model, ONLINE).values():
                parameter.add_(0.1)
    net = QNetwork(model, HISTORY.action_ids, QReadout("identity", offset=0.0), fold=bool(fold))
    ids = torch.cat([IDS, IDS.flip(1)])
    position = torch.tensor([[0, 2, 6], [13, 1, 1]])
    observation = torch.tensor([[1, 3], [5, 7]])
    with torch.no_grad():
        z, observed = net(ids, position, observation)
        full = model(input_ids=ids).logits
    expected = torch.stack([full[row, position[row]][:, ACTION_IDS] for row in range(2)])
    torch.testing.assert_close(z, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(observed, torch.stack([full[b, observation[b]] for b in range(2)]), atol=1e-5, rtol=1e-5)


def test_the_full_vocabulary_is_never_formed(monkeypatch):
    """With a vocabulary of 50,000 no tensor of the forward pass is that wide, except lm_head itself and what is asked
    for: K observations, not T tokens."""
    vocabulary = 50_000
    model = new_tiny_llama(vocabulary, HISTORY.action_ids, hidden=16, layers=1, heads=2).eval()
    net = QNetwork(model, HISTORY.action_ids, QReadout())
    calls = []
    monkeypatch.setattr(model.lm_head, "forward", lambda hidden: calls.append(hidden.shape))
    wide = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            result = function(*args, **(kwargs or {}))
            if isinstance(result, torch.Tensor) and vocabulary in result.shape:
                wide.append(function)
            return result

    with Watch():
        net(IDS, torch.tensor([[0, 2]]))
    assert calls == [] and wide == []
    net(IDS, torch.tensor([[0, 2]]), torch.tensor([[1, 3, 5]]))
    assert calls == [(1, 3, 16)]


def test_gradient_reaches_the_model_through_the_decisions_read_and_no_later_token():
    model = tiny_llama()
    embedding = model.get_input_embeddings()
    inputs = {}
    embedding.register_forward_hook(lambda module, args, output: inputs.update(x=output.retain_grad() or output))
    net = QNetwork(model, HISTORY.action_ids, QReadout())
    z, _ = net(IDS, torch.tensor([[2]]))
    z.sum().backward()
    per_token = inputs["x"].grad[0].abs().sum(-1)
    assert (per_token[:3] > 0).all() and (per_token[3:] == 0).all()


def test_episode_two_sees_episode_one():
    """The packed-sequence trap: position ids that fall would hide the episodes of a history from each other, and
    nothing else would look wrong."""
    net = QNetwork(tiny_llama(8.0), HISTORY.action_ids, QReadout())
    start = TEXT.split().index("reset") + 1
    other = torch.from_numpy(HISTORY.tokenize(TEXT.replace("8 right 9 down hole", "8 left 3 up goal", 1)))[None]
    assert torch.equal(IDS[:, start:], other[:, start:])
    position = torch.tensor([[start, start + 2]])
    with torch.no_grad():
        difference = (net(IDS, position)[0] - net(other, position)[0]).abs().amax((0, 2))
    assert (difference > 1e-3).all()


def test_falling_positions_would_hide_the_first_episode():
    """That trap exists in this version of the library: the test above is worth something."""
    model = tiny_llama(8.0)
    start = TEXT.split().index("reset") + 1
    other = torch.from_numpy(HISTORY.tokenize(TEXT.replace("8 right 9 down hole", "8 left 3 up goal", 1)))[None]
    position_ids = torch.cat([torch.arange(start), torch.arange(IDS.shape[1] - start)])[None]
    with torch.no_grad():
        one, two = (backbone(model)(input_ids=i, position_ids=position_ids, use_cache=False)[0] for i in (IDS, other))
    torch.testing.assert_close(one[:, start:], two[:, start:])


def test_q_does_not_depend_on_the_future_or_on_other_rows():
    net = QNetwork(tiny_llama(8.0), HISTORY.action_ids, QReadout())
    changed = IDS.clone()
    changed[0, 3:] = 0
    with torch.no_grad():
        alone, _ = net(IDS, torch.tensor([[0, 2]]))
        beside, _ = net(torch.cat([changed, IDS.flip(1)]), torch.tensor([[0, 2], [0, 2]]))
    torch.testing.assert_close(alone[0], beside[0])


def test_a_folded_network_has_no_more_parameters_and_follows_the_active_adapter():
    model = add_adapters(tiny_llama(), rank=4)
    net = QNetwork(model, HISTORY.action_ids, QReadout(), fold=True)
    assert {id(p) for p in net.parameters()} == {id(p) for p in model.parameters()}
    with torch.no_grad():
        for parameter in adapter_parameters(model, ONLINE).values():
            parameter.add_(0.3)
    position = torch.tensor([[0, 2]])
    with target_network(model):
        z_target, _ = net(IDS, position)
    z, _ = net(IDS, position)
    assert not z_target.requires_grad and z.requires_grad
    assert (z - z_target).abs().max() > 1e-3


def test_action_logits_are_a_product_with_four_rows():
    head = nn.Linear(3, 5, bias=False)
    hidden = torch.randn(2, 3)
    assert torch.allclose(action_logits(hidden, head, torch.tensor([4, 1])), head(hidden)[:, [4, 1]])


def test_rows_of_the_tiny_llama_tell_the_actions_apart():
    """At birth already: the four Q-values of a decision differ."""
    net = QNetwork(tiny_llama(), HISTORY.action_ids, QReadout())
    with torch.no_grad():
        z, _ = net(IDS, torch.tensor([[0]]))
    assert len(np.unique(z.numpy().round(5))) == 4
