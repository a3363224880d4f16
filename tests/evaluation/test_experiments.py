"""Experiments: tables that are tidy, paired and come back from disk as they were; the command's bad input."""

import gzip

import numpy as np
import pytest

from icrl_utils.__main__ import main
from icrl_utils.evaluation import experiments
from icrl_utils.evaluation.experiments import (
    COLUMNS,
    COLUMNS_WITH_LAW,
    EXPERIMENTS,
    FIRST_FIVE,
    LAST_FIVE,
    by_law,
    by_policy,
    compare,
    describe,
    games,
    games_of_every_law,
    lead,
    read_table,
    results_path,
    run_experiment,
    summary,
    summary_of_law,
    write_table,
)
from icrl_utils.lake.games import GAMES, HeldOutLakes, RandomGraphs
from icrl_utils.lake.held_out import COURSE_LAKE, COURSE_LAKE_NUMBER, held_out_maps
from icrl_utils.lake.maps import PAPER_IN_DISTRIBUTION
from icrl_utils.llama.agent import load_agent
from icrl_utils.play.baselines import OraclePolicy, RandomPolicy, TabularPolicy
from icrl_utils.play.posterior_sampling import PosteriorSamplingPolicy
from icrl_utils.play.rollout import epsilon_schedule, rollout
from icrl_utils.profiles import PROFILES
from icrl_utils.statistics import Interval

MAPS = PAPER_IN_DISTRIBUTION.sample(6, 0)


def trained_twice():
    """Two policies of one name, as two training seeds of the agent are."""
    policies = [TabularPolicy(1.0), TabularPolicy(0.5)]
    for seed, policy in enumerate(policies):
        policy.name, policy.training_seed = "agent", seed
    return policies


@pytest.fixture(scope="module")
def table():
    return compare([*trained_twice(), RandomPolicy(), OraclePolicy()], MAPS, [0, 0.5, 1, 1], seed=3)


def test_tables_are_tidy(table):
    assert list(table) == list(COLUMNS)
    assert {len(column) for column in table.values()} == {4 * 6 * 4}
    keys = list(zip(*(table[name].tolist() for name in ("policy", "training_seed", "map", "episode")), strict=True))
    assert len(set(keys)) == len(keys)
    assert set(keys) == {
        (policy, seed, i, e)
        for policy, seed in [("agent", 0), ("agent", 1), ("random", -1), ("oracle", -1)]
        for i in range(6)
        for e in range(4)
    }
    np.testing.assert_array_equal(table["epsilon"], np.tile([0, 0.5, 1, 1], 24))


def test_policies_met_the_same_luck(table):
    optimal = by_policy(table, "optimal_steps")
    first = by_policy(table, "steps")
    for policy in ("random", "oracle"):
        np.testing.assert_array_equal(optimal[policy][0], optimal["agent"][0])
        np.testing.assert_array_equal(first[policy][0][:, 0], first["agent"][1][:, 0])  # epsilon 0


def test_by_policy_puts_rows_in_order(table):
    shuffled = np.random.default_rng(0).permutation(len(table["map"]))
    mixed = by_policy({name: column[shuffled] for name, column in table.items()}, "steps")
    ordered = by_policy(table, "steps")
    assert {name: values.shape for name, values in ordered.items()} == {
        "agent": (2, 6, 4), "random": (1, 6, 4), "oracle": (1, 6, 4)
    }  # fmt: skip
    for policy, values in ordered.items():
        np.testing.assert_array_equal(mixed[policy], values)
    rows = (table["policy"] == "agent") & (table["training_seed"] == 1) & (table["map"] == 2)
    np.testing.assert_array_equal(ordered["agent"][1, 2], table["steps"][rows])


def test_by_policy_refuses_missing_rows(table):
    with pytest.raises(ValueError, match="'agent'"):
        by_policy({name: column[1:] for name, column in table.items()})


def test_summary_of_the_oracle(table):
    rows = {row["policy"]: row for row in summary(table, slice(2, 4))}
    oracle = rows["oracle"]
    assert oracle["success"].estimate == oracle["shortest_path"].estimate == 1 and oracle["repeat_death"].estimate == 0
    assert (rows["agent"]["training_seeds"], oracle["training_seeds"], oracle["maps"]) == (2, 1, 6)
    assert rows["agent"]["success"].estimate == by_policy(table)["agent"][:, :, 2:].mean()


def test_description_of_a_summary_is_a_narrow_table():
    success, first = Interval(0.9996, 0.995, 1.0), Interval(10.48, 9.562, 11.46)
    row = {"policy": "R-max", "maps": 3, "success": success, "first_success": first}
    assert describe([row]).splitlines() == [
        "policy               success        first_success",
        "R-max                1.00 .995-1.00 10.5 9.56-11.5",
    ]


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_csv_round_trip(table, tmp_path, name):
    path = tmp_path / "new" / name
    write_table(path, table)
    back = read_table(path)
    for column, values in table.items():
        np.testing.assert_array_equal(back[column], values)
        assert back[column].dtype.kind == values.dtype.kind
    first = path.read_bytes()
    write_table(path, back)
    assert path.read_bytes() == first
    assert [file.name for file in path.parent.iterdir()] == [name]
    text = (gzip.decompress(first) if name.endswith("gz") else first).decode()
    assert text.startswith(",".join(COLUMNS) + "\nagent,0,0,0,0,")


def test_an_interrupted_write_leaves_the_old_file(table, tmp_path, monkeypatch):
    path = tmp_path / "a.csv"
    write_table(path, table)
    before = path.read_bytes()

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("icrl_utils.paths.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        write_table(path, {name: column[:5] for name, column in table.items()})
    assert path.read_bytes() == before


def test_csv_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match="evaluate exploration"):
        read_table(tmp_path / "exploration.csv.gz")
    (tmp_path / "b.csv").write_text("policy,score\n")
    with pytest.raises(ValueError, match="score"):
        read_table(tmp_path / "b.csv")


@pytest.mark.parametrize(
    ("name", "maps", "schedule"),
    [
        ("in_distribution", "in_distribution", "paper"),
        ("out_of_distribution", "out_of_distribution", "paper"),
        ("exploration", "in_distribution", "greedy"),
    ],
)
def test_experiments_differ_in_maps_and_schedule(name, maps, schedule):
    """Really played: the oracle's way from every start is as long as on exactly these lakes."""
    experiment = EXPERIMENTS[name]
    law, lakes, table = experiment.law, held_out_maps(maps), experiment.play([OraclePolicy()])
    assert experiment.maps(None) == lakes and experiment.maps(7) == lakes[:7]
    np.testing.assert_array_equal(by_policy(table, "epsilon")["oracle"][0], [epsilon_schedule(schedule)] * 500)
    ways, walked = (by_policy(table, column)["oracle"][0] for column in ("optimal_steps", "steps"))
    for lake, seen in zip(lakes, ways, strict=True):
        possible = {lake.optimal_steps(start) for start in lake.starts}
        assert set(seen) <= possible and (len(possible) > 3 or set(seen) == possible)
    alone = by_policy(table, "epsilon")["oracle"][0] == 1
    np.testing.assert_array_equal(walked[alone], ways[alone])
    assert all(law.min_size <= min(lake.height, lake.width) <= law.max_size for lake in lakes)


@pytest.mark.parametrize("name", ["in_distribution", "out_of_distribution", "exploration"])
def test_experiments_play_the_maps_and_the_seed_that_they_are_given(name):
    experiment = EXPERIMENTS[name].play
    schedule = "greedy" if name == "exploration" else "paper"
    for seed in (0, 5):
        table, played = experiment([TabularPolicy()], MAPS, seed=seed), rollout(TabularPolicy(), MAPS, schedule, seed)
        np.testing.assert_array_equal(by_policy(table, "steps")["tabular Q"][0], played.steps)
    with pytest.raises(ValueError, match=r"maps=\[\] is empty"):  # and not: all 500
        experiment([TabularPolicy()], [])


def test_nobody_to_compare_is_named():
    for nobody in ([], RandomPolicy()):
        with pytest.raises(ValueError, match="policies=.*: pass a list of at least one policy"):
            compare(nobody, MAPS)


def test_unknown_experiment_lists_the_known_ones():
    with pytest.raises(ValueError, match="experiment='in_dist'.*in_distribution, out_of_distribution, exploration"):
        run_experiment("in_dist")


def test_a_profile_without_an_adapter_is_refused():
    with pytest.raises(ValueError, match="profile='full'.*--profile cpu"):
        run_experiment("exploration", PROFILES["full"])


# Other games


@pytest.fixture(scope="module")
def games_table():
    """Two training seeds and three games of each law."""
    players = [*trained_twice(), RandomPolicy(), PosteriorSamplingPolicy(PAPER_IN_DISTRIBUTION), OraclePolicy()]
    return games(players, games_of_every_law(3), seed=2)


def test_the_table_of_games_has_a_law_before_the_other_columns(games_table, tmp_path):
    assert list(games_table) == list(COLUMNS_WITH_LAW) == ["law", *COLUMNS]
    parts = by_law(games_table)
    assert list(parts) == list(GAMES) and all(list(part) == list(COLUMNS) for part in parts.values())
    for law, part in parts.items():
        success = by_policy(part)
        psrl = ["posterior sampling"] if law == "lakes" else []
        assert list(success) == ["agent", "random", *psrl, "oracle"]
        assert success["agent"].shape == (2, 3, 25) and (part["epsilon"] == 1).all()
        if law not in ("bandits", "slippery lakes"):
            assert success["oracle"].all()
    write_table(path := tmp_path / "games.csv.gz", games_table)
    for column, values in read_table(path).items():
        np.testing.assert_array_equal(values, games_table[column])
    assert gzip.decompress(path.read_bytes()).startswith(b"law,policy,training_seed,map,")


def test_laws_that_tell_the_same_lakes_are_paired(games_table):
    """The oracle needs as many moves on a lake in other words, episode by episode."""
    parts = by_law(games_table)
    steps = [by_policy(parts[law], "steps")["oracle"] for law in list(GAMES)[:3]]
    np.testing.assert_array_equal(steps[0], steps[1])
    np.testing.assert_array_equal(steps[0], steps[2])


def test_the_experiment_plays_two_hundred_games_of_each_law():
    """Fixed before the first look; what changes here makes the shipped records others."""
    assert (experiments.GAMES_SEED, experiments.GAMES_EACH, experiments.GAMES_EPISODES) == (1307, 200, 25)
    drawn = EXPERIMENTS["games"].maps(None)
    assert list(drawn) == list(GAMES) and {len(of_law) for of_law in drawn.values()} == {200}
    assert drawn["lakes"] == HeldOutLakes().sample(200, 1307)
    assert {law: list(of_law[:4]) for law, of_law in drawn.items()} == {
        law: list(of_law) for law, of_law in EXPERIMENTS["games"].maps(4).items()
    }


def test_the_lead_is_paired_and_averages_training_seeds():
    """Two games of six episodes, two training seeds; by hand."""
    agent = np.array([[[0, 0, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1]], [[0, 0, 0, 0, 1, 1], [1, 1, 1, 1, 1, 1]]])
    other = np.array([[[0, 0, 0, 0, 0, 1], [1, 1, 1, 1, 0, 0]]])
    table = {name: [] for name in COLUMNS}
    for policy, success in (("agent", agent), ("other", other)):
        for seed, i, e in np.ndindex(success.shape):
            row = {"policy": policy, "training_seed": seed, "map": i, "episode": e, "success": success[seed, i, e]}
            for name in COLUMNS:
                table[name].append(row.get(name, 1))
    table = {name: np.array(column) for name, column in table.items()}
    first, last = (lead(table, "agent", "other", part) for part in (FIRST_FIVE, LAST_FIVE))
    assert first.estimate == pytest.approx(((3 + 1) / 10 - 0 + 1 - 4 / 5) / 2)
    assert last.estimate == pytest.approx(((4 + 2) / 10 - 1 / 5 + 1 - 3 / 5) / 2)
    assert first.low == pytest.approx(0.2) and first.high == pytest.approx(0.4)  # one game or the other
    rows = {row["policy"]: row for row in summary_of_law(table)}
    assert rows["agent"]["lead_first"] == (0, 0, 0) and rows["other"]["lead_last"].estimate == last.estimate
    assert rows["agent"]["first_five"].estimate == pytest.approx(0.7) and rows["agent"]["training_seeds"] == 2


def test_evaluate_games_in_the_smoke_profile(quick, monkeypatch, capsys):
    monkeypatch.setattr(experiments, "GAMES", {"lakes": HeldOutLakes(), "random graphs": RandomGraphs()})
    assert main(["evaluate", "games", "--profile", "smoke"]) == 0
    assert (quick / "build" / "figures" / "games.png").stat().st_size > 10_000
    table = read_table(quick / "build" / "results" / "games.csv.gz")
    assert set(table["law"]) == {"lakes", "random graphs"} and table["map"].max() + 1 == PROFILES["smoke"].maps
    printed = capsys.readouterr().out
    assert "random graphs\npolicy               first_five" in printed and "lead_last" in printed


@pytest.mark.parametrize(
    "name",
    ["hand_off", "values_by_distance", "attention_cuts", "activation_patching", "context_surgery", "rehearsal"],
)
def test_single_questions_are_rows_of_the_table_too(name, tmp_path):
    """Played on two lakes or made-up histories, kept, read, described and drawn as ``evaluate`` does."""
    experiment = EXPERIMENTS[name]
    agent = load_agent("assets/adapters/dqn")
    table = experiment.play([agent, RandomPolicy()], experiment.maps(2), seed=1)
    write_table(path := tmp_path / f"{name}.csv.gz", table)
    back = read_table(path)
    for column, values in table.items():
        np.testing.assert_array_equal(back[column], values)
    assert len(set(table["map"])) <= 2 and experiment.describe(back) == experiment.describe(table) != ""
    assert experiment.plot(back, "a title").axes


def test_negative_differences_are_described():
    row = {"policy": "R-max", "lead": Interval(-0.0504, -0.1, 0.0)}
    assert describe([row]).splitlines()[1] == "R-max                -.050 -.100 to .000"


@pytest.fixture
def quick(monkeypatch, tmp_path):
    """Places of its own, and players and lakes that take a moment: learners instead of the shipped agents."""
    monkeypatch.setattr(experiments, "ASSETS", tmp_path / "assets")
    monkeypatch.setattr(experiments, "BUILD", tmp_path / "build")
    monkeypatch.setattr(experiments, "shipped_agents", lambda adapter: trained_twice())
    monkeypatch.setattr(experiments, "held_out_maps", lambda name: held_out_maps(name)[:5])
    return tmp_path


def test_evaluate_leaves_the_committed_records_alone_unless_told_to_write(quick, capsys):
    written = [f"{folder}/exploration.{kind}" for folder, kind in (("figures", "png"), ("results", "csv.gz"))]

    def files(folder):
        return sorted(path.relative_to(quick / folder).as_posix() for path in (quick / folder).rglob("*.*"))

    assert main(["evaluate", "exploration", "--seed", "1", "--profile", "cpu"]) == 0
    assert files("build") == written and files("assets") == []
    assert str(quick / "build" / "figures" / "exploration.png") in capsys.readouterr().out
    assert main(["evaluate", "exploration", "--write", "--profile", "cpu"]) == 0
    assert files("assets") == written
    first, second = (read_table(quick / folder / written[1]) for folder in ("build", "assets"))
    assert (first["steps"] != second["steps"]).any()  # two seeds


def test_what_cannot_be_written_is_refused_before_play(quick, capsys):
    assert main(["evaluate", "exploration", "--write", "--profile", "smoke"]) == 1
    assert "--write with profile 'smoke'" in capsys.readouterr().err
    for seed in ("-1", str(2**64)):
        assert main(["evaluate", "exploration", "--seed", seed]) == 1
        assert f"seed={seed}: pass a whole number from 0" in capsys.readouterr().err
    assert list(quick.iterdir()) == []


def test_run_experiment_in_the_smoke_profile(monkeypatch, tmp_path, capsys):
    """Everything but the agents: those need the shipped weights."""
    monkeypatch.setattr(experiments, "shipped_agents", lambda adapter: trained_twice())
    monkeypatch.setattr(experiments, "BUILD", tmp_path)
    path = run_experiment("out_of_distribution", PROFILES["smoke"], seed=1)
    table = read_table(path)
    assert path.parent == tmp_path / "results"
    assert set(table["policy"]) == {
        "agent", "random", "tabular Q", "optimistic tabular Q", "R-max", "posterior sampling", "oracle"
    }  # fmt: skip
    assert len(np.unique(table["map"])) == PROFILES["smoke"].maps
    assert "posterior sampling" in capsys.readouterr().out


def test_shipped_agents_are_all_training_seeds_and_the_memory_less_twin():
    agents = experiments.shipped_agents("dqn")
    told = [(agent.name, agent.training_seed, agent.memory) for agent in agents]
    assert told == [("agent", 0, True), ("agent", 1, True), ("agent", 2, True), ("memory-less", 0, False)]
    q = np.array([agent.q_values("8 right 9 down hole reset 8") for agent in agents])
    assert len(np.unique(q.round(4), axis=0)) == 4  # three trainings; the fourth does not see the first episode
    np.testing.assert_allclose(agents[0].q_values("8"), agents[3].q_values("8"), atol=1e-6)  # its weights


def test_the_lake_of_the_lessons_is_chosen_by_its_rule():
    """`COURSE_LAKE` says which; here it is looked for in the shipped records."""
    success = by_policy(read_table(results_path("exploration")))

    def fits(number, lake):
        agent, memoryless = (success[name][:, number] for name in ("agent", "memory-less"))
        is_plain = lake.height == lake.width == 4 and len(lake.starts) == len(lake.goals) == 1
        learns = not agent[:, :2].any() and agent[:, 5:10].all()
        return is_plain and not memoryless[:, :10].any() and learns

    maps = held_out_maps("in_distribution")
    assert next(number for number, lake in enumerate(maps) if fits(number, lake)) == COURSE_LAKE_NUMBER
    assert maps[COURSE_LAKE_NUMBER] == COURSE_LAKE
