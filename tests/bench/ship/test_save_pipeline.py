"""Where an export may be written."""

import pytest

from quantarena.bench.errors import UserError
from quantarena.bench.ship.save_pipeline import check_target


def test_other_folders_are_never_written_over(tmp_path):
    (tmp_path / "precious.txt").write_text("mine")
    with pytest.raises(UserError, match="not empty"):
        check_target(tmp_path, replace=True)
    with pytest.raises(UserError, match="is a file"):
        check_target(tmp_path / "precious.txt", replace=True)
