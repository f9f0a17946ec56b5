"""``process_path_regex``: an RE2 expression somewhere in the executable's path. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.route.item.base import Item, texts
from gateway.route.item.pattern import Patterns

if TYPE_CHECKING:
    from gateway.route.match import Subject


class ProcessPathRegex(Item):
    __slots__ = ("patterns",)
    key = "process_path_regex"

    def __init__(self, expressions: tuple[str, ...]) -> None:
        super().__init__(expressions)
        self.patterns = Patterns(expressions)

    @classmethod
    def parse(cls, value: Any) -> ProcessPathRegex:
        return cls(texts(value))

    def holds(self, path: str) -> bool:
        return self.patterns.search(path)

    def match(self, subject: Subject) -> bool:
        process = subject.process
        return process is not None and bool(process.path) and self.holds(process.path)
