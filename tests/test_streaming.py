"""Text of an answer as it streams: whole characters, and nothing past a stop string."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from byte_level_bpe import END, SMALL
from cpuinfer.streaming import Detokenizer, StopMatcher


@settings(deadline=None)
@given(st.lists(st.integers(0, SMALL.vocabulary - 1)))
def test_streamed_text_is_the_decoded_text_whatever_the_tokens(ids: list[int]) -> None:
    stream = Detokenizer(SMALL)
    assert "".join([*map(stream.add, ids), stream.finish()]) == SMALL.decode(ids, skip_special=True)


def test_a_character_comes_whole_with_its_last_byte() -> None:
    for character in ("é", "你", "🙂"):
        stream = Detokenizer(SMALL)
        pieces = [stream.add(byte) for byte in character.encode()]
        assert pieces == [""] * (len(pieces) - 1) + [character]
        assert stream.finish() == ""


@pytest.mark.parametrize("size", [1, 2, 3])
def test_a_character_cut_short_is_one_replacement(size: int) -> None:
    stream = Detokenizer(SMALL)
    assert [stream.add(byte) for byte in "🙂".encode()[:size]] == [""] * size
    assert stream.finish() == "\ufffd"


def test_control_tokens_are_not_text() -> None:
    stream = Detokenizer(SMALL)
    first, *rest = "é".encode()
    assert [stream.add(token) for token in (first, END, *rest)] == ["", "", "é"]


def run(stops: list[str], pieces: list[str]) -> tuple[str, bool]:
    matcher, shown = StopMatcher(stops), ""
    for piece in pieces:
        text, hit = matcher.feed(piece)
        shown += text
        if hit:
            return shown, True
    return shown + matcher.finish(), False


def test_a_stop_string_across_pieces_is_found_and_not_shown() -> None:
    assert run(["STOP"], ["so ", "ST", "O", "P", "more"]) == ("so ", True)
    assert run(["STOP"], ["ST", "ST", "OP"]) == ("ST", True)
    assert run(["STOP"], ["STO", "NE"]) == ("STONE", False)
    assert run(["STOP"], ["end STO"]) == ("end STO", False)


def test_text_is_held_back_only_while_it_may_begin_a_stop_string() -> None:
    matcher = StopMatcher(["\n\nUser:", "###"])
    assert matcher.feed("answer\n") == ("answer", False)
    assert matcher.feed("\n") == ("", False)
    assert matcher.feed("Us #") == ("\n\nUs ", False)
    assert matcher.feed("#x") == ("##x", False)


def test_without_stop_strings_all_text_passes() -> None:
    assert StopMatcher([]).feed("anything") == ("anything", False)


@settings(deadline=None)
@given(
    st.lists(st.text("ab", min_size=1, max_size=4), max_size=3),
    st.text("ab", max_size=20),
    st.lists(st.integers(0, 20), max_size=5),
)
def test_how_text_is_cut_does_not_change_where_it_stops(stops: list[str], text: str, cuts: list[int]) -> None:
    edges = [0, *sorted(cuts), len(text)]
    pieces = [text[a:b] for a, b in itertools.pairwise(edges)]
    ends = [n for n in range(len(text) + 1) if any(text[:n].endswith(stop) for stop in stops)]
    if ends:
        longest = max(len(stop) for stop in stops if text[: ends[0]].endswith(stop))
        expected = (text[: ends[0] - longest], True)
    else:
        expected = (text, False)
    assert run(stops, pieces) == expected
