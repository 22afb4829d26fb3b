"""Classes that a table holds as numbers, under the names that `datasets` keeps beside it."""

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from datasets import Features
    from pyarrow import Schema

Names = dict[str, list[str]]  # of the classes of a column


def names_in_features(features: "Features") -> Names:
    """Of a dataset's columns of class labels, and of lists of them."""
    kinds = {column: getattr(kind, "feature", kind) for column, kind in features.items()}
    return {column: kind.names for column, kind in kinds.items() if hasattr(kind, "names")}


def names_in_schema(schema: "Schema") -> Names:
    """The same of a file that `datasets` wrote, .parquet or .arrow; {} of any other."""
    try:
        features = json.loads((schema.metadata or {})[b"huggingface"])["info"]["features"]
    except (KeyError, TypeError, ValueError):
        return {}
    kinds = {column: kind.get("feature", kind) for column, kind in features.items() if isinstance(kind, dict)}
    return {column: kind["names"] for column, kind in kinds.items() if kind.get("_type") == "ClassLabel"}


def with_names(row: Mapping[str, Any], names: Names) -> dict[str, Any]:
    """A row with class labels, and lists of them, as their names; None for -1, which is none."""
    return {**row, **{column: _named(row[column], names[column]) for column in names if column in row}}


def _named(label: object, names: Sequence[str]) -> Any:
    if isinstance(label, list):
        return [_named(each, names) for each in label]
    if not isinstance(label, int):
        return label
    return names[label] if 0 <= label < len(names) else None
