"""The recorded session: every frame becomes an event, where the table says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rosey.demo.cytube import Frame, SessionError, read_session, to_event

NOWHERE_ELSE = {
    "chatMsg": "chat",
    "mediaUpdate": "media.update",
    "addUser": "user.join",
    "userLeave": "user.leave",
    "queue": "media.queue",
    "setPlaylistMeta": "playlist.meta",
    "playlist": "playlist.update",
    "rank": "self.rank",
    "pm": "pm",
}


def test_every_recorded_frame_becomes_an_event_that_can_be_written() -> None:
    frames = read_session().frames
    assert len(frames) == 1358
    events = [to_event(frame) for frame in frames]
    assert all(event.to_json() for event in events)
    assert not [event.subject for event in events if ".other." in event.subject]
    assert len({event.subject for event in events}) == len({frame.event for frame in frames}) == 30


@pytest.mark.parametrize(("event", "what"), NOWHERE_ELSE.items())
def test_a_kind_of_frame_has_its_subject(event: str, what: str) -> None:
    assert to_event(Frame(0, event, [{}])).subject == f"rosey.platform.cytube.{what}"


@pytest.mark.parametrize("args", [[], [None], [7], [[1, 2]], [{"a": 1}, 2]])
def test_what_is_not_one_object_is_wrapped_and_not_dropped(args: list[object]) -> None:
    assert to_event(Frame(0, "usercount", args)).data == {"args": args}


def test_one_object_stays_as_it_is() -> None:
    event = to_event(Frame(0, "chatMsg", [{"msg": "hi"}]))
    assert event.data == {"msg": "hi"}
    assert (event.platform, event.metadata) == ("cytube", {"platform": "cytube"})


@pytest.mark.parametrize(
    ("event", "token"), [("newThing", "newThing"), ("a b.c*", "a_b_c_"), ("", "_")]
)
def test_an_unknown_kind_goes_to_other(event: str, token: str) -> None:
    assert to_event(Frame(0, event, [])).subject == f"rosey.platform.cytube.other.{token}"


def test_another_recording_is_read_with_its_blank_lines(tmp_path: Path) -> None:
    file = tmp_path / "session.jsonl"
    frame = {"t": 1, "event": "chatMsg", "args": [{"msg": "hi"}]}
    file.write_text(f"\n{json.dumps(frame)}\n\n")
    assert read_session(file).frames == (Frame(1, "chatMsg", [{"msg": "hi"}]),)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'{"t":0,"event":"x","args":[]}\nnonsense', "line 2"),
        (b'{"t":0,"event":"x"}', "line 1.*args"),
        (b'{"t":"soon","event":"x","args":[]}', "line 1"),
        (b"\n\n", "no frames"),
        (b"\xff", "cannot read"),
    ],
)
def test_a_recording_that_cannot_be_read_is_an_error_that_says_where(
    tmp_path: Path, content: bytes, said: str
) -> None:
    file = tmp_path / "session.jsonl"
    file.write_bytes(content)
    with pytest.raises(SessionError, match=said):
        read_session(file)


def test_a_recording_that_is_not_there_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(SessionError, match="cannot read"):
        read_session(tmp_path / "none")
