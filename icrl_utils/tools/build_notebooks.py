"""notebooks/source/NN_name.py (jupytext ``py:percent``) -> notebooks/NN_name.ipynb, executed.

A source holds what its author writes. Added here: the set-up cell before the first code cell (the same in every
notebook), the Colab badge, and the folding of solutions: a code cell tagged ``solution`` becomes a closed
``<details>`` block. With ``solved=True`` it takes the place of the stub (tag ``exercise``) before it, which is how
the tests prove that the shipped solutions pass the checks.
"""

import ast
import os
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jupytext
import nbformat
import psutil
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode
from nbformat.v4 import new_code_cell, new_markdown_cell
from tqdm.auto import tqdm

from icrl_utils.paths import BUILD, ROOT, atomically, check_writable, portable_path
from icrl_utils.profiles import PROFILES, Profile

REPOSITORY_URL = ""  # where the course is published; set-up cell and Colab badge follow. Empty: the badge is hidden
RELEASE = "v0.1.0"  # the tag that Colab checks out
NOTEBOOKS = ROOT / "notebooks"
SOURCES = NOTEBOOKS / "source"
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def setup_cell() -> str:
    """The three lines with which every notebook begins: on Colab they fetch the course, elsewhere they only check.

    The code that runs is that of the repository around the notebook, installed or not.
    """
    clone = f"git clone -q --depth 1 -b {RELEASE} {REPOSITORY_URL} course"
    fetch = f'os.system("{clone}"); os.chdir("course"); sys.path.insert(0, os.getcwd())'
    if not REPOSITORY_URL:
        fetch = 'raise FileNotFoundError("not published yet: upload the folder of the course, os.chdir() into it")'
    return (
        "import os, sys  # set-up: on Colab fetches the course and what Colab lacks; elsewhere checks versions\n"
        f'if "google.colab" in sys.modules and not os.path.exists("icrl_utils"): {fetch}\n'
        'sys.path[:0] = [d for d in map(os.path.abspath, (".", "..", "../..")) if os.path.isdir(d + "/icrl_utils")]; '
        "from icrl_utils.versions import set_up; set_up()"
    )


def colab_badge(name: str) -> str:
    """One line of markdown, or nothing while the repository has no address."""
    if not REPOSITORY_URL:
        return ""
    repository = REPOSITORY_URL.removeprefix("https://github.com/").removesuffix(".git")
    link = f"https://colab.research.google.com/github/{repository}/blob/{RELEASE}/notebooks/{name}.ipynb"
    return f"[![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]({link})\n\n"


def sources(only: list[str] | tuple[str, ...] = ()) -> list[Path]:
    """The sources in order; ``only`` names some of them by their beginning ("04").

    Raises:
        ValueError: a name in ``only`` fits no source.
    """
    paths = sorted(SOURCES.glob("[0-9][0-9]_*.py"))
    for wanted in only:
        if not any(path.stem.startswith(wanted) for path in paths):
            raise ValueError(f"notebook={wanted!r}: unknown; choose from {', '.join(path.stem for path in paths)}.")
    return [path for path in paths if not only or path.stem.startswith(tuple(only))]


def build(source: Path, solved: bool = False) -> NotebookNode:
    """The notebook of one source, not executed; equal bytes for equal sources."""
    cells = list(_with_solutions(jupytext.read(source).cells, solved))
    first_code = next(index for index, cell in enumerate(cells) if cell.cell_type == "code")
    cells.insert(first_code, new_code_cell(setup_cell(), metadata={"tags": ["setup"]}))
    cells[0].source = colab_badge(source.stem) + cells[0].source
    for index, cell in enumerate(cells):
        cell.id = f"cell-{index:03d}"  # jupytext draws them at random
        tags = cell.metadata.get("tags")
        cell.metadata = {"tags": tags} if tags else {}
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return nbformat.from_dict({"nbformat": 4, "nbformat_minor": 5, "metadata": metadata, "cells": cells})


def _with_solutions(cells: list[NotebookNode], solved: bool) -> Iterator[NotebookNode]:
    tags = [cell.metadata.get("tags", []) for cell in cells]
    for index, cell in enumerate(cells):
        if "solution" in tags[index] and not solved:
            yield new_markdown_cell(
                f"<details><summary>Solution</summary>\n\n```python\n{cell.source}\n```\n\n</details>",
                metadata={"tags": ["solution"]},
            )
        elif "exercise" in tags[index] and solved:
            following = next(later for later in range(index, len(cells)) if "solution" in tags[later])
            yield new_code_cell(cells[following].source, metadata={"tags": ["exercise"]})
        elif "solution" not in tags[index]:
            yield cell


def execute(notebook: NotebookNode, profile: Profile, title: str, progress: bool = True) -> float:
    """Run all cells in a fresh kernel, in place. Returns the peak memory of the kernel in GB.

    Raises:
        CellExecutionError: from the first cell that fails; the notebook then holds the outputs so far.
    """
    peak = 0.0

    with tqdm(total=len(notebook.cells), desc=title, unit="cell", disable=not progress) as bar:

        def after_cell(cell, cell_index):
            nonlocal peak
            kernel: Any = client.km  # a kernel that has run a cell is there, and of this machine
            peak = max(peak, _peak_memory_gb(kernel.provisioner.pid))
            bar.update(cell_index + 1 - bar.n)

        client = NotebookClient(
            notebook, kernel_name="python3", timeout=None, record_timing=False, store_widget_state=False,
            coalesce_streams=True,  # one text per stream, of a progress bar its last state
            resources={"metadata": {"path": str(NOTEBOOKS)}}, on_cell_complete=after_cell,
            extra_arguments=["--IPKernelApp.log_level=ERROR"],
        )  # fmt: skip
        client.execute(env=kernel_environment(profile))
        bar.update(bar.total - bar.n)
    return peak


def kernel_environment(profile: Profile) -> dict[str, str]:
    """The environment of a kernel, whatever the caller has in its own: figures are shown in the notebook, and the
    ``assert`` of a cell asserts."""
    inline = "module://matplotlib_inline.backend_inline"
    return {**os.environ, "ICRL_PROFILE": profile.name, "MPLBACKEND": inline, "PYTHONOPTIMIZE": ""}


def require_pictures(notebook: NotebookNode, title: str) -> None:
    """A cell that ends with a ``plot_*`` call shows a figure: raises RuntimeError naming the first one that did not."""
    for index, cell in enumerate(notebook.cells):
        plot = _plot_at_the_end(cell)
        if plot and not any("image/png" in output.get("data", {}) for output in cell.outputs):
            raise RuntimeError(
                f"{title}: cell {index} ends with {plot}(...), and shows no picture. It needs the picture "
                "formats that `%matplotlib inline` switches on: does a cell before it switch them off?"
            )


def _plot_at_the_end(cell: NotebookNode) -> str | None:
    """``plot_lake`` where the last line of a code cell is ``plot_lake(...)`` or ``lakes.plot_lake(...)``."""
    if cell.cell_type != "code":
        return None
    match ast.parse(cell.source).body[-1:]:
        case [ast.Expr(ast.Call(ast.Name(name) | ast.Attribute(attr=name)))] if name.startswith("plot_"):
            return name
    return None


def _peak_memory_gb(pid: int) -> float:
    status = Path(f"/proc/{pid}/status")
    if status.exists():  # Linux keeps the high-water mark, in kB
        return next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM:")) * 1024 / 1e9
    memory = psutil.Process(pid).memory_info()
    return getattr(memory, "peak_wset", memory.rss) / 1e9


def clean(notebook: NotebookNode) -> NotebookNode:
    """Take out, in place, what does not belong into a committed file: machine paths, timings, widgets without state."""
    notebook.metadata.pop("widgets", None)
    notebook.metadata["language_info"] = {"name": "python"}  # not the version that happened to run it
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type != "code":
            continue
        cell.outputs = [output for output in cell.outputs if WIDGET_VIEW not in output.get("data", {})]
        for output in cell.outputs:
            if "text" in output:
                output["text"] = _clean_text(output["text"])
            for kind, content in output.get("data", {}).items():
                if kind.startswith("text/"):
                    output["data"][kind] = _clean_text(content)
        cell.outputs = [output for output in cell.outputs if output.get("text") != ""]
    return notebook


def _clean_text(text: str) -> str:
    text = text.replace("\x1b[A", "")  # nested progress bars move the cursor up
    text = re.sub(r"\S*ipykernel_\d+\S*\.py", "<cell>", text)
    for path, name in ((ROOT, "."), (Path.home(), "~")):
        text = text.replace(str(path), name)
    return text


def write_notebook(notebook: NotebookNode, path: Path) -> None:
    with atomically(path) as part:
        part.write_text(nbformat.writes(notebook) + "\n", encoding="utf-8", newline="\n")


def run_course(profile: Profile, only: list[str] | tuple[str, ...] = (), write: bool = False) -> None:
    """Execute the notebooks into build/notebooks/; with ``write`` renew the committed ones as well.

    Raises:
        ValueError: unknown notebook, or ``write`` in a profile other than cpu.
        RuntimeError: a cell failed, or made no picture where one belongs.
    """
    if write and profile is not PROFILES["cpu"]:
        raise ValueError(f"--write with profile {profile.name!r}: committed notebooks show the cpu profile.")
    target, report, start = BUILD / "notebooks", [], time.perf_counter()
    for folder in [target, NOTEBOOKS] if write else [target]:
        check_writable(folder, "notebooks")
    for source in sources(only):
        notebook, began = build(source), time.perf_counter()
        path = target / f"{source.stem}.ipynb"
        try:
            peak = execute(notebook, profile, source.stem)
        except CellExecutionError as error:
            write_notebook(clean(notebook), path)
            raise RuntimeError(
                f"{source.stem} failed with {error.ename}: {error.evalue}\n"
                f"The failing cell and its traceback are at the end of the outputs in {portable_path(path)}."
            ) from error
        write_notebook(clean(notebook), path)
        require_pictures(notebook, source.stem)
        report.append((source.stem, time.perf_counter() - began, peak))
    if write:  # only now: all of them ran
        for name, _, _ in report:
            with atomically(NOTEBOOKS / f"{name}.ipynb") as part:
                shutil.copyfile(target / f"{name}.ipynb", part)
    for name, seconds, peak in report:
        print(f"{name:32s} {seconds / 60:6.1f} min {peak:6.2f} GB")
    where = "build/notebooks/ and notebooks/" if write else "build/notebooks/"
    minutes = (time.perf_counter() - start) / 60
    print(f"{len(report)} notebooks ran in {minutes:.1f} minutes ({profile.name}). Look in {where}; to open: make lab")
