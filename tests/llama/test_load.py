"""Real checkpoints, proved on small ones: 4-bit bases, their gradients, activation checkpointing, and bad input."""

import dataclasses
import importlib.metadata
import json
import logging

import httpx
import numpy as np
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit, has_avx512bf16
from huggingface_hub.errors import GatedRepoError
from peft import PeftModel
from transformers import AutoModelForCausalLM, BertConfig, BitsAndBytesConfig, LlamaConfig

import icrl_utils.llama.load as loading
from icrl_utils.__main__ import main
from icrl_utils.dqn import dqn
from icrl_utils.dqn.replay import make_batch
from icrl_utils.hardware import compute_dtype
from icrl_utils.history.episodes import Episode
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.tokenizers import make_compact_tokenizer, make_paper_tokenizer
from icrl_utils.lake.maps import MapDistribution
from icrl_utils.llama.adapters import (
    ADAPTERS,
    ONLINE,
    PROJECTIONS,
    TARGET,
    activate,
    adapter_parameters,
    add_adapters,
    backbone,
    checkpoint_activations,
    folded_weights,
    keep_dtype,
    target_network,
)
from icrl_utils.llama.agent import Agent, load_agent
from icrl_utils.llama.load import checkpoint_id, load_history, load_llama
from icrl_utils.llama.readout import QNetwork, QReadout
from icrl_utils.paths import file_sha256
from icrl_utils.play.rollout import rollout
from icrl_utils.tools.bench import Rereader

EPISODES = [
    Episode((8, 9, 13), (2, 1), "goal"),
    Episode((8, 9, 10), (2, 2), "hole"),
    Episode((8, 8), (0,), "limit"),
    Episode((8, 9, 13), (2, 1), "goal"),
]
MAPS = MapDistribution(3, 4).sample(3, 0)
READOUT = QReadout()
BOTH_ADAPTERS = pytest.mark.parametrize("adapter", ADAPTERS)


def load(folder, adapter="lora", history="paper", quantization="nf4", device="cpu", dtype=None):
    """As `train` does: the history, then the base, then its adapters."""
    text = load_history(folder, history)
    return add_adapters(load_llama(folder, quantization, device, dtype), adapter, rank=4).train(), text


def move_adapters(model, size=0.2):
    """Both adapters away from where they started, and from each other."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name in (ONLINE, TARGET):
            for parameter in adapter_parameters(model, name).values():
                parameter += size * torch.randn(parameter.shape, generator=generator)
    return model


def td_loss(model, history):
    """The loss of one double DQN step, ready for backward: target forward first, then online."""
    batch = make_batch(history.tokenize(history.render(EPISODES))[None], history)
    net = QNetwork(model, history.action_ids, READOUT)
    with target_network(model):
        z_target, _ = net(batch.ids, batch.position)
    z, _ = net(batch.ids, batch.position)
    q, q_target = READOUT.q(z.detach()), READOUT.q(z_target)
    y = dqn.td_targets(q, q_target, batch.reward, batch.terminated, gamma=0.9)
    return dqn.td_loss(z, batch.action, y, batch.has_target, "bce")


def gradients(model, history):
    online = adapter_parameters(model, ONLINE)
    return dict(zip(online, torch.autograd.grad(td_loss(model, history), online.values()), strict=True))


def assert_same(one, other, tolerance):
    """Gradients that agree to ``tolerance`` of the largest entry of each tensor."""
    assert one.keys() == other.keys() and len(one) > 0
    for name, gradient in one.items():
        largest = gradient.abs().max()
        assert largest > 0, name
        assert (gradient - other[name]).abs().max() <= tolerance * largest, name


def projections(model):
    layers = {name: module for name, module in model.named_modules() if name.endswith(PROJECTIONS)}
    return {name: getattr(layer, "base_layer", layer) for name, layer in layers.items()}


def play(agent):
    return rollout(agent, MAPS, [0, 0.5, 1], step_limit=8)


# --------------------------------------------------------------------------------------------------------- loading


@BOTH_ADAPTERS
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_projections_are_nf4_adapters_float32_and_the_rest_in_the_compute_dtype(llama3_folder, adapter, dtype):
    model, history = load(llama3_folder, adapter=adapter, dtype=dtype)
    layers = projections(model)
    assert len(layers) == 2 * len(PROJECTIONS)
    for layer in layers.values():
        state = layer.weight.quant_state
        assert layer.weight.dtype == torch.uint8 and state.quant_type == "nf4" and state.nested
        assert layer.compute_dtype == dtype
    for name in (ONLINE, TARGET):
        assert {parameter.dtype for parameter in adapter_parameters(model, name).values()} == {torch.float32}
    assert model.get_input_embeddings().weight.dtype == model.get_output_embeddings().weight.dtype == dtype
    assert backbone(model).norm.weight.dtype == dtype
    online = {id(parameter) for parameter in adapter_parameters(model, ONLINE).values()}
    assert {id(parameter) for parameter in model.parameters() if parameter.requires_grad} == online
    assert model.training and history.name == "paper"
    hidden = backbone(model)(input_ids=torch.arange(9)[None]).last_hidden_state
    assert hidden.dtype == dtype  # IA3 on 4 bits would make it float32, or fail
    assert all(g.isfinite().all() for g in gradients(model, history).values())


def test_rope_and_weights_are_those_of_the_checkpoint(llama3_folder):
    plain = AutoModelForCausalLM.from_pretrained(llama3_folder, dtype=torch.float32)
    ids = torch.arange(400)[None]
    for dtype, quantization in ((torch.float32, None), (torch.bfloat16, "nf4")):
        model, _ = load(llama3_folder, quantization=quantization, dtype=dtype)
        frequencies = backbone(model).rotary_emb.inv_freq
        assert frequencies.dtype == torch.float32 and torch.equal(frequencies, plain.model.rotary_emb.inv_freq)
        if not quantization:
            with torch.no_grad():
                torch.testing.assert_close(model(input_ids=ids).logits, plain(input_ids=ids).logits)
    default = 500_000.0 ** -(torch.arange(0, 16, 2) / 16)
    assert not torch.allclose(frequencies, default)  # the checkpoint's scaling is in them


def test_the_default_dtype_is_what_the_hardware_has(monkeypatch):
    gpu = torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "Tesla T4")
    for capability, dtype in (((7, 5), torch.float16), ((8, 0), torch.bfloat16), ((9, 0), torch.bfloat16)):
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None, c=capability: c)
        assert compute_dtype(gpu) == dtype
        assert compute_dtype(gpu, torch.float16) == torch.float16
    assert compute_dtype(torch.device("cpu")) == torch.float32
    assert compute_dtype(torch.device("cpu"), torch.bfloat16) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    with pytest.raises(ValueError, match=r"dtype=torch.bfloat16: Tesla T4 has no bfloat16 .* leave it out"):
        compute_dtype(gpu, torch.bfloat16)


# ------------------------------------------------------------------------------------------------- QLoRA on the CPU


@BOTH_ADAPTERS
def test_a_4_bit_base_computes_what_its_dequantized_weights_do(llama3_folder, adapter):
    model, history = load(llama3_folder, adapter=adapter)
    exact, _ = load(llama3_folder, adapter=adapter, quantization=None)
    before = gradients(exact, history)
    weights = projections(exact)
    with torch.no_grad():
        for name, layer in projections(model).items():
            weights[name].weight.copy_(dequantize_4bit(layer.weight.data, layer.weight.quant_state))
    move_adapters(model), move_adapters(exact)
    torch.testing.assert_close(td_loss(model, history), td_loss(exact, history), atol=1e-4, rtol=1e-4)
    assert_same(gradients(model, history), gradients(exact, history), 1e-3)
    assert before.keys() == gradients(exact, history).keys()


@BOTH_ADAPTERS
def test_a_whole_dqn_step_on_4_bits_before_and_after_a_rollout(llama3_folder, adapter):
    model, history = load(llama3_folder, adapter=adapter)
    move_adapters(model)
    before, packed = gradients(model, history), {n: p.weight.clone() for n, p in projections(model).items()}
    play(Agent(model, history, READOUT))
    assert model.training
    assert_same(before, gradients(model, history), 1e-5)

    online, target = adapter_parameters(model, ONLINE), adapter_parameters(model, TARGET)
    was = {name: parameter.clone() for name, parameter in target.items()}
    optimizer = torch.optim.AdamW(online.values(), lr=1e-2)
    losses = []
    for _ in range(3):
        loss = td_loss(model, history)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        dqn.polyak_update(target.values(), online.values(), 0.1)
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert not any(torch.equal(was[name], parameter) for name, parameter in target.items())
    assert all(torch.equal(packed[name], layer.weight) for name, layer in projections(model).items())


@pytest.mark.skipif(not has_avx512bf16(), reason="this CPU has no AVX512-BF16: bitsandbytes repacks nothing here")
def test_the_repacking_that_we_prevent_makes_gradients_wrong(llama3_folder):
    """Without the prevention one evaluation-mode forward is enough: the test above is worth something."""
    nf4 = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    base = AutoModelForCausalLM.from_pretrained(llama3_folder, dtype=torch.float32, quantization_config=nf4)
    model = move_adapters(add_adapters(base, rank=4)).train()
    history = HistoryFormat("paper", make_paper_tokenizer())
    before = gradients(model, history)
    model.eval()
    with torch.no_grad():
        model(input_ids=torch.arange(9)[None])
    model.train()
    after = gradients(model, history)
    assert max(((before[n] - after[n]).norm() / before[n].norm()).item() for n in before) > 0.5


def test_cached_play_of_a_4_bit_model_equals_reading_the_whole_history_again(llama3_folder):
    model, history = load(llama3_folder)
    agent = Agent(move_adapters(model), history, READOUT)
    np.testing.assert_array_equal(play(agent).actions, play(Rereader(agent)).actions)


def test_folding_into_fewer_bits_is_refused(llama3_folder):
    for options in ({}, {"quantization": None, "dtype": torch.bfloat16}):
        with pytest.raises(ValueError, match="folded into a float32 base only.*fold=False"):
            folded_weights(load(llama3_folder, **options)[0])


# -------------------------------------------------------------------------------------------- activation checkpointing


@BOTH_ADAPTERS
@pytest.mark.parametrize("quantization", [None, "nf4"])
def test_checkpointing_changes_no_gradient(llama3_folder, adapter, quantization):
    """The target forward in between runs with other weights; recomputation must not use them."""
    model, history = load(llama3_folder, adapter=adapter, quantization=quantization)
    move_adapters(model)
    expected = gradients(model, history)
    calls = []
    backbone(model).layers[0].self_attn.register_forward_hook(lambda *_: calls.append(model.active_adapter))
    checkpoint_activations(model)
    assert_same(expected, gradients(model, history), 1e-6)
    assert calls == [TARGET, ONLINE, ONLINE]  # the last one is the recomputation


def test_backward_with_the_target_active_is_refused(llama3_folder):
    model, history = load(llama3_folder)
    checkpoint_activations(move_adapters(model))
    loss = td_loss(model, history)
    activate(model, TARGET)
    with pytest.raises(RuntimeError, match="backward.. was called while the adapter 'target' was active"):
        loss.backward()


def test_play_keeps_its_cache_while_activations_are_checkpointed(llama3_folder, caplog):
    """In training mode the library would drop the cache, and every step would see its own tokens only."""
    model, history = load(llama3_folder)
    expected = play(Agent(move_adapters(model), history, READOUT)).actions
    checkpoint_activations(model)
    with caplog.at_level(logging.WARNING, logger="transformers"):
        np.testing.assert_array_equal(play(Agent(model, history, READOUT)).actions, expected)
    assert "incompatible" not in caplog.text and model.training


# --------------------------------------------------------------------------------------------------- saved adapters


@BOTH_ADAPTERS
def test_an_adapter_survives_pefts_own_saving_and_loading(llama3_folder, tmp_path, adapter):
    model, history = load(llama3_folder, adapter=adapter)
    move_adapters(model).save_pretrained(tmp_path, selected_adapters=[ONLINE])
    loaded = keep_dtype(PeftModel.from_pretrained(load_llama(llama3_folder, "nf4", "cpu"), tmp_path))
    ids = torch.from_numpy(history.tokenize(history.render(EPISODES)))[None]
    with torch.no_grad():
        torch.testing.assert_close(loaded(input_ids=ids).logits, model(input_ids=ids).logits)


@pytest.fixture
def trained(llama3_folder, tmp_path):
    """A live model on 4 bits, and its adapter's folder as training writes it."""
    model, history = load(llama3_folder)
    move_adapters(model).save_pretrained(tmp_path, selected_adapters=[ONLINE])
    run = {
        "sha256": file_sha256(tmp_path / "adapter_model.safetensors"),
        "readout": dataclasses.asdict(READOUT),
        "history": "paper",
        "quantization": "nf4",
        "config": {"seed": 0},
        "base": str(llama3_folder),
        "base_sha256": checkpoint_id(llama3_folder),
    }
    (tmp_path / "run.json").write_text(json.dumps(run))
    return model, history, tmp_path


def test_load_agent_plays_on_a_4_bit_base_as_the_live_model(trained):
    model, history, folder = trained
    text = history.render([*EPISODES, Episode((8, 9), (2,))])
    live, loaded = Agent(model, history, READOUT), load_agent(folder, device="cpu")
    assert loaded.model.is_quantized and loaded.format.name == "paper"
    np.testing.assert_allclose(loaded.q_values(text), live.q_values(text), atol=1e-5)


def test_an_adapter_of_the_other_history_format_or_base_is_refused(trained, llama3_folder, tmp_path):
    _, _, folder = trained
    with pytest.raises(
        ValueError, match=r"histories in the format 'paper', which base='assets/tiny-llama' cannot read"
    ):
        load_agent(folder, base="assets/tiny-llama")
    with pytest.raises(ValueError, match="histories in the format 'compact', which base=.* cannot read .*1289"):
        load_agent("assets/adapters/dqn", base=llama3_folder)
    other = tmp_path / "other"
    load_llama(llama3_folder, device="cpu").save_pretrained(other)  # float32: other bytes
    make_paper_tokenizer().save_pretrained(other)
    with pytest.raises(ValueError, match="another base than .*other"):
        load_agent(folder, base=other)


def test_checkpoint_id_of_shards_and_of_the_hub(llama3_folder, tmp_path, monkeypatch):
    model = load_llama(llama3_folder, device="cpu")
    model.save_pretrained(tmp_path, max_shard_size="200KB")
    shards = sorted(tmp_path.glob("*.safetensors"))
    assert len(shards) > 1
    first = checkpoint_id(tmp_path)
    shards[-1].write_bytes(shards[-1].read_bytes()[:-1] + b"\1")
    assert len(first) == 64 and checkpoint_id(tmp_path) != first
    assert checkpoint_id(llama3_folder) == file_sha256(llama3_folder / "model.safetensors")
    monkeypatch.setattr(loading, "check_checkpoint", lambda name: {"_commit_hash": "abc"})
    assert checkpoint_id("someone/llama") == "commit abc"


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def no_weights(monkeypatch):
    """Loading weights fails the test: what is refused must be refused before."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))


def checkpoint(folder, config, tokenizer=None, **changes):
    config.save_pretrained(folder)
    (folder / "config.json").write_text(json.dumps(json.loads((folder / "config.json").read_text()) | changes))
    (tokenizer or make_paper_tokenizer()).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("config", "changes", "message"),
    [
        (BertConfig(), {"architectures": ["BertForMaskedLM"]}, "is a 'bert' model.*model_type 'llama'.*SmolLM2"),
        (LlamaConfig(), {"architectures": ["LlamaForSequenceClassification"]}, "Classification.*no next-token logits"),
        (LlamaConfig(), {}, "is a None, which has no next-token logits"),
        (
            LlamaConfig(),
            {"architectures": ["LlamaForCausalLM"], "quantization_config": {"quant_method": "gptq"}},
            "quantized already; name the original",
        ),
        (LlamaConfig(vocab_size=99), {"architectures": ["LlamaForCausalLM"]}, "1289 tokens, but .* has 99 embedding"),
    ],
)
def test_checkpoints_that_cannot_be_read_as_q_values(no_weights, tmp_path, config, changes, message):
    with pytest.raises(ValueError, match=message):
        load(checkpoint(tmp_path, config, **changes))


def test_a_tokenizer_that_splits_action_words_is_refused_with_the_fix(no_weights, tmp_path):
    splitting = make_paper_tokenizer().train_new_from_iterator(["e"], 300)
    folder = checkpoint(tmp_path, LlamaConfig(), splitting, architectures=["LlamaForCausalLM"])
    with pytest.raises(ValueError, match=r"splits the action words .*add_tokens.*resize_token_embeddings"):
        load(folder)


def test_gated_weights_without_access(no_weights, monkeypatch):
    def refuse(repo, filename, **options):
        response = httpx.Response(403, request=httpx.Request("HEAD", f"https://huggingface.co/{repo}/{filename}"))
        raise GatedRepoError(f"Cannot access gated repo for {repo}", response=response)

    monkeypatch.setattr("transformers.utils.hub.hf_hub_download", refuse)
    with pytest.raises(PermissionError, match=r"meta-llama/Llama-3.1-8B-Instruct' is gated: accept .*hf auth.*SmolLM2"):
        load("meta-llama/Llama-3.1-8B-Instruct")


def test_a_name_that_is_nowhere(no_weights, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(FileNotFoundError, match="no/such/place' is neither a folder with a config.json nor"):
        load("no/such/place")
    with pytest.raises(FileNotFoundError, match="neither a folder with a config.json"):
        load(tmp_path)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"device": "gpu"}, ValueError, "device='gpu' is not here: torch sees the CPU and . CUDA GPUs; leave"),
        ({"device": "cuda:9"}, ValueError, "device='cuda:9' is not here"),
        ({"quantization": "int8"}, ValueError, "quantization='int8' is unknown; choose 'nf4' or None"),
        ({"history": "compact"}, ValueError, "history='compact' has 72 tokens.*1289 embedding rows.*'paper'"),
        ({"dtype": torch.float16}, ValueError, "dtype=torch.float16 needs a CUDA GPU"),
        ({"dtype": torch.int8}, ValueError, "dtype=torch.int8 cannot be computed in; choose one of"),
    ],
)
def test_bad_arguments(no_weights, llama3_folder, options, error, message):
    with pytest.raises(error, match=message):
        load(llama3_folder, **options)


@pytest.fixture
def no_bitsandbytes(monkeypatch):
    def missing(*_, **__):
        raise importlib.metadata.PackageNotFoundError("bitsandbytes")

    monkeypatch.setattr(loading.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr(loading, "BitsAndBytesConfig", missing)  # it asks for the version that is installed


def test_without_bitsandbytes(no_weights, no_bitsandbytes, llama3_folder):
    with pytest.raises(
        ImportError, match="quantization='nf4' needs bitsandbytes.*requirements.lock bitsandbytes.*quantization=None"
    ):
        load(llama3_folder)


def test_without_bitsandbytes_all_but_4_bits_works(no_bitsandbytes, llama3_folder):
    assert not hasattr(load_llama(llama3_folder, None, "cpu"), "quantization_method")


def test_without_bitsandbytes_the_command_line_says_so_in_one_line(
    no_weights, no_bitsandbytes, llama3_folder, tmp_path, capsys
):
    options = "--history=paper --quantization=nf4 --relabel=0 --world-model=0 --steps-per-chunk=1 --map-pool=2"
    command = ["train", "--profile=cpu", f"--base={llama3_folder}", f"--out={tmp_path / 'run'}", *options.split()]
    assert main([*command, "--device=cpu", "--slices=1", "--slice-tokens=64"]) == 1
    assert capsys.readouterr().err.startswith("error: quantization='nf4' needs bitsandbytes: run `python -m pip")
    assert not (tmp_path / "run").exists()


def test_the_tiny_llama_loads_through_the_same_calls():
    model, history = load("assets/tiny-llama", quantization=None, history="compact")
    assert history.name == "compact" and model.dtype == torch.float32
    assert history.vocab_size == len(make_compact_tokenizer())
