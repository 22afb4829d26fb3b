"""`hf-lm demo --export`: a folder that is ready to be a Hugging Face Space."""

import json
import shlex
import shutil
from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from hf_lm.files import new_folder
from hf_lm.hub.push import as_published, check_complete, published
from hf_lm.hub.records import read_report
from hf_lm.models.configuration import is_path

NOT_SHOWN = ("run.yaml", "predictions.jsonl")
# What hf_lm.demo.page imports, beside gradio, which the Space brings itself.
NEEDED = (
    *("torch", "transformers", "tokenizers", "accelerate", "safetensors", "huggingface_hub", "peft", "jinja2"),
    *("datasets", "numpy", "matplotlib", "fonttools", "pyyaml", "tqdm", "sacrebleu", "rouge-score"),
    "sentencepiece",  # an extra, where it is installed: the tokenizers of Marian and M2M100
)
APP = '''"""The page of `hf-lm demo`: python app.py"""

import os
from pathlib import Path

from hf_lm.demo.page import open_page

os.chdir(Path(__file__).parent)
open_page({models}, host=os.environ.get("GRADIO_SERVER_NAME", "127.0.0.1"))
'''
README = """---
title: {title}
emoji: 📖
colorFrom: gray
colorTo: blue
sdk: gradio
sdk_version: {gradio}
python_version: "3.11"
app_file: app.py
pinned: false
{ids}---

# {name}

A page for {count}, made with `hf-lm demo --export`. To look at it on your own machine:

```bash
pip install gradio=={gradio} -r requirements.txt
python app.py
```

`hf_lm/` is the library that draws the page; `models/` holds the models that are not on the Hub.
"""


def export_space(models: Sequence[str], folder: str | Path) -> Path:
    """Write a Space for these models: app.py, requirements.txt, README.md, the library, and folders' models as copies.

    A Hub id is named, and loaded when the Space starts. Raises FileExistsError where the folder is not empty,
    and OSError or ValueError for a model that the page does not show; nothing is written then.
    """
    from hf_lm.demo.page import check_gradio
    from hf_lm.demo.views import kind_of

    check_gradio()
    folder = Path(folder).expanduser()
    from hf_lm.models.configuration import load_config

    named: dict[str, str] = {}  # as given: as the Space finds it
    for name in models:
        if (Path(name) / "adapter_config.json").is_file() and not (Path(name) / "config.json").is_file():
            raise ValueError(f"{name} is an adapter; make it a model first: hf-lm merge {shlex.quote(name)}")
        kind_of(load_config(name), read_report(name) or {})
        if Path(name).is_dir():
            check_complete(Path(name))
            place = f"models/{Path(name).resolve().name}"
            twins = sum(target.split(" ")[0] == place or target.startswith(f"{place}-") for target in named.values())
            named[name] = f"{place}-{twins + 1}" if twins and name not in named else place
        elif is_path(name):
            raise FileNotFoundError(f"there is no folder {name}.")
        else:
            named[name] = name

    with new_folder(folder, "folder for --export") as aside:
        for name, place in named.items():
            if Path(name).is_dir():
                _copy_model(Path(name), aside / place)
        source = Path(__file__).parent.parent  # hf_lm
        shutil.copytree(source, aside / "hf_lm", ignore=shutil.ignore_patterns("__pycache__", "recipes"))
        (aside / "app.py").write_text(
            APP.format(models=json.dumps(list(named.values()), ensure_ascii=False)), encoding="utf-8"
        )
        (aside / "requirements.txt").write_text(_requirements(), encoding="utf-8")
        (aside / "README.md").write_text(_readme(list(named.values()), folder.name), encoding="utf-8")
    return folder


def _copy_model(source: Path, target: Path) -> None:
    """What a push of the folder would upload and the page shows: no path of this machine is in it."""
    names = [path.relative_to(source).as_posix() for path in published(source)]
    names = [name for name in names if not name.startswith("adapter/") and name not in NOT_SHOWN]
    rewritten = as_published(source, names)
    for name in names:
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        if name in rewritten:
            (target / name).write_bytes(rewritten[name])
        else:
            shutil.copyfile(source / name, target / name)


def _requirements() -> str:
    lines = []
    for name in NEEDED:
        try:
            lines.append(f"{name}=={version(name).partition('+')[0]}")
        except PackageNotFoundError:
            continue
    return "\n".join(lines) + "\n"


def _readme(places: list[str], title: str) -> str:
    ids = [place for place in places if not place.startswith("models/")]
    listed = "models:\n" + "".join(f"- {each}\n" for each in ids) if ids else ""
    count = "a model" if len(places) == 1 else f"{len(places)} models"
    safe = "".join(c for c in title if c.isalnum() or c in "-_ .") or "hf-lm"
    return README.format(title=json.dumps(safe), name=safe, gradio=version("gradio"), ids=listed, count=count)
