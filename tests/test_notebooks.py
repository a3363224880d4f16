"""The notebooks: their cards, that the committed files come from the sources, and that every cell runs."""

import ast
import importlib
import inspect
import re
import textwrap
from pathlib import Path

import jupytext
import nbformat
import pytest
from nbclient.exceptions import CellExecutionError

from icrl_utils.profiles import PROFILES
from icrl_utils.tools.build_notebooks import (
    NOTEBOOKS,
    build,
    clean,
    colab_badge,
    execute,
    require_pictures,
    run_course,
    setup_cell,
    sources,
    write_notebook,
)

SMOKE = PROFILES["smoke"]
CARD = {  # row of the card -> what must stand in it
    "Goals": r"\w+",
    "Prerequisites": r"\w+",
    "Reading": r"\d+ minutes",
    "Exercises": r"\d+ minutes",
    "Run time": r"\d.*(s|min)\b",
    "Peak memory": r"[\d.]+ [GM]B",
    "Downloads": r"\w+",
}
each_source = pytest.mark.parametrize("source", sources(), ids=lambda path: path.stem)
executed_source = pytest.mark.parametrize(  # a notebook's folder in build/ is one: never two workers in it at once
    "source",
    [pytest.param(path, marks=pytest.mark.xdist_group(path.stem)) for path in sources()],
    ids=lambda path: path.stem,
)


def visible(notebook):
    """What a reader sees of a notebook before it runs."""
    return [(cell.cell_type, cell.source, cell.metadata.get("tags", [])) for cell in notebook.cells]


def committed(source):
    return nbformat.read(NOTEBOOKS / f"{source.stem}.ipynb", as_version=4)


def printed(cell):
    """The lines that a cell printed."""
    return "".join(output.get("text", "") for output in cell.outputs).splitlines()


def test_there_are_notebooks_00_to_07():
    assert [path.stem[:2] for path in sources()] == [f"{number:02d}" for number in range(8)]


@each_source
def test_card_is_complete(source):
    cells = build(source).cells
    first_code = next(index for index, cell in enumerate(cells) if cell.cell_type == "code")
    top = "\n".join(cell.source for cell in cells[:first_code])
    assert top.startswith("# ")
    for row, content in CARD.items():
        assert re.search(rf"^\| \*\*{row}\*\* \|[^|]*{content}[^|]*\|$", top, flags=re.MULTILINE), row


@each_source
def test_first_code_cell_is_the_set_up_cell(source):
    first_code = next(cell for cell in build(source).cells if cell.cell_type == "code")
    assert first_code.source == setup_cell()
    assert len(setup_cell().splitlines()) == 3


@each_source
def test_committed_notebook_comes_from_its_source(source):
    assert visible(committed(source)) == visible(build(source)), "renew with: python -m icrl_utils course --write"


@each_source
def test_committed_notebook_is_executed_in_order_and_clean(source):
    notebook = committed(source)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not any(output.output_type == "error" for cell in code for output in cell.outputs)
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert (NOTEBOOKS / f"{source.stem}.ipynb").stat().st_size < 1.5e6


@each_source
def test_exercises_have_stub_check_and_solution(source):
    tags = [tag for cell in jupytext.read(source).cells for tag in cell.metadata.get("tags", [])]
    exercises = [tag for tag in tags if tag in ("exercise", "check", "solution")]
    assert exercises and exercises == ["exercise", "check", "solution"] * (len(exercises) // 3)


def assert_checks_say(verdict, notebook):
    for cell in notebook.cells:
        if "check" in cell.metadata.get("tags", []):
            lines = printed(cell)
            assert lines and all(line.startswith(verdict) for line in lines), (cell.source, lines)


@executed_source
@pytest.mark.slow
def test_every_cell_runs_and_the_checks_know_a_stub(source):
    notebook = build(source)
    execute(notebook, SMOKE, source.stem, progress=False)
    require_pictures(notebook, source.stem)
    assert_checks_say("Open:", notebook)


def twice(notebook):
    """The notebook with every code cell two times in a row, as readers run a cell again."""
    cells = []
    for cell in notebook.cells:
        cells.append(cell)
        if cell.cell_type == "code":
            cells.append(nbformat.v4.new_code_cell(cell.source, metadata=cell.metadata, id=f"{cell.id}-again"))
    notebook.cells = cells
    return notebook


@executed_source
@pytest.mark.slow
def test_every_cell_runs_twice_in_a_row_and_the_checks_know_a_solution(source):
    notebook = twice(build(source, solved=True))
    execute(notebook, SMOKE, source.stem, progress=False)
    require_pictures(notebook, source.stem)
    assert_checks_say("Passed:", notebook)


later_notebook = pytest.mark.parametrize("number", ["03", "04", "05", "06", "07"])


def source_cells(number):
    return jupytext.read(sources([number])[0]).cells


def statements(body):
    return [ast.dump(node) for node in body]


def blocks(tree):
    """Every list of statements inside a function, nested ones too."""
    for node in ast.walk(tree):
        for name in ("body", "orelse", "finalbody"):
            if isinstance(getattr(node, name, None), list):
                yield statements(getattr(node, name))


@later_notebook
def test_code_that_a_notebook_shows_as_the_packages_is_the_packages(number):
    """A cell tagged ``from:module.function`` holds consecutive statements of that function, letter for letter but for
    comments and line breaks."""
    shown = 0
    for cell in source_cells(number):
        for tag in cell.metadata.get("tags", []):
            if not tag.startswith("from:"):
                continue
            module, name = tag.removeprefix("from:").rsplit(".", 1)
            function = getattr(importlib.import_module(f"icrl_utils.{module}"), name)
            tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
            wanted = statements(ast.parse(cell.source).body)
            found = any(block[i : i + len(wanted)] == wanted for block in blocks(tree) for i in range(len(block)))
            assert found, f"{number}: not in {module}.{name}:\n{cell.source}"
            shown += 1
    assert shown >= (6 if number == "04" else 0)


@later_notebook
def test_tests_that_a_notebook_names_exist(number):
    prose = "\n".join(cell.source for cell in source_cells(number) if cell.cell_type == "markdown")
    named = re.findall(r"`(test_\w+)`", prose)
    ours = "\n".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))
    assert named and all(f"def {name}(" in ours for name in named)


@later_notebook
def test_cells_are_short(number):
    for cell in source_cells(number):
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 15, cell.source


# ----------------------------------------------------------------------------------------------------------- symbols

WITH_SYMBOLS = ("00", "01", "02", "03")  # the notebooks that the table of symbols in 00 is for
LETTER = r"\\(?:alpha|beta|gamma|theta|varepsilon|sigma|ell|tau|mu|mathcal\{D\})|[A-Za-z]"


def prose(number):
    return "\n".join(cell.source for cell in source_cells(number) if cell.cell_type == "markdown")


def letters(formula):
    """The letters of a formula that stand for something: no words, no names of functions, no layout."""
    bare = re.sub(r"\\(text|mathbb|mathrm|operatorname)\{[^}]*\}", " ", formula)
    bare = re.sub(r"\\(bar|hat|bigl|bigr|left|right|begin|end)\b", " ", bare)
    found = re.findall(LETTER + r"|\\[A-Za-z]+", bare)
    return {letter for letter in found if re.fullmatch(LETTER, letter)}


def formulas(text):
    return re.findall(r"\$\$(.+?)\$\$|\$(.+?)\$", re.sub(r"`[^`]*`", "", text), flags=re.DOTALL)


def symbols_of_the_table():
    """The letters of each row of the table."""
    rows = re.findall(r"^\| (\$[^|]+\$) \|", prose("00"), flags=re.MULTILINE)
    return [letters(" ".join(re.findall(r"\$(.+?)\$", row))) for row in rows]


def test_letters_of_a_formula():
    assert letters(r"\bar\theta \leftarrow (1 - \alpha)\,\bar\theta") == {r"\theta", r"\alpha"}
    assert letters(r"\mathcal{D} = \{ i : x_{i+1} \in \{\text{left}\} \}") == {r"\mathcal{D}", "i", "x"}
    assert letters(r"u \in \mathbb{R}^m, \arg\max_a Q_{\text{online}}(d{+}1, a)") == {"u", "m", "a", "Q", "d"}


def test_no_symbol_is_defined_twice():
    rows = symbols_of_the_table()
    assert len(rows) > 20 and all(rows)
    all_letters = [letter for row in rows for letter in row]
    assert len(all_letters) == len(set(all_letters)), [x for x in all_letters if all_letters.count(x) > 1]


@pytest.mark.parametrize("number", WITH_SYMBOLS)
def test_every_symbol_of_a_formula_is_in_the_table_of_notebook_00(number):
    known = set().union(*symbols_of_the_table())
    for pair in formulas(prose(number)):
        unknown = letters("".join(pair)) - known
        assert not unknown, f"{number}: {sorted(unknown)} in ${''.join(pair)}$: give each a row in the table of 00"


TRIVIAL = """\
# %% [markdown]
# # 99 · Trivial

# %%
import os

from tqdm import tqdm

for _ in tqdm(range(3)):
    pass
print(os.environ["ICRL_PROFILE"], os.path.abspath("requirements.txt"), os.path.exists("requirements.txt"))

# %% tags=["exercise"]
def double(x):
    raise NotImplementedError

# %% tags=["check"]
try:
    print("right" if double(2) == 4 else "wrong")
except NotImplementedError:
    print("open")

# %% tags=["solution"]
def double(x):
    return 2 * x

# %%
import ipywidgets

ipywidgets.IntSlider()
"""


@pytest.fixture
def trivial(tmp_path):
    path = tmp_path / "99_trivial.py"
    path.write_text(TRIVIAL, encoding="utf-8")
    return path


def test_build_gives_the_same_bytes_every_time(trivial):
    assert nbformat.writes(build(trivial)) == nbformat.writes(build(trivial))


def test_solutions_are_folded_or_take_the_place_of_the_stub(trivial):
    student, solved = build(trivial), build(trivial, solved=True)
    (folded,) = (cell for cell in student.cells if "solution" in cell.metadata.get("tags", []))
    assert folded.cell_type == "markdown"
    assert folded.source.startswith("<details>") and "return 2 * x" in folded.source
    (stub,) = (cell for cell in solved.cells if "exercise" in cell.metadata.get("tags", []))
    assert "return 2 * x" in stub.source
    assert "NotImplementedError" in "".join(cell.source for cell in student.cells)
    assert not any("solution" in cell.metadata.get("tags", []) for cell in solved.cells)


def test_execution_runs_in_the_repository_in_the_profile_and_leaves_no_trace_of_the_machine(trivial, tmp_path):
    notebook = build(trivial)
    peak = execute(notebook, SMOKE, "99", progress=False)
    write_notebook(clean(notebook), tmp_path / "99.ipynb")
    text = (tmp_path / "99.ipynb").read_text(encoding="utf-8")
    assert 0.02 < peak < 4  # a Python process, in GB
    assert "smoke ./requirements.txt True" in text
    assert str(NOTEBOOKS.parent) not in text and "timestamp" not in text and "widget-view" not in text
    assert "100%" in text and "  0%" not in text  # of a progress bar the last state is kept
    assert not list(tmp_path.glob("*.part"))


PLOTTING = """\
# %% [markdown]
# # 98 · Plotting

# %%
{before}
from icrl_utils.lake.maps import DEFAULT_MAP
from icrl_utils.plots.lakes import plot_lake

# %%
plot_lake(
    DEFAULT_MAP,  # as the last expression, over several lines
)
"""


@pytest.fixture
def course_of_one(tmp_path, monkeypatch):
    """Runs the course on one notebook, in which ``before`` stands before a picture, for a caller that has no screen."""

    def run(before: str = ""):
        (tmp_path / "98_plotting.py").write_text(PLOTTING.format(before=before), encoding="utf-8")
        run_course(SMOKE)
        return nbformat.read(tmp_path / "notebooks" / "98_plotting.ipynb", as_version=4)

    monkeypatch.setenv("MPLBACKEND", "agg")
    monkeypatch.setattr("icrl_utils.tools.build_notebooks.SOURCES", tmp_path)
    monkeypatch.setattr("icrl_utils.tools.build_notebooks.BUILD", tmp_path)
    return run


def test_the_course_shows_its_pictures_whatever_backend_the_caller_has(course_of_one):
    last = course_of_one().cells[-1]
    assert [sorted(output["data"]) for output in last.outputs] == [["image/png", "text/plain"]]


def test_a_course_without_a_picture_where_one_belongs_has_failed(course_of_one, capsys):
    with pytest.raises(RuntimeError, match=r"98_plotting: cell 3 ends with plot_lake\(\.\.\.\), and shows no picture"):
        course_of_one(before="get_ipython().display_formatter.formatters['image/png'].type_printers.clear()")
    assert "notebooks ran" not in capsys.readouterr().out


def test_an_assert_in_a_cell_asserts_whatever_the_caller_has(monkeypatch):
    monkeypatch.setenv("PYTHONOPTIMIZE", "1")
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("assert False")])
    with pytest.raises(CellExecutionError, match="AssertionError"):
        execute(notebook, SMOKE, "97", progress=False)


def test_badge_is_hidden_until_the_repository_has_an_address(monkeypatch):
    assert colab_badge("00_start_here") == ""
    monkeypatch.setattr("icrl_utils.tools.build_notebooks.REPOSITORY_URL", "https://github.com/someone/course")
    assert "/github/someone/course/blob/v" in colab_badge("00_start_here")
    assert "https://github.com/someone/course course" in setup_cell()
