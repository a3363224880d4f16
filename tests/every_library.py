"""Everything that the course does with its libraries, once and small. Run by test_lowest_versions with other versions.

Imports every module, loads and merges the shipped adapter, plays, trains three steps in the compact text, and three
steps on a 4-bit base with checkpointing in the paper's text. Prints JSON: versions, and what was played.
"""

import importlib
import json
import pkgutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

import icrl_utils
from icrl_utils import development_maps, load_agent, rollout

SMALL = dict(steps=3, slices=4, slice_tokens=96, steps_per_chunk=2, warmup=1, rank=2, log_every=1, eval_every=3,
             eval_maps=1, eval_step_limit=5, save_every=3, device="cpu")  # fmt: skip
FOUR_BITS = dict(history="paper", quantization="nf4", checkpointing=True, relabel=0.0, world_model=0.0)


def import_all() -> None:
    for module in pkgutil.walk_packages(icrl_utils.__path__, "icrl_utils."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def main() -> None:
    import_all()
    from icrl_utils.llama.load import save_small_llama
    from icrl_utils.training.configs import TrainConfig
    from icrl_utils.training.training import train

    records = rollout(
        load_agent("assets/adapters/dqn", device="cpu"), development_maps("in_distribution", 4), "greedy", 3
    )
    with tempfile.TemporaryDirectory() as folder:
        train(TrainConfig(**SMALL, out=f"{folder}/tiny"), progress=False)
        load_agent(f"{folder}/tiny", device="cpu")
        base = save_small_llama(f"{folder}/llama")
        train(TrainConfig(**SMALL | FOUR_BITS, base=str(base), out=f"{folder}/real"), progress=False)
        trained = sorted(path.name for path in Path(folder).glob("*/adapter_model.safetensors"))
    versions = {name: version(name) for name in sys.argv[1:]}
    print(json.dumps({"versions": versions, "actions": records.actions.tolist(), "trained": len(trained)}))


if __name__ == "__main__":
    main()
