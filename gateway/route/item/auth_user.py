"""``auth_user``: authenticated user of the inbound. Pure."""

from __future__ import annotations

from typing import TYPE_CHECKING

from gateway.route.item.base import TextItem

if TYPE_CHECKING:
    from gateway.route.match import Subject


class AuthUser(TextItem):
    __slots__ = ()
    key = "auth_user"

    def match(self, subject: Subject) -> bool:
        return subject.auth_user in self.set
