"""In-context reinforcement learning with a small Llama: the tools of the course.

One folder a lesson, in this order: lake, history, play, llama, dqn, training, evaluation; plots, course and tools stand
beside them. The names below load on first use, so that ``python -m icrl_utils --help`` does not wait for torch.
"""

import importlib
import logging
import os
import warnings
from typing import Any

__version__ = "0.1.0"

# Threads that have nothing to do sleep instead of spinning. Beside two other busy processes on two cores spinning makes
# play 26 times and training 3.6 times slower (a browser and a second kernel suffice); on an idle machine it makes
# training about a fifth faster: OMP_WAIT_POLICY=active. It must be set before torch loads.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
# On import bitsandbytes advises to install `kernels`, which would load code from a hub: not wanted, and not needed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# peft asks transformers for an attribute by its old name: nothing that a reader could mend.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

_HOME = {
    "FrozenLakeVectorEnv": "lake.env",
    "LakeMap": "lake.maps",
    "MapDistribution": "lake.maps",
    "development_maps": "lake.held_out",
    "held_out_maps": "lake.held_out",
    "HistoryFormat": "history.format",
    "load_agent": "llama.agent",
    "rollout": "play.rollout",
    "get_profile": "profiles",
}
__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value
