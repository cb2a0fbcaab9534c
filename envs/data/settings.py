"""Settings that a person wrote become a frozen dataclass, checked by its annotations before anything runs.

What YAML and a command line cannot tell apart is accepted: `1.0` and `1e6` for a whole number, `20240501` for a text.
Everything else is a ValueError of one line that names the setting, its value and what is expected.
"""

from __future__ import annotations

import difflib
import math
import types
import typing
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

T = TypeVar("T")
LISTS = (list, tuple, Sequence)  # annotations of several values
PLAIN = {int: "a whole number", float: "a number", str: "text", bool: "true or false", Path: "a path"}


def from_settings(kind: type[T], settings: Mapping[str, Any], within: str = "") -> T:
    """The dataclass `kind` from a mapping of settings; nested dataclasses from nested mappings.

    within: where the settings stand, such as `policy.planner`, so that an error names them as they were written.
    """
    if not isinstance(settings, Mapping):
        raise _wrong(within or kind.__name__, settings, "settings by name")
    annotations = typing.get_type_hints(kind)
    known = [f for f in fields(kind) if f.init]
    names = [f.name for f in known]
    for name in settings:
        if name not in names:
            raise ValueError(
                f"{kind.__name__} has no setting `{_full(within, name)}`{closest(name, names)}; "
                f"it has {', '.join(sorted(names)) or 'none'}"
            )
    for f in known:
        if f.name not in settings and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"the setting `{_full(within, f.name)}` is missing ({kind.__name__} needs it)")
    return kind(**{name: convert(annotations[name], value, _full(within, name)) for name, value in settings.items()})


def closest(name: object, known: Iterable[str]) -> str:
    """`, did you mean ...?` for a mistyped name, or nothing where no known name is like it."""
    found = difflib.get_close_matches(str(name), list(known), n=1)
    return f", did you mean `{found[0]}`?" if found else ""


def convert(kind: Any, value: Any, name: str) -> Any:
    """`value` as the annotation `kind` wants it. ValueError with the setting's `name` where it cannot be that."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return _convert_union(kind, arguments, value, name)
    if origin is Literal:
        same = [choice for choice in arguments if choice == value and type(choice) is type(value)]
        if not same:
            raise _wrong(name, value, describe(kind), closest(value, map(str, arguments)))
        return same[0]
    if (origin or kind) in LISTS:
        return _convert_list(kind, arguments, value, name)
    if (origin or kind) in (Mapping, dict):
        if not isinstance(value, Mapping):
            raise _wrong(name, value, describe(kind))
        inner = arguments[1] if arguments else Any
        return {key: convert(inner, entry, _full(name, key)) for key, entry in value.items()}
    if is_dataclass(kind):
        return value if isinstance(value, kind) else from_settings(kind, value, name)
    if kind is type(None) and value is not None:
        raise _wrong(name, value, describe(kind))
    if kind in PLAIN:
        return _convert_plain(kind, value, name)
    return value  # an object that the program itself hands in, such as a function


def _convert_plain(kind: type, value: Any, name: str) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is bool and isinstance(value, bool):
        return value
    if kind is int and number and math.isfinite(value) and value == int(value):
        return int(value)
    if kind is float and number and not math.isnan(value):
        return float(value)
    if kind in (str, Path):
        if isinstance(value, str | Path) or (number and isinstance(value, int)):
            return kind(value if isinstance(value, Path) else str(value))
        if isinstance(value, bool | float):  # `1e6` and `true` were read as values; how they were written is lost
            raise _wrong(name, value, describe(kind), f"; put it in quotes: '{name.split('.')[-1]}=\"...\"'")
    raise _wrong(name, value, describe(kind))


def _convert_list(kind: Any, arguments: tuple[Any, ...], value: Any, name: str) -> Any:
    if isinstance(value, str):
        raise _wrong(name, value, describe(kind), f"; write {name.split('.')[-1]}=[{value}]")
    if not isinstance(value, Sequence):
        raise _wrong(name, value, describe(kind))
    if not arguments:
        inner = [Any] * len(value)
    elif arguments[-1] is Ellipsis or typing.get_origin(kind) is not tuple:
        inner = [arguments[0]] * len(value)
    else:
        inner = list(arguments)
    if len(inner) != len(value):
        raise _wrong(name, value, describe(kind))
    made = (convert(each, entry, f"{name}[{i}]") for i, (each, entry) in enumerate(zip(inner, value, strict=True)))
    return list(made) if (typing.get_origin(kind) or kind) is list else tuple(made)


def _convert_union(kind: Any, arguments: tuple[Any, ...], value: Any, name: str) -> Any:
    if value is None and type(None) in arguments:
        return None
    others = [each for each in arguments if each is not type(None)]
    if len(others) == 1:  # optional: the error of the one type says more than that of the union
        if others[0] in PLAIN and value is not None:
            try:
                return convert(others[0], value, name)
            except ValueError:
                raise _wrong(name, value, describe(kind)) from None
        return convert(others[0], value, name)
    for each in sorted(others, key=lambda each: each is not type(value)):  # the type that it has already comes first
        try:
            return convert(each, value, name)
        except ValueError:
            continue
    raise _wrong(name, value, describe(kind))


def describe(kind: Any) -> str:
    """What an annotation expects, for a person."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (Union, types.UnionType):
        return " or ".join(describe(each) for each in arguments)
    if origin is Literal:
        return f"one of {', '.join(map(str, arguments))}"
    if (origin or kind) in LISTS:
        if not arguments or arguments[-1] is Ellipsis or origin is not tuple:
            return f"a list, each {describe(arguments[0])}" if arguments else "a list"
        return f"a list of {len(arguments)}: {', '.join(describe(each) for each in arguments)}"
    if kind is type(None):
        return "null"
    if (origin or kind) in (Mapping, dict) or is_dataclass(kind):
        return "settings by name"
    return PLAIN.get(kind, getattr(kind, "__name__", str(kind)))


def _wrong(name: str, value: Any, expected: str, hint: str = "") -> ValueError:
    shown = "null" if value is None else str(value).lower() if isinstance(value, bool) else repr(value)
    return ValueError(f"`{name}` must be {expected}, got {shown}{hint}")


def _full(within: str, name: object) -> str:
    return f"{within}.{name}" if within else str(name)
