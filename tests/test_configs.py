"""Every configuration in recipes/configs is what its recipe takes, and says only what differs from the defaults."""

import runpy
from pathlib import Path

import pytest
import yaml

from hf_lm.arguments import parse_arguments

RECIPES = Path(__file__).parent.parent / "recipes"
CONFIGS = sorted((RECIPES / "configs").glob("*.yaml"))


def recipe_of(config: Path) -> Path:
    return max((path for path in RECIPES.glob("*.py") if config.stem.startswith(path.stem)), key=lambda p: len(p.stem))


@pytest.mark.parametrize("config", CONFIGS, ids=[path.stem for path in CONFIGS])
def test_a_config_resolves_and_holds_only_what_differs(config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = runpy.run_path(str(recipe_of(config)))
    defaults = {f: field.default for f, field in recipe["Arguments"].__dataclass_fields__.items()}
    args, training_args = parse_arguments(
        recipe["Arguments"], recipe["TrainingArguments"], ["--config", str(config), "--use_cpu"], report_to="none"
    )
    given = yaml.safe_load(config.read_text())
    assert training_args.output_dir == f"out/{config.stem}"
    for key, value in given.items():
        assert defaults.get(key) != value, f"{key}: {value} is the default"
    assert config.read_text().startswith("#"), "a config begins with what it is for"
    assert given.get("model", "").count("/") in (0, 1)  # nothing, or a name on the Hub
    assert not hasattr(args, "model") or args.model == given.get("model", "")
