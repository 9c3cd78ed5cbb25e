from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from tests.bench.fakes import SMALL

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "kill_test.py"


@pytest.mark.slow
def test_a_suite_that_is_killed_again_and_again_gives_the_same_rows(tmp_path: Path) -> None:
    (tmp_path / "fake.toml").write_text(SMALL, "utf-8")
    command = [sys.executable, str(SCRIPT), "--suite", str(tmp_path / "fake.toml"), "--kills", "3", "--seed", "1"]
    done = subprocess.run(
        [*command, "--record", str(tmp_path / "kill.jsonl")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    told = json.loads(done.stdout)
    assert (told["kills"], told["rows_per_life"], told["violations"]) == (3, 2, [])
    assert json.loads((tmp_path / "kill.jsonl").read_text("utf-8")) == told
