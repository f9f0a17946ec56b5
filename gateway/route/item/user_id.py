"""``user_id``: number of the operating system's user who owns the socket. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.route.item.base import Item, numbers

if TYPE_CHECKING:
    from gateway.route.match import Subject


class UserID(Item):
    __slots__ = ("set",)
    key = "user_id"

    def __init__(self, values: frozenset[int]) -> None:
        super().__init__(values)
        self.set = values

    @classmethod
    def parse(cls, value: Any) -> UserID:
        return cls(frozenset(numbers(value, -(1 << 31), (1 << 31) - 1)))

    def match(self, subject: Subject) -> bool:
        process = subject.process
        return process is not None and process.uid >= 0 and process.uid in self.set
