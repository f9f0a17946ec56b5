"""The house rules that a reader can check: who may import whom, and which files touch no socket, clock or random."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2] / "gateway"
# A package may import itself and the packages of the rows below its own.
ROWS = [
    {"core"},
    {"config"},
    {"tls", "kernel"},
    {"transport", "route"},
    {"protocol", "dns", "service", "uplink"},
    {"options"},
    {"catalog", "flows", "host", "ledger", "logins", "names", "pauses", "prediction", "shortfall"},
    {"plane", "trial"},
    {"steering"},
    {"accounts"},
    {"box"},
    {"lab"},
    {"cli"},
]
LEVEL = {name: level for level, row in enumerate(ROWS) for name in row}
# kernel does not know the configuration; what a rule is is not its business either.
FORBIDDEN = {("kernel", "config"), ("core", "config")}
# Siblings of protocol/ that share a codec: mixed is socks and http on one port.
# tun delivers to the sockets of tproxy.
SIBLINGS = {("mixed", "socks"), ("mixed", "http"), ("tun", "tproxy")}
# dns shares the matcher with route, nothing else.
DNS_FROM_ROUTE = {"match", "item", "ruleset", "options"}
PURE_NAMES = {"codec", "plan", "diff", "render", "engine", "match", "machine", "compile"}
PURE_FOLDERS = {"route/item", "route/sniff"}
IMPURE = {"asyncio", "socket", "os", "time", "random", "subprocess", "select"}


def modules() -> list[tuple[Path, ast.Module]]:
    return [(path, ast.parse(path.read_text())) for path in sorted(ROOT.rglob("*.py"))]


def imports(tree: ast.Module) -> list[tuple[str, int]]:
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.level:
            found.append(("<relative>", node.lineno))
    return found


def test_arrows_point_down() -> None:
    wrong = []
    for path, tree in modules():
        relative = path.relative_to(ROOT)
        mine = relative.parts[0].removesuffix(".py")
        if mine in ("__init__", "__main__"):
            continue
        for name, line in imports(tree):
            if name == "<relative>":
                wrong.append(f"{relative}:{line}: relative import")
            if not name.startswith("gateway."):
                continue
            parts = name.split(".")
            theirs = parts[1]
            if theirs == "__version__":
                continue
            if theirs == mine:
                if mine == "protocol" and len(parts) > 2 and len(relative.parts) > 2:
                    pair = (relative.parts[1], parts[2])
                    if pair[0] != pair[1] and pair not in SIBLINGS:
                        wrong.append(f"{relative}:{line}: protocol {pair[0]} imports its sibling {pair[1]}")
                continue
            if (mine, theirs) == ("dns", "route") and parts[2] not in DNS_FROM_ROUTE:
                wrong.append(f"{relative}:{line}: dns takes only the matcher from route ({name})")
            if LEVEL[theirs] >= LEVEL[mine] or (mine, theirs) in FORBIDDEN:
                wrong.append(f"{relative}:{line}: {mine} may not import {theirs} ({name})")
    assert not wrong, "\n".join(wrong)


def is_pure(relative: Path, tree: ast.Module) -> bool:
    doc = ast.get_docstring(tree) or ""
    return (
        relative.stem in PURE_NAMES
        or relative.parent.as_posix() in PURE_FOLDERS
        or doc.split("\n\n")[0].rstrip().endswith("Pure.")
    )


def test_pure_files_touch_nothing() -> None:
    wrong = []
    count = 0
    for path, tree in modules():
        relative = path.relative_to(ROOT)
        if not is_pure(relative, tree):
            continue
        count += 1
        wrong += [
            f"{relative}:{line}: pure file imports {name}"
            for name, line in imports(tree)
            if name.split(".")[0] in IMPURE
        ]
    assert count > 3
    assert not wrong, "\n".join(wrong)
