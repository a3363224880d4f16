"""The house: which folder may import which, and what never meets torch. See the picture in CONTRIBUTING.md."""

import ast
import re
import subprocess
import sys

import pytest

from icrl_utils.paths import ROOT

PACKAGE = ROOT / "icrl_utils"
GROUND = {"paths", "ranges", "profiles", "hardware", "statistics", "versions"}
MAY_IMPORT = {  # besides the ground: the doors below, in the order of the lessons
    "lake": set(),
    "history": {"lake"},
    "play": {"lake", "history"},
    "llama": {"lake", "history", "play"},
    "dqn": {"lake", "history", "play", "llama"},
    "training": {"lake", "history", "play", "llama", "dqn"},
    "evaluation": {"lake", "history", "play", "llama", "plots"},
    "plots": {"lake", "history", "play"},
    "course": {"lake", "history", "play", "plots"},
    "tools": {"lake", "history", "play", "llama", "dqn", "training", "evaluation", "plots", "course"},
}
WITHOUT_TORCH = ("lake", "history", "play", "plots", "statistics", "paths", "ranges", "profiles", "versions")
MODULES = {
    ".".join(path.relative_to(PACKAGE).with_suffix("").parts): path
    for path in sorted(PACKAGE.rglob("*.py"))
    if path.name not in ("__init__.py", "__main__.py")
}


def imports(module):
    """The modules of this package that ``module`` imports, inside of functions too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "icrl_utils":
            base = node.module.split(".")[1:]
            for name in node.names:
                full = ".".join([*base, name.name])
                found.add(full if full in MODULES else ".".join(base))
    return found - {""}


def door(module):
    return module.partition(".")[0]


@pytest.mark.parametrize("module", MODULES)
def test_nothing_imports_upward(module):
    here = door(module)
    allowed = GROUND if here in GROUND else GROUND | MAY_IMPORT[here] | {here}
    assert {door(other) for other in imports(module)} <= allowed


def test_there_are_no_circles():
    remaining = {module: imports(module) for module in MODULES}
    while ready := [module for module, needs in remaining.items() if not needs & set(remaining)]:
        for module in ready:
            del remaining[module]
    assert not remaining, f"these import each other: {', '.join(remaining)}"


def test_every_folder_is_a_door_and_says_what_it_is_and_in_what_order_to_read_it():
    folders = {path.parent.name: path for path in PACKAGE.glob("*/__init__.py")}
    assert set(folders) == set(MAY_IMPORT)
    for path in folders.values():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        (statement,) = tree.body
        assert isinstance(statement, ast.Expr)  # a docstring, and no list of names to pass through
        files = {file.stem for file in path.parent.glob("*.py")} - {"__init__"}
        assert set(re.findall(r"`(\w+)`", ast.get_docstring(tree))) == files


def test_lakes_histories_play_and_plots_load_without_torch():
    """Imported where torch, transformers and peft cannot be."""
    names = [m for m in MODULES if door(m) in WITHOUT_TORCH and m != "history.tokenizers"]
    block = "import sys; sys.modules.update(dict.fromkeys(['torch', 'transformers', 'peft', 'accelerate']));"
    code = block + "import importlib; [importlib.import_module('icrl_utils.' + name) for name in sys.argv[1:]]"
    done = subprocess.run([sys.executable, "-c", code, *names], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
