"""The rules as a program that can be run without knowing everything. Pure.

A program is a tuple of (condition, step). It is narrowed stage by stage (``specialise``) as the compiler fixes network,
source, port and address; ``Search`` then runs it over every completion of what is still open and collects the outcomes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from gateway.kernel.plan import Verdict
from gateway.route.action import NAMED_PROTOCOLS, Bypass, HijackDNS, Overrides, Reject, Resolve, Route, Sniff
from gateway.route.feasible import Names, Vectors
from gateway.route.item.ip_cidr import IPCIDR
from gateway.route.logic import Expr, Space, atoms, follow
from gateway.route.lower import Atom, Lowering
from gateway.route.match import Default, Sets
from gateway.route.options import RouteRule

Kind = Literal["direct", "block", "proxy"]
MOST_SPLITS = 3000
"""Branches of one search; beyond, the verdict is SNIFF."""
MOST_NODES = 200_000
"""Of one space; where there are more a program stays as the rules are, and shares no profile with one that only looks
different. An alternative of pairs whose first halves were all asked before is two to the power of their number big."""


class End(NamedTuple):
    """``outcome``: "direct", "reject", "drop", or what userspace does, as text. ``by_address``: an address item stands
    in the rule's condition (``balanced`` and ``fast`` ask). ``rule``: its index; -1 for ``final`` and once settled."""

    outcome: str
    by_address: bool = False
    rule: int = -1


class Look(NamedTuple):
    """A sniff that may find one of ``protocols`` (of TCP, of UDP). ``found`` after ``settle``: for each thing that it
    may find, the later protocol atoms that are then true, whether a name, a client comes with it, and, where there is
    more than one sniff, of which protocols all this is so."""

    protocols: tuple[tuple[str, ...], tuple[str, ...]]
    found: frozenset[tuple[frozenset[int], bool, bool, frozenset[str]]] = frozenset()


class Stay(NamedTuple):
    """``bypass``: direct where the condition is certain and no end before it is. Userspace passes it by."""


class Override(NamedTuple):
    """The destination is replaced: what follows is left to userspace. ``rule`` as in ``End``."""

    rule: int = -1


# Tuples are equal whatever their class: no two kinds of steps may ever hold the same.
Step = End | Look | Stay | Override
Program = tuple[tuple[Expr, Step], ...]
USER = {"direct": Verdict.DIRECT, "reject": Verdict.REJECT, "drop": Verdict.DROP}


NOTHING: frozenset[str] = frozenset()
FAKE = "fake address"
"""What becomes of a flow to one, whatever the rules say of its name."""
HOLDS, ELSE = End("holds"), End("else")
"""What ``stays`` lets the search look for."""


def build(
    rules: Sequence[RouteRule],
    final: str,
    sets: Sets,
    kinds: Mapping[str, Kind],
    fakes: Sequence[str] = (),
    *,
    by_address: bool = False,
) -> tuple[Program, Lowering]:
    """The program of an ordered rule list. Outbounds that ``kinds`` does not name count as proxies. ``fakes``: prefixes
    whose addresses only userspace knows the meaning of. ``by_address``: note which ends an address item takes part
    in."""
    lowering = Lowering(sets)
    steps: list[tuple[Expr, Step]] = []
    if fakes:
        steps.append((lowering.rule(Default([IPCIDR.parse(list(fakes))])), End(FAKE)))
    for index, rule in enumerate(rules):
        condition = lowering.rule(rule.match)
        action = rule.action
        dst = by_address and any(lowering.atoms[atom].kind == "dst" for atom in atoms(condition))
        if isinstance(action, Bypass):
            steps.append((condition, Stay()))
            if not action.outbound:
                continue
        if isinstance(action, Overrides) and (action.override_address or action.override_port):
            steps.append((condition, Override(index)))
        elif isinstance(action, Route | Bypass):
            steps.append((condition, End(_outcome(action.outbound, kinds), dst, index)))
        elif isinstance(action, Reject):
            steps.append((condition, End("drop" if action.method == "drop" else "reject", dst, index)))
        elif isinstance(action, HijackDNS):
            steps.append((condition, End("hijack-dns", dst, index)))
        elif isinstance(action, Sniff):
            steps.append(
                (condition, Look((tuple(sorted(action.protocols("tcp"))), tuple(sorted(action.protocols("udp"))))))
            )
        else:
            assert isinstance(action, Overrides | Resolve)  # neither changes what a flow to an address meets
    steps.append((True, End(_outcome(final, kinds))))
    return tuple(steps), lowering


def _outcome(tag: str, kinds: Mapping[str, Kind]) -> str:
    kind = kinds.get(tag, "proxy")
    return "direct" if kind == "direct" else "reject" if kind == "block" else f"outbound {tag}"


def specialise(space: Space, program: Program, known: Mapping[int, bool]) -> Program:
    """The program with known atoms put in; what cannot be reached any more is gone."""
    out: list[tuple[Expr, Step]] = []
    for condition, step in program:
        condition = space.restrict(condition, known)
        if condition is False:
            continue
        out.append((condition, step))
        if condition is True and not isinstance(step, Look | Stay):
            break
    return tuple(out)


def stays(program: Program, owners: frozenset[int], outcomes: Callable[[Program], set[End]]) -> bool | None:
    """Whether a bypass holds for every completion, and some completion comes to it. ``outcomes`` searches a program.
    ``owners``: atoms of processes; None: a rule above asks for one that is open, which userspace can tell without a
    sniff, so that it must."""
    if not any(isinstance(step, Stay) for _, step in program):
        return False
    looks: list[tuple[Expr, Step]] = []
    above: list[tuple[Expr, Step]] = []
    certain = True
    for condition, step in program:
        if isinstance(step, Stay):
            if outcomes((*looks, (condition, HOLDS), (True, ELSE))) == {HOLDS}:
                comes = HOLDS in outcomes((*above, (True, HOLDS)))
                return None if comes and not certain else comes
        elif isinstance(step, Look):
            looks.append((condition, step))
            above.append((condition, step))
        else:
            if certain and not owners.isdisjoint(atoms(condition)):
                certain = outcomes((*looks, (condition, HOLDS), (True, ELSE))) == {ELSE}
            above.append((condition, End("above")))
    return False


def settle(space: Space, program: Program, table: Mapping[int, Atom], network: str, never: frozenset[str]) -> Program:
    """Brings a program into one form: each sniff says what it can find that a later rule asks for (or is dropped), and
    between sniffs each end has its own, disjoint condition, as far as there is room (``MOST_NODES``). ``never``:
    protocols that cannot be found on this port."""
    reachable = _reachable(space, program, table, network, never)
    later: set[int] = set()
    out: list[tuple[Expr, Step]] = []
    several = sum(isinstance(step, Look) for _, step, _ in reachable) > 1
    for condition, step, names in reversed(reachable):
        if isinstance(step, Look):
            found: dict[tuple[frozenset[int], bool, bool], frozenset[str]] = {}
            for name in names:
                finding = _finding(name, later, table)
                if finding != (frozenset(), False, False):
                    found[finding] = found.get(finding, frozenset()) | ({name} if several else set())
            if not found:
                continue
            step = Look(((), ()), frozenset((*finding, of) for finding, of in found.items()))
        out.append((condition, step))
        later |= atoms(condition)
    return _disjoint(space, out[::-1])


def skipped(
    space: Space, program: Program, table: Mapping[int, Atom], network: str, never: frozenset[str], outcome: str
) -> set[int]:
    """Rules of a program that is not settled, of which a sniff could change whether they hold, and that could so turn a
    flow from ``outcome``. ``never`` as in ``settle``."""
    names = {atom: False for atom, entry in table.items() if entry.kind == "name"}
    unseen = {**names, **{atom: False for atom, entry in table.items() if entry.kind in ("protocol", "client")}}
    found: set[int] = set()
    named = False
    for condition, step, tried in _reachable(space, program, table, network, never):
        if isinstance(step, Look):
            named = named or not NAMED_PROTOCOLS.isdisjoint(tried)
        elif isinstance(step, End | Override):
            blind = space.restrict(condition, unseen)
            seen = condition if named else space.restrict(condition, names)
            other = isinstance(step, Override) or step.outcome != outcome
            if step.rule >= 0 and seen is not blind and (other or blind is not False):
                found.add(step.rule)
    return found


def _reachable(
    space: Space, program: Program, table: Mapping[int, Atom], network: str, never: frozenset[str]
) -> list[tuple[Expr, Step, tuple[str, ...]]]:
    """The steps, those protocol and client atoms false that nothing before can have found; of a sniff also the
    protocols it tries."""
    known = {atom: False for atom, entry in table.items() if entry.kind in ("protocol", "client")}
    tried: set[str] = set()
    out: list[tuple[Expr, Step, tuple[str, ...]]] = []
    for condition, step in program:
        condition = space.restrict(condition, known)
        names: tuple[str, ...] = ()
        if isinstance(step, Look) and condition is not False:
            names = tuple(one for one in step.protocols[network == "udp"] if one not in tried and one not in never)
            if condition is True:
                tried.update(names)
            for atom, entry in table.items():
                if (entry.kind == "protocol" and not entry.item.value.isdisjoint(names)) or (  # type: ignore[attr-defined]
                    entry.kind == "client" and "quic" in names
                ):
                    known.pop(atom, None)
        if condition is not False:
            out.append((condition, step, names))
    return out


def _disjoint(space: Space, steps: Sequence[tuple[Expr, Step]]) -> Program:
    out: list[tuple[Expr, Step]] = []
    taken: Expr = False
    for condition, step in steps:
        if len(space) > MOST_NODES:
            return tuple((condition, _plain(step)) for condition, step in steps)
        if isinstance(step, Look | Stay):
            taken = False if isinstance(step, Look) else taken
            out.append((condition, step))
            continue
        step = _plain(step)
        condition, taken = space.both(condition, space.negate(taken)), space.either(taken, condition)
        if condition is False:
            continue
        for index in range(len(out) - 1, -1, -1):
            if isinstance(out[index][1], Look | Stay):
                out.append((condition, step))
                break
            if out[index][1] == step:
                out[index] = (space.either(out[index][0], condition), step)
                break
        else:
            out.append((condition, step))
        if taken is True:
            break
    return tuple(out)


def _plain(step: Step) -> Step:
    """Of whichever rule."""
    return step._replace(rule=-1) if isinstance(step, End | Override) else step


def _finding(name: str, later: set[int], table: Mapping[int, Atom]) -> tuple[frozenset[int], bool, bool]:
    """What finding protocol ``name`` would tell the rules that come after."""
    kinds = {table[atom].kind for atom in later}
    true = frozenset(
        atom
        for atom in later
        if table[atom].kind == "protocol" and name in getattr(table[atom].item, "set")  # noqa: B009
    )
    return true, name in NAMED_PROTOCOLS and "name" in kinds, name == "quic" and "client" in kinds


class Search:
    """Runs programs over all completions. ``vectors``: feasibility of source, source port and process atoms."""

    def __init__(self, table: Mapping[int, Atom], names: Names, vectors: Mapping[str, Vectors]) -> None:
        self.table = table
        self.names = names
        self.vectors = vectors
        self.of_kind: dict[str, list[int]] = {}
        for atom, (kind, _) in table.items():
            self.of_kind.setdefault(kind, []).append(atom)

    def outcomes(
        self,
        program: Program,
        names: Mapping[int, bool] | None,
        *,
        doubt: bool = False,
        sniff: bool = True,
        renamed: bool = False,
    ) -> set[End]:
        """Ends that some completion reaches, at least two where there are two (then the search may stop early).

        ``names``: answers of the name atoms for a learned name; None: no learned name, so no name before a sniff.
        ``renamed``: a sniff may find another name all the same.
        ``doubt``: a name may be there at any time, and it may be any. ``sniff`` False: as if no sniff found anything.
        """
        known = {atom: False for kind in ("protocol", "client") for atom in self.of_kind.get(kind, ())}
        if names is not None:
            known.update(names)
        elif not doubt:
            known.update(dict.fromkeys(self.of_kind.get("name", ()), False))
        run = _Run(self, program, free_names=names is None or renamed, sniff=sniff)
        run.go(0, known, {}, NOTHING)
        return run.ends

    def possible(self, atom: int, assigned: Mapping[int, bool]) -> bool:
        kind = self.table[atom].kind
        mine = {one: value for one, value in assigned.items() if self.table[one].kind == kind}
        if kind == "name":
            return self.names.possible(mine)
        if kind in self.vectors:
            return self.vectors[kind].possible(mine)
        if kind == "client":
            return self._client(mine)
        return True

    def _client(self, assigned: Mapping[int, bool]) -> bool:
        """One client program at a time."""
        sets: dict[int, Any] = {atom: getattr(self.table[atom].item, "set") for atom in assigned}  # noqa: B009
        yes = [sets[atom] for atom, value in assigned.items() if value]
        no = frozenset().union(*(sets[atom] for atom, value in assigned.items() if not value))
        return not yes or bool(frozenset.intersection(*yes) - no)


class _Run:
    __slots__ = ("ends", "free_names", "program", "search", "sniff", "splits")

    def __init__(self, search: Search, program: Program, *, free_names: bool, sniff: bool) -> None:
        self.search, self.program, self.free_names, self.sniff = search, program, free_names, sniff
        self.ends: set[End] = set()
        self.splits = 0

    def done(self) -> bool:
        return len({end.outcome for end in self.ends}) > 1

    def go(self, index: int, known: dict[int, bool], assigned: dict[int, bool], missed: frozenset[str] | None) -> None:
        """From step ``index`` on. ``assigned``: what this branch assumes (a part of ``known``). ``missed``: protocols
        that sniffs have not found; None: one has found something."""
        while not self.done():
            condition, step = self.program[index]
            condition = follow(condition, known)
            if condition is False or isinstance(step, Stay):
                index += 1
            elif condition is not True:
                self.split(condition.atom, index, known, assigned, missed)
                return
            elif isinstance(step, End):
                self.ends.add(step)
                return
            elif isinstance(step, Override):
                self.give_up()
                return
            else:
                index += 1
                if missed is not None and self.sniff:
                    for protocols, name, client, names in step.found:
                        if not names or not names <= missed:
                            self.found(protocols, name, client, index, known, assigned)
                    missed = missed.union(*(names for *_, names in step.found))

    def give_up(self) -> None:
        self.ends |= {End("?"), End("??")}

    def split(
        self, atom: int, index: int, known: dict[int, bool], assigned: dict[int, bool], missed: frozenset[str] | None
    ) -> None:
        self.splits += 1
        if self.splits > MOST_SPLITS:
            self.give_up()
            return
        for value in (True, False):
            more = {**assigned, atom: value}
            if self.search.possible(atom, more):
                self.go(index, {**known, atom: value}, more, missed)

    def found(
        self, protocols: frozenset[int], name: bool, client: bool,
        index: int, known: dict[int, bool], assigned: dict[int, bool],
    ) -> None:  # fmt: skip
        search = self.search
        known, assigned = dict(known), dict(assigned)
        for atom in search.of_kind.get("protocol", ()):
            known[atom] = atom in protocols
        opened = search.of_kind.get("client", []) if client else []
        if name and self.free_names:
            opened = [*opened, *search.of_kind.get("name", [])]
        for atom in opened:
            known.pop(atom, None)
            assigned.pop(atom, None)
        self.go(index, known, assigned, None)


def verdict(ends: set[End]) -> Verdict:
    """One outcome alone is certain; anything else is for userspace to find out."""
    outcomes = {end.outcome for end in ends}
    if len(outcomes) != 1:
        return Verdict.SNIFF
    return USER.get(next(iter(outcomes)), Verdict.USER)
