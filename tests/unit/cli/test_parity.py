"""The parity table: every row, no claim without a test, and the page that is made from it."""

from __future__ import annotations

import ast
import json
from functools import cache
from pathlib import Path

import pytest

from gateway.cli import main
from gateway.cli.parity import PEER_AREAS, STATUSES, Row, markdown, rows, unproven

ROOT = Path(__file__).resolve().parents[3]
SHARED = ROOT.parent / "shared" / "data" / "parity-rows.json"
TABLE = rows()


@cache
def marks(path: str) -> dict[str, set[str]]:
    """Test functions of a file, each with the names of its peers: its own ``peer`` marks, the file's, and those of
    parameters."""
    tree = ast.parse((ROOT / path).read_text())
    of_file: set[str] = set()
    of_names: dict[str, set[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name == "pytestmark":
                of_file = peers(node.value)
            else:
                of_names[name] = peers(node.value)
    found: dict[str, set[str]] = {}
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            used = [word for mark in node.decorator_list for word in ast.walk(mark) if isinstance(word, ast.Name)]
            named = set().union(*(of_names.get(word.id, set()) for word in used)) if used else set()
            own = set().union(*(peers(mark) for mark in node.decorator_list)) if node.decorator_list else set()
            found[node.name] = of_file | named | own
    return found


def peers(node: ast.AST) -> set[str]:
    return {
        str(argument.value) if isinstance(argument, ast.Constant) else "?"
        for call in ast.walk(node)
        if isinstance(call, ast.Call) and isinstance(call.func, ast.Attribute) and call.func.attr == "peer"
        for argument in call.args
    }


def test_rows_are_exactly_the_inventory() -> None:
    if not SHARED.exists():
        pytest.skip(f"the inventory {SHARED} is not here: the rows cannot be compared")
    inventory = {area: names for area, names in json.loads(SHARED.read_text()).items() if area != "about"}
    ours: dict[str, list[str]] = {}
    for row in TABLE:
        ours.setdefault(row.area, []).append(row.name)
    assert ours == inventory


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.area} {row.name}")
def test_a_row_says_what_its_status_asks(row: Row) -> None:
    assert row.status in STATUSES
    assert bool(row.proof) or row.status != "works"
    assert bool(row.note) or row.status not in ("partial", "not-here")
    assert len(set(row.proof)) == len(row.proof)
    named: set[str] = set()
    for proof in row.proof:
        path, _, function = proof.partition("::")
        assert (ROOT / path).is_file(), proof
        assert function in marks(path), proof
        named |= marks(path)[function]
    if row.status == "works" and row.area in PEER_AREAS:
        assert named


def test_page_is_current() -> None:
    assert (ROOT / "docs" / "parity.md").read_text() == markdown(TABLE), "gateway parity --markdown > docs/parity.md"


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["parity", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)["rows"]
    assert [(row["area"], row["name"], row["status"]) for row in printed] == [row[:3] for row in TABLE]
    assert all(isinstance(row["proof"], list) for row in printed)


def test_a_proof_that_did_not_pass_is_named() -> None:
    def judge(area: str, outcomes: dict[str, str], peer: str = "") -> list[str]:
        tests = {name: {"outcome": outcome, "peers": [peer] if peer else []} for name, outcome in outcomes.items()}
        return list(unproven((Row(area, "row", "works", "", ("a.py::test_x",)),), tests))

    assert judge("cli", {"a.py::test_x": "passed"}) == []
    assert judge("cli", {"a.py::test_x[1]": "passed", "a.py::test_x[2]": "passed"}) == []
    assert judge("cli", {"a.py::test_x[1]": "passed", "a.py::test_x[2]": "skipped"}) != []
    assert judge("cli", {"a.py::test_x": "failed"}) == ["cli row: a.py::test_x: failed"]
    assert judge("cli", {"a.py::test_xy": "passed"}) == ["cli row: a.py::test_x: not run"]
    assert judge("tls", {"a.py::test_x": "passed"}) == ["tls row: no proof with a foreign program"]
    assert judge("tls", {"a.py::test_x": "passed"}, "openssl") == []
    assert list(unproven((Row("cli", "row", "partial", "much", ("a.py::test_x",)),), {})) == []


def test_verify(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = tmp_path / "report.json"
    every = {proof: {"outcome": "passed", "peers": ["curl"], "seconds": 0.1} for row in TABLE for proof in row.proof}
    report.write_text(json.dumps({"tests": every}))
    assert main(["parity", "--verify", str(report)]) == 0
    lost = next(row for row in TABLE if row.status == "works")
    every[lost.proof[0]]["outcome"] = "skipped"
    report.write_text(json.dumps({"tests": every}))
    capsys.readouterr()
    assert main(["parity", "--verify", str(report)]) == 1
    assert f"{lost.area} {lost.name}: {lost.proof[0]}: skipped" in capsys.readouterr().out
    report.write_text("[]")
    assert main(["parity", "--verify", str(report)]) == 1
    assert main(["parity", "--verify", str(tmp_path / "none")]) == 1
