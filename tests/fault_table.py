"""How often each fault is tried, from which seed, and the table of what came of it."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path

import pytest

CYCLES = int(os.environ.get("ROSEY_FAULT_CYCLES", "3"))
SEED = int(os.environ.get("ROSEY_FAULT_SEED", "20261123"))
DOCUMENT = os.environ.get("ROSEY_FAULT_TABLE")
_BEGIN, _END = "<!-- measured -->", "<!-- end -->"

Row = Callable[[str, str, str], None]
"""Takes the fault, what is promised under it, and what was found."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything in tests/faults is marked so."""
    for item in items:
        if item.path.parent.name == "faults":
            item.add_marker(pytest.mark.fault)


@pytest.fixture
def cycles() -> int:
    """How often to try; ROSEY_FAULT_CYCLES says."""
    return CYCLES


@pytest.fixture
def rng() -> random.Random:
    """The same moments in every run; ROSEY_FAULT_SEED gives others."""
    return random.Random(SEED)


@pytest.fixture
def row(record_property: Callable[[str, object], None]) -> Row:
    """Adds a row to the table that the run prints."""
    return lambda *cells: record_property("fault", cells)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print the table, and write it into the document that ROSEY_FAULT_TABLE names."""
    rows = [
        value
        for report in terminalreporter.getreports("passed")
        for name, value in getattr(report, "user_properties", ())
        if name == "fault" and report.when == "call"
    ]
    if not rows:
        return
    lines = ["| fault | promise | found |", "|---|---|---|"]
    lines += sorted(f"| {' | '.join(cells)} |" for cells in rows)
    terminalreporter.write_line("")
    for line in [f"faults: {CYCLES} cycles, seed {SEED}", *lines]:
        terminalreporter.write_line(line)
    if DOCUMENT:
        path = Path(DOCUMENT)
        head, _, rest = path.read_text(encoding="utf-8").partition(_BEGIN)
        table = "\n".join([_BEGIN, f"{CYCLES} cycles, seed {SEED}.", "", *lines, _END])
        path.write_text(head + table + rest.partition(_END)[2], encoding="utf-8")
