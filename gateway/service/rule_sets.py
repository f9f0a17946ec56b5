"""Remote rule sets: downloaded, kept, and asked for again.

A set without a copy matches nothing, and nothing waits for it. A copy that was once good is used at the next start at
once and goes on being used until a better one is here, whatever the server answers.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import tempfile
import time
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from functools import cached_property
from typing import Any

import msgspec

from gateway.config.url import URL
from gateway.core.address import Address
from gateway.core.contracts import IPv4Address, Store, Wiring
from gateway.core.errors import ConfigError, GatewayError, PeerError
from gateway.core.flow import Flow
from gateway.core.stream import Stream
from gateway.route.match import Rule
from gateway.route.options import DAY, RuleSetOptions
from gateway.route.ruleset.load import LARGEST, parsed

BODY, STATE = "rule-set", "rule-set-state"
"""Kinds of the store's entries, both by tag."""
TOGETHER = 5
"""Downloads at a time, as in sing-box."""
PATIENCE = 600.0
"""Seconds that one download may take."""
SOON, LATEST, LATEST_UPDATE = 5.0, 300.0, 3600.0
"""Seconds until a download that failed is tried again: at first, twice as many after each failure up to the second
where there is no copy, up to the third where there is."""
LEAST = 1.0
"""Seconds of the shortest interval."""
FORGOTTEN = 30 * DAY
"""Seconds that a copy is kept of which no configuration speaks any more."""
SPOOL = 1 << 20
"""Bytes of a download that are held in memory, more in a file without a name."""
NOWHERE = Address(IPv4Address(0), 0)

log = logging.getLogger("gateway.rule_set")


class State(msgspec.Struct):
    """What is known of a copy: the URL it is of, when the server last said that it is current (seconds since 1970), and
    the words by which the server knows it."""

    url: str
    updated: float
    size: int
    digest: str
    etag: str = ""
    modified: str = ""


class Copies:
    """What is here of remote rule sets; in memory alone where ``store`` takes nothing. May be used from any thread."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._rules: dict[str, tuple[str, tuple[Rule, ...]]] = {}
        """By tag, with the digest of what they were read from."""

    @cached_property
    def _states(self) -> dict[str, State]:
        found = {}
        for tag, raw in self._store.items(STATE):
            with suppress(msgspec.MsgspecError):
                found[tag] = msgspec.json.decode(raw, type=State)
        return found

    def state(self, options: RuleSetOptions) -> State | None:
        """None where there is no copy of that URL."""
        found = self._states.get(options.tag)
        return found if found is not None and found.url == options.url else None

    def rules(self, options: RuleSetOptions) -> tuple[Rule, ...]:
        """See ``route.ruleset.load.Copies``."""
        state = self.state(options)
        if state is None:
            return ()
        key = f"{options.form} {state.digest}"
        known = self._rules.get(options.tag)
        if known is not None and known[0] == key:
            return known[1]
        data = self._store.get(BODY, options.tag) or b""
        try:
            if digest(data) != state.digest:
                raise ConfigError("the copy is not whole")
            found = parsed(data, options.form, str(URL.parse(options.url)))
        except (ConfigError, ValueError) as error:
            log.warning("rule set %s: %s; it is downloaded anew", options.tag, error)
            self._states.pop(options.tag, None)
            return ()
        self._rules[options.tag] = (key, found)
        return found

    def keep(self, options: RuleSetOptions, data: bytes, state: State) -> None:
        """A new copy. Raises ConfigError where it is no rule set; what was here stays then."""
        found = parsed(data, options.form, str(URL.parse(options.url)))
        self._rules[options.tag] = (f"{options.form} {state.digest}", found)
        self._states[options.tag] = state
        self._store.change([(BODY, options.tag, data), (STATE, options.tag, msgspec.json.encode(state))])

    def confirm(self, options: RuleSetOptions, state: State) -> None:
        """The copy is what ``state`` says of it now."""
        self._states[options.tag] = state
        self._store.put(STATE, options.tag, msgspec.json.encode(state))

    def forget(self, tags: Collection[str], before: float) -> None:
        """Copies of other tags than these that were last current ``before``."""
        gone = [tag for tag, state in self._states.items() if tag not in tags and state.updated < before]
        for tag in gone:
            self._states.pop(tag)
            self._rules.pop(tag, None)
        if gone:
            self._store.change([(kind, tag, None) for tag in gone for kind in (BODY, STATE)])


class RemoteSets:
    """Downloads what ``use`` was given, as long as it runs. ``changed`` is called when a copy has become another one;
    ``clock``: seconds since 1970."""

    def __init__(
        self, copies: Copies, wiring: Wiring, changed: Callable[[], None], clock: Callable[[], float] = time.time
    ) -> None:
        self.copies = copies
        self._wiring = wiring
        self._changed = changed
        self._clock = clock
        self._tasks: dict[str, tuple[RuleSetOptions, asyncio.Task[None]]] = {}
        self._together = asyncio.Semaphore(TOGETHER)
        self._due: dict[str, float] = {}
        """When each is asked for next, by ``clock``; not there while it is being asked for."""
        self._errors: dict[str, str] = {}
        """What went wrong the last time, of those of which it did."""
        self._received: dict[str, int] = {}
        """Bytes so far, of those that are being asked for."""
        self._hurry = asyncio.Event()

    def use(self, entries: Iterable[RuleSetOptions]) -> None:
        """From now on these, the remote ones of them."""
        wanted = {entry.tag: entry for entry in entries if entry.type == "remote"}
        for tag, (entry, task) in list(self._tasks.items()):
            if wanted.get(tag) != entry:
                task.cancel()
                del self._tasks[tag]
                self._errors.pop(tag, None)
        for tag, entry in wanted.items():
            if tag not in self._tasks:
                self._tasks[tag] = entry, asyncio.create_task(self._follow(entry), name=f"rule set {tag}")
        if wanted:
            self.copies.forget(wanted.keys(), self._clock() - FORGOTTEN)

    def hurry(self) -> None:
        """The network has changed: what failed is tried now."""
        self._hurry.set()
        self._hurry = asyncio.Event()

    async def _follow(self, entry: RuleSetOptions) -> None:
        failures = 0
        while True:
            await self._wait(entry, failures)
            self._due.pop(entry.tag, None)
            self._received[entry.tag] = 0
            try:
                async with self._together, asyncio.timeout(PATIENCE):
                    told = await self._update(entry)
            except (GatewayError, OSError, TimeoutError) as error:
                failures += 1
                said = str(error) or "no answer in time"
                self._errors[entry.tag] = said
                log.warning("rule set %s: %s", entry.tag, said)
            except Exception:
                failures += 1
                self._errors[entry.tag] = "internal error, see the log"
                log.exception("rule set %s", entry.tag)
            else:
                failures = 0
                self._errors.pop(entry.tag, None)
                log.info("rule set %s: %s", entry.tag, told)

    async def _wait(self, entry: RuleSetOptions, failures: int) -> None:
        state, now = self.copies.state(entry), self._clock()
        interval = max(float(entry.update_interval) or DAY, LEAST)
        if failures:
            most = LATEST if state is None else min(LATEST_UPDATE, interval)
            pause = min(SOON * 2 ** min(failures - 1, 16), most)
        else:
            pause = 0.0 if state is None else min(max(state.updated + interval - now, 0.0), interval)
        self._due[entry.tag] = now + pause
        if not failures:
            await asyncio.sleep(pause)
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(pause):
                await self._hurry.wait()

    async def _update(self, entry: RuleSetOptions) -> str:
        """One line of what came of it. Raises GatewayError, OSError, TimeoutError."""
        from gateway.transport.fetch import fetch  # h11 is loaded where something is downloaded

        state = self.copies.state(entry)
        tag = entry.download_detour or self._wiring.outbounds.default
        size = 0
        with tempfile.SpooledTemporaryFile(SPOOL) as file:

            def sink(data: bytes) -> None:
                nonlocal size
                size += len(data)
                self._received[entry.tag] = size
                if size > LARGEST:
                    raise PeerError(f"it is over {LARGEST >> 20} MiB")
                file.write(data)

            async def connect(address: Address) -> Stream:
                flow = Flow("tcp", "", "", NOWHERE, address)
                return await self._wiring.outbounds[tag].connect(flow, address)

            answer = await fetch(self._wiring.edge, connect, URL.parse(entry.url), headers=asked(state), sink=sink)
            if answer.status == 304 and state is not None:
                new = msgspec.structs.replace(state, updated=self._clock())
                await asyncio.to_thread(self.copies.confirm, entry, new)
                return "not changed"
            if answer.status != 200:
                raise PeerError(f"{answer.url.authority} answers {answer.status}")
            file.seek(0)
            data = file.read()
        made = await asyncio.to_thread(digest, data)
        new = State(entry.url, self._clock(), size, made, *known(answer.headers))
        if state is not None and state.digest == new.digest:
            await asyncio.to_thread(self.copies.confirm, entry, new)
            return "not changed"
        await asyncio.to_thread(self.copies.keep, entry, data, new)
        self._changed()
        return f"{size} bytes downloaded"

    async def stop(self) -> None:
        tasks = [task for _, task in self._tasks.values()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        self._tasks.clear()

    def status(self) -> list[dict[str, Any]]:
        """Of each: ``tag``, ``url`` (without credentials), ``size`` in bytes and ``age`` in seconds (None without a
        copy), ``next``: seconds until it is asked for (None: just now; ``received``: bytes that have come), ``error``
        of the last time."""
        now, found = self._clock(), []
        for tag, (entry, _) in self._tasks.items():
            state, due = self.copies.state(entry), self._due.get(tag)
            found.append({
                "tag": tag, "url": str(URL.parse(entry.url)), "size": None if state is None else state.size,
                "age": None if state is None else round(max(now - state.updated, 0.0)),
                "next": None if due is None else round(max(due - now, 0.0)), "received": self._received.get(tag, 0),
                "error": self._errors.get(tag, ""),
            })  # fmt: skip
        return found


def absent(entries: Iterable[RuleSetOptions], copies: Copies) -> list[str]:
    """Tags of remote rule sets of which there is no copy: they match nothing."""
    return [entry.tag for entry in entries if entry.type == "remote" and copies.state(entry) is None]


def digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def asked(state: State | None) -> dict[str, str]:
    """Header fields by which a server may answer that nothing has changed (RFC 9110 section 13.1)."""
    if state is None:
        return {}
    if state.etag and state.etag.isascii() and state.etag.isprintable():
        return {"If-None-Match": state.etag}
    date = state.modified
    return {"If-Modified-Since": date} if date and date.isascii() and date.isprintable() else {}


def known(headers: Mapping[str, str]) -> tuple[str, str]:
    """Entity tag and date of an answer, "" for none."""
    return headers.get("etag", "")[:1024], headers.get("last-modified", "")[:64]
