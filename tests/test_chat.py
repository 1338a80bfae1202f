"""Chat templates: what they print, what messages they take, and that a hostile one gets nowhere."""

from __future__ import annotations

import datetime
import json

import pytest

from cpuinfer import chat
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


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("a\n{% if %}", "model.gguf: chat template, line 2: Expected an expression"),
        ("{{ x | no_such_filter }}", "model.gguf: chat template, line 1: No filter named 'no_such_filter'"),
        ("{% include 'x' %}{% endfor %}", "model.gguf: chat template, line 1: "),
        ("{{" + "(" * 5000 + "1" + ")" * 5000 + "}}", "model.gguf: the chat template is too deeply nested"),
        ("x" * (chat.MAX_SOURCE + 1), "model.gguf: the chat template is not a text of at most 262144 characters"),
    ],
    ids=range(5),
)
def test_what_is_not_a_template_is_a_damaged_file(source: str, message: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        template(source)
    assert message in str(caught.value)


def test_a_template_includes_no_files() -> None:
    with pytest.raises(CheckpointError, match="line 1: there is no other template"):
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
