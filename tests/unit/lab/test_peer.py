"""Fetching foreign programs: once, complete or not at all."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from gateway.lab import peer


@dataclass
class Made:
    """A source that writes a script, and counts how often it had to."""

    key: str = "made-1"
    built: list[str] = field(default_factory=list)
    fail: bool = False

    def build(self, folder: Path) -> None:
        self.built.append(folder.name)
        peer.script(folder / "bin" / "made", "echo made\n")
        if self.fail:
            raise peer.PeerMissing("half way")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_CACHE", str(tmp_path / "cache"))


def test_two_who_want_it_build_it_once() -> None:
    source = Made()
    threads = [threading.Thread(target=peer.path, args=("made", {"made": source})) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert source.built == ["made-1"]
    assert peer.call([peer.path("made", {"made": source})], Path("/")) == "made\n"


def test_half_a_build_is_not_taken_for_one() -> None:
    source = Made(fail=True)
    with pytest.raises(peer.PeerMissing, match="half way"):
        peer.path("made", {"made": source})
    source.fail = False
    assert peer.path("made", {"made": source}).exists()
    assert len(source.built) == 2


def test_unknown_name_says_what_is_known() -> None:
    with pytest.raises(peer.PeerMissing, match="'nothing'; known: made"):
        peer.path("nothing", {"made": Made()})


def test_wrong_checksum_is_refused() -> None:
    wheel = peer.Wheel("h11", "0.16.0", "h11", "exec {python}", ("00" * 32,))
    with pytest.raises(peer.PeerMissing, match=r"(?is)hash"):
        peer.path("h11", {"h11": wheel})
