"""Chat messages to the text of a prompt, by the template a model file carries.

A template is a program from a file that may be hostile.  jinja2's immutable sandbox keeps it from Python's internals;
here its work is bounded as well, by cpuinfer.template_bounds.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from typing import TYPE_CHECKING, Any, NoReturn, cast

from cpuinfer import template_bounds as bounds
from cpuinfer.errors import CheckpointError, InvalidRequest, UnsupportedModel

if TYPE_CHECKING:
    from jinja2 import Environment, Template

Message = Mapping[str, object]

MAX_SOURCE = 1 << 20
"""Characters of a template."""


class ChatTemplate:
    """A compiled chat template.  `origin` names its file in messages."""

    def __init__(
        self, source: str, *, bos_token: str, eos_token: str, origin: str, tool_use: str | None = None
    ) -> None:
        """`tool_use`: takes the place of `source` where there are tools.

        Raises CheckpointError for what is not a template.
        """
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._origin = origin
        self._template = self._compiled(source)
        self._tool_use = self._template if tool_use is None else self._compiled(tool_use)

    def _compiled(self, source: str) -> Template:
        origin = self._origin
        if not isinstance(source, str) or len(source) > MAX_SOURCE:
            raise CheckpointError(f"{origin}: the chat template is not a text of at most {MAX_SOURCE} characters")
        from jinja2 import TemplateSyntaxError

        environment = _environment()
        try:
            return environment.from_string(_metered(environment, source))
        except TemplateSyntaxError as error:
            raise CheckpointError(f"{origin}: chat template, line {error.lineno}: {error.message}") from error
        except (SyntaxError, RecursionError, MemoryError, ValueError, OverflowError) as error:
            raise CheckpointError(f"{origin}: the chat template is too deeply nested or malformed: {error}") from error

    @classmethod
    def from_metadata(
        cls, metadata: Mapping[str, object], *, bos_token: str, eos_token: str, origin: str
    ) -> ChatTemplate:
        """The template under ``tokenizer.chat_template``.  Raises UnsupportedModel if there is none."""
        source = metadata.get("tokenizer.chat_template")
        if source is None:
            raise UnsupportedModel(
                f"{origin}: the model has no chat template; continue plain text with generate(), or --raw"
            )
        if not isinstance(source, str):
            raise CheckpointError(f"{origin}: tokenizer.chat_template is {type(source).__name__}, expected a string")
        return cls(source, bos_token=bos_token, eos_token=eos_token, origin=origin)

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: Sequence[Mapping[str, object]] | None = None,
        add_generation_prompt: bool = True,
        **extra: object,
    ) -> str:
        """The prompt for these messages: ``{"role": ..., "content": text or list of text parts}`` each.

        `tools` and `extra` are variables of the template, as the model's makers document them.
        Raises InvalidRequest for messages that are malformed or that the template refuses, CheckpointError for a
        template that leaves the sandbox or its bounds.
        """
        variables = {
            **self._tokens,
            **extra,
            "messages": check_messages(messages),
            "tools": None if tools is None else list(tools),
            "add_generation_prompt": add_generation_prompt,
        }
        from jinja2.exceptions import SecurityError

        token = bounds.budget.set(bounds.Budget())
        try:
            return "".join(self._pieces(self._template if tools is None else self._tool_use, variables))
        except InvalidRequest:
            raise
        except (SecurityError, bounds.Exhausted, OverflowError, MemoryError) as error:  # Overflow: range() too long
            raise CheckpointError(f"{self._origin}: the chat template was stopped: {error}") from error
        except Exception as error:
            raise InvalidRequest(f"{self._origin}: the chat template fails on these messages: {error}") from error
        finally:
            bounds.budget.reset(token)

    def _pieces(self, template: Template, variables: Mapping[str, object]) -> Iterable[str]:
        """What the template prints, the text between expressions included, which the environment does not see."""
        size = 0
        for piece in template.generate(variables):
            size += len(piece)
            if size > bounds.MAX_OUTPUT:
                raise bounds.Exhausted(f"prints more than {bounds.MAX_OUTPUT} characters")
            bounds.budget.get().spend()
            yield piece


def check_messages(messages: Sequence[Message]) -> list[dict[str, object]]:
    """Copies of the messages with their content as one text.  Raises InvalidRequest for what is not a conversation."""
    if isinstance(messages, (str, bytes, Mapping)) or not isinstance(messages, Sequence) or not messages:
        raise InvalidRequest("messages must be a list of at least one {'role': ..., 'content': ...}")
    return [_checked(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _checked(message: object, where: str) -> dict[str, object]:
    if not isinstance(message, Mapping):
        raise InvalidRequest(f"{where} is {type(message).__name__}, expected {{'role': ..., 'content': ...}}")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str) or not role:
        raise InvalidRequest(f"{where}['role'] is {role!r}, expected a name such as 'user'")
    if content is None and message.get("tool_calls"):
        return dict(message)
    return {**message, "content": _text(content, f"{where}['content']")}


def _text(content: object, where: str) -> str:
    if isinstance(content, str):
        return content
    if not isinstance(content, (list, tuple)):
        raise InvalidRequest(f"{where} is {type(content).__name__}, expected a text or a list of text parts")
    texts: list[str] = []
    for i, part in enumerate(content):
        text = part.get("text") if isinstance(part, Mapping) and part.get("type") == "text" else None
        if not isinstance(text, str):
            raise InvalidRequest(
                f"{where}[{i}] is not {{'type': 'text', 'text': ...}}, the only kind of part supported"
            )
        texts.append(text)
    return "".join(texts)


@cache
def _environment() -> Environment:
    """The sandbox of every template: it holds no state of any of them."""
    from jinja2 import nodes, pass_context
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.parser import Parser
    from jinja2.runtime import Context
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}``: marks an assistant's text for training; here it only stands for its body."""

        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    class Sandbox(ImmutableSandboxedEnvironment):
        intercepted_binops = frozenset({"+", "*", "**", "%"})

        def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
            bounds.check_operator(operator, left, right)
            return super().call_binop(context, operator, left, right)

        def call(self, context: Context, target: Any, /, *args: Any, **kwargs: Any) -> Any:
            return super().call(context, target, *bounds.check_method(target, args, kwargs), **kwargs)

        def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
            return attr not in bounds.HIDDEN and super().is_safe_attribute(obj, attr, value)

        def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:  # at once, not when it is used
            raise SecurityError(f"it reaches for {attribute!r} of {type(obj).__name__!r}")

    def as_text(value: object) -> str:
        bounds.length(value)
        return str(value)

    @pass_context
    def finalize(_: Context, value: object) -> object:
        text = as_text(value)
        bounds.budget.get().spend(len(text))
        return text

    @pass_context  # which also keeps the compiler from folding the call
    def tick(_: Context, value: object) -> object:
        bounds.budget.get().spend()
        return value

    @pass_context
    def weigh(_: Context, value: object) -> object:
        bounds.length(value)
        return value

    @pass_context
    def concatenate(_: Context, values: list[object]) -> str:
        texts = [as_text(value) for value in values]
        bounds.check_text(sum(map(len, texts)))
        return "".join(texts)

    environment = Sandbox(
        trim_blocks=True, lstrip_blocks=True, optimized=False, finalize=finalize, extensions=[loopcontrols, Generation]
    )
    environment.filters["tojson"] = _to_json
    for name in bounds.REMOVED:
        del environment.filters[name]
    for table in (environment.filters, environment.tests):
        table.update({name: bounds.bounded(str(name), cast("Any", function)) for name, function in table.items()})
    environment.filters.update({_TICK: tick, _CONCATENATE: concatenate, _WEIGH: weigh})
    del environment.globals["lipsum"]  # filler text of any length
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


# Filters that no template can spell.
_TICK, _CONCATENATE, _WEIGH = "cpuinfer tick", "cpuinfer concatenate", "cpuinfer weigh"


def _metered(environment: Environment, source: str) -> Any:
    """The template's syntax tree, with every loop and macro counting time, ``~`` and comparisons sizes."""
    from jinja2 import nodes
    from jinja2.visitor import NodeTransformer

    def call(name: str, argument: nodes.Expr) -> nodes.Filter:
        return nodes.Filter(argument, name, [], [], None, None)

    class Metered(NodeTransformer):
        def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
            self.generic_visit(node)
            return call(_CONCATENATE, nodes.List(node.nodes)).set_lineno(node.lineno)

        def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
            self.generic_visit(node)
            node.expr = call(_WEIGH, node.expr)
            for operand in node.ops:
                operand.expr = call(_WEIGH, operand.expr)
            return node

        def visit_For(self, node: nodes.For) -> nodes.Node:
            self.generic_visit(node)
            if node.test is not None:  # which may let nothing into the body, where time is counted too
                node.test = call(_TICK, cast("nodes.Expr", node.test))
            return node

    tree = Metered().visit(environment.parse(source))
    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        node.body.insert(0, nodes.ExprStmt(call(_TICK, nodes.Const(None))).set_lineno(node.lineno))
    return tree.set_environment(environment)


def _to_json(
    value: object,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    """JSON as chat templates are written for: no HTML escapes, the keys in their own order."""
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)


def _raise_exception(message: object) -> NoReturn:
    raise InvalidRequest(f"the chat template refuses these messages: {message}")


def _strftime_now(pattern: str) -> str:
    return datetime.now().strftime(pattern)
