"""The pictures on top of the notebooks: ``python -m icrl_utils remake pictures`` writes them to assets/figures/.

They are drawings, not results: nothing in them is computed by a trained model.
"""

from __future__ import annotations

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

from icrl_utils.history.compact import COMPACT_WORDS
from icrl_utils.history.episodes import Episode
from icrl_utils.history.format import HistoryFormat
from icrl_utils.lake.held_out import COURSE_LAKE
from icrl_utils.lake.maps import ACTIONS, LakeMap
from icrl_utils.paths import ASSETS, ROOT
from icrl_utils.plots.lakes import TOKEN_COLORS, draw_lake, draw_path, token_kind
from icrl_utils.plots.style import ARROWS, BLUE, GREY, INK, PALE, RED, new_figure, styled

LEFT, DOWN, RIGHT, UP = range(4)
DEATH = Episode((0, 4, 8), (DOWN, DOWN), "hole")  # on COURSE_LAKE, as the others
DETOUR = Episode((0, 4, 5, 1), (DOWN, RIGHT, UP), "hole")
WIN = Episode((0, 4, 5, 6, 2), (DOWN, RIGHT, RIGHT, UP), "goal")


@styled
def picture_00() -> Figure:
    """One frozen network; what it is told; the text that grows."""
    figure, axes = new_figure(9.2, 3.0, 1, 2, gridspec_kw={"width_ratios": [1, 2.9]})
    draw_lake(axes[0, 0], COURSE_LAKE, known={0})
    axes[0, 0].set_title("All it is told:\n“you stand on tile 0”", fontsize=10)
    ax = _canvas(axes[0, 1], 10.2, 4)
    _box(ax, 0.1, 1.25, 1.9, 1.5, "a network\nweights frozen")
    _arrow(ax, (2.1, 2.3), (2.9, 2.3), "move")
    _arrow(ax, (2.9, 1.6), (2.1, 1.6), "read")
    lines = [("1", DEATH), ("2", DETOUR), ("⋮", None), ("9", WIN)]
    ax.text(3.1, 3.75, "its memory: the text of what happened, on this lake", fontsize=9, color=GREY)
    for row, (number, episode) in enumerate(lines):
        y = 3.1 - row * 0.72
        ax.text(3.25, y + 0.17, number, ha="center", va="center", fontsize=9, color=GREY)
        if episode is not None:
            _tokens(ax, 3.5, y, HistoryFormat("compact").render([episode]).split()[:-1])
    ax.text(3.1, 0.25, "Between episode 1 and episode 9 only this text has changed.", fontsize=9.5, color=BLUE)
    return figure


@styled
def picture_01() -> Figure:
    """A walk on a lake becomes words, and words become numbers."""
    figure, axes = new_figure(9.2, 2.7, 1, 2, gridspec_kw={"width_ratios": [1, 3.1]})
    draw_lake(axes[0, 0], COURSE_LAKE)
    draw_path(axes[0, 0], COURSE_LAKE, DEATH)
    ax = _canvas(axes[0, 1], 9.2, 3.4)
    ax.text(0.3, 3.0, "played", fontsize=9, color=GREY)
    ax.text(2.0, 3.0, "Episode(tiles=(0, 4, 8), actions=(1, 1), outcome='hole')", fontsize=9.5, family="monospace")
    ax.text(0.3, 2.05, "written", fontsize=9, color=GREY)
    text = HistoryFormat("compact").render([DEATH])
    ax.text(2.0, 2.05, f"“{text} …”", fontsize=9.5, family="monospace")
    ax.text(0.3, 0.95, "read", fontsize=9, color=GREY)
    _tokens(ax, 2.0, 0.85, text.split(), ids=True, decisions=(0, 2))
    for y in (2.75, 1.8):
        _arrow(ax, (2.6, y), (2.6, y - 0.35))
    return figure


@styled
def picture_02() -> Figure:
    """From the last hidden state, four rows of the output embedding make four numbers."""
    figure, axes = new_figure(9.2, 2.9)
    ax = _canvas(axes[0, 0], 12.2, 3.9)
    words = "0 down 4 down hole reset 0".split()
    _tokens(ax, 0.1, 0.35, words, decisions=(6,), width=0.62)
    ax.text(0.1, 0.05, "a history: the agent died below tile 4", fontsize=8.5, color=GREY, va="center")
    _box(ax, 0.1, 1.35, 4.5, 1.15, "Llama")
    _arrow(ax, (4.25, 0.95), (4.25, 1.3))
    _arrow(ax, (4.25, 2.55), (4.25, 2.95))
    for i in range(9):
        ax.add_patch(Rectangle((3.45 + 0.18 * i, 3.0), 0.18, 0.26, facecolor=PALE, edgecolor=GREY, linewidth=0.6))
    ax.text(3.35, 3.13, "hidden state u at the decision", fontsize=8.5, color=GREY, ha="right", va="center")
    _arrow(ax, (5.2, 3.13), (6.1, 3.13))
    actions = {4: "left", 7: "down", 8: "right", 12: "up"}
    for row in range(15):
        y = 3.35 - 0.235 * row
        face = TOKEN_COLORS["action"] if row in actions else "white"
        ax.add_patch(Rectangle((6.2, y), 2.0, 0.2, facecolor=face, edgecolor=GREY, linewidth=0.5))
        if row in actions:
            ax.text(6.28, y + 0.1, f"row of “{actions[row]}”", fontsize=7.5, va="center")
    ax.text(7.2, 3.75, "output embedding: one row a token", fontsize=8.5, color=GREY, ha="center", va="center")
    heights = {"left": 0.5, "down": 0.75, "right": 1.05, "up": 0.4}
    for i, action in enumerate(ACTIONS):
        row = next(row for row, name in actions.items() if name == action)
        x = 9.7 + 0.62 * i
        _arrow(ax, (8.3, 3.45 - 0.235 * row), (9.35, 1.9))
        ax.add_patch(Rectangle((x, 1.3), 0.46, heights[action], facecolor=BLUE if action == "right" else "#A9CCE3"))
        ax.text(x + 0.23, 1.1, ARROWS[action], ha="center", va="center", fontsize=11)
    ax.text(10.9, 2.75, "four Q-values", fontsize=9.5, ha="center", color=INK)
    ax.text(10.9, 0.5, "the largest one plays", fontsize=8.5, ha="center", color=GREY)
    return figure


@styled
def picture_03() -> Figure:
    """A network whose target is its own guess, and one whose target comes from a slow copy."""
    figure, axes = new_figure(9.2, 2.6, 1, 2)
    for ax, slow_copy in zip(axes[0], (False, True), strict=True):
        _canvas(ax, 9, 4.6)
        _box(ax, 0.2, 2.6, 2.6, 1.3, "network")
        ax.text(6.1, 3.55, "guess  Q(s, a)", fontsize=10, va="center")
        ax.text(6.1, 1.15, "target  r + γ max Q(s′, ·)", fontsize=10, va="center")
        _arrow(ax, (2.9, 3.55), (5.9, 3.55))
        _arrow(ax, (7.2, 1.6), (7.2, 3.1))
        ax.text(7.35, 2.35, "learn", fontsize=8.5, color=GREY, va="center")
        if slow_copy:
            _box(ax, 0.2, 0.5, 2.6, 1.3, "slow copy")
            _arrow(ax, (2.9, 1.15), (5.9, 1.15))
            _arrow(ax, (1.5, 2.55), (1.5, 1.9))
            ax.text(1.7, 2.2, "follows slowly", fontsize=8.5, color=GREY, va="center")
        else:
            _arrow(ax, (2.4, 2.55), (5.9, 1.15), color=RED)
            ax.text(2.5, 0.9, "moves with every step,\ntoo, and always ahead", fontsize=8.5, color=RED, va="center")
        title = "target network: the target stands still for a while" if slow_copy else "naive: after its own guess"
        ax.set_title(title, fontsize=10)
    return figure


@styled
def picture_04() -> Figure:
    """A frozen stack of layers, a small adapter on each, and where the gradient goes."""
    figure, axes = new_figure(9.2, 3.1)
    ax = _canvas(axes[0, 0], 12.4, 4.2)
    _tokens(ax, 0.1, 0.3, "0 down 4 down hole reset 0".split(), decisions=(6,), width=0.62)
    ax.text(0.1, 0.0, "histories of ever new lakes", fontsize=8.5, color=GREY, va="center")
    for layer in range(4):
        y = 1.3 + 0.66 * layer
        ax.add_patch(Rectangle((0.3, y), 3.6, 0.5, facecolor=PALE, edgecolor=GREY, linewidth=0.8))
        ax.text(2.1, y + 0.25, "W  frozen", ha="center", va="center", fontsize=9, color=GREY)
        ax.text(4.15, y + 0.25, "+", ha="center", va="center", fontsize=11)
        ax.add_patch(Rectangle((4.4, y), 0.2, 0.5, facecolor=TOKEN_COLORS["action"], edgecolor=GREY, linewidth=0.8))
        ax.add_patch(
            Rectangle((4.7, y + 0.15), 0.9, 0.2, facecolor=TOKEN_COLORS["action"], edgecolor=GREY, linewidth=0.8)
        )
        ax.text(5.75, y + 0.25, "B A", fontsize=9, va="center")
    _arrow(ax, (2.1, 0.8), (2.1, 1.25))
    _arrow(ax, (6.3, 3.53), (7.4, 3.53))
    for i, height in enumerate((0.5, 0.32, 0.8, 0.42)):
        face = BLUE if i == 2 else "#A9CCE3"
        ax.add_patch(Rectangle((7.6 + 0.45 * i, 3.1), 0.36, height, facecolor=face))
        ax.text(7.78 + 0.45 * i, 2.92, ARROWS[ACTIONS[i]], ha="center", va="center", fontsize=9.5)
    ax.text(9.6, 3.45, "Q at every decision", fontsize=9.5, va="center")
    ax.text(9.6, 1.75, "TD error against\nr + γ Q of the next decision", fontsize=9.5, va="center")
    _arrow(ax, (8.4, 2.72), (9.45, 1.95))
    _arrow(ax, (9.4, 1.5), (6.4, 1.5), color=RED)
    ax.text(6.55, 1.2, "gradient: into the small\nmatrices only", fontsize=8.5, color=RED, va="center")
    return figure


@styled
def picture_05() -> Figure:
    """A history in words, and behind its last tile one branch of one word for each move."""
    figure, axes = new_figure(9.2, 2.6)
    ax = _canvas(axes[0, 0], 16, 4.4)
    story = [("river", "tile"), ("left", "action"), ("apple", "tile"), ("down", "action"), ("hole", "hole"),
             ("↵", "reset"), ("river", "tile"), ("left", "action"), ("apple", "tile")]  # fmt: skip
    x = 0.2
    for word, kind in story:
        x = _word(ax, x, 2.0, word, kind)
    for i, (move, q) in enumerate(zip(ACTIONS, (0.07, 0.0, 0.36, 0.02), strict=True)):
        y = 3.7 - 1.1 * i
        _arrow(ax, (x + 0.05, 2.2), (x + 1.15, y + 0.2), color=BLUE if move == "right" else GREY)
        end = _word(ax, x + 1.2, y, move, "action")
        ax.text(end + 0.15, y + 0.2, f"log-odds of goal against hole → Q = {q:.2f}", fontsize=9, va="center")
    ax.text(0.2, 1.35, "one token a word; which word is which tile is drawn anew", fontsize=8.5, color=GREY)
    return figure


@styled
def picture_06() -> Figure:
    """Kinds of unseen: a new lake, a larger one, one that changes, one known in two halves."""
    larger = LakeMap(("FFFFHF", "SFHFFF", "FFFFHF", "HFFFFF", "FFHFSF", "FGFFFH"))
    other = LakeMap(("SFFF", "HFHF", "FFFH", "GFFF"))
    known = COURSE_LAKE.starts[0]
    figure, axes = new_figure(9.2, 2.5, 1, 4)
    draw_lake(axes[0, 0], COURSE_LAKE, known={known})
    axes[0, 0].set_title("a new lake", fontsize=10)
    draw_lake(axes[0, 1], larger, known={6, 28})
    axes[0, 1].set_title("a larger one", fontsize=10)
    draw_lake(axes[0, 2], other, known={0, 1, 2, 3, 7})
    axes[0, 2].set_title("another, unannounced", fontsize=10)
    draw_lake(axes[0, 3], COURSE_LAKE, known={0, 4, 5, 1, 6, 2})
    draw_path(axes[0, 3], COURSE_LAKE, DETOUR, color=RED)
    draw_path(axes[0, 3], COURSE_LAKE, Episode((5, 6, 2), (RIGHT, UP), "goal"))
    axes[0, 3].set_title("known in two halves", fontsize=10)
    return figure


@styled
def picture_07() -> Figure:
    """Where the value of a way of two moves is: written at a later visit, read at the question."""
    figure, axes = new_figure(9.2, 2.5)
    ax = _canvas(axes[0, 0], 13.2, 3.6)
    episodes = (
        ("first walk", "8 right 9 down goal reset"),
        ("second walk", "8 right 9 up limit reset"),
        ("question", "8"),
    )
    x, starts = 0.1, []
    for name, text in episodes:
        ax.text(x, 1.1, name, fontsize=9, color=GREY, va="center")
        _tokens(ax, x, 1.4, text.split(), width=0.86)
        starts.append(x)
        x += 0.92 * len(text.split()) + 0.3
    goal, again, question = starts[0] + 4.11, starts[1] + 2.27, starts[2] + 0.43
    for start, end, color in ((goal, again, RED), (again, question, BLUE)):
        ax.add_patch(FancyArrowPatch(
            (start, 1.9), (end, 1.9), connectionstyle="arc3,rad=-0.35", arrowstyle="-|>", mutation_scale=12,
            color=color, linewidth=1.6,
        ))  # fmt: skip
    ax.text((goal + again) / 2, 2.95, "looked up when it came by again", fontsize=9, color=RED, ha="center")
    ax.text((again + question) / 2, 2.95, "looked up at the question", fontsize=9, color=BLUE, ha="center")
    ax.text(
        0.1, 0.4, "Nobody looks two moves ahead. A value moves by one move whenever somebody walks there.", fontsize=9.5
    )
    return figure


def _canvas(ax: Axes, width: float, height: float) -> Axes:
    ax.set(xlim=(0, width), ylim=(0, height))
    ax.axis("off")
    return ax


def _box(ax: Axes, x: float, y: float, width: float, height: float, text: str) -> None:
    ax.add_patch(FancyBboxPatch(
        (x, y), width, height, boxstyle="round,pad=0.02,rounding_size=0.12", facecolor="#D6E9F5", edgecolor=BLUE,
        linewidth=1.4,
    ))  # fmt: skip
    ax.text(x + width / 2, y + height / 2, text, ha="center", va="center", fontsize=10)


def _arrow(ax: Axes, start: tuple[float, float], end: tuple[float, float], label: str = "", color: str = GREY) -> None:
    ax.add_patch(FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, color=color, linewidth=1.2))
    if label:
        ax.text((start[0] + end[0]) / 2, start[1] + 0.18, label, ha="center", fontsize=8.5, color=GREY)


def _word(ax: Axes, x: float, y: float, word: str, kind: str) -> float:
    """A token; returns where the next one begins."""
    wide = 0.28 + 0.13 * len(word)
    ax.add_patch(Rectangle((x, y), wide, 0.42, facecolor=TOKEN_COLORS[kind], edgecolor=GREY, linewidth=0.6))
    ax.text(x + wide / 2, y + 0.2, word, ha="center", va="center", fontsize=9)
    return x + wide + 0.06


def _tokens(
    ax: Axes, x: float, y: float, words: list[str], ids: bool = False, decisions: tuple[int, ...] = (), width: float = 0
) -> None:
    for t, word in enumerate(words):
        wide = width or 0.2 + 0.125 * len(word)
        ax.add_patch(
            Rectangle((x, y), wide, 0.4, facecolor=TOKEN_COLORS[token_kind(word)], edgecolor=GREY, linewidth=0.6)
        )
        ax.text(x + wide / 2, y + 0.19, word, ha="center", va="center", fontsize=8.5)
        if ids:
            at = x + wide / 2, y - 0.25
            ax.text(*at, str(COMPACT_WORDS.index(word)), ha="center", va="center", fontsize=8, color=GREY)
        if t in decisions:
            ax.plot(x + wide / 2, y + 0.58, marker="v", color=RED, markersize=6)
        x += wide + 0.06


PICTURES = {
    f"notebook_{draw.__name__[-2:]}.png": draw
    for draw in (picture_00, picture_01, picture_02, picture_03, picture_04, picture_05, picture_06, picture_07)
}


def draw_all() -> None:
    folder = ASSETS / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    for name, draw in PICTURES.items():
        draw().savefig(folder / name, dpi=110, metadata={"Software": None})
        print(f"Wrote {(folder / name).relative_to(ROOT).as_posix()}.")
