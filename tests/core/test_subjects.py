"""Subjects: what is valid, what matches, and the builders of the `rosey.` tree."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rosey import InvalidSubjectError, PublishError, SubscriptionError
from rosey.core import subjects

token = st.text(st.characters(min_codepoint=0x21, max_codepoint=0x7E, exclude_characters=".*>"))
tokens = st.lists(token.filter(bool), min_size=1, max_size=6)


@given(tokens)
def test_printable_tokens_make_a_subject(parts: list[str]) -> None:
    subject = ".".join(parts)
    if subject.startswith("$"):
        return
    assert subjects.validate_subject(subject) == subject
    assert subjects.validate_pattern(subject) == subject
    assert subjects.matches(subject, subject)


@given(tokens, st.data())
def test_wildcards_match_what_they_stand_for(parts: list[str], data: st.DataObject) -> None:
    subject = ".".join(parts)
    place = data.draw(st.integers(0, len(parts) - 1))
    assert subjects.matches(".".join([*parts[:place], "*", *parts[place + 1 :]]), subject)
    assert subjects.matches(".".join([*parts[:place], ">"]), subject)
    assert not subjects.matches(f"{subject}.>", subject)
    assert not subjects.matches(f"{subject}.*", subject)
    assert not subjects.matches(f"*.{subject}", subject)


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("", "empty"),
        ("a..b", "empty token"),
        (".a", "empty token"),
        ("a.", "empty token"),
        ("a b", "space"),
        ("a\r\nPUB x", "not printable"),
        ("a\x0b2", "not printable"),
        ("a\x00", "not printable"),
        ("caf\u00e9", "not printable ASCII"),
        ("a.*", "wildcard"),
        ("a.>", "wildcard"),
        ("a.b*", "wildcard"),
        ("$JS.API.INFO", "server"),
        ("a" * 1025, "1024"),
        (None, "NoneType"),
        (["a"], "list"),
        (7, "int"),
    ],
)
def test_a_bad_subject_is_refused_with_the_reason(bad: Any, reason: str) -> None:
    with pytest.raises(InvalidSubjectError, match=reason) as caught:
        subjects.validate_subject(bad)
    assert isinstance(caught.value, (ValueError, PublishError, SubscriptionError))
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("bad", ["", "a.>.b", "a*", ">a", "a..b", "a b", None, ["a"]])
def test_a_bad_pattern_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidSubjectError):
        subjects.validate_pattern(bad)


@pytest.mark.parametrize("good", [">", "*", "*.*", "a.*.b.>", "$JS.EVENT.ADVISORY.>"])
def test_a_good_pattern_is_taken(good: str) -> None:
    assert subjects.validate_pattern(good) == good


@pytest.mark.parametrize("bad", ["", "a b", "*", lambda event: None])
def test_a_bad_queue_group_is_refused(bad: Any) -> None:
    with pytest.raises(InvalidSubjectError, match="handler="):
        subjects.validate_queue(bad)


@pytest.mark.parametrize(
    ("pattern", "subject", "expected"),
    [
        ("a.b", "a.b", True),
        ("a.b", "a.c", False),
        ("a.b", "a.b.c", False),
        ("a.*", "a.b", True),
        ("a.*", "a.b.c", False),
        ("a.>", "a", False),
        ("a.>", "a.b.c", True),
        (">", "a", True),
        ("*.b.>", "a.b.c.d", True),
        ("*.b.>", "a.c.c.d", False),
    ],
)
def test_matching(pattern: str, subject: str, expected: bool) -> None:
    assert subjects.matches(pattern, subject) is expected


def test_builders_name_the_tree() -> None:
    assert subjects.platform("cytube", "user.join") == "rosey.platform.cytube.user.join"
    assert subjects.send("cytube", "chat") == "rosey.platform.cytube.send.chat"
    assert subjects.event("message") == "rosey.events.message"
    assert subjects.command("dice") == "rosey.commands.dice.execute"
    assert subjects.plugin("dice", "started") == "rosey.plugins.dice.started"


@pytest.mark.parametrize("name", ["", "two.tokens", "a b", "*", 7])
def test_builders_refuse_what_would_change_the_shape(name: Any) -> None:
    with pytest.raises(InvalidSubjectError):
        subjects.command(name)


def test_builders_refuse_a_bad_tail() -> None:
    with pytest.raises(InvalidSubjectError):
        subjects.event("")
