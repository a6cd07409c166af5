"""The documents' Python is run, top to bottom, against a real server."""

from __future__ import annotations

import ast
import inspect
import re
from pathlib import Path
from types import CodeType
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
_BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)


def blocks(document: Path, url: str) -> list[CodeType]:
    text = document.read_text(encoding="utf-8")
    return [
        compile(
            # Lines before it, so that a failure names the document's line.
            "\n" * text.count("\n", 0, found.start(1))
            + found[1].replace("nats://localhost:4222", url),
            str(document),
            "exec",
            flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT,
        )
        for found in _BLOCK.finditer(text)
    ]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
async def test_its_code_runs(document: Path, url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("rosey.core.bus.DEFAULT_SERVER", url)
    names: dict[str, Any] = {"__name__": "document"}
    for code in blocks(document, url):
        result = eval(code, names)
        if inspect.isawaitable(result):
            await result


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_its_links_lead_somewhere(document: Path) -> None:
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", document.read_text(encoding="utf-8"))
    assert [link for link in links if not (document.parent / link).exists()] == []
