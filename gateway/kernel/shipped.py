"""Where the files are that stand beside the package in a checkout and below the prefix when installed."""

from __future__ import annotations

import sysconfig
from pathlib import Path


def folder(name: str, witness: str) -> Path:
    """The folder ``name`` that holds the file ``witness``; where there is none, the one below the prefix. ``pip install
    --target`` has no prefix but its own folder."""
    top, share = Path(__file__).resolve().parents[2], Path("share/gateway", name)
    places = (top / name, top / share, Path(sysconfig.get_path("data")) / share)
    return next((place for place in places if (place / witness).is_file()), places[-1])
