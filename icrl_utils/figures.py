"""The curves of the README, from the shipped tables: ``python -m icrl_utils.figures`` writes them to assets/figures/.

``python -m icrl_utils evaluate NAME`` plays, writes the table and draws its figure, both into build/ unless it is told
``--write``; this draws again without playing.
"""

from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from icrl_utils.experiments import Table, by_policy, read_csv
from icrl_utils.plots import plot_learning_curves
from icrl_utils.profiles import ASSETS

TITLES = {
    "in_distribution": "On lakes never seen, of the training sizes (3 to 5 wide and high)",
    "out_of_distribution": "On larger lakes (6 to 7; DQN never saw these sizes, pretraining saw random play on them)",
    "exploration": "The player decides from the first move on (lakes 3 to 5 wide and high)",
}


def plot_experiment(table: Table, name: str) -> Figure:
    """Success by episode of every policy in the table of the experiment ``name``."""
    first = (table["map"] == 0) & (table["policy"] == table["policy"][0])
    first &= table["training_seed"] == table["training_seed"][first][0]
    epsilon = table["epsilon"][first][np.argsort(table["episode"][first])]
    return plot_learning_curves(by_policy(table), epsilon, title=TITLES[name])


def draw(table_file: Path) -> Path:
    """``.../results/NAME.csv.gz`` -> ``.../figures/NAME.png``. Returns the picture's path."""
    name = table_file.name.split(".")[0]
    picture = table_file.parent.parent / "figures" / f"{name}.png"
    picture.parent.mkdir(parents=True, exist_ok=True)
    plot_experiment(read_csv(table_file), name).savefig(picture, dpi=110, metadata={"Software": None})
    print(f"written: {picture}")
    return picture


if __name__ == "__main__":
    for name in TITLES:
        for table_file in (ASSETS / "results").glob(f"{name}.csv.gz"):
            draw(table_file)
