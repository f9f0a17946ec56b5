"""What an item is: one condition of a rule, named by its JSON key. Pure.

An item is built from its JSON value by ``parse`` (ValueError says what is wrong with it) and asked with ``match``.
``group`` says which alternatives it belongs to: items of one group are ORed, groups and ungrouped items are ANDed.
Two items with equal ``atom`` ask the same question, so the compiler keeps one answer for both.
"""

from __future__ import annotations

from collections.abc import Hashable
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from gateway.route.match import Subject

Group = Literal["", "source", "source_port", "destination", "port"]


class Item:
    """Base of all items. ``value`` is what the configuration said, for ``explain`` and for comparing."""

    __slots__ = ("value",)
    key: ClassVar[str] = ""
    group: ClassVar[Group] = ""

    def __init__(self, value: Hashable) -> None:
        self.value = value

    @classmethod
    def parse(cls, value: Any) -> Item:
        """From the JSON value. Raises ValueError."""
        raise NotImplementedError

    def match(self, subject: Subject) -> bool:
        raise NotImplementedError

    @property
    def atom(self) -> Hashable:
        return (self.key, self.value)

    def __str__(self) -> str:
        value = self.value
        if isinstance(value, tuple | frozenset):
            texts = sorted(str(part) for part in value)
            text = ",".join(texts[:3]) + (f",... ({len(texts)})" if len(texts) > 3 else "")
        else:
            text = str(value).lower() if isinstance(value, bool) else str(value)
        return f"{self.key}={text}"


def texts(value: Any) -> tuple[str, ...]:
    """A listable text field. Raises ValueError on another type and on empty text."""
    values = value if isinstance(value, list) else [value]
    for one in values:
        if not isinstance(one, str):
            raise ValueError(f"expected text or a list of texts, got {one!r}")
        if not one:
            raise ValueError("empty text is not allowed")
    return tuple(values)


def numbers(value: Any, low: int, high: int) -> tuple[int, ...]:
    """A listable whole-number field, each within ``low..high``. Raises ValueError."""
    values = value if isinstance(value, list) else [value]
    for one in values:
        if isinstance(one, bool) or not isinstance(one, int):
            raise ValueError(f"expected a number or a list of numbers, got {one!r}")
        if not low <= one <= high:
            raise ValueError(f"{one} is not within {low}..{high}")
    return tuple(values)


def truth(value: Any) -> bool:
    """A true/false field. Raises ValueError."""
    if not isinstance(value, bool):
        raise ValueError(f"expected true or false, got {value!r}")
    return value


class TextItem(Item):
    """An item that compares one text of the subject with a set of texts."""

    __slots__ = ("set",)

    def __init__(self, values: frozenset[str]) -> None:
        super().__init__(values)
        self.set = values

    @classmethod
    def parse(cls, value: Any) -> TextItem:
        return cls(frozenset(texts(value)))
