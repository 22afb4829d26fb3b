"""What a run records in its folder, read back: report.json and run.yaml."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml


def read_report(folder: str | Path) -> dict[str, Any] | None:
    """The report of a run's folder; None where there is none. Raises ValueError, in one line, for a damaged one."""
    return _read(Path(folder) / "report.json", json.loads)


def read_run(folder: str | Path) -> dict[str, Any] | None:
    """The arguments of a run's folder; None where there are none. Raises ValueError, in one line, for damaged ones."""
    return _read(Path(folder) / "run.yaml", lambda text: yaml.safe_load(text) or {})


def _read(path: Path, parse: Callable[[str], Any]) -> dict[str, Any] | None:
    if not path.is_file():
        return None
    try:
        content = parse(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError):
        content = None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not what a run writes: it is damaged or incomplete.")
    return content
