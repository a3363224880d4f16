"""Colab's versions, stored as they were seen, against our ranges: the set-up cell there may exchange neither torch nor
numpy, and should not have to exchange anything else."""

import json
import tomllib
from pathlib import Path

import pytest
from packaging.specifiers import SpecifierSet

from icrl_utils.paths import ROOT
from icrl_utils.versions import LOADED_BY_COLAB, requirements

COLAB = json.loads(Path(__file__).with_name("colab_versions.json").read_text())
OURS = {requirement.name: requirement.specifier for requirement in requirements()}


@pytest.mark.parametrize(("name", "version"), COLAB["packages"].items())
def test_colabs_version_is_in_our_range(name, version):
    assert OURS[name].contains(version), f"Colab has {name} {version}, requirements.txt asks for {OURS[name]}"


def test_colabs_pythons_are_in_our_range():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for version in (COLAB["python"], COLAB["selectable_python"]):
        assert SpecifierSet(project["requires-python"]).contains(version)


def test_what_may_not_be_exchanged_on_colab_is_in_the_table_and_what_is_absent_is_asked_for():
    assert set(LOADED_BY_COLAB) <= COLAB["packages"].keys()
    assert set(COLAB["absent"]) <= OURS.keys()
