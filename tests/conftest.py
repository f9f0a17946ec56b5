"""What all tests share: root tests on one worker at a time where they must, a report by test id, labs that are swept,
figures that a person should see.

``GATEWAY_REPORT=FILE`` adds every test's outcome to that JSON file: ``{"tests": {id: {"outcome", "peers",
"seconds"}}}``; the parity table takes its proofs from there. ``outcome`` is ``passed``, ``failed`` or ``skipped``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

# Machines that are shared stall: how long an example took says nothing of us.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")
_outcomes: dict[str, dict[str, Any]] = {}


@pytest.fixture
def figure(record_property: Callable[[str, object], None]) -> Callable[[str], None]:
    """Says a line that stands at the end of the output, beside the test's id."""
    return lambda text: record_property("figure", text)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Here, since workers of pytest-xdist have no terminal."""
    lines = [
        f"{report.nodeid.partition('@')[0].rpartition('::')[2]}: {text}"
        for reports in terminalreporter.stats.values()
        for report in reports
        if getattr(report, "when", "") == "call"
        for key, text in report.user_properties
        if key == "figure"
    ]
    if lines:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.line(line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests that say nothing may run anywhere; a root test that names no group is free too, by its own names."""
    for item in items:
        if item.get_closest_marker("root") and os.geteuid() != 0:
            item.add_marker(pytest.mark.skip(reason="needs root"))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    result: Any = yield
    peers = [str(word) for marker in item.iter_markers("peer") for word in marker.args]
    result.get_result().user_properties.append(("peers", peers))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Runs in the process that writes the report, also under xdist."""
    if os.environ.get("PYTEST_XDIST_WORKER"):
        return
    # loadgroup appends the group to the id
    name = report.nodeid.partition("@")[0]
    entry = _outcomes.setdefault(name, {"outcome": "passed", "peers": [], "seconds": 0.0})
    entry["seconds"] = round(entry["seconds"] + report.duration, 3)
    entry["peers"] = sorted(
        {*entry["peers"], *(word for key, words in report.user_properties if key == "peers" for word in words)}
    )
    if report.outcome != "passed":
        entry["outcome"] = "failed" if "failed" in (report.outcome, entry["outcome"]) else report.outcome


def pytest_sessionfinish(session: pytest.Session) -> None:
    target = os.environ.get("GATEWAY_REPORT")
    if not target or os.environ.get("PYTEST_XDIST_WORKER"):
        return
    file = Path(target)
    before = json.loads(file.read_text())["tests"] if file.exists() else {}
    draft = file.with_suffix(".new")
    draft.write_text(json.dumps({"tests": {**before, **_outcomes}}, indent=1))
    draft.replace(file)
