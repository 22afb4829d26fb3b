"""The campaigns that are run by hand and nightly, in small."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.mark.slow
def test_malformed_input_ends_in_one_short_line_within_seconds():
    feed = [sys.executable, str(ROOT / "tests" / "campaign" / "feed.py"), "--at_most", "200"]
    done = subprocess.run(feed, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-1000:]
