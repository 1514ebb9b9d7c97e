from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_runs.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks of one process")
@pytest.mark.parametrize("seed", [0])
def test_a_run_killed_again_and_again_ends_with_the_verdicts_of_one_run(tmp_path, seed, read_rows):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path), str(seed)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert (seen["last"], seen["whole"]) == (0, 0), done.stderr
    assert len({count for count in seen["parts"] if 0 < count < 36}) >= 3  # killed on the way
    killed, whole = read_rows(tmp_path / "killed"), read_rows(tmp_path / "whole")
    assert [row["row"] for row in killed] == list(range(180))
    for row, other in zip(killed, whole, strict=True):
        assert row.pop("score") == pytest.approx(other.pop("score"), abs=1e-4)
        assert row == other
    assert not list((tmp_path / "killed").glob(".*"))
