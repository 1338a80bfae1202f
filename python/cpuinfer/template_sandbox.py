"""The jinja2 environment of chat templates: its immutable sandbox, with every call, operator and loop bounded.

What the environment can see, it checks as it runs; what jinja2 compiles without asking it (loops, literals, slices,
comparisons, the text between expressions) is marked in the syntax tree by filters that no template can spell.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime
from typing import Any, NoReturn, cast

from jinja2 import Template, TemplateSyntaxError, nodes, pass_context
from jinja2.exceptions import SecurityError, TemplateRuntimeError
from jinja2.ext import Extension, loopcontrols
from jinja2.lexer import Token, TokenStream
from jinja2.parser import Parser
from jinja2.runtime import BlockReference, Context, LoopContext, Macro, Undefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from jinja2.visitor import NodeTransformer

from cpuinfer import template_bounds as bounds
from cpuinfer import template_calls as calls

MAX_TOKENS = 1 << 13
"""Of a template: the longest published ones have 2,500, and compiling takes 50 microseconds for each."""


class Refused(Exception):
    """By the template itself, with `raise_exception`."""


STOPPED = (SecurityError, bounds.Exhausted, OverflowError, MemoryError, RecursionError)
"""How a template ends that leaves the sandbox or its bounds: OverflowError if a range is too long."""


def compiled(source: str) -> Template:
    """The template, bounded.  Raises jinja2.TemplateSyntaxError, or what Python does for source nested too deeply."""
    tree = _Metered().visit(_environment.parse(source))
    for node in tree.find_all((nodes.For, nodes.Macro, nodes.CallBlock)):
        node.body.insert(0, _statement(_TICK, None, node))
    return _environment.from_string(tree.set_environment(_environment))


def render(template: Template, variables: Mapping[str, object]) -> str:
    """What a compiled template prints.  Raises one of STOPPED past its bounds, and whatever else it runs into."""
    with bounds.rendering(variables):
        return "".join(_pieces(template, variables))


def _pieces(template: Template, variables: Mapping[str, object]) -> Iterator[str]:
    size, budget = 0, bounds.budget()
    for piece in template.generate(variables):
        size += len(piece)
        if size > budget.largest:
            raise bounds.Exhausted(f"prints more than {budget.largest} characters")
        budget.tick()
        yield piece


class _Length(Extension):
    """Refuses a template of too many tokens."""

    def filter_stream(self, stream: TokenStream) -> Iterator[Token]:
        for count, token in enumerate(stream):
            if count == MAX_TOKENS:
                raise TemplateSyntaxError(f"more than {MAX_TOKENS} tokens", token.lineno)
            yield token


class _Generation(Extension):
    """``{% generation %}``: marks an assistant's text for training; here it only stands for its body."""

    tags = {"generation"}  # noqa: RUF012

    def parse(self, parser: Parser) -> list[nodes.Node]:
        next(parser.stream)
        return parser.parse_statements(("name:endgeneration",), drop_needle=True)


_COMPILERS = ("_loop_vars", "_block_vars")
"""Names that compiled code adds to a call, and that jinja2 takes away before the function sees them."""


class _Sandbox(ImmutableSandboxedEnvironment):
    intercepted_binops = frozenset({"+", "-", "*", "/", "//", "%", "**"})

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        bounds.check_operator(operator, left, right)
        return bounds.made(super().call_binop(context, operator, left, right))

    def getitem(self, obj: Any, argument: Any) -> Any | Undefined:
        bounds.budget().tick()  # filters look up an attribute of many names, one by one
        bounds.length(argument)  # which is hashed, or told of in an error
        return super().getitem(obj, argument)

    def call(self, context: Context, target: Any, /, *args: Any, **kwargs: Any) -> Any:
        if isinstance(target, (Macro, LoopContext, BlockReference)):  # whose bodies are bounded
            bounds.budget().tick()
            text = super().call(context, target, *args, **kwargs)
            bounds.length(text)
            return text
        run = super().call
        given = {name: value for name, value in kwargs.items() if name not in _COMPILERS}
        return calls.call(target, lambda: run(context, target, *args, **kwargs), args, given)

    def call_filter(self, name: str, *args: Any, **kwargs: Any) -> Any:
        if name not in calls.FILTERS:  # map takes a filter by its name, and those of the syntax tree are none
            raise TemplateRuntimeError(f"No filter named {name!r}.")
        return super().call_filter(name, *args, **kwargs)

    def is_safe_attribute(self, obj: Any, attr: str, value: Any) -> bool:
        return calls.has_attribute(obj, attr) and super().is_safe_attribute(obj, attr, value)

    def unsafe_undefined(self, obj: Any, attribute: str) -> NoReturn:  # at once, not when it is used
        raise SecurityError(f"it reaches for {attribute!r} of {type(obj).__name__!r}")


# Filters for the syntax tree.  Wanting the context keeps the compiler from folding their calls.
_TICK, _WEIGH, _COUNTED, _LITERAL = "cpuinfer tick", "cpuinfer weigh", "cpuinfer counted", "cpuinfer literal"
_CONCATENATE, _PRINT = "cpuinfer concatenate", "cpuinfer print"


@pass_context
def _tick(_: Context, value: object) -> object:
    bounds.budget().tick()
    return value


@pass_context
def _weigh(_: Context, value: object) -> object:
    bounds.length(value)
    return value


@pass_context
def _counted(_: Context, value: object) -> object:
    return bounds.made(value)


@pass_context
def _literal(_: Context, value: object) -> object:
    bounds.length(value)
    return bounds.made(value)


@pass_context
def _print(_: Context, size: int) -> None:
    bounds.budget().spend(size)


@pass_context
def _concatenate(_: Context, values: list[object]) -> str:
    texts = [_as_text(value) for value in values]
    bounds.budget().check_text(sum(map(len, texts)))
    return cast("str", bounds.made("".join(texts)))


@pass_context
def _finalize(_: Context, value: object) -> str:
    text = _as_text(value)
    bounds.budget().spend(len(text))
    return text


def _as_text(value: object) -> str:
    bounds.length(value)
    return str(value)


def _filter(name: str, argument: nodes.Node) -> nodes.Filter:
    made = nodes.Filter(cast("nodes.Expr", argument), name, [], [], None, None)
    made.set_lineno(argument.lineno)
    return made


def _statement(name: str, argument: object, place: nodes.Node) -> nodes.Node:
    return nodes.ExprStmt(_filter(name, nodes.Const(argument))).set_lineno(place.lineno, override=True)


class _Metered(NodeTransformer):
    def visit_ScopedEvalContextModifier(self, node: nodes.ScopedEvalContextModifier) -> nodes.Node:
        raise TemplateSyntaxError("autoescape has no place in a prompt", node.lineno)  # it prints more than is counted

    def visit_Include(self, node: nodes.Node) -> nodes.Node:  # compiled with all names so far, each time
        raise TemplateSyntaxError("there is no other template", node.lineno)

    visit_Import = visit_FromImport = visit_Extends = visit_Include

    def visit_Block(self, node: nodes.Block) -> nodes.Node:
        if node.scoped:  # likewise
            raise TemplateSyntaxError("a block cannot be scoped", node.lineno)
        return self.generic_visit(node)

    def visit_Concat(self, node: nodes.Concat) -> nodes.Node:
        self.generic_visit(node)
        return _filter(_CONCATENATE, nodes.List(node.nodes).set_lineno(node.lineno))

    def visit_Compare(self, node: nodes.Compare) -> nodes.Node:
        self.generic_visit(node)
        for operand in node.ops:
            operand.expr = _filter(_WEIGH, operand.expr)
        node.expr = _filter(_WEIGH, node.expr)
        return node

    def visit_Pair(self, node: nodes.Pair) -> nodes.Node:
        self.generic_visit(node)
        node.key = _filter(_WEIGH, node.key)
        return node

    def visit_List(self, node: nodes.List | nodes.Dict) -> nodes.Node:
        self.generic_visit(node)
        return _filter(_LITERAL, node)

    visit_Dict = visit_List

    def visit_Tuple(self, node: nodes.Tuple) -> nodes.Node:
        self.generic_visit(node)
        return _filter(_LITERAL, node) if node.ctx == "load" else node

    def visit_Getitem(self, node: nodes.Getitem) -> nodes.Node:
        self.generic_visit(node)
        return _filter(_COUNTED, node) if isinstance(node.arg, nodes.Slice) else node

    def visit_Call(self, node: nodes.Call) -> nodes.Node:
        self.generic_visit(node)
        if node.dyn_args is not None:
            node.dyn_args = _filter("list", node.dyn_args)
        if node.dyn_kwargs is not None:
            node.dyn_kwargs = _filter(_COUNTED, node.dyn_kwargs)
        return node

    def visit_AssignBlock(self, node: nodes.AssignBlock) -> nodes.Node:
        self.generic_visit(node)
        weigh = nodes.Filter(node.filter, _WEIGH, [], [], None, None)  # without a filter, of the block itself
        node.filter = cast("nodes.Filter", weigh.set_lineno(node.lineno))
        return node

    def visit_Output(self, node: nodes.Output) -> list[nodes.Node]:
        size = sum(len(part.data) for part in node.nodes if isinstance(part, nodes.TemplateData))
        self.generic_visit(node)
        return [_statement(_PRINT, size, node), node] if size else [node]

    def visit_For(self, node: nodes.For) -> nodes.Node:
        self.generic_visit(node)
        if node.test is not None:  # which may let nothing into the body, where time is counted too
            node.test = _filter(_TICK, node.test)
        return node


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
    raise Refused(str(message))


def _strftime_now(pattern: str) -> str:
    if len(pattern) > bounds.MAX_PATTERN:
        raise bounds.Exhausted(f"formats a date by more than {bounds.MAX_PATTERN} characters")
    return datetime.now().strftime(pattern)


def _bounded(functions: Mapping[str, Any], checks: Mapping[str, calls.Check]) -> dict[str, Callable[..., Any]]:
    return {name: calls.bounded(functions[name], check) for name, check in checks.items()}


def _sandbox() -> _Sandbox:
    """The environment of every template: it holds no state of any of them."""
    environment = _Sandbox(
        trim_blocks=True,
        lstrip_blocks=True,
        optimized=False,
        finalize=_finalize,
        extensions=[loopcontrols, _Generation, _Length],
    )
    environment.filters["tojson"] = _to_json
    environment.filters = cast("Any", _bounded(environment.filters, calls.FILTERS))
    environment.filters |= {_TICK: _tick, _WEIGH: _weigh, _COUNTED: _counted, _LITERAL: _literal}
    environment.filters |= {_CONCATENATE: _concatenate, _PRINT: _print}
    environment.tests = cast("Any", _bounded(environment.tests, calls.TESTS))
    del environment.globals["lipsum"]  # filler text of any length
    environment.globals.update(raise_exception=_raise_exception, strftime_now=_strftime_now)
    return environment


_environment = _sandbox()
