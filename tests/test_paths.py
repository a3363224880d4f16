"""Files are written whole or not at all, and name each other as they may on any machine."""

import pytest

from icrl_utils.paths import ROOT, atomically, portable_path


def test_a_file_is_replaced_only_when_all_went_well(tmp_path):
    path = tmp_path / "new" / "table.csv"
    with atomically(path) as part:
        part.write_text("old")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), atomically(path) as part:
        part.write_text("ne")
        raise KeyboardInterrupt
    assert path.read_text() == "old"
    assert list(path.parent.iterdir()) == [path]  # nothing else is left behind


def test_paths_in_files_are_relative_to_the_repository(monkeypatch, tmp_path):
    assert portable_path(ROOT / "assets") == "assets"
    assert portable_path("assets/held_out_maps.json") == "assets/held_out_maps.json"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    assert portable_path("assets") == "assets"  # from anywhere
    assert not portable_path("here").startswith("/") and (ROOT / portable_path("here")).samefile(tmp_path / "here")
