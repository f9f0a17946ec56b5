"""What our DNS resolved: which names own an address, and what that means for the kernel's learned maps. Pure.

An element of a profile's learned map is needed only where the verdict with the names differs from the one without.
Owners of different verdicts make a conflict, a SNIFF element, which outlives the entries it shields. So does a name
that a sniffed connection showed there, if it is judged differently; it never makes anything else. ``now`` is in seconds
of any monotonic clock.
"""

from __future__ import annotations

from collections.abc import Iterable
from heapq import heappop, heappush

from gateway.core.address import IP
from gateway.core.errors import PeerError
from gateway.kernel.plan import MOST_LEARNED, Family, LearnedChange, Verdict
from gateway.route.aliases import Aliases
from gateway.route.compile import Compiled
from gateway.route.elements import Elements
from gateway.route.item.ipset import Point
from gateway.route.prefixes import Prefix, Prefixes, prefix_of
from gateway.route.shares import Shares, share_of
from gateway.route.shown import Shown

SHORTEST = 60
GRACE = 600
"""Seconds an address stays learned after its TTL: applications and browsers keep answers longer."""
LONGEST = 86400
MOST_ADDRESSES = 65536
"""At the bound whichever client was told of most loses the address it was told of longest ago: that goes as without a
name again."""
MOST_OWNED = 131072
"""Pairs of address and owner; the same gives way."""
MOST_ELEMENTS = 524288
"""Of the kernel's learned sets together: an address may have one in each profile. The same gives way."""
MOST_OWNERS = 64
"""Of one address; more make it a conflict until the last of them expires ("crowded")."""
MOST_HELD = 4096
"""Addresses of one name; further ones are conflicts for as long as it owns them."""
MOST_TOUCHED = 512
"""Addresses whose owners one answer may change, those of the names it leads to included; who says more is not believed.
As many are looked at in one ``expire``: with 64 profiles that is up to half a second, kernel included."""
MOST_ORDERS = 65536
"""Pairs of client and address whose last name is remembered; the oldest is forgotten at the bound, and that client gets
the name that anybody resolved last."""


class _Address:
    """Owners in the order of their last answer, newest last. ``share``: whose it is (``shares``), the client's that was
    told of it last."""

    __slots__ = ("crowded", "owners", "share")

    def __init__(self, share: int) -> None:
        self.owners: dict[str, float] = {}
        self.crowded = 0.0
        self.share = share


class Learned:
    """``sharing``: watch for prefixes that names of different verdicts share."""

    def __init__(self, compiled: Compiled, sharing: bool = False) -> None:
        self._compiled = compiled
        self._sharing = sharing
        self._addresses: dict[Point, _Address] = {}
        self._shares = Shares()
        self._held: dict[str, set[Point]] = {}
        """Owner to its addresses."""
        self._last: dict[tuple[Point, Point], str] = {}
        self._elements = Elements()
        self._due: list[tuple[float, Point]] = []
        self._aliases = Aliases()
        self._shown = Shown()
        self._prefixes = Prefixes()
        self._evicted = {"addresses": 0, "owners": 0, "orders": 0, "elements": 0}
        self._crowds: set[Point] = set()
        """Addresses that had too many owners, some perhaps no more."""
        self._fresh: dict[Point, None] = {}
        self._shared: dict[Prefix, None] = {}

    def __len__(self) -> int:
        return len(self._addresses)

    def learn(
        self, name: str, client: IP, addresses: Iterable[tuple[IP, int]], now: float,
        targets: Iterable[tuple[str, int]] = (),
    ) -> list[LearnedChange]:  # fmt: skip
        """``name`` resolved for ``client`` to each (address, TTL in seconds), or leads to each (other name, TTL). The
        changes must be in the kernel before the answer is released. Raises PeerError where it says too much; nothing
        is learned then."""
        name, addresses = _plain(name), tuple(addresses)
        ends = {target: _end(ttl, now) for one, ttl in targets if (target := _plain(one)) != name}
        touched = len(addresses) + sum(len(self._held.get(target, ())) for target in ends)
        if touched > MOST_TOUCHED:
            raise PeerError(f"{name}: an answer that says something of {touched} addresses")
        who = (client.version, int(client))
        if ends and not self._aliases.admit(who, name, ends, now):
            raise PeerError(f"{name}: {client} was told of too many names that lead to others")
        changes: list[LearnedChange] = []
        leading = self._aliases.names(name, now)
        for target, end in ends.items():
            changes += self._lead(name, leading, target, end, now)
        doubt = self._aliases.doubt({name, *leading})
        met: dict[Prefix, Point] = {}
        share = share_of(who)
        for ip, ttl in addresses:
            point = (ip.version, int(ip))
            if (entry := self._addresses.get(point)) is not None:
                self._shares.drop(point, entry.share)
                entry.share = share
            else:
                entry = self._addresses[point] = _Address(share)
            self._shares.take(point, share)
            if self._sharing and name not in entry.owners:
                met.setdefault(prefix_of(_family(point), point[1]), point)
            for owner in (*leading, name):
                self._own(point, entry, owner, _end(ttl, now))
            if doubt > now:
                self._crowd(point, entry, doubt)
            if (hidden := self._shown.doubt(point)) > now:
                heappush(self._due, (hidden, point))
            self._remember(who, point, name)
            changes += self._update(point, now)
        for prefix, first in met.items():
            if self._prefixes.note(prefix, self._verdicts(first, (name,)), now):
                self._shared[prefix] = None
        changes += self._make_room(now)
        self._compact()
        return changes

    def _make_room(self, now: float) -> list[LearnedChange]:
        changes: list[LearnedChange] = []
        while self._addresses and (
            len(self._addresses) > MOST_ADDRESSES
            or self._shares.owners > MOST_OWNED
            or len(self._elements) > MOST_ELEMENTS
        ):  # fmt: skip
            self._evicted["addresses"] += 1
            changes += self._forget(self._shares.first(), now)
        return changes

    def _compact(self) -> None:
        """What is said again and again leaves a queue as long as the tables."""
        most = len(self._addresses) + len(self._shown) + len(self._elements.points())
        if len(self._due) > 4 * most + 1024:
            self._due = [(min(_ends(entry)), point) for point, entry in self._addresses.items()]
            self._due += [(end, point) for point, end in self._shown.ends()]
            queued = {point for _, point in self._due}
            self._due += [(self._shown.doubt(point), point) for point in self._elements.points() if point not in queued]
            self._due.sort()

    def _lead(self, name: str, leading: set[str], target: str, until: float, now: float) -> list[LearnedChange]:
        """Who asks for ``name``, or for what leads to it, may go on to what ``target`` has."""
        self._aliases.add(target, name, until)
        changes: list[LearnedChange] = []
        for point in tuple(self._held.get(target, ())):
            entry = self._addresses[point]
            until = entry.owners[target]
            new = [one for one in {*leading, name} if one != target and entry.owners.get(one, 0.0) < until]
            for owner in new:
                self._own(point, entry, owner, until)
            if new:
                changes += self._update(point, now)
        return changes

    def _own(self, point: Point, entry: _Address, name: str, until: float) -> None:
        """``name`` is the newest of its owners."""
        old = entry.owners.pop(name, 0.0)
        if not old:
            self._fresh[point] = None
            if len(entry.owners) >= MOST_OWNERS:
                self._evicted["owners"] += 1
                self._crowd(point, entry, max(entry.owners.values()))
                first = next(iter(entry.owners))
                del entry.owners[first]
                self._release(first, point)
            self._shares.owners += 1
        entry.owners[name] = max(old, until)
        heappush(self._due, (entry.owners[name], point))
        held = self._held.setdefault(name, set())
        if point in held or len(held) < MOST_HELD:
            held.add(point)
        else:
            self._evicted["owners"] += 1
            self._crowd(point, entry, entry.owners[name])

    def _crowd(self, point: Point, entry: _Address, until: float) -> None:
        entry.crowded = max(entry.crowded, until)
        self._crowds.add(point)
        heappush(self._due, (until, point))

    def _release(self, name: str, point: Point) -> None:
        self._shares.owners -= 1
        held = self._held.get(name)
        if held is not None:
            held.discard(point)
            if not held:
                del self._held[name]

    def _remember(self, who: Point, point: Point, name: str) -> None:
        key = (who, point)
        self._last.pop(key, None)
        if len(self._last) >= MOST_ORDERS:
            self._evicted["orders"] += 1
            del self._last[next(iter(self._last))]
        self._last[key] = name

    def sniffed(self, name: str, address: IP, now: float) -> list[LearnedChange]:
        """A connection to ``address`` showed ``name``. If our DNS did not say so the address is a conflict wherever the
        two are judged differently, for ``shown.LASTS`` seconds. Nothing becomes DIRECT by it."""
        point = (address.version, int(address))
        entry = self._addresses.get(point)
        if (entry is not None and name in entry.owners) or not self._shown.add(point, name, now):
            return []
        self._fresh[point] = None
        heappush(self._due, (self._shown.names(point, now)[name], point))
        self._compact()
        return self._update(point, now)

    def names(self, address: IP, client: IP, now: float | None = None) -> tuple[str, ...]:
        """Names that own ``address``, the one that ``client`` resolved last first, then the newest; expired ones are
        left out where ``now`` is given. What connections showed is not among them."""
        point = (address.version, int(address))
        entry = self._addresses.get(point)
        if entry is None:
            return ()
        found = [name for name, end in reversed(entry.owners.items()) if now is None or end > now]
        mine = self._last.get(((client.version, int(client)), point))
        if mine in found:
            found.remove(mine)
            found.insert(0, mine)
        return tuple(found)

    def owns(self, name: str, point: Point) -> bool:
        """Whether our DNS said so."""
        entry = self._addresses.get(point)
        return entry is not None and name in entry.owners

    def agreed(self, profile: int, point: Point, now: float) -> bool:
        """Whether all names of an address, those too that connections showed, are direct in ``profile``; False without
        any name."""
        entry = self._addresses.get(point)
        names = {**self._shown.names(point, now), **({} if entry is None else entry.owners)}
        if not names or self._shown.doubt(point) > now or (entry is not None and entry.crowded > now):
            return False
        return self._compiled.learned_verdict(profile, _family(point), point[1], tuple(names)) is Verdict.DIRECT

    def element(self, profile: int, address: IP) -> Verdict | None:
        """What the kernel's learned sets say of ``address``; None: nothing."""
        return self._elements.of(profile, address)

    def shared(self, address: IP, now: float) -> bool:
        """Whether its prefix serves names of different verdicts."""
        return self._prefixes.holds(_family((address.version, 0)), int(address), now)

    def all_names(self, address: IP, now: float) -> tuple[str, ...]:
        """Owners, then what connections showed."""
        point = (address.version, int(address))
        entry = self._addresses.get(point)
        return (*(() if entry is None else entry.owners), *self._shown.names(point, now))

    def fresh(self) -> tuple[list[Point], list[Prefix]]:
        """Since the last call: addresses that got another name, prefixes that became shared."""
        found = [*self._fresh], [*self._shared]
        self._fresh.clear()
        self._shared.clear()
        return found

    def expire(self, now: float) -> list[LearnedChange]:
        """Owners whose time has come are gone, ``MOST_TOUCHED`` at a time (``next_expiry`` tells whether there are
        more); what follows from that."""
        changes: list[LearnedChange] = []
        self._aliases.expire(now)
        self._prefixes.expire(now)
        points: dict[Point, None] = {}
        while self._due and self._due[0][0] <= now and len(points) < MOST_TOUCHED:
            points[heappop(self._due)[1]] = None
        for point in points:
            entry = self._addresses.get(point)
            shown = self._shown.names(point, now)
            if shown:
                heappush(self._due, (min(shown.values()), point))
            if entry is not None:
                for name in [name for name, end in entry.owners.items() if end <= now]:
                    del entry.owners[name]
                    self._release(name, point)
                if not entry.owners and entry.crowded <= now:
                    changes += self._forget(point, now)
                    continue
                heappush(self._due, (min(end for end in _ends(entry) if end > now), point))
            changes += self._update(point, now)
        return changes

    def next_expiry(self) -> float | None:
        """When ``expire`` has something to do, or None."""
        return self._due[0][0] if self._due else None

    def rebuilt(self, compiled: Compiled, now: float, sharing: bool = False) -> tuple[Learned, list[LearnedChange]]:
        """The successor after a recompile, and what to change in the learned maps, of which those stay whose profile
        still learns; the others go with what they hold. This one is to be used on only where the kernel refuses."""
        if not compiled.learns:
            # What would be said meanwhile is heard by nobody: nothing of this may be believed later.
            after = Learned(compiled, sharing)
            after._prefixes = self._prefixes
            after._prefixes.forget_verdicts()
            return after, []
        learning = {number for number, profile in enumerate(compiled.steering.profiles) if profile.learned}
        after = Learned(compiled, sharing)
        for key, value in vars(self).items():
            if key not in ("_compiled", "_elements", "_sharing"):
                setattr(after, key, value)
        after._prefixes.forget_verdicts()
        after._elements = self._elements.kept(learning)
        points = {**after._addresses, **dict.fromkeys(point for point, _ in after._shown.ends())}
        changes: list[LearnedChange] = []
        for point in points:
            changes += after._update(point, now)
            changes += after._make_room(now)
        return after, changes

    def tables(self, now: float) -> dict[str, tuple[int, int, int]]:
        """Each bounded table: what it holds, its bound, how often something was forgotten at the bound."""
        self._crowds = {p for p in self._crowds if (e := self._addresses.get(p)) is not None and e.crowded > now}
        return {
            "addresses": (len(self._addresses), MOST_ADDRESSES, self._evicted["addresses"]),
            "crowded addresses": (len(self._crowds), MOST_ADDRESSES, self._evicted["owners"]),
            "orders": (len(self._last), MOST_ORDERS, self._evicted["orders"]),
            "targets": (len(self._aliases), *self._aliases.bound),
            "shown": (len(self._shown), *self._shown.bound),
            "prefixes": (len(self._prefixes), *self._prefixes.bound),
            "shared prefixes": self._prefixes.shared,
            "fullest learned set": (self._elements.fullest(), MOST_LEARNED, self._evicted["elements"]),
        }

    def _forget(self, point: Point, now: float) -> list[LearnedChange]:
        entry = self._addresses.pop(point, None)
        if entry is not None:
            self._shares.drop(point, entry.share)
            for name in entry.owners:
                self._release(name, point)
        return self._update(point, now)

    def _verdicts(self, point: Point, names: tuple[str, ...]) -> tuple[Verdict, ...]:
        """In each profile that learns."""
        judge, family = self._compiled.learned_verdict, _family(point)
        return tuple(
            judge(number, family, point[1], names)
            for number, profile in enumerate(self._compiled.steering.profiles)
            if profile.learned
        )

    def _update(self, point: Point, now: float) -> list[LearnedChange]:
        entry = self._addresses.get(point)
        owners = {} if entry is None else entry.owners
        shown = self._shown.names(point, now)
        crowded = 0.0 if entry is None else entry.crowded
        doubt = self._shown.doubt(point)
        contrary = bool(shown) or doubt > now
        judge, family, names = self._compiled.learned_verdict, _family(point), self._compiled.alike(owners)
        wanted: dict[int, Verdict] = {}
        for number, profile in enumerate(self._compiled.steering.profiles):
            if not profile.learned:
                continue
            verdict = Verdict.SNIFF
            if crowded <= now:
                verdict = judge(number, family, point[1], names)
                if contrary and verdict is not Verdict.SNIFF:
                    verdict = self._doubted(number, point, names, tuple(shown), doubt > now, verdict)
            if verdict is not judge(number, family, point[1], ()):
                wanted[number] = verdict
        if wanted and entry is None and not shown:
            heappush(self._due, (doubt, point))  # nothing else would take it away
        ends = [0.0, *owners.values()]
        conflict = max([crowded, doubt, *ends, *shown.values()])
        return self._elements.set(point, wanted, max(ends), conflict, now)

    def refused(self, change: LearnedChange) -> None:
        """The kernel's set is full: it holds nothing of that address, in that profile, until it is learned again."""
        self._evicted["elements"] += 1
        self._elements.lost(change)

    def _doubted(
        self, number: int, point: Point, names: tuple[str, ...], shown: tuple[str, ...], doubt: bool, verdict: Verdict
    ) -> Verdict:  # fmt: skip
        """``verdict`` of the owners, or SNIFF. What was shown counts only where it could be shown again."""
        judge, family = self._compiled.learned_verdict, _family(point)
        if not self._compiled.open(number, family, point[1]):
            return verdict
        if doubt:
            agree = False
        elif names:
            agree = judge(number, family, point[1], names + shown) is verdict
        else:
            agree = all(judge(number, family, point[1], (name,)) is verdict for name in shown)
        return verdict if agree else Verdict.SNIFF


def _plain(name: str) -> str:
    return name.rstrip(".").lower()


def _family(point: Point) -> Family:
    return 4 if point[0] == 4 else 6


def _end(ttl: int, now: float) -> float:
    return now + min(max(ttl, SHORTEST) + GRACE, LONGEST)


def _ends(entry: _Address) -> list[float]:
    return [*entry.owners.values(), *([entry.crowded] if entry.crowded else [])]
