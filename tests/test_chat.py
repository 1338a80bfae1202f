"""Chat templates: what they print, what messages they take, and that a hostile one gets nowhere."""

from __future__ import annotations

import datetime
import json

import pytest

from cpuinfer import chat, template_bounds
from cpuinfer.chat import ChatTemplate
from cpuinfer.errors import CheckpointError, InvalidRequest, UnsupportedModel

USER = [{"role": "user", "content": "Hi"}]
SMOLLM2 = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}{{ '<|im_start|>system\n"
    "You are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
    "' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n"
    "' + message['content'] + '<|im_end|>' + '\n"
    "'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n"
    "' }}{% endif %}"
)


def template(source: str) -> ChatTemplate:
    return ChatTemplate(source, bos_token="<s>", eos_token="</s>", origin="model.gguf")


def render(source: str, **variables: object) -> str:
    return template(source).render(USER, **variables)


def test_the_template_of_smollm2_prints_its_prompt() -> None:
    smollm2 = template(SMOLLM2)
    assert smollm2.render(USER) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    conversation = [
        {"role": "system", "content": "Be brief."},
        *USER,
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": [{"type": "text", "text": "Why is "}, {"type": "text", "text": "it blue?"}]},
    ]
    assert smollm2.render(conversation, add_generation_prompt=False) == (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        "<|im_start|>user\nHi<|im_end|>\n"
        "<|im_start|>assistant\nHello!<|im_end|>\n"
        "<|im_start|>user\nWhy is it blue?<|im_end|>\n"
    )


def test_blocks_leave_no_blank_lines() -> None:
    assert render("  {% for m in messages %}\n{{ m.role }}\n  {% endfor %}\nend") == "user\nend"


def test_tools_take_the_template_that_is_made_for_them() -> None:
    names = {"bos_token": "", "eos_token": "", "origin": "model.gguf"}
    both = ChatTemplate("plain", tool_use="{{ tools | length }} tools", **names)
    assert (both.render(USER), both.render(USER, tools=[{}])) == ("plain", "1 tools")
    with pytest.raises(CheckpointError, match="chat template, line 1"):
        ChatTemplate("plain", tool_use="{% if %}", **names)


def test_a_template_has_the_tokens_the_tools_and_whatever_else_is_given() -> None:
    tools = [{"name": "add", "about": "<a> & 'é'"}]
    assert render("{{ bos_token }}{{ eos_token }}") == "<s></s>"
    assert json.loads(render("{{ tools | tojson(indent=2) }}", tools=tools)) == tools
    assert render("{{ tools[0] | tojson }}", tools=tools) == '{"name": "add", "about": "<a> & \'é\'"}'
    assert render("{% if tools is none %}none{% endif %}") == "none"
    assert render("{{ enable_thinking }}", enable_thinking=False) == "False"
    assert render("{{ strftime_now('%Y-%m') }}") == datetime.datetime.now().strftime("%Y-%m")


def test_loop_controls_namespaces_macros_and_generation_blocks_work() -> None:
    assert render("{% for i in range(9) %}{% if i == 3 %}{% break %}{% endif %}{{ i }}{% endfor %}") == "012"
    assert (
        render("{% set n = namespace(x=1) %}{% for i in range(3) %}{% set n.x = n.x * 2 %}{% endfor %}{{ n.x }}") == "8"
    )
    assert render("{% macro f(a, b=2) %}{{ a ~ b ~ loop }}{% endmacro %}{{ f(1) }}") == "12"
    assert render("{% generation %}{{ messages[0].content }}{% endgeneration %}!") == "Hi!"
    assert render("{{ 'a' ~ none ~ 1 ~ missing }}{{ 2 ** 10 }}{{ 'ab' * 2 }}{{ [1] + [2] }}") == "aNone11024abab[1, 2]"


def test_a_template_may_refuse_the_messages_in_its_own_words() -> None:
    with pytest.raises(InvalidRequest, match="refuses these messages: roles must alternate"):
        render("{{ raise_exception('roles must alternate') }}")


def test_messages_a_template_cannot_take_are_an_invalid_request() -> None:
    with pytest.raises(InvalidRequest, match=r"model\.gguf: the chat template fails on these messages: .*'tool'"):
        render("{{ messages[0].tool.name }}")


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ("Hi", "messages must be a list of at least one"),
        ([], "messages must be a list of at least one"),
        ({"role": "user", "content": "Hi"}, "messages must be a list of at least one"),
        (["Hi"], "messages[0] is str, expected {'role': ..., 'content': ...}"),
        ([*USER, {"content": "Hi"}], "messages[1]['role'] is None, expected a name such as 'user'"),
        ([{"role": "", "content": "Hi"}], "messages[0]['role'] is '', expected a name"),
        ([{"role": "user"}], "messages[0]['content'] is NoneType, expected a text or a list of text parts"),
        ([{"role": "user", "content": 5}], "messages[0]['content'] is int, expected a text or a list"),
        ([{"role": "user", "content": ["Hi"]}], "messages[0]['content'][0] is not {'type': 'text'"),
        (
            [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}],
            "messages[0]['content'][1] is not {'type': 'text', 'text': ...}, the only kind of part supported",
        ),
    ],
    ids=str,
)
def test_malformed_messages_are_refused_by_their_place(messages: object, message: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        template(SMOLLM2).render(messages)
    assert message in str(caught.value)


def test_a_call_of_a_tool_needs_no_content() -> None:
    call = {"role": "assistant", "content": None, "tool_calls": [{"name": "add"}]}
    assert template("{{ messages[0].tool_calls[0].name }}").render([call]) == "add"


def test_a_template_cannot_change_the_callers_messages() -> None:
    with pytest.raises(CheckpointError, match="was stopped"):
        render("{{ messages.append(1) }}")
    with pytest.raises(CheckpointError, match="was stopped"):
        render("{{ messages[0].update(role='system') }}")


@pytest.mark.parametrize(
    "attack",
    [
        "{{ ''.__class__ }}",
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ ''['__class__'] }}",
        "{{ '' | attr('__class__') }}",
        "{{ cycler.__init__.__globals__ }}",
        "{{ namespace.__init__ }}",
        "{{ raise_exception.__globals__ }}",
        "{{ strftime_now.__code__ }}",
        "{{ self.__init__.__globals__ }}",
        "{{ [''] | map(attribute='__class__') | list }}",
        "{{ '{0.__class__}'.format('') }}",
        "{% set f = '{0.__class__}'.format %}{{ f('') }}",
    ],
)
def test_a_template_that_reaches_for_pythons_internals_is_stopped(attack: str) -> None:
    with pytest.raises(CheckpointError, match=r"model\.gguf: the chat template was stopped: .*__"):
        render(attack)


@pytest.mark.parametrize("attack", ["{{ lipsum.__globals__ }}", "{{ get_flashed_messages.__globals__ }}"])
def test_names_that_do_not_exist_open_no_door(attack: str) -> None:
    with pytest.raises(InvalidRequest, match="is undefined"):
        render(attack)


LOOP = "{% for i in range(99999) %}"
NEST = (
    "{% set n = namespace(x=[], y=[]) %}{% for i in range(60) %}"
    "{% set n.x = [n.x, n.x] %}{% set n.y = [n.y, n.y] %}{% endfor %}"
)
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
        (DOUBLE + "{% set n.x = n.x + n.x %}{% endfor %}", "makes a value of more than 65536 items"),
        (DOUBLE + "{% set y %}{{ n.x }}{{ n.x }}{% endset %}{% set n.x = y %}{% endfor %}", "makes a text of more"),
        ("{{ 'a'.ljust(10 ** 9) | length }}", "reaches for 'ljust' of 'str'"),
        ("{{ '{:>1000000000}'.format(1) | length }}", "makes a text of more than 65536"),
        ("{% set f = '{:>{}}'.format %}{{ f(1, 10 ** 9) | length }}", "formats a field by another field"),
        ("{{ '{0:>{1[0]}}'.format(1, ['9' * 9]) | length }}", "formats a field by another field"),
        ("{{ ('1' * 60000) | replace(1, 'b' * 60000) }}", "makes a text of more than 65536"),
        ("{{ range(600) | join(['b' * 600]) }}", "makes a text of more than 65536"),
        (NEST + "{{ [n] }}", "makes a text of more than 65536"),
        (NEST + "{{ [n] ~ 'a' }}", "makes a text of more than 65536"),
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
        (NEST + "{{ n.x }}", "makes a text of more than 65536"),
        (NEST + "{{ n.x | tojson }}", "makes a text of more than 65536"),
        (NEST + "{{ 'a' ~ n.x }}", "makes a text of more than 65536"),
        (NEST + "{{ n.x == n.y }}", "makes a text of more than 65536"),
        (NEST + "{{ n.x is eq n.y }}", "makes a text of more than 65536"),
        (NEST + "{{ [n.x].count(n.y) }}", "makes a text of more than 65536"),
        (NEST + "{{ {'a': n.x}.values() }}", "makes a text of more than 65536"),
        (NEST + "{{ n }}", "makes a text of more than 65536"),
        (LOOP + "{% for j in range(99999) if false %}{% endfor %}{% endfor %}", "takes more than 0.2 seconds"),
        (LOOP + "{% set x = range(99999) | map('abs') | list %}{% endfor %}", "takes more than 0.2 seconds"),
        ("{{ 'a' * 10 ** 10 }}", "makes a value of more than 65536 items"),
        ("{{ 10 ** 10 * [1] }}", "makes a value of more than 65536 items"),
        ("{{ 10 ** (10 ** 10) }}", "makes a number of more than 4096 bits"),
        ("{% set n = namespace(x=9) %}" + LOOP + "{% set n.x = n.x * n.x %}{% endfor %}", "makes a value of more than"),
        ("{{ 'a' * 60000 }}{{ 'a' * 60000 }}", "prints more than 65536 characters"),
        ("x" * 60000 + "{{ 1 }}" + "x" * 60000, "prints more than 65536 characters"),
    ],
    ids=range(41),
)
def test_a_template_that_would_never_end_or_fill_the_memory_is_stopped(
    bomb: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(template_bounds, "MAX_SECONDS", 0.2)
    monkeypatch.setattr(template_bounds, "MAX_OUTPUT", 1 << 16)
    with pytest.raises(CheckpointError) as caught:
        render(bomb)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% if %}", "model.gguf: chat template, line 2: Expected an expression"),
        ("{{ x | no_such_filter }}", "model.gguf: chat template, line 1: No filter named 'no_such_filter'"),
        ("{% include 'x' %}{% endfor %}", "model.gguf: chat template, line 1: "),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "model.gguf: the chat template is too deeply nested"),
        ("x" * (chat.MAX_SOURCE + 1), "model.gguf: the chat template is not a text of at most 1048576 characters"),
    ],
    ids=range(5),
)
def test_what_is_not_a_template_is_a_damaged_file(source: str, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        template(source)
    assert message in str(caught.value)


def test_a_template_includes_no_files() -> None:
    with pytest.raises(InvalidRequest, match="no loader"):
        render("{% include '/etc/passwd' %}")


def test_a_model_without_a_template_says_what_to_do_instead() -> None:
    names = {"bos_token": "", "eos_token": "", "origin": "model.gguf"}
    with pytest.raises(
        UnsupportedModel, match=r"model\.gguf: the model has no chat template; .*generate\(\), or --raw"
    ):
        ChatTemplate.from_metadata({}, **names)
    with pytest.raises(CheckpointError, match=r"tokenizer\.chat_template is int, expected a string"):
        ChatTemplate.from_metadata({"tokenizer.chat_template": 5}, **names)
    assert ChatTemplate.from_metadata({"tokenizer.chat_template": "{{ 1 }}"}, **names).render(USER) == "1"
