"""The chat of `cpuinfer run`: what is remembered, its commands, and one pass through a real terminal."""

from __future__ import annotations

import io
import os
import pty
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

import cpuinfer
from cpuinfer import SamplingParams
from cpuinfer.cli.repl import Conversation
from fake_llm import FOREVER, FakeLLM


class Chat:
    """A conversation with a fake, and what it wrote since last asked."""

    def __init__(self, **options: str) -> None:
        self.llm, self._output = FakeLLM(), io.StringIO()
        self.conversation = Conversation(self.llm, SamplingParams(), self._output, **options)

    def enter(self, *lines: str) -> str:
        for line in lines:
            assert self.conversation.enter(line)
        written = self._output.getvalue()
        self._output.seek(0)
        self._output.truncate()
        return written


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def assistant(text: str) -> dict[str, str]:
    return {"role": "assistant", "content": text}


def test_each_turn_sees_those_before_it() -> None:
    chat = Chat(system="Be brief.")
    assert chat.enter("one") == "You said: one\n"
    chat.enter("two")
    system = {"role": "system", "content": "Be brief."}
    assert chat.llm.asked[1] == [system, user("one"), assistant("You said: one"), user("two")]


def test_quotes_hold_a_message_of_several_lines() -> None:
    chat = Chat()
    assert chat.enter('"""first', "", "/bye") == ""
    assert chat.conversation.prompt == "... "
    chat.enter('last"""')
    assert chat.conversation.prompt == ">>> "
    assert chat.llm.asked == [[user("first\n\n/bye\nlast")]]


@pytest.mark.parametrize("entry", ['"""one"""', '"""\none\n"""', "one"])
def test_a_message_may_come_in_one_entry(entry: str) -> None:
    chat = Chat()
    chat.enter(entry)
    assert chat.llm.asked == [[user("one")]]


def test_a_message_under_way_can_be_dropped() -> None:
    chat = Chat()
    chat.enter('"""first')
    assert chat.conversation.discard()
    assert not chat.conversation.discard()
    chat.enter("second")
    assert chat.llm.asked == [[user("second")]]


def test_empty_lines_are_no_messages() -> None:
    chat = Chat()
    assert chat.enter("", "   ", '""""""') == ""
    assert chat.llm.asked == []


def test_settings_hold_for_the_next_answer() -> None:
    chat = Chat()
    chat.enter("/set temperature 0", "/set top_k 3", "/set top_p 0.5", "/set min_p 0.25", "/set seed 9")
    assert chat.enter("/set max_tokens 4", "/set repeat_penalty 1.5").endswith("repeat_penalty is 1.5\n")
    chat.enter("/set system Be kind", "hi")
    assert chat.llm.params == [
        SamplingParams(temperature=0, top_k=3, top_p=0.5, min_p=0.25, seed=9, max_tokens=4, repetition_penalty=1.5)
    ]
    assert chat.llm.asked == [[{"role": "system", "content": "Be kind"}, user("hi")]]
    chat.enter("/set seed none", "/set system none", "/clear", "again")
    assert chat.llm.params[1].seed is None
    assert chat.llm.asked[1] == [user("again")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/set temperature -1", "temperature is '-1', expected 0 to 100"),
        ("/set min_p 1.5", "min_p is '1.5', expected 0 to 1"),
        ("/set repeat_penalty 0", "repeat_penalty is '0', expected 0.001 to 1000"),
        ("/set max_tokens 0", "max_tokens is '0', expected an integer of at least 1"),
        ("/set seed x", "seed is 'x', expected an integer from 0 to 2**64 - 1"),
        ("/set top_q 1", "expected /set NAME VALUE"),
        ("/set seed", "expected /set NAME VALUE"),
        ("/nonsense", "no command /nonsense, /? lists them"),
    ],
)
def test_a_wrong_command_changes_nothing(line: str, message: str) -> None:
    chat = Chat()
    written = chat.enter(line)
    assert message in written
    assert written.count("\n") == 1
    assert chat.conversation.params == SamplingParams()
    assert chat.llm.asked == []


def test_clear_forgets_the_conversation() -> None:
    chat = Chat()
    chat.enter("one", "/clear", "two")
    assert chat.llm.asked[1] == [user("two")]


def test_show_and_help_say_what_there_is() -> None:
    chat = Chat()
    assert "temperature     0.8\n" in chat.enter("/show")
    for command in ("/set", "/show", "/clear", "/bye", '"""'):
        assert command in chat.enter("/?")
    assert chat.enter("/help") == chat.enter("/?")


def test_help_fits_a_terminal_of_80_columns() -> None:
    assert max(len(line) for line in Chat().enter("/?").splitlines()) < 80


def test_a_setting_without_a_value_is_called_what_set_takes() -> None:
    chat = Chat()
    assert chat.enter("/set max_tokens none") == "max_tokens is none\n"
    assert chat.enter("/set system none") == "system is none\n"
    assert chat.enter("/set system Be kind") == "system is Be kind\n"


def test_bye_leaves() -> None:
    assert not Chat().conversation.enter("/bye")


def test_a_stopped_answer_stays_in_the_conversation() -> None:
    chat = Chat()

    def interrupt() -> None:
        while not chat.llm.asked:
            time.sleep(0.001)
        time.sleep(0.05)
        os.kill(os.getpid(), 2)

    presser = threading.Thread(target=interrupt)
    presser.start()
    written = chat.enter(FOREVER)
    presser.join()
    assert written.startswith("You said: forever")
    assert chat.conversation.messages == [user(FOREVER), assistant(written.removesuffix("\n"))]


def test_a_message_that_does_not_fit_is_taken_back() -> None:
    chat = Chat()
    chat.llm.context = 4
    written = chat.enter("one two three four")
    said = "this message has 6 tokens and does not fit the context of 4: shorten it, or begin the chat with a larger"
    assert said in written
    assert "(-c, this model up to 2048)" in written
    assert chat.conversation.messages == []


def test_a_conversation_that_fills_the_context_says_so_and_goes_on_once_cleared() -> None:
    chat = Chat()
    chat.llm.context = chat.llm.config.context
    chat.enter("one")
    written = chat.enter("word " * 3000)
    assert "error: the conversation with this message has 3003 tokens" in written
    assert "does not fit the context of 2048: /clear forgets the conversation\n" in written
    assert len(chat.conversation.messages) == 2
    chat.enter("/clear")
    assert chat.enter("two") == "You said: two\n"


TERMINAL = """
import pathlib, sys, types
import cpuinfer
store = types.ModuleType("cpuinfer.store")
store.cache_folder = lambda: pathlib.Path(sys.argv[1])
sys.modules["cpuinfer.store"] = cpuinfer.store = store
from cpuinfer.cli import main, run
from fake_llm import open_fake
run.open_model = open_fake
sys.exit(main(["run"]))
"""


def test_a_chat_on_a_terminal_hints_stops_and_leaves(tmp_path: Path) -> None:
    folders = [str(Path(__file__).parent), str(Path(cpuinfer.__file__).parents[1])]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(folders), "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"}
    terminal, theirs = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", TERMINAL, str(tmp_path)],
        env=environment,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        start_new_session=True,
    ) as process:
        os.close(theirs)
        seen = b""

        def wait_for(text: bytes) -> None:
            nonlocal seen
            while text not in seen:
                seen += os.read(terminal, 4096)
            seen = seen.split(text, 1)[1]

        try:
            wait_for(b">>>")
            os.write(terminal, b"hello\r")
            wait_for(b"You said: hello")
            wait_for(b">>>")
            os.write(terminal, b"\x03")
            wait_for(b"Ctrl-D or /bye leaves")
            wait_for(b">>>")
            os.write(terminal, b"forever\r")
            wait_for(b"more more")
            process.send_signal(2)
            wait_for(b">>>")
            os.write(terminal, b"\x04")
            assert process.wait(30) == 0
        finally:
            process.kill()
            os.close(terminal)
    history = tmp_path / "history"
    assert "+hello" in history.read_text()
    assert history.stat().st_mode & 0o777 == 0o600
