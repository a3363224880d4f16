"""In-context reinforcement learning with a small Llama: the tools of the course.

The names below load on first use, so that ``python -m icrl_utils --help`` does not wait for torch.
"""

import importlib
import logging
import sys
import types
import warnings

__version__ = "0.1.0"

# On import bitsandbytes advises to install `kernels`, which would load code from a hub: not wanted, and not needed.
logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
# peft asks transformers for an attribute by its old name: nothing that a reader could mend.
warnings.filterwarnings("ignore", "`is_gradient_checkpointing` is deprecated", FutureWarning)

_HOME = {
    "FrozenLakeVectorEnv": "lake",
    "LakeMap": "lake",
    "MapDistribution": "lake",
    "development_maps": "lake",
    "held_out_maps": "lake",
    "HistoryFormat": "history",
    "load_agent": "rollout",
    "rollout": "rollout",
    "get_profile": "profiles",
}
__all__ = sorted(_HOME)


def __getattr__(name: str):
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(f"{__name__}.{_HOME[name]}"), name)
    globals()[name] = value
    return value


class _Package(types.ModuleType):
    """Keeps ``icrl_utils.rollout`` the function: importing the module of that name would hide it otherwise."""

    def __setattr__(self, name, value):
        if name == "rollout" and isinstance(value, types.ModuleType):
            value = value.rollout
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
