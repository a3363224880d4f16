"""Shared by all tests: reproducible property tests, and torch threads that leave room for parallel workers."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

# Workers of pytest-xdist would fight for cores; a child process (kernel, accelerate) inherits this.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# No deadline: how long an example takes depends on the machine. Derandomized: the same examples everywhere.
settings.register_profile("course", deadline=None, derandomize=True)
settings.load_profile("course")


@pytest.fixture(scope="session")
def llama3_folder(tmp_path_factory) -> Path:
    """A small random checkpoint that is saved as Llama 3 is: bfloat16, grouped heads, scaled RoPE, byte-level BPE."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    from icrl_utils.tokenizers import make_paper_tokenizer

    tokenizer = make_paper_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=8192,
        rope_parameters={
            "rope_type": "llama3",
            "rope_theta": 500_000.0,
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 256,
        },
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "proj" in name or "embed" in name:
                parameter.mul_(6)  # what comes out depends on the whole history
    folder = tmp_path_factory.mktemp("llama3")
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
