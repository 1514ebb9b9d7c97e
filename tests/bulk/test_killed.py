from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("killed_runs.py")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="runs are forks of one process")
def test_a_run_that_ends_before_any_step_goes_on_and_has_the_verdicts_of_one_run(
    tmp_path, read_rows
):
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    statuses = [first for first, _, _ in seen["ended"]]
    assert statuses == [9] * (len(statuses) - 1) + [0]
    left = [sum(name.startswith("part-") for name in names) for _, names, _ in seen["ended"]]
    assert set(left) == {0, 1, 2}
    assert [second for _, _, second in seen["ended"]] == [0] * len(statuses)
    whole = read_rows(tmp_path / "whole")
    assert [row["row"] for row in whole] == list(range(4))
    names = {path.name for path in (tmp_path / "whole").iterdir()}
    for out in tmp_path.glob("0*"):
        assert {path.name for path in out.iterdir()} == names
        for row, other in zip(read_rows(out), whole, strict=True):
            assert row["score"] == pytest.approx(other["score"], abs=1e-4)
            assert row | {"score": 0} == other | {"score": 0}
