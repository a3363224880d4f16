"""Files are written whole or not at all."""

import pytest

from icrl_utils.paths import atomically


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
