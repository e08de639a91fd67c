"""The shape of a results file, and a check against it that needs no library.

``result-1.json`` is a JSON Schema for other tools and for the tests. ``mismatch`` looks at the
keywords that keep a report from failing on a damaged file: types, required fields, constants,
choices and lower limits. It lets unknown fields pass, as a later version may add some.
"""

from __future__ import annotations

import json
from functools import cache
from importlib import resources
from typing import Any

FORMAT = 1

_TYPES: dict[str, tuple[type, ...]] = {
    "object": (dict,),
    "array": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "number": (int, float),
    "null": (type(None),),
}


@cache
def schema() -> dict[str, Any]:
    """The JSON Schema of one line of a results file of this format."""
    text = (resources.files(__name__) / f"result-{FORMAT}.json").read_text("utf-8")
    loaded: dict[str, Any] = json.loads(text)
    return loaded


def mismatch(kind: str, record: object) -> str | None:
    """The first thing wrong with a ``run``, ``case`` or ``end`` record, with its place; or None."""
    return _mismatch(schema()["$defs"][kind], record, kind)


def _mismatch(node: dict[str, Any], value: object, place: str) -> str | None:
    if "$ref" in node:
        return _mismatch(schema()["$defs"][node["$ref"].rpartition("/")[2]], value, place)
    if "type" in node and not _has_type(value, node["type"]):
        return f"{place} is {_shown(value)}; allowed: {_shown(node['type'])}"
    allowed = node.get("enum", [node["const"]] if "const" in node else None)
    if allowed is not None and value not in allowed:
        return f"{place} is {_shown(value)}; allowed: {', '.join(map(str, allowed))}"
    if isinstance(value, int | float) and value < node.get("minimum", value):
        return f"{place} is {value}; allowed: {node['minimum']} or more"
    return _inside(node, value, place)


def _inside(node: dict[str, Any], value: object, place: str) -> str | None:
    if isinstance(value, dict):
        return _object(node, value, place)
    if not isinstance(value, list):
        return None
    if len(value) < node.get("minItems", 0):
        return f"{place} has {len(value)} items; allowed: {node['minItems']} or more"
    item = node.get("items", {})
    checked = (_mismatch(item, each, f"{place}[{at}]") for at, each in enumerate(value))
    return next((problem for problem in checked if problem), None)


def _object(node: dict[str, Any], value: dict[str, Any], place: str) -> str | None:
    for name in node.get("required", ()):
        if name not in value:
            return f"{place}.{name} is missing"
    known = node.get("properties", {}).items()
    checked = (
        _mismatch(each, value[name], f"{place}.{name}") for name, each in known if name in value
    )
    return next((problem for problem in checked if problem), None)


def _has_type(value: object, allowed: str | list[str]) -> bool:
    names = [allowed] if isinstance(allowed, str) else allowed
    if isinstance(value, bool):
        return "boolean" in names
    return isinstance(value, tuple(each for name in names for each in _TYPES[name]))


def _shown(value: object) -> str:
    return json.dumps(value)[:60]
