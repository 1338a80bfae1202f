"""Cutting a text at special tokens."""

from __future__ import annotations

import re

from hypothesis import given
from hypothesis import strategies as st

from cpuinfer.tokenizer.literals import Literals

few = st.text(alphabet="ab<]\n^-", max_size=5)


@given(st.frozensets(few, max_size=6), st.text(alphabet="ab<]\n^-", max_size=30))
def test_a_text_is_cut_as_by_a_pattern_of_all_literals_longest_first(strings: frozenset[str], text: str) -> None:
    ordered = sorted(filter(None, strings), key=lambda string: (-len(string), string))
    pattern = f"({'|'.join(map(re.escape, ordered))})"
    expected = [piece for piece in (re.split(pattern, text) if ordered else [text]) if piece]
    assert Literals(strings).cut(text) == expected


def test_a_literal_that_begins_like_another_is_not_taken_for_it() -> None:
    literals = Literals(f"<unused{i}>" for i in range(20_000))
    assert literals.cut("<unused19999>a<unused20000>") == ["<unused19999>", "a<unused20000>"]
