"""Chat messages to the text of a prompt, by the template a model file carries.

A template is a program from a file that may be hostile.  jinja2's immutable sandbox keeps it from Python's internals;
here its work is bounded as well: cpuinfer.template_sandbox.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cpuinfer.errors import CheckpointError, InvalidRequest, UnsupportedModel

if TYPE_CHECKING:
    from jinja2 import Template

Message = Mapping[str, object]

MAX_SOURCE = 1 << 18
"""Characters of a template."""
MAX_MESSAGE = 500
"""Of an error's."""


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

        from cpuinfer import template_sandbox

        try:
            return template_sandbox.compiled(source)
        except TemplateSyntaxError as error:
            message = _clipped(error.message)
            raise CheckpointError(f"{origin}: chat template, line {error.lineno}: {message}") from error
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
        from cpuinfer import template_sandbox

        try:
            return template_sandbox.render(self._template if tools is None else self._tool_use, variables)
        except template_sandbox.Refused as error:
            raise InvalidRequest(f"the chat template refuses these messages: {_clipped(error)}") from None
        except template_sandbox.STOPPED as error:
            raise CheckpointError(f"{self._origin}: the chat template was stopped: {_clipped(error)}") from error
        except Exception as error:
            message = f"{self._origin}: the chat template fails on these messages: {_clipped(error)}"
            raise InvalidRequest(message) from error


def _clipped(message: object) -> str:
    """As much of a message as a person reads: templates have a say in some."""
    text = str(message)
    return text if len(text) <= MAX_MESSAGE else f"{text[:MAX_MESSAGE]} ..."


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
