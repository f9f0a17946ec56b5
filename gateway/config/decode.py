"""A JSON object to its option class, with errors that carry the JSON path and say what to write instead. Pure."""

from __future__ import annotations

import re
from typing import Any, TypeVar

import msgspec

from gateway.config import anchor
from gateway.config.fields import dec_hook, enc_hook
from gateway.core.errors import ConfigError

T = TypeVar("T")

_AT = re.compile(r"^(?P<message>.*?)(?: - at `(?P<key>key in )?\$(?P<path>.*)`)?$", re.DOTALL)
_EXPECTED = re.compile(r"^Expected `(?P<want>[^`]*)`, got `(?P<got>[^`]*)`")
_KINDS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false", "array": "a list",
          "object": "an object", "null": "null"}  # fmt: skip


def decode(kind: type[T], value: Any, path: str = "", object_name: str = "") -> T:
    """``value`` as ``kind`` (a msgspec Struct class). ``object_name``: sing-box's name of the option object, so that a
    field of it that ``kind`` lacks is reported as not built yet. Raises ConfigError."""
    if not isinstance(value, dict):
        raise ConfigError(f"expected an object, got {_describe(value)}", path)
    _check_fields(kind, value, path, object_name)
    try:
        return msgspec.convert(value, kind, dec_hook=dec_hook)
    except msgspec.ValidationError as error:
        found = _AT.match(str(error))
        assert found is not None
        raise ConfigError(_message(found["message"]), path + (found["path"] or "")) from None


def encode(value: Any) -> Any:
    """Options back to JSON values: defaults left out, canonical spellings."""
    return msgspec.to_builtins(value, enc_hook=enc_hook)


def _describe(value: Any) -> str:
    names = {bool: "true or false", str: "text", int: "a number", float: "a number", list: "a list", type(None): "null"}
    return names.get(type(value), "an object")


def _message(message: str) -> str:
    found = _EXPECTED.match(message)
    if found is None:
        return message.replace("Object missing required field", "missing required field").replace("`", '"')
    want = " or ".join(dict.fromkeys(_KINDS.get(name.strip(), name.strip()) for name in found["want"].split("|")))
    return f"expected {want}, got {_KINDS.get(found['got'], found['got'])}"


def _check_fields(kind: type[Any], value: dict[str, Any], path: str, object_name: str) -> None:
    """Name the fields that ``kind`` does not take, here and in the structs below it, before msgspec does."""
    known = {field.encode_name: field.type for field in msgspec.structs.fields(kind)}
    for key, inside in value.items():
        here = f"{path}.{key}".removeprefix(".")
        if key not in known:
            raise ConfigError(anchor.unknown_field(key, set(known), object_name), here)
        for struct in _structs(known[key]):
            deeper = anchor.inner(object_name, key)
            if isinstance(inside, dict):
                _check_fields(struct, inside, here, deeper)
            elif isinstance(inside, list):
                for index, item in enumerate(inside):
                    if isinstance(item, dict):
                        _check_fields(struct, item, f"{here}[{index}]", deeper)
            break  # a union of two structs is left to msgspec's tags


def _structs(kind: Any) -> list[type[Any]]:
    """The Struct classes a field's type mentions."""
    if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
        return [kind]
    found = [struct for part in getattr(kind, "__args__", ()) for struct in _structs(part)]
    # dict[str, Struct] has keys that are no fields
    return [] if getattr(kind, "__origin__", None) is dict else found
