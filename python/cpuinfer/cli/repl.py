"""The chat of `cpuinfer run`: a conversation fed line by line, and the terminal in front of it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, TextIO

from cpuinfer.cli.answer import explain_length, print_stats, receive
from cpuinfer.cli.parameters import sampling_value
from cpuinfer.cli.terminal import remark, without_echo
from cpuinfer.errors import ContextFull, CpuInferError, InvalidRequest, UnsupportedModel
from cpuinfer.sampling import SamplingParams

if TYPE_CHECKING:
    from prompt_toolkit.history import History

    from cpuinfer.llm import LLM

QUOTES = '"""'

HELP = f"""\
/set NAME VALUE   temperature, top_k, top_p, min_p, seed, max_tokens,
                  repeat_penalty or system; "none" is the default
/show             the model and the settings
/clear            forget the conversation
/? or /help       this
/bye              leave, as Ctrl-D does, which within a message of several
                  lines drops that instead
{QUOTES}               begins and ends a message of several lines
Ctrl-C            stops the answer; what there is of it is remembered"""

# Name in /set: field of SamplingParams, type.
_SETTINGS: dict[str, tuple[str, Callable[[str], object]]] = {
    "temperature": ("temperature", float),
    "top_k": ("top_k", int),
    "top_p": ("top_p", float),
    "min_p": ("min_p", float),
    "seed": ("seed", int),
    "max_tokens": ("max_tokens", int),
    "repeat_penalty": ("repetition_penalty", float),
}


class Conversation:
    """Takes what the user enters, writes answers to a stream and remembers both."""

    def __init__(
        self, llm: LLM, params: SamplingParams, output: TextIO, *, system: str | None = None, stats: bool = False
    ) -> None:
        self.messages: list[dict[str, str]] = []
        """Without the system message."""
        self.params = params
        self.system = system
        self._llm = llm
        self._output = output
        self._stats = stats
        self._open: list[str] | None = None
        """Lines of a message whose closing quotes have not come."""

    @property
    def prompt(self) -> str:
        """What to show in front of the next line."""
        return ">>> " if self._open is None else "... "

    def enter(self, text: str) -> bool:
        """Take one entry; False says that the user leaves."""
        message = self._collect(text)
        if message is None or not message.strip():
            return True
        if message is not text or not text.startswith("/"):
            self._answer(message)
            return True
        command, _, rest = text.strip().partition(" ")
        if command == "/bye":
            return False
        try:
            self._say(self._obey(command, rest.strip()))
        except InvalidRequest as error:
            self._say(f"error: {error}")
        return True

    def discard(self) -> bool:
        """Drop a message under way; False says there was none."""
        dropped, self._open = self._open is not None, None
        return dropped

    def _collect(self, text: str) -> str | None:
        """The message that an entry is or completes; None while its closing quotes are missing."""
        if self._open is None:
            if not text.startswith(QUOTES):
                return text
            self._open, text = [], text[len(QUOTES) :]
        if not text.rstrip().endswith(QUOTES):
            self._open.append(text)
            return None
        lines, self._open = [*self._open, text.rstrip()[: -len(QUOTES)]], None
        return "\n".join(lines).strip("\n")

    def _obey(self, command: str, rest: str) -> str:
        if command in ("/?", "/help"):
            return HELP
        if command == "/clear":
            self.messages.clear()
            return "the conversation is forgotten"
        if command == "/show":
            return self._show()
        if command == "/set":
            name, _, value = rest.partition(" ")
            return self._set(name, value.strip())
        raise InvalidRequest(f"no command {command}, /? lists them")

    def _set(self, name: str, value: str) -> str:
        if name not in (*_SETTINGS, "system") or not value:
            raise InvalidRequest(f"expected /set NAME VALUE, NAME one of {', '.join(_SETTINGS)}, system")
        none = value.lower() == "none"
        if name == "system":
            self.system = None if none else value
            return f"system is {_shown(self.system)}"
        field, kind = _SETTINGS[name]
        try:
            number = getattr(SamplingParams(), field) if none else sampling_value(field, kind, value)
        except InvalidRequest as error:
            raise InvalidRequest(f"{name} is {error}") from None
        self.params = replace(self.params, **{field: number})
        return f"{name} is {_shown(number)}"

    def _show(self) -> str:
        rows: list[tuple[str, object]] = [("model", self._llm.path), ("context", self._llm.context)]
        rows += [("system", self.system), *((name, getattr(self.params, _SETTINGS[name][0])) for name in _SETTINGS)]
        return "\n".join(f"{name:<15} {_shown(value)}" for name, value in rows)

    def _answer(self, message: str) -> None:
        system = [] if self.system is None else [{"role": "system", "content": self.system}]
        self.messages.append({"role": "user", "content": message})
        try:
            with without_echo():
                answer = receive(
                    self._llm, lambda: self._llm.stream_chat([*system, *self.messages], self.params), self._output
                )
        except ContextFull as error:
            self.messages.pop()
            self._say(f"error: {self._too_long(error.tokens)}")
            return
        except CpuInferError as error:
            self.messages.pop()
            self._say(f"error: {error}")
            return
        if answer.finish_reason == "cancelled" and not answer.text:
            self.messages.pop()
            return
        self.messages.append({"role": "assistant", "content": answer.text})
        explain_length(answer, self.params, self._llm.context)
        if self._stats:
            print_stats(answer.timings)

    def _too_long(self, tokens: int) -> str:
        most, trained = self._llm.context, self._llm.config.context
        what = "the conversation with this message" if self.messages else "this message"
        ways = ["/clear forgets the conversation" if self.messages else "shorten it"]
        if most < trained:
            ways.append(f"begin the chat with a larger context (-c, this model up to {trained})")
        return f"{what} has {tokens} tokens and does not fit the context of {most}: {', or '.join(ways)}"

    def _say(self, text: str) -> None:
        self._output.write(text + "\n")
        self._output.flush()


def _shown(value: object) -> object:
    """A setting in the words that /set takes."""
    return "none" if value is None else value


def chat(llm: LLM, params: SamplingParams, *, system: str | None, stats: bool) -> int:
    """Chat on the terminal until the user leaves."""
    from prompt_toolkit import PromptSession

    if not llm.has_chat_template:
        raise UnsupportedModel(f"{llm.path}: has no chat template to chat with: give a prompt and --raw")
    conversation = Conversation(llm, params, sys.stdout, system=system, stats=stats)
    session: PromptSession[str] = PromptSession(history=_history())
    remark(f"{llm.path.name}: /? for help, Ctrl-D to leave")
    while True:
        try:
            if not conversation.enter(session.prompt(conversation.prompt)):
                return 0
        except EOFError:
            if not conversation.discard():
                return 0
        except KeyboardInterrupt:
            if not conversation.discard() and not session.default_buffer.text:
                remark("Ctrl-D or /bye leaves")


def _history() -> History:
    """Of earlier chats, in a file for its owner alone; of this one only, where no file can be written."""
    from prompt_toolkit.history import FileHistory, InMemoryHistory

    from cpuinfer import store

    path = store.cache_folder() / "history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        with path.open("ab"):
            return FileHistory(path)
    except OSError:
        return InMemoryHistory()
