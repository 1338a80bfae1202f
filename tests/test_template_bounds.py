"""What a chat template may not do: take long, fill the memory, or crash the process.  And what it may."""

from __future__ import annotations

import contextlib
import time

import pytest

from cpuinfer import template_bounds, template_calls
from cpuinfer.errors import CheckpointError, CpuInferError
from test_chat import render, template

LOOP = "{% for i in range(99999) %}"
NEST = (
    "{% set n = namespace(x=[], y=[]) %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}"
)
NAMES = "".join(f"{{% set a{i} = 1 %}}" for i in range(600))
PARTS = "{{% set t = 'x' * 10 ** 6 %}}{}" + "{{{{ t }}}}" * 30 + "{}"
DOUBLE = "{% set n = namespace(x='ab') %}{% for i in range(99) %}"


@pytest.mark.parametrize(
    ("bomb", "message"),
    [
        ("{% for i in range(10 ** 9) %}{% endfor %}", "Range too big"),
        (LOOP * 3 + "{% endfor %}" * 3, "takes more than 0.2 seconds"),
        (LOOP + LOOP + "x{% endfor %}{% endfor %}", "prints more than 65536 characters"),
        (
            "{% macro f(n) %}{% if n and f(n - 1) == f(n - 1) %}{% endif %}{% endmacro %}{% set x = f(60) %}",
            "takes more than 0.2 seconds",
        ),
        (DOUBLE + "{% set n.x = n.x ~ n.x %}{% endfor %}", "makes a text of more than 65536 characters"),
        (DOUBLE + "{% set n.x = n.x + n.x %}{% endfor %}", "makes a text of more than 65536"),
        (DOUBLE + "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}", "makes a text of more"),
        ("{{ 'a'.ljust(10 ** 9) | length }}", "reaches for 'ljust' of 'str'"),
        ("{{ '{:>1000000000}'.format(1) | length }}", "makes a text of more than 65536"),
        ("{% set f = '{:>{}}'.format %}{{ f(1, 10 ** 9) | length }}", "formats a field by another field"),
        ("{{ '{0:>{1[0]}}'.format(1, ['9' * 9]) | length }}", "formats a field by another field"),
        ("{{ ('1' * 60000) | replace(1, 'b' * 60000) }}", "makes a text of more than 65536"),
        ("{{ range(600) | join(['b' * 600]) }}", "makes a text of more than 65536"),
        (NEST + "{{ [n] }}", "makes or walks through more than 16384 items"),
        (NEST + "{{ [n] ~ 'a' }}", "makes or walks through more than 16384 items"),
        ("{{ '%*d' % (10 ** 9, 1) }}", "formats a text with %"),
        ("{{ ('a' * 60000).replace('', 'b' * 60000) }}", "makes a text of more than 65536"),
        ("{{ ('a' * 60000) | replace('a', 'b' * 60000) }}", "makes a text of more than 65536"),
        ("{{ ('b' * 60000).join('abc') }}", "makes a text of more than 65536"),
        ("{{ range(600) | map('string') | join('b' * 600) }}", "makes a text of more than 65536"),
        ("{{ 'a' | indent(10 ** 9, true) }}", "makes a text of more than 65536"),
        ("{{ '\\t'.expandtabs(10 ** 9) }}", "reaches for 'expandtabs' of 'str'"),
        ("{{ messages | tojson(indent=10 ** 9) }}", "makes a text of more than 65536"),
        ("{{ 10 | round(-10 ** 9) }}", "rounds to more than 100 digits"),
        ("{{ ('z' * 60000) | int(base=36) }}", "reads a number of more than 4096 digits"),
        (NEST + "{{ n.x }}", "makes or walks through more than 16384 items"),
        (NEST + "{{ n.x | tojson }}", "makes or walks through more than 16384 items"),
        (NEST + "{{ 'a' ~ n.x }}", "makes or walks through more than 16384 items"),
        (NEST + "{{ n.x == n.y }}", "makes or walks through more than 16384 items"),
        (NEST + "{{ n.x is eq n.y }}", "makes or walks through more than 16384 items"),
        (NEST + "{{ [n.x].count(n.y) }}", "makes or walks through more than 16384 items"),
        (NEST + "{{ {'a': n.x}.values() }}", "makes or walks through more than 16384 items"),
        (NEST + "{{ n }}", "makes or walks through more than 16384 items"),
        (LOOP + "{% for j in range(99999) if false %}{% endfor %}{% endfor %}", "takes more than 0.2 seconds"),
        (LOOP + "{% set x = range(99999) | map('abs') | list %}{% endfor %}", "takes more than 0.2 seconds"),
        ("{{ 'a' * 10 ** 10 }}", "makes a text of more than 65536"),
        ("{{ 10 ** 10 * [1] }}", "walks through more than 16384 items"),
        ("{{ 10 ** (10 ** 10) }}", "makes a number of more than 4096 bits"),
        (
            "{% set n = namespace(x=9) %}" + LOOP + "{% set n.x = n.x * n.x %}{% endfor %}",
            "a number of more than 4096 bits",
        ),
        ("{{ 'a' * 60000 }}{{ 'a' * 60000 }}", "prints more than 65536 characters"),
        ("x" * 60000 + "{{ 1 }}" + "x" * 60000, "prints more than 65536 characters"),
    ],
    ids=range(41),
)
def test_a_template_that_would_never_end_or_fill_the_memory_is_stopped(
    bomb: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_bounds, "MAX_SECONDS", 0.2 if "seconds" in message else 5)
    monkeypatch.setattr(template_bounds, "MAX_TEXT", 1 << 16)
    monkeypatch.setattr(template_bounds, "GROWTH", 0)
    with pytest.raises(CheckpointError) as caught:
        render(bomb)
    assert message in str(caught.value)


TEXT = "{% set s = 'x' * 10 ** 6 %}"
DEEP = "{% set n = namespace(x=()) %}" + LOOP + "{% set n.x = STEP %}{% endfor %}{{ {}[n.x] }}"
KEPT = "{% set n = namespace(x=[]) %}" + TEXT + LOOP + "{% set n.x = n.x + [VALUE] %}{% endfor %}"
LEVELS = "makes a value of more than 100 levels"


@pytest.mark.parametrize(
    ("hole", "message"),
    [
        # The square of a text's length.
        (TEXT + "{{ s.rfind('y' ~ s[9:]) }}", "searches 1000000 characters for as many"),
        (TEXT + "{{ s.rsplit('y' ~ s[9:]) }}", "searches 1000000 characters for as many"),
        (TEXT + "{{ s.strip('y' ~ s[9:]) }}", "searches 1000000 characters for as many"),
        (TEXT + "{{ s | trim('y' ~ s[9:]) }}", "searches 1000000 characters for as many"),
        # An item for each character.
        (TEXT + "{{ s | sort }}", "walks through more than 26"),
        (TEXT + "{{ s | map('upper') }}", "walks through more than 26"),
        (TEXT + "{{ dict(*s) }}", "walks through more than 26"),
        # More than is given.
        ("{{ ('x\\u2028' * 9999) | indent(9999) }}", "makes a text of more than"),
        ("{{ ([1] * 99999) | tojson(separators=('x' * 99999, '')) }}", "makes a text of more than"),
        ("{{ '{:>\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661\u0661}'.format(1) }}", "makes a text of more"),
        ("{{ strftime_now('%c' * 999) }}", "formats a date by more than 256 characters"),
        # Operators within filters and tests.
        ("{{ '%999999999d' is even }}", "computes with 'str'"),
        ("{{ '%999999999d' is divisibleby(3) }}", "computes with 'str'"),
        ("{{ 'x' | round(9, 'ceil') }}", "computes with 'str'"),
        # Python hashes tuples, walks through iterators and frees both by recursion.
        (DEEP.replace("STEP", "(n.x,)"), LEVELS),
        (DEEP.replace("STEP", "[n.x] | map('list')"), LEVELS),
        # Large numbers, whose operations take the square of their length.
        ("{{ 0x" + "f" * 2000 + " // 3 }}", "computes with a number of more than 4096 bits"),
        ("{{ ('9' * 99999) | float }}", "reads a number of more than 4096 digits"),
        # Many values, each within its bound.
        (KEPT.replace("VALUE", "s ~ i"), "makes too many values"),
        (KEPT.replace("VALUE", "s[1:]"), "makes too many values"),
        (KEPT.replace("VALUE", "s | upper"), "makes too many values"),
        (KEPT.replace("VALUE", "s.upper()"), "makes too many values"),
        (
            "{% macro m() %}" + LOOP + "x" * 9999 + "{% endfor %}{% endmacro %}{% set x = m() %}",
            "makes too many values",
        ),
        ("{% set x %}" + LOOP + "x" * 9999 + "{% endfor %}{% endset %}", "makes too many values"),
        # Calls that nothing else counts.
        ("{% block a %}{{ self.a() }}{% endblock %}", "recursion"),
        ("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "recursion"),
        (NEST + "{{ [][n.x] }}", "takes more than 0.5 seconds"),
        (NEST + "{{ raise_exception(n.x) }}", "takes more than 0.5 seconds"),
        ("{{ range(999) | groupby('a.' * 500000, default='x') }}", "takes more than 0.5 seconds"),
        ("{% set t = '漢' * 262144 %}{% set x = [" + "t | list, " * 16 + "] %}", "makes too many values"),
        (PARTS.format("{% set x %}", "{% endset %}"), "makes a text of more than 10"),
        (PARTS.format("{% set x | default %}", "{% endset %}"), "makes a text of more than 10"),
        (PARTS.format("{% macro f() %}", "{% endmacro %}{% set x = f() %}"), "makes a text of more than 10"),
        # What has no check.
        ("{{ [-(10 ** 9)] | map('cpuinfer print') | list }}", "No filter named 'cpuinfer print'"),
        ("{% autoescape true %}{{ '&' * 10 ** 6 }}{% endautoescape %}", "line 1: autoescape has no place"),
        ("{{ dict.fromkeys(range(99999)) }}", "reaches for 'fromkeys' of 'type'"),
        ("{{ (1).from_bytes([255] * 99999) }}", "reaches for 'from_bytes' of 'int'"),
        ("{{ 'x'.translate({}) }}", "reaches for 'translate' of 'str'"),
        ("{{ '<!--' | striptags }}", "No filter named 'striptags'"),
        # Source that takes long to compile.
        ("{{a}}" * 50000, "line 1: more than 8192 tokens"),
        ("{{ " + "a ~ " * 50000 + "a }}", "line 1: more than 8192 tokens"),
        (NAMES + "{% include 'x' %}" * 900, "line 1: there is no other template"),
        (NAMES + "{% import 'x' as y with context %}" * 500, "line 1: there is no other template"),
        (NAMES + "".join(f"{{% block b{i} scoped %}}{{% endblock %}}" for i in range(450)), "cannot be scoped"),
    ],
    ids=range(44),
)
def test_no_single_call_takes_long_or_makes_much(hole: str, message: str) -> None:
    with pytest.raises(CpuInferError) as caught:
        render(hole)
    assert message in str(caught.value)


TEXTS = ("'x' * 10 ** 6", "'x ' * 130000", "'\U0001f642' * 10 ** 6")
LISTS = ("[1] * 200000", "['&<'] * 90000")
OF_TEXTS = [
    *(f".{name}({argument})" for name in template_calls.METHODS[str] for argument in ("", "'xy'")),
    *(f"is {name}" for name in template_calls.TESTS if name.isalpha()),
    *("| replace('x', 'y')", "| indent", "| string | forceescape"),
]
OF_LISTS = [
    *("| groupby(0)", "| map('string')", "| map(attribute='real')", "| join(', ')", "| sum", "| unique"),
    *("| sort(attribute='0,' * 999)", "| map(attribute='real.' * 99999)", "| join | forceescape | tojson"),
]
CALLS = [
    *((value, f"| {name}") for value in TEXTS + LISTS for name in template_calls.FILTERS),
    *((value, call) for value in TEXTS for call in OF_TEXTS),
    *((value, call) for value in LISTS for call in OF_LISTS),
]


@pytest.mark.parametrize("calls", [CALLS[part::8] for part in range(8)], ids=range(8))
def test_what_a_template_may_call_is_short_for_the_largest_values(calls: list[tuple[str, str]]) -> None:
    """The bound itself is what is tested: nobody can interrupt a call, so that each must end in time."""
    for value, call in calls:
        began = time.thread_time()
        with contextlib.suppress(CpuInferError):
            render(f"{{% set s = {value} %}}{{% set x = s {call} %}}")
        assert time.thread_time() - began < 2, (value, call)  # 0.7 s where the clock is looked at, and a slow machine


def test_a_long_conversation_is_no_attack() -> None:
    source = (
        "{% for message in messages %}{% if loop.index0 == messages | length - 1 %}last {% endif %}"
        "{% set rest = messages[loop.index:] %}{{ message.role }}: {{ message.content | trim }}\n{% endfor %}"
    )
    messages = [{"role": "user", "content": "Hello, world!"}] * 3000
    assert template(source).render(messages) == "user: Hello, world!\n" * 2999 + "last user: Hello, world!\n"


def test_a_long_message_is_no_attack() -> None:
    text = "Hello, world!\n" * 300_000
    source = "{% set ns = namespace(t='') %}{% set ns.t = ns.t ~ messages[0].content.strip() %}{{ ns.t | tojson }}"
    assert len(template(source).render([{"role": "user", "content": text}])) > len(text)


def test_a_call_is_not_measured_by_the_names_of_its_loop() -> None:
    source = "{% for m in messages %}{% set t = m.content %}{{ t.strip() }}{{ ', '.join(['a', 'b'] * 99) }}{% endfor %}"
    text = "Hello, world! " * 300_000
    assert template(source).render([{"role": "user", "content": text}]).startswith(text.strip() + "a, b")


def test_a_conversation_may_be_written_into_one_text() -> None:
    source = (
        "{% set ns = namespace(t='') %}{% for m in messages %}{% set ns.t = ns.t ~ m.content %}{% endfor %}{{ ns.t }}"
    )
    messages = [{"role": "user", "content": "Hello, world! " * 8}] * 3000
    assert template(source).render(messages) == "Hello, world! " * 24000


@pytest.mark.parametrize(
    "source",
    [
        "{{ raise_exception('x' * 10 ** 6) }}",
        "{{ messages['x' * 10 ** 6].y }}",
        "{{ x | " + "a" * 200000 + " }}",
        "{{ 1 " + "a" * 200000 + " }}",
    ],
    ids=range(4),
)
def test_an_error_is_short_whatever_the_template_says(source: str) -> None:
    with pytest.raises(CpuInferError) as caught:
        render(source)
    assert len(str(caught.value)) < 700
    assert str(caught.value).endswith("...")
