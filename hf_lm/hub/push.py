"""Push a finished run to the Hub: verified, and in one commit, after everything is on disk."""

import hashlib
import itertools
import json
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import yaml

from hf_lm.files import BENCHMARKS, MODEL, VOCABULARY
from hf_lm.hub.check import OUR_CODE, differences, unreadable
from hf_lm.hub.credentials import find_secrets
from hf_lm.hub.records import read_report, read_run

CARD = "README.md"
RUN = (CARD, "report.json", "run.yaml", "predictions.jsonl", "plots/*.png", "additional_chat_templates/*.jinja")
RUN += (f"{BENCHMARKS}/*.yaml",)
PARTS = ("", "target_tokenizer/", "adapter/", "adapter/target_tokenizer/")  # the folders with files of a model


def push_to_hub(folder: str | Path, repo_id: str, *, private: bool = False, token: str | None = None) -> str:
    """Upload a run's output folder as a model repository, in one commit; returns its address.

    The repository is made if it is not there. What an earlier run left in one, and this one does not write, is deleted
    by the commit, with a line on stderr: a loader would mix the two models. Other files of it stay, and so does a
    licence that only its card has. Nothing in the folder changes, whatever happens; the published run.yaml,
    report.json and README.md name folders of this machine by their last part. An adapter/ whose base is a folder of
    this machine stays here, and a line on stderr says so.
    Raises ValueError if the folder holds no complete model or a run that did not end, if a file holds a secret or is a
    symbolic link, if the name cannot be one or there is no token, and ConnectionError, with the command that tries
    again, if the Hub did not take it.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    folder = Path(folder)
    check_complete(folder)
    check_finished(folder)
    token = check_repository(repo_id, token)
    files = published(folder)
    if secrets := find_secrets(folder, files, known=token):
        raise ValueError(f"{folder} holds what looks like a secret: {', '.join(secrets[:5])}. Nothing was uploaded.")
    if base := _local_base(folder / "adapter"):
        print(f"not uploaded: adapter/, whose base {base} is a folder of this machine", file=sys.stderr)
    names = [path.relative_to(folder).as_posix() for path in files]
    rewritten = as_published(folder, names, repo_id)
    api = HfApi(endpoint=os.environ.get("HF_ENDPOINT"), token=token)
    command = shlex.join(["hf-lm", "push", str(folder), repo_id, *["--private"] * private])
    again = f"The run is complete in {folder}; try again with: {command}"
    try:
        url = api.create_repo(repo_id, private=private, exist_ok=True)
        there = api.list_repo_files(repo_id)
        if CARD in there and CARD in names:
            text = rewritten.get(CARD, (folder / CARD).read_bytes()).decode()
            rewritten[CARD] = _licensed(text, Path(api.hf_hub_download(repo_id, CARD))).encode()
        added = [CommitOperationAdd(name, rewritten.get(name, str(folder / name))) for name in names]
        stale = [name for name in there if _is_written(name) and name not in names]
        deleted = [CommitOperationDelete(path_in_repo=name) for name in stale]
        api.create_commit(repo_id, [*added, *deleted], commit_message="Upload with hf_lm")
    except OfflineModeIsEnabled:
        raise ConnectionError(f"the Hub was not reached: HF_HUB_OFFLINE is set. {again}") from None
    except HfHubHTTPError as error:
        status = error.response.status_code if error.response is not None else None
        reasons = {401: "the token was not accepted", 403: "the token may not write there"}
        reason = (
            reasons.get(status or 0) or getattr(error, "server_message", None) or str(error).strip().splitlines()[0]
        )
        raise ConnectionError(f"the Hub answered {status or 'nothing'}: {_one_line(reason, token)}. {again}") from None
    except KeyError:  # a conflict that does not name the repository it is with
        raise ConnectionError(f"the Hub answered 409: {repo_id} cannot be made there now. {again}") from None
    except Exception as error:  # connections end in many ways, each with an exception of its own
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        if isinstance(error.__cause__, HfHubHTTPError) and error.__cause__.response is not None:
            reason += f" The answer was {error.__cause__.response.status_code}."
        raise ConnectionError(f"the upload broke off ({_one_line(reason, token)}). {again}") from None
    if stale:
        print(f"deleted in {repo_id}, as this run has none: {', '.join(stale)}", file=sys.stderr)
    return str(url)


def _licensed(text: str, there: Path) -> str:
    """A card with the licence of the one that it replaces, where it names none: it may have been given on the Hub."""
    from huggingface_hub import metadata_load

    try:
        old, own = metadata_load(there) or {}, yaml.safe_load(re.split(r"(?m)^---$", text)[1]) or {}
    except (ValueError, IndexError, yaml.YAMLError):
        return text  # no metadata in one of the two
    licence = {key: value for key, value in old.items() if key.startswith("license")}
    if not licence or "license" in own:
        return text
    lines = yaml.safe_dump(licence, sort_keys=False, allow_unicode=True)
    return re.sub(r"\A---\n(# license: .*\n)?", lambda _: f"---\n{lines}", text)


def check_repository(repo_id: str, token: str | None = None) -> str:
    """The token to push to a repository with: the one given, or the one that this machine has.

    Nothing is asked of the Hub. Raises ValueError for a name that cannot be a repository, or where there is no token.
    """
    from huggingface_hub import get_token
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(repo_id)
    except HFValidationError as error:
        raise ValueError(f"{repo_id!r} cannot be a repository: {error}") from None
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", repo_id):
        raise ValueError(f"{repo_id!r} names no repository; give user/name.")
    token = token or get_token()
    if not token:
        raise ValueError("there is no Hub token: run `hf auth login` or set HF_TOKEN.")
    return token


def _one_line(text: str, token: str) -> str:
    return " ".join(text.replace(token, "***").split())


def check_complete(folder: Path) -> None:
    """Raise ValueError or FileNotFoundError if a folder does not hold a model that others could load."""
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}.")
    adapter = (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file()
    weights = "adapter_model.safetensors" if adapter else "model.safetensors"
    needed = ["adapter_config.json" if adapter else "config.json", "tokenizer_config.json"]
    missing = [name for name in needed if not (folder / name).is_file()]
    if not list(folder.glob(weights.replace(".", "*.", 1))):
        missing.append(weights)
    for place in filter(Path.is_dir, (folder, folder / "target_tokenizer")):
        if not any(any(place.glob(name)) for name in VOCABULARY):
            missing.append((place / "tokenizer.json").relative_to(folder).as_posix())
    if missing:
        raise ValueError(f"{folder} holds no complete model: {', '.join(missing)} missing. Did the run end?")
    if damaged := unreadable(folder, published(folder)):
        raise ValueError(f"{folder} holds no complete model: {'; '.join(damaged[:3])}.")
    if adapter and (base := _local_base(folder)):
        raise ValueError(
            f"{folder} is an adapter of {base}, a folder of this machine that others do not have: push the merged "
            f"model (hf-lm merge {shlex.quote(str(folder))}), or set base_model_name_or_path to its name on the Hub."
        )
    if not adapter:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        if config.get("auto_map") not in (None, {}, OUR_CODE):
            raise ValueError(
                f"{folder} needs code of its own (auto_map in config.json), which hf-lm does not publish."
            )


def check_finished(folder: Path) -> None:
    """Raise ValueError where a run's folder is not what one run left at its end. A folder of no run passes.

    report.json is written last: it names the files of the run with their SHA-256, and the arguments of run.yaml.
    """
    run, report = read_run(folder), read_report(folder)
    if run is None and report is None:
        return
    if report is None:
        raise ValueError(f"{folder} has a run.yaml and no report.json: its run did not end.")
    wrong = differences(folder, run, report)
    proofs = proofs if isinstance(proofs := report.get("proofs"), dict) else {}
    passed = {name: proof.get("passed") if isinstance(proof, dict) else False for name, proof in proofs.items()}
    wrong += [f"the proof {name} failed" for name, holds in passed.items() if holds is False]
    if "load_back" not in proofs:
        wrong.append("no proof says that it loads (load_back)")
    if wrong:
        raise ValueError(f"{folder} is not what one run left at its end: {'; '.join(wrong[:3])}. Run it again.")


def published(folder: Path) -> list[Path]:
    """The files of a folder that a push uploads: those that a run writes. Raises ValueError for symbolic links."""
    parts = PARTS[:2] if _local_base(folder / "adapter") else PARTS
    files = [path for path in sorted(folder.rglob("*")) if _is_written(path.relative_to(folder).as_posix(), parts)]
    places = [folder / name for name in ("plots", *filter(None, parts))]
    links = [path.relative_to(folder).as_posix() for path in [*places, *files] if path.is_symlink()]
    if links:
        raise ValueError(
            f"{folder} has symbolic links, which are not followed: {', '.join(links[:5])}. Copy the files."
        )
    return [path for path in files if path.is_file()]


def _is_written(name: str, parts: Sequence[str] = PARTS) -> bool:
    """Whether a run writes a file of this name, in one of these folders or as its own."""
    patterns = [*(f"{part}{file}" for part in parts for file in MODEL), *RUN]
    return any(name.count("/") == pattern.count("/") and fnmatch(name, pattern) for pattern in patterns)


def _local_base(adapter: Path) -> str:
    """The base of an adapter where it is a folder of this machine, which others do not have; else ""."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    base = ""
    try:
        base = json.loads((adapter / "adapter_config.json").read_text(encoding="utf-8"))["base_model_name_or_path"]
        validate_repo_id(base)
    except HFValidationError:
        return base
    except (OSError, ValueError, KeyError, TypeError):
        return ""  # there is no adapter
    return base if Path(base).exists() else ""


def as_published(folder: Path, uploaded: list[str], repo_id: str = "") -> dict[str, bytes]:
    """run.yaml, report.json and README.md where they differ when published: without absolute paths of this machine.

    The report then records the files that are uploaded and no others. A path that is an argument is shortened to its
    last part; any other to the part after the folder of the run, the working directory or the home directory.
    The card's command that runs again names `repo_id`, where readers of the card find the run.
    """
    run, report = read_run(folder) or {}, read_report(folder) or {}
    names = {f"{Path.home()}": "~"}
    for root in (folder.resolve().parent, Path.cwd()):
        names |= {f"{root}/": "", str(root): root.name}
    for text in _strings([run, report.get("arguments", {})]):
        names |= {path: Path(path).name for path in _paths(text)}
    names = {path: name for path, name in names.items() if len(Path(path).parts) > 1}
    # The longest first, and none that is the beginning of another name.
    ends = [re.escape(path) + r"(?![\w-]|\.\w)" * (path[-1] != "/") for path in sorted(names, key=len, reverse=True)]
    pattern = rf"(?<![\w./~-])(?:{'|'.join(ends)})"

    def rewrite(value: object) -> Any:
        if isinstance(value, str):
            return re.sub(pattern, lambda match: names[match[0]], value)
        if isinstance(value, dict):
            return {rewrite(key): rewrite(item) for key, item in value.items()}
        return [rewrite(item) for item in value] if isinstance(value, list) else value

    changed = {}
    if (rewritten := rewrite(run)) != run:
        lines = (folder / "run.yaml").read_text(encoding="utf-8").splitlines(keepends=True)
        comment = "".join(itertools.takewhile(lambda line: line.startswith("#"), lines))
        changed["run.yaml"] = (comment + yaml.safe_dump(rewritten, sort_keys=False, allow_unicode=True)).encode()
    rewritten = rewrite(report)
    if "files" in rewritten:
        rewritten["files"] = {name: entry for name, entry in rewritten["files"].items() if name in uploaded}
    if "run.yaml" in changed and "run.yaml" in rewritten.get("files", {}):
        content = changed["run.yaml"]
        rewritten["files"]["run.yaml"] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    if rewritten != report:
        changed["report.json"] = (json.dumps(rewritten, indent=2, ensure_ascii=False) + "\n").encode()
    card = folder / "README.md"
    text = card.read_text(encoding="utf-8") if card.is_file() else ""
    published_text = rewrite(text)
    if repo_id:
        published_text = re.sub(r"(?m)^hf-lm reproduce .*$", f"hf-lm reproduce {repo_id}", published_text)
    if published_text != text:
        changed["README.md"] = published_text.encode()
    return changed


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict | list):
        for item in value.values() if isinstance(value, dict) else value:
            yield from _strings(item)


def _paths(text: str) -> list[str]:
    """The absolute paths in an argument, of two parts at least: "/think" may be text."""
    if Path(text).is_absolute() and "\n" not in text:
        paths = [text]
    else:
        paths = re.findall(r"(?<![^\s:=,;@])/(?!/)[^\s:=,;@]+", text)
    return [path.rstrip("/") for path in paths if len(Path(path).parts) > 2]
