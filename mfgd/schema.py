"""Which keys a function takes, as its annotations say, and the check of their values."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import cache
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
    hints = get_type_hints(function, include_extras=True)
    fields: Values = {}
    for parameter in inspect.signature(function).parameters.values():
        hint = hints.get(parameter.name, Any)
        by_position = parameter.kind is parameter.POSITIONAL_OR_KEYWORD and not keyword_only
        if parameter.kind is parameter.KEYWORD_ONLY or by_position:
            required = parameter.default is parameter.empty
            fields[parameter.name] = (hint, ... if required else parameter.default)
        elif get_origin(hint) is Unpack:
            # PEP 692: **keywords: Unpack[SomeTypedDict] takes the fields of SomeTypedDict.
            shared = get_type_hints(get_args(hint)[0], include_extras=True)
            fields |= {key: (field, ...) for key, field in shared.items()}
    return fields


def _takes_any_keyword(function: Callable[..., Any]) -> bool:
    hints = get_type_hints(function)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.kind is parameter.VAR_KEYWORD:
            return get_origin(hints.get(parameter.name)) is not Unpack
    return False


def check(model: type[BaseModel], values: Mapping[str, object], prefix: str = "") -> Values:
    """Returns the value of every key of a model, in the model's order.

    Args:
        model: the keys and what is allowed.
        values: the values given.
        prefix: stands before the key in a message, such as ``loss.``.

    Raises:
        Refused: if a key is unknown, a value is missing or a value is not allowed.
    """
    try:
        checked = model.model_validate(dict(values))
    except ValidationError as errors:
        raise Refused(_explain(errors, model, values, prefix)) from None
    return {key: getattr(checked, key) for key in model.model_fields}


def _explain(
    invalid: ValidationError, model: type[BaseModel], values: Mapping[str, object], prefix: str
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
        return f"{prefix}{key}={values[key]}: no such key; allowed are {known}"
    message = error["msg"]
    for theirs, ours in _WORDING:
        message = message.replace(theirs, ours)
    return f"{prefix}{key}={values[key]}: {message}"
