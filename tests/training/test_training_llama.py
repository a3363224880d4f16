"""DQN on real checkpoints, end to end on a small one: 4 bits, micro-batches, checkpointing, resuming, and recipes."""

import csv
import json
import math
import types

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from tokenizers import pre_tokenizers
from transformers import AutoModelForCausalLM

from icrl_utils.__main__ import build_parser, main, make_config
from icrl_utils.dqn.dqn import moves_that_led_nowhere
from icrl_utils.dqn.replay import Batch, SliceSource, make_batch
from icrl_utils.hardware import make_accelerator
from icrl_utils.history.episodes import GOAL, HOLE, LIMIT, RESET, RUNNING, Episode
from icrl_utils.history.format import HistoryFormat
from icrl_utils.history.tokenizers import make_paper_tokenizer
from icrl_utils.lake.held_out import development_maps
from icrl_utils.lake.maps import TRAINING_MAPS
from icrl_utils.llama import load
from icrl_utils.llama.adapters import ONLINE, TARGET, adapter_parameters, add_adapters, backbone
from icrl_utils.llama.agent import Agent, load_agent
from icrl_utils.llama.attention import SEPARATE_HEADS, attention_for, attention_of
from icrl_utils.llama.load import load_history, load_llama, save_small_llama
from icrl_utils.llama.memory import GIB, SHAPES
from icrl_utils.llama.readout import QNetwork, QReadout
from icrl_utils.play.collect import Behaviour
from icrl_utils.play.rollout import rollout
from icrl_utils.profiles import PROFILES
from icrl_utils.training import configs, runs, training
from icrl_utils.training.configs import PAPER_RECIPE, TrainConfig, recipe_table, train_options
from icrl_utils.training.data import Chunks, batches, training_source
from icrl_utils.training.folder import read_progress
from icrl_utils.training.optimizers import learning_rate_factor
from icrl_utils.training.runs import Run
from icrl_utils.training.training import centred, micro_batches, train

SMALL = dict(
    history="paper", steps=3, slices=4, slice_tokens=96, steps_per_chunk=2, warmup=1, rank=2, relabel=0.0,
    world_model=0.0, centred=True, log_every=1, eval_every=100, eval_maps=1, eval_step_limit=1, save_every=100,
    device="cpu",
)  # fmt: skip
BIG = {"quantization": "nf4", "checkpointing": True, "micro_tokens": 192}  # all that makes a large model fit
MAPS = development_maps("in_distribution", 2)


def small_config(base, out, **changes):
    return TrainConfig(**SMALL | {"base": str(base), "out": str(out)} | changes)


def run(base, out, **changes):
    return train(small_config(base, out, **changes), progress=False)


def adapter_weights(folder):
    return load_file(folder / "adapter_model.safetensors")


def facts(folder):
    return json.loads((folder / "run.json").read_text())


def log(folder):
    with (folder / "train_log.csv").open() as file:
        return list(csv.DictReader(file))


def play(agent):
    return rollout(agent, MAPS, [0, 0.5, 1], step_limit=6)


@pytest.fixture(scope="module")
def in_4_bits(llama3_folder, tmp_path_factory):
    """A finished run of the kind that a real Llama needs."""
    return run(llama3_folder, tmp_path_factory.mktemp("runs") / "nf4", **BIG)


@pytest.fixture(autouse=True)
def no_stop_watch(monkeypatch):
    """The speed of this machine is of no interest, and measuring it takes half a second a run."""
    monkeypatch.setattr(runs, "matmul_peak", lambda *_: 1e12)


@pytest.fixture
def no_evaluation(monkeypatch):
    """Saves half of the time of a run in which nothing depends on it."""
    monkeypatch.setattr(training, "evaluate_in_training", lambda *_, **__: {})


@pytest.fixture
def no_weights(monkeypatch):
    """Loading weights fails the test: what is refused must be refused before."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))


# -------------------------------------------------------------------------------------------------------- histories


@pytest.mark.parametrize("crossing", [False, True])
def test_slices_of_paper_text_are_whole_and_filled_with_decisions(crossing):
    history = HistoryFormat("paper", make_paper_tokenizer())
    source = SliceSource(TRAINING_MAPS, Behaviour(), crossing=crossing, history=history)
    ids = source.slices(6, 300, np.random.default_rng(0))
    assert ids.shape == (6, 300) and (ids >= 0).all() and (ids < history.vocab_size).all()
    found = history.decisions(ids)
    assert (found.valid.sum(1) > 300 / 20).all()
    if not crossing:  # from the beginning of a set
        assert (ids[:, 0] == history.tokenize("<|begin_of_text|>")[0]).all()


def tokenizer(special: bool, by_digits: bool):
    """Llama 3's, or one of a model without its special tokens; numbers whole, as Llama 3's, or digit by digit."""
    made = make_paper_tokenizer(**{} if special else {"special_tokens": ("<|endoftext|>",)})
    if by_digits:
        backend = made.backend_tokenizer
        backend.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(True), backend.pre_tokenizer])
        assert len(made.encode("63")) == 2
    return made


@pytest.mark.parametrize("by_digits", [False, True], ids=["whole numbers", "digit by digit"])
@pytest.mark.parametrize("special", [True, False], ids=["special tokens", "plain text"])
def test_tiles_at_the_decisions(special, by_digits):
    history = HistoryFormat("paper", tokenizer(special, by_digits))
    action = np.array([RESET, 2, 1, RESET, 0, 0, 0, RESET, 3, 3])
    tile = np.array([8, 15, 5, 63, 63, 6, 3, 0, 10, 1])
    outcome = np.array([RUNNING, RUNNING, HOLE, RUNNING, RUNNING, RUNNING, LIMIT, RUNNING, RUNNING, GOAL])
    steps = history.encode_steps(action, tile, outcome)
    ids = steps[steps >= 0][None]
    found = history.decisions(ids)
    seen = history.tiles(ids, found.position)[found.valid]
    assert seen.tolist() == [8, 15, 63, 63, 6, 0, 10]
    # A row that begins between the tile and the action's word does not tell the tile.
    cut = ids[:, int(found.position[0, 0]) :]
    assert history.tiles(cut, history.decisions(cut).position)[0, :2].tolist() == [-1, 15]
    batch = make_batch(ids, history)
    assert moves_that_led_nowhere(batch)[0, : len(seen)].tolist() == [-1, -1, 0, -1, -1, -1, -1]


# --------------------------------------------------------------------------------------------------------- training


@pytest.mark.parametrize(
    "changes",
    [BIG, BIG | {"adapter": "ia3"}, {}],
    ids=["nf4 lora checkpointing", "nf4 ia3 checkpointing", "lora"],
)
def test_training_moves_both_adapters_and_nothing_else(llama3_folder, tmp_path, monkeypatch, no_evaluation, changes):
    seen = {}

    def keep(base, *arguments):
        seen["before"] = {name: p.detach().clone() for name, p in base.named_parameters()}
        seen["model"] = add_adapters(base, *arguments)
        seen["start"] = {name: p.detach().clone() for name, p in adapter_parameters(seen["model"], ONLINE).items()}
        return seen["model"]

    monkeypatch.setattr(training, "add_adapters", keep)
    folder = run(llama3_folder, tmp_path / "run", **changes)
    model = seen["model"]
    after = {name.replace(".base_layer", ""): p for name, p in model.get_base_model().named_parameters()}
    assert all(torch.equal(after[name], p) for name, p in seen["before"].items())
    online, target = (adapter_parameters(model, name) for name in (ONLINE, TARGET))
    moved = [name for name, p in online.items() if not torch.equal(p, seen["start"][name])]
    assert len(moved) == len(online)
    assert all(not torch.equal(online[name], target[name]) for name in moved)  # it lags behind

    record = facts(folder)
    assert record["history"] == "paper" and record["precision"] == "no"
    assert record["quantization"] == changes.get("quantization")
    assert record["base_sha256"] == load.checkpoint_id(llama3_folder)
    assert all(math.isfinite(float(row[name])) for row in log(folder) for name in ("loss", "td_error", "grad_norm"))

    live = Agent(model, load_history(llama3_folder, "paper"), QReadout(**record["readout"]),
                 temperature=record["config"]["temperature"])  # fmt: skip
    loaded = load_agent(folder, device="cpu")
    assert loaded.format.name == "paper" and getattr(loaded.model, "is_quantized", False) == ("quantization" in changes)
    text = live.format.render([Episode((8, 9, 13), (2, 1), "goal"), Episode((8, 9), (2,))])
    np.testing.assert_allclose(loaded.q_values(text), live.q_values(text), atol=1e-4)
    np.testing.assert_array_equal(play(loaded).actions, play(live).actions)


def test_micro_batches_and_checkpointing_make_the_update_of_the_whole_batch(llama3_folder, tmp_path, no_evaluation):
    base = {"quantization": "nf4", "optimizer": "adamw", "lr": 1e-3, "steps": 2}
    whole = run(llama3_folder, tmp_path / "whole", **base)
    for name, changes in {"one": {"micro_tokens": 96}, "three": {"micro_tokens": 300, "checkpointing": True}}.items():
        parts = run(llama3_folder, tmp_path / name, **base, **changes)
        for row, expected in zip(log(parts), log(whole), strict=True):
            for column in ("loss", "total_loss", "td_error", "grad_norm"):  # the norm shows a wrong scale
                assert float(row[column]) == pytest.approx(float(expected[column]), rel=1e-4)
        torch.testing.assert_close(adapter_weights(parts), adapter_weights(whole), atol=2e-5, rtol=1e-3)
    half = run(llama3_folder, tmp_path / "half", **base, slices=2)  # the first half of the slices alone
    assert abs(float(log(half)[0]["grad_norm"]) / float(log(whole)[0]["grad_norm"]) - 1) > 1e-2


def test_bf16_computes_as_float32_does_and_keeps_the_adapter_in_float32(
    llama3_folder, in_4_bits, tmp_path, no_evaluation
):
    folder = run(llama3_folder, tmp_path / "run", **BIG, precision="bf16")
    assert facts(folder)["precision"] == "bf16"
    assert {tensor.dtype for tensor in adapter_weights(folder).values()} == {torch.float32}
    for row, expected in zip(log(folder), log(in_4_bits), strict=True):
        assert float(row["loss"]) == pytest.approx(float(expected["loss"]), rel=0.05)


def test_a_checkpoint_without_the_special_tokens_of_llama_3(tmp_path, no_evaluation):
    """As the default of the profile t4: plain text, numbers digit by digit."""
    folder = save_small_llama(tmp_path / "base")
    for file in folder.glob("*token*"):
        file.unlink()
    tokenizer(special=False, by_digits=True).save_pretrained(folder)
    agent = load_agent(run(folder, tmp_path / "run", **BIG), device="cpu")
    text = agent.format.render([Episode((8, 15), (2,))])
    assert text.startswith("begin\nobservation: 8\naction: right\n")
    assert agent.q_values(text).shape == (4,) and play(agent).actions.size > 0


def test_micro_batches_cut_by_tokens():
    config = small_config("base", "out", slices=5, micro_tokens=200)  # two slices of 96
    batch = Batch(*(torch.arange(5)[:, None] for _ in Batch._fields))
    accelerator = make_accelerator(device="cpu")
    parts = list(micro_batches(batch, torch.nn.Identity(), config, accelerator))
    assert [(part.ids.flatten().tolist(), share) for part, share in parts] == [([0, 1], 0.4), ([2, 3], 0.4), ([4], 0.2)]
    assert all(torch.equal(part.tile, part.ids) for part, _ in parts)


def test_a_resumed_run_ends_with_the_same_weights(llama3_folder, in_4_bits, tmp_path, monkeypatch, no_evaluation):
    out = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(Run, "out_of_time", lambda self: self.step == 2)
        run(llama3_folder, out, **BIG)
    assert read_progress(out / "checkpoint.safetensors")["step"] == 2
    train(small_config(llama3_folder, out, **BIG | {"micro_tokens": 192}), resume=True, progress=False)
    assert facts(out)["steps_done"] == 3 and facts(out)["readout"] == facts(in_4_bits)["readout"]
    one, two = adapter_weights(in_4_bits), adapter_weights(out)
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert [row["loss"] for row in log(out)] == [row["loss"] for row in log(in_4_bits)]


def test_evaluation_plays_the_very_model_in_its_own_format(llama3_folder, in_4_bits, tmp_path, monkeypatch):
    seen = []

    class Watched(Agent):
        def __init__(self, *arguments, **options):
            super().__init__(*arguments, **options)
            seen.append(self)

    monkeypatch.setattr(training, "Agent", Watched)
    folder = run(llama3_folder, tmp_path / "run", **BIG | {"eval_every": 2})
    assert len(seen) == 2 and seen[0].model is seen[1].model  # after step 2, and at the end
    assert isinstance(seen[0].model, PeftModel) and seen[0].model.get_base_model().is_quantized  # nothing was merged
    assert seen[0].format.name == "paper" and seen[0].readout == QReadout(**facts(folder)["readout"])
    weights, expected = adapter_weights(folder), adapter_weights(in_4_bits)  # which was evaluated at its end only
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def test_the_centred_readout_begins_at_the_offset():
    """Whatever the level of a base's logits, the mean of z at the decisions is -offset before the first step."""

    class Stub:
        readout = QReadout(scale=0.5, offset=1.0)

        def __call__(self, ids, position):
            return self.readout.z(torch.tensor([[[22.0, 24.0, 21.0, 21.0], [99.0, 99.0, 99.0, 99.0]]])), None

    batch = Batch(*(torch.tensor([[1, 0]]).bool() for _ in Batch._fields))  # the second decision has no target
    readout = centred(Stub(), batch)
    assert readout == QReadout(scale=0.5, offset=12.0)
    assert readout.z(torch.tensor(22.0)) == -1


def test_a_run_records_the_readout_that_it_centred(in_4_bits, llama3_folder):
    config = small_config(llama3_folder, "x", **BIG)
    data = Chunks(config, training_source(config))
    batch = next(batches(data, 0, make_accelerator(device="cpu")))
    net = QNetwork(load_llama(llama3_folder, "nf4", "cpu"), data.source.history.action_ids, config.readout)
    first = Batch(*(column[:1] for column in batch))  # its first slice
    expected = centred(net, first)
    assert facts(in_4_bits)["readout"] == vars(expected)


# ---------------------------------------------------------------------------------------------------------- recipes


def test_the_papers_recipe_setting_by_setting():
    config = TrainConfig(**train_options(PROFILES["full"], "paper"))
    assert config.base == "meta-llama/Llama-3.1-8B-Instruct" and config.history == "paper"
    assert config.quantization == "none"  # the base in bfloat16, which `auto` is on their card
    assert config.adapter == "ia3"
    assert config.optimizer == "adamw" and config.lr == 1e-2 and config.weight_decay == 0.01
    assert config.warmup == 10 and config.schedule == "constant"
    assert config.clip == 1.0
    assert config.slices == 10 and config.slice_tokens == 4096  # 10 x 4,096 tokens
    assert config.slices_at_once == 5  # in two parts of five
    assert config.steps == 956
    assert config.steps * config.step_tokens == pytest.approx(39e6, rel=0.01)
    assert config.polyak == 0.1 and config.gamma == 0.9
    assert config.loss == "mse" and not config.consistent and config.world_model == 0
    # Reward x 30: the same minimum, and the same greedy action, as comparing the logit itself with 30 times the return.
    logit = torch.tensor([30.0, 22.0, 0.0])
    assert config.readout.link == "identity"
    torch.testing.assert_close(config.readout.q(config.readout.z(logit)) * 30, logit)
    assert config.map_pool == 250 and config.order == "shuffled" and config.quality == "mid" and config.crossing
    assert config.behaviour.habit_share == config.behaviour.expert_share == 0  # a reinforcement learner on every map
    assert [learning_rate_factor(step, config) for step in (0, 9, 10, 955)] == [0.1, 1.0, 1.0, 1.0]


def test_our_recipe_carries_the_settings_of_the_tiny_llama_over():
    tiny, config = TrainConfig(), TrainConfig(**train_options(PROFILES["full"]))
    for name in ("adapter", "rank", "optimizer", "lr", "loss", "gamma", "polyak", "consistent", "order", "map_pool"):
        assert getattr(config, name) == getattr(tiny, name), name
    assert config.quantization == "nf4" and config.checkpointing and config.slices_at_once == 1
    assert config.relabel == config.world_model == 0  # need compact histories
    assert config.steps * config.step_tokens == pytest.approx(PROFILES["full"].train_tokens, rel=0.01)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("recipe", configs.RECIPES)
def test_every_profile_has_every_recipe(profile, recipe):
    config = TrainConfig(**train_options(PROFILES[profile], recipe))
    assert config.history == PROFILES[profile].history
    assert config.adapter == ("ia3" if recipe == "paper" else "lora")


def test_recipe_table_shows_both_side_by_side():
    rows = {row["setting"]: row for row in recipe_table()}
    assert (rows["adapter"]["paper"], rows["adapter"]["ours"]) == ("ia3", "lora")
    assert (rows["lr"]["paper"], rows["steps"]["paper"], rows["scale"]["paper"]) == ("0.01", "956", "0.03333")
    assert rows["slice_tokens"] == {"setting": "slice_tokens", "paper": "4,096", "ours": "4,096"}
    assert rows["behaviour_expert_share"]["paper"] == "0"
    paper = TrainConfig(**train_options(PROFILES["full"], "paper")).decisive()
    inner = {f"behaviour_{name}" for name in paper["behaviour"]}
    assert rows.keys() == {*paper} - {"behaviour"} | inner | {"temperature"}
    assert rows["temperature"] == {"setting": "temperature", "paper": "0", "ours": "0.5"}
    assert set(PAPER_RECIPE) - {"behaviour", "micro_tokens"} <= rows.keys()


def test_unknown_recipe():
    with pytest.raises(ValueError, match="recipe='theirs' is unknown; choose one of ours, paper"):
        train_options(PROFILES["cpu"], "theirs")


SMALL_OPTIONS = (
    "--history=paper --steps=1 --slices=2 --slice-tokens=64 --micro-tokens=64 --steps-per-chunk=1 "
    "--eval-maps=1 --eval-step-limit=1 --map-pool=2 --device=cpu"
)


def test_the_papers_recipe_on_the_command_line(llama3_folder, tmp_path, capsys):
    out = tmp_path / "run"
    options = ["--recipe=paper", f"--base={llama3_folder}", f"--out={out}", *SMALL_OPTIONS.split()]
    assert main(["train", "--profile=cpu", *options]) == 0, capsys.readouterr().err
    assert f"Trained adapter: {out}" in capsys.readouterr().out
    config = facts(out)["config"]
    assert (config["adapter"], config["lr"], config["loss"], config["schedule"]) == ("ia3", 1e-2, "mse", "constant")
    assert config["behaviour"] == {"habit_share": 0.0, "expert_share": 0.0, "low": 0.0, "high": 1.0}
    assert config["steps"] == 1
    # The recorded command needs no recipe: it names every setting that is not a default.
    parse = build_parser("train").parse_args
    given = make_config(TrainConfig, vars(parse(["train", *options])), train_options(PROFILES["cpu"], "paper"))
    again = make_config(TrainConfig, vars(parse(facts(out)["command"].split()[3:])), {})
    assert again.decisive() == given.decisive()


# -------------------------------------------------------------------------------------------------------- bad input


@pytest.fixture
def eight_billion(tmp_path):
    """The config and tokenizer of a Llama of 8 billion weights, without the weights."""
    SHAPES["meta-llama/Llama-3.1-8B-Instruct"].save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"architectures": ["LlamaForCausalLM"]}))
    make_paper_tokenizer().save_pretrained(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    ("changes", "available", "advice"),
    [
        ({"slice_tokens": 4096}, 40, "micro-batches of 1 slice"),
        ({"slice_tokens": 4096, "micro_tokens": 4096}, 24, "activation checkpointing"),
        ({"slice_tokens": 4096, "micro_tokens": 4096, "checkpointing": True}, 24, "4-bit weights"),
        ({"slice_tokens": 4096, **BIG, "micro_tokens": 4096}, 6, "the smaller model"),
    ],
)
def test_too_little_memory_is_said_before_weights_are_loaded(
    eight_billion, tmp_path, monkeypatch, no_weights, changes, available, advice
):
    monkeypatch.setattr(training, "free_memory", lambda device: available * GIB)
    with pytest.raises(ValueError, match="too little memory") as caught:
        run(eight_billion, tmp_path / "run", **changes)
    message = str(caught.value)
    assert f"{available:.2f} GiB are there" in message and "TRAINING STEP, PEAK" in message
    assert f"{SMALL['slices'] if 'micro_tokens' not in changes else 1} x 4,096 tokens" in message
    table, _, next_step = message.partition("Next step: ")
    assert ("checkpointing" in table) == ("checkpointing" in changes)
    assert ("nf4" in table) == ("quantization" in changes)
    assert advice in next_step
    assert not (tmp_path / "run").exists()


def test_the_plan_counts_the_maps_of_an_evaluation(eight_billion, tmp_path, monkeypatch, no_weights):
    monkeypatch.setattr(training, "free_memory", lambda device: GIB)
    with pytest.raises(ValueError, match=rf"key-value cache, {1} x 8,192 tokens"):
        run(eight_billion, tmp_path / "run", eval_maps=64)  # of which its cache holds one at a time


def test_bf16_on_a_card_without_it_is_refused_before_weights_are_loaded(llama3_folder, monkeypatch, no_weights):
    t4 = types.SimpleNamespace(device=torch.device("cuda"), mixed_precision="bf16", num_processes=1)
    monkeypatch.setattr(training, "free_memory", lambda device: 14 * GIB)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: (7, 5))
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device=None: "Tesla T4")
    with pytest.raises(ValueError, match="Tesla T4 has no bfloat16 in hardware"):
        training.load_frozen(small_config(llama3_folder, "x"), t4)


@pytest.mark.parametrize(
    ("capability", "dtype", "kernel"),
    [
        ((7, 5), torch.float16, SEPARATE_HEADS),
        ((8, 0), torch.float16, "sdpa"),
        ((8, 0), torch.float32, SEPARATE_HEADS),
    ],
    ids=["T4", "A100", "A100 in float32"],
)
def test_heads_share_keys_only_where_a_fast_kernel_lets_them(capability, dtype, kernel, monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert attention_for(torch.device("cuda"), dtype) == kernel


@pytest.mark.parametrize("masked", [False, True])
def test_separate_heads_compute_what_sdpa_computes(llama3_folder, masked):
    """In this model only: another one in the same process keeps the library's kernel."""
    ids = torch.randint(0, 200, (2, 12), generator=torch.Generator().manual_seed(0))
    mask = torch.ones(12, 12, dtype=torch.bool).tril()[None, None].expand(2, 1, -1, -1).clone() if masked else None
    if masked:
        mask[1, :, 6:, :4] = False
    shared, separate = (load_llama(llama3_folder, device="cpu", dtype=torch.float32) for _ in range(2))
    separate.set_attn_implementation(SEPARATE_HEADS)
    assert shared.config.num_key_value_heads < shared.config.num_attention_heads
    with torch.no_grad():
        one, two = (backbone(m)(input_ids=ids, attention_mask=mask, use_cache=False)[0] for m in (shared, separate))
    torch.testing.assert_close(one, two)
    assert (attention_of(shared), attention_of(separate)) == ("sdpa", SEPARATE_HEADS)


def test_formats_and_bases_that_do_not_fit(llama3_folder, in_4_bits, tmp_path, no_weights):
    with pytest.raises(ValueError, match="histories in the format 'paper', which base='assets/tiny-llama' cannot read"):
        load_agent(in_4_bits, base="assets/tiny-llama")
    with pytest.raises(ValueError, match="histories in the format 'compact', which base=.* cannot read"):
        load_agent("assets/adapters/dqn", base=llama3_folder)
    compact = {"history": "compact", "quantization": "none"}
    with pytest.raises(ValueError, match="history='compact' has 72 tokens, .* has 1289 embedding rows: use the format"):
        run(llama3_folder, tmp_path / "run", **compact)
    with pytest.raises(ValueError, match="unknown tokens|splits the action words"):
        run("assets/tiny-llama", tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"micro_tokens": 64}, "micro_tokens=64 is less than slice_tokens=96"),
        ({"relabel": 0.5}, "history='paper' with relabel=0.5 and world_model=0.0: .* set both to 0"),
        ({"world_model": 0.1}, "history='paper' with relabel=0.0 and world_model=0.1"),
        ({"history": "compact", "quantization": "nf4"}, "history='compact' with quantization='nf4'"),
        ({"quantization": "int8"}, "quantization='int8' is unknown; choose one of none, nf4"),
        ({"history": "json"}, "history='json' is unknown; choose one of compact, paper"),
        ({"schedule": "linear"}, "schedule='linear' is unknown; choose one of cosine, constant"),
    ],
)
def test_settings_that_cannot_work(changes, message):
    with pytest.raises(ValueError, match=message):
        small_config("base", "out", **changes)
