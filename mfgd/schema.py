"""Which keys a function takes, as its annotations say, and the check of their values."""

from __future__ import annotations

import inspect
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from typing import Any, Unpack, get_args, get_origin, get_type_hints

from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from mfgd.types import Refused

Values = dict[str, Any]
"""Key → value, as a config has it."""
STRICT = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)
_WORDING = (
    ("Input should be", "must be"),
    ("String should", "must"),
    ("List should", "must"),
    ("a valid integer", "an integer"),
    ("a valid ", "a "),
    ("greater than or equal to", "at least"),
    ("less than or equal to", "at most"),
)
"""What pydantic says, and what mfgd says instead."""
LARGEST = 2**63 - 1
"""The largest whole number of an array."""
NUMBER = r"[+-]?(\d+[.]?\d*|[.]\d+)([eE][+-]?\d+)?"


@cache
def keys_of(
    function: Callable[..., Any],
    own: Callable[..., Any] | None = None,
    given: tuple[str, ...] = (),
    *,
    keyword_only: bool = False,
) -> type[BaseModel]:
    """Returns a model of the keys that a function takes.

    Args:
        function: an option's own function or a user's function.
        own: the function of the option that a user's function stands in for. A user's function
            with a bare ``**keywords`` takes the given keys that `own` takes.
        given: the names of the keys that the config gives.
        keyword_only: whether only the function's keyword-only parameters are keys.
    """
    fields = _fields(function, keyword_only)
    if own is not None and _takes_any_keyword(function):
        inherited = _fields(own)
        for key in given:
            if key in inherited and key not in fields:
                fields[key] = inherited[key]
    return create_model("Keys", __config__=STRICT, **fields)


def _fields(function: Callable[..., Any], keyword_only: bool = False) -> Values:
    """Returns key → (annotation, default); a default of ``...`` means that the key is required."""
    hints = _find_hints(function)
    fields: Values = {}
    for parameter in inspect.signature(function).parameters.values():
        hint: Any = hints.get(parameter.name, Any)
        by_position = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and not keyword_only
        if parameter.kind is parameter.KEYWORD_ONLY or by_position:
            required = parameter.default is parameter.empty
            fields[parameter.name] = (hint, ... if required else parameter.default)
        elif get_origin(hint) is Unpack:
            # PEP 692: **keywords: Unpack[SomeTypedDict] takes the fields of SomeTypedDict.
            shared = get_type_hints(get_args(hint)[0], include_extras=True)
            fields |= {key: (field, ...) for key, field in shared.items()}
    return fields


def _find_hints(function: Any) -> Values:
    """The annotations of a function, of what a partial binds, or of an object that is called."""
    while isinstance(function, partial):
        function = function.func
    if not hasattr(function, "__annotations__"):
        function = function.__call__
    return get_type_hints(function, include_extras=True)


def _takes_any_keyword(function: Callable[..., Any]) -> bool:
    hints = _find_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            return get_origin(hints.get(parameter.name)) is not Unpack
    return False


def check(
    model: type[BaseModel], values: Mapping[str, object], prefix: str = "", where: str = ""
) -> Values:
    """Returns the value of every key of a model, in the model's order.

    Args:
        model: the keys and what is allowed.
        values: the values given.
        prefix: stands before the key in a message, such as ``loss.``.
        where: stands behind the allowed keys in a message.

    Raises:
        Refused: if a key is unknown, a value is missing or a value is not allowed.
    """
    try:
        checked = model.model_validate(dict(values))
    except ValidationError as errors:
        raise Refused(_explain(errors, model, values, prefix, where)) from None
    given = {key: getattr(checked, key) for key in model.model_fields}
    for key, value in given.items():
        for number in _list_numbers(value):
            if reason := _say_what_is_lost(number):
                raise Refused(f"{prefix}{key}={as_written(value)}: {reason}")
    return given


def _list_numbers(value: object) -> Iterator[object]:
    """A value, or what is in its lists."""
    if isinstance(value, list):
        for item in value:
            yield from _list_numbers(item)
    else:
        yield value


def _say_what_is_lost(number: object) -> str:
    """Why arithmetic would take a number for another one; empty if it would not."""
    if isinstance(number, int) and abs(number) > LARGEST:
        return f"must be within ±{LARGEST}"
    if isinstance(number, float) and 0 < abs(number) < sys.float_info.min:
        return f"mfgd rounds it to 0; must be at least {sys.float_info.min:.3g}"
    return ""


def _explain(
    invalid: ValidationError,
    model: type[BaseModel],
    values: Mapping[str, object],
    prefix: str,
    where: str,
) -> str:
    errors = invalid.errors()
    error = errors[0]
    if any(isinstance(each["input"], list) for each in errors):
        error = errors[-1]  # the list is the last member of a union
    key = str(error["loc"][0])
    known = ", ".join(model.model_fields) or "none"
    if error["type"] == "missing":
        return f"{prefix}{key}: has no value; needed are {known}"
    if error["type"] == "extra_forbidden":
        return f"{prefix}{key}={values[key]}: no such key; allowed are {known}{where}"
    message = error["msg"]
    for theirs, ours in _WORDING:
        message = message.replace(theirs, ours)
    value = values[key]
    return f"{prefix}{key}={as_written(value)}: {message}{_say_how(f'{prefix}{key}', value, error)}"


def _say_how(key: str, value: object, error: Mapping[str, Any]) -> str:
    """How to write a value that YAML reads as of another type than is meant."""
    numbers = error["type"] in ("int_type", "float_type")
    if error["type"] == "string_type" and isinstance(value, bool | int | float):
        quoted = f'{key}="{as_written(value)}"'
        return f"; write {shlex.quote(quoted)}"
    if numbers and isinstance(value, str) and re.fullmatch(NUMBER, value):
        return f"; quotes make it text, write {key}={value}"
    if error["type"] == "int_type" and isinstance(value, float) and value.is_integer():
        return f"; write {key}={int(value)}"
    return ""


def as_written(value: object) -> str:
    """A value as it is written on the shell line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return str(value)
