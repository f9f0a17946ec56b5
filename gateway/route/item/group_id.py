"""``group_id``: number of a group of the operating system that the socket's owner is in, as primary or supplementary
group. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from gateway.route.item.base import Item, numbers

if TYPE_CHECKING:
    from gateway.route.match import Subject

LAST_GID = (1 << 32) - 2


class GroupID(Item):
    __slots__ = ("set",)
    key = "group_id"

    def __init__(self, values: frozenset[int]) -> None:
        super().__init__(values)
        self.set = values

    @classmethod
    def parse(cls, value: Any) -> GroupID:
        return cls(frozenset(numbers(value, 0, LAST_GID)))

    def match(self, subject: Subject) -> bool:
        process = subject.process
        return process is not None and not self.set.isdisjoint(process.gids)
