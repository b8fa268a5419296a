"""Plain values, as a YAML or JSON file holds them, and dataclasses; nothing is guessed."""

import contextlib
import dataclasses
import difflib
import math
import re
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Literal

import yaml

from tokenwm.errors import TokenwmError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, for which ``2e-2`` is a number, too."""


class _Dumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which puts the text ``2e-2`` into quotes, too."""


for _kind in (_Loader, _Dumper):
    # PyYAML knows YAML 1.1, where a float needs a dot and its exponent a sign. This is the float
    # of YAML 1.2.
    _kind.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+\Z"),
        list("-+.0123456789"),
    )


def parse_yaml(text: str) -> Any:
    """Plain values of a YAML text; every notation of a number is a number (``2e-2``, ``1e3``).

    The loader for sweeps and ``KEY=VALUE`` of the command line. Recipes are read by OmegaConf and
    training configs by jsonargparse, whose loaders agree; a test says so.

    Raises:
        yaml.YAMLError: It is no YAML, or asks for an object of Python.
    """
    return yaml.load(text, Loader=_Loader)


def dump_yaml(values: Any) -> str:
    """The YAML text of plain values, keys in their order; :func:`parse_yaml` reads the same."""
    return yaml.dump(values, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


def key_values(
    option: str, texts: Iterable[str], parse: Callable[[str], Any] = parse_yaml
) -> dict[str, Any]:
    """``KEY=VALUE`` texts of an option of the command line as a dictionary.

    Args:
        option: For messages, such as ``--set``.
        texts: As given.
        parse: Makes a value of its text.

    Raises:
        TokenwmError: A text is no ``KEY=VALUE``, or a key comes twice.
    """
    result: dict[str, Any] = {}
    for text in texts:
        key, _, value = text.partition("=")
        if not (key and value):
            raise TokenwmError(f"{option} {text!r}: expected KEY=VALUE")
        if key in result:
            raise TokenwmError(f"{option} names '{key}' twice")
        try:
            result[key] = parse(value)
        except yaml.YAMLError as error:
            raise TokenwmError(f"{option} {text!r}: the value cannot be read: {error}") from error
    return result


def build(hint: Any, value: Any, where: str = "", *, allow_defaults: bool) -> Any:
    """Check a plain value against an annotation: no text becomes a number, no key is ignored.

    Args:
        hint: A dataclass, or an annotation of one of its fields.
        value: The value. What is a dataclass already is taken as it is.
        where: Its dotted place in the file; empty for the whole of it.
        allow_defaults: Whether a key may be missing if its field has a default.

    Returns:
        What the annotation says.

    Raises:
        TokenwmError: An unknown or missing key, a wrong type or an impossible value. It names the
            place and what is allowed; the caller adds the file.
    """

    def inner(kind: Any, item: Any, place: str) -> Any:
        return build(kind, item, place, allow_defaults=allow_defaults)

    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any or dataclasses.is_dataclass(value):
        return value
    if dataclasses.is_dataclass(hint):
        values = _checked_keys(hint, value, where, allow_defaults)
        hints = typing.get_type_hints(hint)
        parts = {key: inner(hints[key], item, _below(where, key)) for key, item in values.items()}
        try:
            return hint(**parts)  # type: ignore[operator]
        except TokenwmError as error:
            raise TokenwmError(_below(where, str(error))) from error
    if origin in (types.UnionType, typing.Union):
        if value is None and type(None) in arguments:
            return None
        choices = [kind for kind in arguments if kind is not type(None)]
        if len(choices) == 1:
            return inner(choices[0], value, where)
        for kind in choices:
            with contextlib.suppress(TokenwmError):
                return inner(kind, value, where)
        raise TokenwmError(f"{where} is {show(value)}; expected {_describe(hint)}")
    if origin is Literal and value in arguments:
        return value
    if origin in (list, tuple) and isinstance(value, list):
        same = origin is list or arguments[-1] is Ellipsis
        kinds = arguments[:1] * len(value) if same else arguments
        if len(kinds) == len(value):
            pairs = enumerate(zip(kinds, value, strict=True))
            return origin(inner(kind, item, f"{where}[{index}]") for index, (kind, item) in pairs)
    if origin is dict and isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {key: inner(arguments[1], item, _below(where, key)) for key, item in value.items()}
    if hint is float and type(value) in (int, float):
        return float(value)
    # 1e6, which people write for a million. What a program wrote is what it says.
    if hint is int and allow_defaults and type(value) is float and value.is_integer():
        return int(value)
    # In Python True is an int; in a file it is not.
    if hint in (bool, int, str) and type(value) is hint:
        return value
    raise TokenwmError(f"{where} is {show(value)}; expected {_describe(hint)}")


def plain(value: Any, without: Collection[str] = ()) -> Any:
    """Values as JSON holds them: dicts, lists, and None in place of a number that is not finite.

    Args:
        value: A dataclass gives its fields and the properties that its ``DERIVED`` names; an array
            gives a list.
        without: Fields of dataclasses that are left out.
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [item.name for item in dataclasses.fields(value)]
        names = [name for name in (*names, *getattr(value, "DERIVED", ())) if name not in without]
        return {name: plain(getattr(value, name), without) for name in names}
    if isinstance(value, Mapping):
        return {str(key): plain(item, without) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, without) for item in value]
    if hasattr(value, "tolist"):
        return plain(value.tolist(), without)
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def from_plain(hint: Any, value: Any) -> Any:
    """Make a value of what :func:`plain` made of it; not for files that people write.

    Args:
        hint: A dataclass, or an annotation of one of its fields. Arrays are float64.
        value: The plain value; None stays None, and is NaN in an array.

    Raises:
        KeyError, TypeError, ValueError, AttributeError: It does not fit the annotation.
    """
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if value is None or hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        hints = typing.get_type_hints(hint)
        names = [item.name for item in dataclasses.fields(hint)]
        return hint(**{name: from_plain(hints[name], value[name]) for name in names})  # type: ignore[operator]
    if origin is types.UnionType:
        return from_plain(arguments[0], value)
    if origin is tuple:
        return tuple(from_plain(arguments[0], item) for item in value)
    if origin is Mapping:
        return {str(key): from_plain(arguments[1], item) for key, item in value.items()}
    if getattr(origin, "__name__", "") == "ndarray":
        import numpy as np  # not at the top: help texts are read without it

        return np.array(value, dtype=np.float64)
    return hint(value)


def show(value: Any) -> str:
    """A value and its type, for a message."""
    return f"{str(value)[:60]!r} ({'null' if value is None else type(value).__name__})"


def _below(where: str, rest: str) -> str:
    return f"{where}.{rest}" if where else rest


def _checked_keys(hint: Any, value: Any, where: str, allow_defaults: bool) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise TokenwmError(f"{where or 'the file'} is {show(value)}; expected keys and values")
    known = {item.name: item for item in dataclasses.fields(hint) if item.metadata.get("key", True)}
    for key in value:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            guess = f"did you mean '{_below(where, near[0])}'? " if near else ""
            raise TokenwmError(
                f"unknown key '{_below(where, str(key))}'; {guess}valid keys there: "
                + ", ".join(sorted(known))
            )
    for name, item in known.items():
        has_default = (item.default, item.default_factory) != (dataclasses.MISSING,) * 2
        if name not in value and not (has_default and allow_defaults):
            raise TokenwmError(f"'{_below(where, name)}' is missing")
    return value


def _describe(hint: Any) -> str:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    simple = {
        type(None): "null",
        str: "text",
        int: "a whole number",
        float: "a number",
        bool: "true or false",
    }
    if hint in simple:
        return simple[hint]
    if origin is Literal:
        return "one of " + ", ".join(map(str, arguments))
    if origin is tuple and arguments[-1] is not Ellipsis:
        return f"a list of {len(arguments)} entries, each {_describe(arguments[0])}"
    if origin in (list, tuple):
        return f"a list, each entry {_describe(arguments[0])}"
    if origin in (types.UnionType, typing.Union):
        return " or ".join(_describe(kind) for kind in arguments)
    if origin is dict:
        return f"keys and values, each {_describe(arguments[1])}"
    return "keys and values"
