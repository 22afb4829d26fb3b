"""What the tests of recipes share: recipes run whole, through `accelerate launch` as a user starts them or in here."""

import json
import runpy
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
LAUNCH = [sys.executable, "-m", "accelerate.commands.launch"]


def command(recipe: str, *launch: str, **arguments) -> list[str]:
    options = [token for key, value in arguments.items() for token in (f"--{key}", str(value))]
    return [*LAUNCH, *(launch or ("--num_processes", "1")), str(ROOT / "recipes" / recipe), *options]


def run(*args, **arguments) -> subprocess.CompletedProcess:
    return subprocess.run(command(*args, **arguments), capture_output=True, text=True, cwd=ROOT, timeout=240)


def here(recipe: str, **arguments) -> dict:
    """Run a recipe in this process, as its command line would; returns its report."""
    argv, hook = sys.argv, sys.excepthook
    sys.argv = [recipe, *(token for key, value in arguments.items() for token in (f"--{key}", str(value)))]
    try:
        runpy.run_path(str(ROOT / "recipes" / recipe), run_name="__main__")
    finally:
        sys.argv, sys.excepthook = argv, hook
    return json.loads((Path(arguments["output_dir"]) / "report.json").read_text())
