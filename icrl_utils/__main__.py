"""``python -m icrl_utils``: doctor, pretrain, train, evaluate, bench, course, lab.

Heavy imports happen inside the commands, so that ``--help`` answers at once.
"""

import argparse
import dataclasses
import os
import subprocess
import sys
import types
import typing
from collections.abc import Sequence
from typing import Any

from icrl_utils.profiles import PROFILES, ROOT, get_profile


def add_config_options(parser: argparse.ArgumentParser, config_class: type) -> None:
    """One option for each field of a config dataclass: ``batch_slices: int`` becomes ``--batch-slices``.

    Options that the user leaves out are absent from the result, so the dataclass (or the profile) decides.
    ``seed`` is an option of every command and is left to it.
    """
    hints = typing.get_type_hints(config_class)
    for field in dataclasses.fields(config_class):
        if field.name == "seed":
            continue
        default = "" if field.default is dataclasses.MISSING else f"default {field.default}"
        text = "; ".join(part for part in (field.metadata.get("help", ""), default) if part).replace("%", "%%")
        parser.add_argument(
            "--" + field.name.replace("_", "-"), dest=field.name, default=argparse.SUPPRESS, help=text,
            **_argument_kind(hints[field.name]),
        )  # fmt: skip


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


def _config(args: argparse.Namespace, config_class: type) -> Any:
    """``config_class`` for the chosen profile, with the options that the user gave."""
    names = {field.name for field in dataclasses.fields(config_class)}
    given = {name: value for name, value in vars(args).items() if name in names and value is not None}
    return config_class.for_profile(get_profile(args.profile), **given)


def run_pretrain(args: argparse.Namespace) -> None:
    from icrl_utils import training

    training.pretrain(_config(args, training.PretrainConfig))


def run_train(args: argparse.Namespace) -> None:
    from icrl_utils import training

    training.train(_config(args, training.TrainConfig))


def run_evaluate(args: argparse.Namespace) -> None:
    from icrl_utils import experiments

    experiments.run_experiment(args.experiment, profile=get_profile(args.profile), seed=args.seed)


def run_bench(args: argparse.Namespace) -> None:
    from icrl_utils import bench

    known = {name.removeprefix("bench_"): call for name, call in vars(bench).items() if name.startswith("bench_")}
    names = list(known) if args.benchmark == "all" else [args.benchmark]
    if not set(names) <= set(known):
        raise ValueError(f"benchmark={args.benchmark!r}: unknown; choose one of {', '.join(known)} or all.")
    for name in names:
        known[name](profile=get_profile(args.profile), seed=args.seed)


def run_doctor(args: argparse.Namespace) -> None:
    from icrl_utils import doctor

    print(doctor.report(args.profile))


def run_course(args: argparse.Namespace) -> None:
    from icrl_utils import notebooks

    notebooks.run_course(get_profile(args.profile), only=args.only, write=args.write)


def run_lab(args: argparse.Namespace) -> None:
    profile = get_profile(args.profile)
    command = [sys.executable, "-m", "jupyterlab", "notebooks/00_start_here.ipynb"]
    if hasattr(os, "geteuid") and os.geteuid() == 0:
        command.append("--allow-root")  # containers: Jupyter refuses to start as root without it
    try:
        subprocess.run(command, cwd=ROOT, env={**os.environ, "ICRL_PROFILE": profile.name}, check=True)
    except KeyboardInterrupt:
        pass


def build_parser(command: str | None = None) -> argparse.ArgumentParser:
    """The command line; ``command`` is the subcommand whose config options are to be read from its module."""
    parser = argparse.ArgumentParser(prog="python -m icrl_utils", description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def add(name: str, call, text: str) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
        sub.add_argument("--profile", metavar="NAME", help=f"{', '.join(PROFILES)}; default: $ICRL_PROFILE, else cpu")
        sub.add_argument("--seed", type=int, default=0, help="seed of every random draw; default 0")
        sub.set_defaults(call=call)
        return sub

    add("doctor", run_doctor, "versions, device, memory and assets: put its output into bug reports")
    pretrain = add("pretrain", run_pretrain, "pretrain the tiny Llama on random play; resumes with --resume")
    train = add("train", run_train, "train an adapter by double DQN; resumes with --resume")
    if command in ("pretrain", "train"):
        from icrl_utils import training

        add_config_options(pretrain, training.PretrainConfig)
        add_config_options(train, training.TrainConfig)
    evaluate = add("evaluate", run_evaluate, "run an experiment and write its records to assets/results/")
    evaluate.add_argument("experiment", help="for example in_distribution; an unknown name lists all")
    bench = add("bench", run_bench, "measure speed and memory, each against its alternative in the same run")
    bench.add_argument("benchmark", nargs="?", default="all", help="for example env; default: all")
    course = add("course", run_course, "execute the notebooks; results in build/notebooks/")
    course.add_argument("only", nargs="*", metavar="NOTEBOOK", help="for example 04; default: all")
    course.add_argument("--write", action="store_true", help="also renew the committed notebooks/*.ipynb")
    add("lab", run_lab, "open JupyterLab on the first notebook")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    argv = list(sys.argv[1:] if argv is None else argv)
    args = build_parser(argv[0] if argv else None).parse_args(argv)
    try:
        args.call(args)
    except (ValueError, RuntimeError, FileNotFoundError) as error:
        # Our own errors name the argument and the next step; a traceback would only hide that.
        if os.environ.get("ICRL_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
