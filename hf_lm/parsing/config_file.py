"""The YAML file of `--config`: keys and plain values, each of the kind that its argument takes."""

import json
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml
from yaml.composer import ComposerError
from yaml.constructor import ConstructorError

from hf_lm.parsing.suggestions import did_you_mean

LARGEST = 100_000  # bytes: a run.yaml has some thousand, and PyYAML reads 100 kB in a second
SCALARS = {str: "text", int: "an integer", float: "a number", bool: "true or false"}


class _Loader(yaml.SafeLoader):
    """Refuses aliases, which let a few lines expand to gigabytes, and keys that are given twice or are not plain."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        if self.check_event(yaml.AliasEvent):
            raise ComposerError(
                None, None, "an alias (*name) is not supported; write the value out", self.peek_event().start_mark
            )
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys: set[str] = set()
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ConstructorError(None, None, "a key must be plain text", key.start_mark)
            if key.value in keys:
                problem = f"the key {key.value!r} occurs twice; keep one"
                raise ConstructorError(None, None, problem, key.start_mark)
            keys.add(key.value)
        return super().construct_mapping(node, deep=True)


def read_config(path: str) -> dict[str, Any]:
    """The values by key. Raises FileNotFoundError, OSError or ValueError, in one line that names the file."""
    file = Path(path)
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        near = sorted(str(p) for p in file.parent.glob("*.y*ml")) if file.parent.is_dir() else []
        raise FileNotFoundError(f"--config: there is no file {path}.{did_you_mean(path, near)}") from None
    if len(data) > LARGEST:
        raise ValueError(f"{path} has {len(data):,} bytes; a file for --config has at most {LARGEST:,}.")
    try:
        values = yaml.load(data.decode("utf-8-sig"), Loader=_Loader)
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {data[error.start]:#x} at {error.start}).") from None
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{path}, line {mark.line + 1}" if mark else path
        raise ValueError(f"{where}: not valid YAML: {getattr(error, 'problem', None) or error}") from None
    except RecursionError:
        raise ValueError(f"{path}: not valid YAML: its values are nested too deeply.") from None
    except ValueError as error:  # of a number with thousands of digits, or a date that does not exist
        raise ValueError(f"{path}: not valid YAML: {error}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected lines of `key: value`, got a {type(values).__name__}.")
    return {str(key): value for key, value in values.items()}


def _members(kind: object) -> list[Any]:
    """The members of a union; a type itself otherwise."""
    if get_origin(kind) is Annotated:
        return _members(get_args(kind)[0])
    if get_origin(kind) in (Union, UnionType):
        return [member for each in get_args(kind) for member in _members(each)]
    return [kind]


def _takes(kind: object, container: type) -> bool:
    return any((get_origin(member) or member) is container for member in _members(kind))


def check_kind(name: str, value: object, kind: object) -> None:
    """Raise ValueError where a value from YAML is not of its argument's kind: null, a list, a mapping or one value."""
    if value is None:
        if type(None) not in _members(kind):
            raise ValueError(f"{name} is null; leave the key out for its default, or give {_wanted(kind)}.")
    elif isinstance(value, dict):
        if not _takes(kind, dict):
            raise ValueError(f"{name} is a mapping; it must be {_wanted(kind)}.")
        try:
            json.dumps(value)
        except (TypeError, ValueError):
            raise ValueError(f"{name} holds a value that is neither text, a number, a list nor a mapping.") from None
    elif isinstance(value, list):
        if not _takes(kind, list):
            raise ValueError(f"{name} is a list; it must be {_wanted(kind)}.")
        if strange := [item for item in value if not isinstance(item, str | int | float)]:
            raise ValueError(f"{name} holds {strange[0]!r:.40}; each item must be text or a number.")
    elif isinstance(value, bytes | set | tuple):
        raise ValueError(f"{name} is a {type(value).__name__} of YAML; it must be {_wanted(kind)}.")


def check_text(name: str, value: object, kind: object) -> None:
    """Raise ValueError for text that cannot be what its argument takes: NUL, an unknown choice, JSON that is not."""
    if not isinstance(value, str):
        return
    if "\0" in value:
        raise ValueError(f"{name} holds a NUL character.")
    for member in _members(kind):
        if isinstance(member, type) and issubclass(member, Enum):
            choices = [str(each.value) for each in member]
            if value not in choices:
                hint = did_you_mean(value, choices)
                raise ValueError(f"{name} is {value!r}; there are {', '.join(choices)}.{hint}")
    if value.startswith("{") and _takes(kind, dict):
        try:
            json.loads(value)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"{name} is not valid JSON: {error}.") from None


def _wanted(kind: object) -> str:
    words = ["a list"] if _takes(kind, list) else []
    for member in _members(kind):
        words += [str(choice) for choice in get_args(member)] if get_origin(member) is Literal else []
        words += [SCALARS[member]] if member in SCALARS else []
    return " or ".join(words) or "one value"
