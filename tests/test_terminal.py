"""A conversation watched and steered by a person at a terminal."""

import queue
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from commands import Record, process, read, until
from loopback import LoopbackServer, Reply, Request, loopback_in_thread
from terminal import DEADLINE_S, ENVIRONMENT, Terminal

SLOW = "local:test?words=300&chunk_ms=20"
"""A message of some seconds, word by word."""


def log_below(cwd: Path) -> Path:
    (log,) = cwd.glob("**/conv_*_events.jsonl")
    return log


def found(cwd: Path) -> Record:
    return read(log_below(cwd))


class Paced:
    """A model behind a server that answers only when it is told to."""

    def __init__(self, server: LoopbackServer) -> None:
        self.server = server
        self._go: queue.Queue[None] = queue.Queue()
        self.asked = 0
        server.reply = self._reply

    def _reply(self, _: Request) -> Reply:
        self.asked += 1
        number = self.asked
        self._go.get(timeout=DEADLINE_S)
        return Reply([f"Answer {number} ", "goes ", "like this."])

    def wait_for(self, number: int) -> None:
        """Until the n-th request is waiting for its answer."""
        until(lambda: self.asked == number)

    def answer(self, times: int = 1) -> None:
        for _ in range(times):
            self._go.put(None)


@contextmanager
def paced(cwd: Path, *flags: str, models: str = "ab") -> Iterator[tuple[Terminal, Paced]]:
    """A conversation in a terminal whose every answer is given on demand."""
    agents = [arg for agent in models for arg in ("--agent", f"{agent}=openai:gpt-{agent}")]
    with loopback_in_thread() as server:
        model = Paced(server)
        try:
            with Terminal("chat", *agents, *flags, cwd=cwd, env=server.env) as terminal:
                yield terminal, model
        finally:
            model.answer(100)  # so that the server can end


def test_words_show_while_they_come(tmp_path: Path) -> None:
    """The first words of a reply are on the screen long before it is complete."""
    with Terminal("chat", "-a", SLOW, "-b", SLOW, cwd=tmp_path) as terminal:
        terminal.expect("turn 1/10")
        terminal.expect("waiting for test-a")
        terminal.expect("test-a  local:test\n  ")
        terminal.expect(" ")
        terminal.expect(" ")
        assert found(tmp_path).of("MessageComplete") == []


def test_ctrl_c_then_say_something_to_one(tmp_path: Path) -> None:
    """Ctrl-C finishes the message and asks; what is said to one agent reaches only that one; resume goes on."""
    with paced(tmp_path, "-t", "3") as (terminal, model):
        model.wait_for(1)
        terminal.expect("waiting for gpt-a")
        terminal.press_ctrl_c()
        terminal.expect("finishing this message")
        model.answer()
        terminal.expect("Answer 1 goes like this.")
        terminal.expect("paused by person")
        terminal.expect("[r]esume · [s]top and save · or say something to\n  [a] gpt-a · [b] gpt-b · [e]veryone\n  > ")
        assert model.asked == 1
        terminal.type("x\n")
        terminal.expect("'x' is none of these")
        terminal.type("b\n")
        terminal.expect("say: ")
        terminal.type("Speak of thé sea.\n")
        terminal.expect("will be said before the next reply")
        terminal.type("\n")  # the same as r
        terminal.expect("going on")
        terminal.expect("person to gpt-b:\n  Speak of thé sea.")
        model.answer(5)
        terminal.expect("completed · turn limit")
        assert terminal.wait() == 0
    sent = model.server.chats
    to_a, to_b = ([request for request in sent if request.model == f"gpt-{agent}"] for agent in "ab")
    assert "[HUMAN]: Speak of thé sea." in to_b[0].messages[-1][1]
    assert all("thé sea" in str(request.messages) for request in to_b)
    assert not any("thé sea" in str(request.messages) for request in to_a)
    record = found(tmp_path)
    (intervention,) = record.of("Intervention")
    assert (intervention["source"], intervention["audience"]) == ("person", ["b"])
    assert [event["by"] for event in record.of("ConversationPaused")] == ["person"]
    assert [event["by"] for event in record.of("ConversationResumed")] == ["person"]
    assert len(record.texts) == len(sent) == 6


def test_ctrl_c_then_stop_and_save(tmp_path: Path) -> None:
    """Stopping from the menu saves: exit 130, no process file; resume shows the end again and completes it."""
    with paced(tmp_path, "-t", "2") as (terminal, model):
        model.wait_for(1)
        terminal.press_ctrl_c()
        terminal.expect("finishing this message")
        model.answer()
        terminal.expect("\n  > ")
        terminal.type("e\n")
        terminal.expect("say: ")
        terminal.type("To you all.\n")
        terminal.type("r\n")
        terminal.expect("person to everyone:\n  To you all.")
        model.wait_for(2)
        terminal.press_ctrl_c()
        terminal.expect("finishing this message")
        model.answer()
        terminal.expect("\n  > ")
        terminal.type("s\n")
        terminal.expect("stopped · stop request")
        terminal.expect("go on: pidgin resume ")
        assert terminal.wait() == 130
        record = found(tmp_path)
        assert record.of("Intervention")[0]["audience"] == ["a", "b"]
        assert (record.end["status"], record.end["end_reason"]) == ("stopped", "stop_request")
        assert not list(tmp_path.glob("**/*.pid"))
        model.answer(2)
        with Terminal("resume", record.id, cwd=tmp_path, env=model.server.env) as again:
            again.expect("Answer 2 goes like this.")
            again.expect("going on at turn 1")
            again.expect("Answer 4 goes like this.")
            again.expect("completed · turn limit")
            assert again.wait() == 0
        assert model.asked == 4


def test_ctrl_c_twice_stops_now(tmp_path: Path) -> None:
    """The second Ctrl-C does not wait: what came so far is recorded as abandoned, exit 130."""
    with Terminal("chat", "-a", SLOW, "-b", SLOW, "-t", "9", cwd=tmp_path) as terminal:
        terminal.expect("test-a  local:test\n  ")
        terminal.expect(" ")
        terminal.press_ctrl_c()
        terminal.expect("finishing this message; Ctrl-C again stops now")
        terminal.expect(" ")
        terminal.press_ctrl_c()
        terminal.expect("; the text above is")
        terminal.expect("stopped · stop request")
        assert terminal.wait() == 130
    record = found(tmp_path)
    (abandoned,) = record.of("MessageAbandoned")
    assert len(abandoned["partial"].split()) > 1
    assert record.texts == []
    assert (record.end["status"], record.end["end_reason"]) == ("stopped", "stop_request")


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(lambda terminal: terminal.press_ctrl_c(), id="Ctrl-C"),
        pytest.param(lambda terminal: terminal.type("\x04"), id="Ctrl-D"),
        pytest.param(lambda terminal: terminal.signal(signal.SIGTERM), id="SIGTERM"),
        pytest.param(lambda terminal: terminal.hang_up(), id="the window is closed"),
    ],
)
def test_leaving_at_the_menu(tmp_path: Path, leave: Callable[[Terminal], None]) -> None:
    """Whichever way a person leaves the menu, the conversation is saved as stopped and nothing is left running."""
    with paced(tmp_path) as (terminal, model):
        model.wait_for(1)
        terminal.press_ctrl_c()
        terminal.expect("finishing this message")
        model.answer()
        terminal.expect("\n  > ")
        leave(terminal)
        assert terminal.wait() == 130
    record = found(tmp_path)
    assert record.end["status"] == "stopped"
    assert record.of("Error") == []
    assert not list(tmp_path.glob("**/*.pid"))
    (log,) = tmp_path.glob("**/logs/*.log")
    assert "Traceback" not in terminal.text + log.read_text()


def test_the_window_is_closed_while_it_runs(tmp_path: Path) -> None:
    """When the terminal goes away, the message is finished and the record saved."""
    with paced(tmp_path) as (terminal, model):
        model.wait_for(1)
        terminal.expect("waiting for gpt-a")
        terminal.hang_up()
        model.answer()
        assert terminal.wait() == 130
    record = found(tmp_path)
    assert (record.texts, record.end["status"]) == (["Answer 1 goes like this."], "stopped")
    assert record.of("Error") == []


def test_agents_named_like_the_choices(tmp_path: Path) -> None:
    """Agents may be called e, r and s; the words of the menu are then written out."""
    with paced(tmp_path, "-t", "1", models="abers") as (terminal, model):
        model.wait_for(1)
        terminal.press_ctrl_c()
        terminal.expect("finishing this message")
        model.answer()
        terminal.expect("[resume] · [stop] and save · or say something to\n")
        terminal.expect("[a] gpt-a · [b] gpt-b · [e] gpt-e · [r] gpt-r · [s] gpt-s · [everyone]\n  > ")
        terminal.type("s\n")
        terminal.expect("say: ")
        terminal.type("Only you.\n")
        terminal.type("resume\n")
        terminal.expect("person to gpt-s:")
        model.answer(4)
        assert terminal.wait() == 0
    assert found(tmp_path).of("Intervention")[0]["audience"] == ["s"]


def test_tail_has_the_menu_too(tmp_path: Path) -> None:
    """Ctrl-C in the tail display asks as well."""
    with paced(tmp_path, "--tail") as (terminal, model):
        model.wait_for(1)
        terminal.press_ctrl_c()
        terminal.expect("finishing this message")
        model.answer()
        terminal.expect("\n  > ")
        terminal.type("s\n")
        assert terminal.wait() == 130


@pytest.mark.parametrize("flags", [("--display", "quiet"), ("--json",)])
def test_displays_without_a_menu_just_stop(tmp_path: Path, flags: tuple[str, ...]) -> None:
    """Where the screen is not for talking, Ctrl-C stops after the message."""
    with paced(tmp_path, *flags) as (terminal, model):
        model.wait_for(1)
        terminal.press_ctrl_c()
        terminal.expect("stopping after this message")
        model.answer()
        assert terminal.wait() == 130
    assert found(tmp_path).texts == ["Answer 1 goes like this."]


def test_waiting_is_visible(tmp_path: Path) -> None:
    """Waiting for a model counts the seconds; a rate limit says how long, and the next attempt follows."""
    with paced(tmp_path, "-t", "1") as (terminal, model):
        model.server.script(Reply(status=429, headers={"Retry-After": "1"}, body={"error": {"message": "slow down"}}))
        terminal.expect("↻ rate limit of openai: ")
        terminal.expect("slow down; attempt 2 in 1.0 s")
        terminal.expect("waiting to ask gpt-a again")
        model.wait_for(1)
        terminal.expect("waiting to ask gpt-a again 1 s")
        model.answer(2)
        terminal.expect("attempt 2")
        assert terminal.wait() == 0


def test_thinking_is_dim_and_only_on_request(tmp_path: Path) -> None:
    """Thinking streams dimmed with --show-thinking; without it the screen waits."""
    models = ("-a", "local:test?thinking=1&words=20&reply=Done.", "-b", "local:silent", "-t", "1")
    with Terminal("chat", *models, cwd=tmp_path) as terminal:
        assert terminal.wait() == 0
    assert found(tmp_path).of("ThinkingComplete")
    assert "\x1b[2;3m" not in terminal.raw.decode()
    with Terminal("chat", *models, "--show-thinking", cwd=tmp_path) as terminal:
        assert terminal.wait() == 0
    assert re.search(r"\x1b\[2;3m {2}\w.*\n  Done\.\r\n", terminal.raw.decode(), re.DOTALL)


def test_discarded_text_is_marked(tmp_path: Path) -> None:
    """When a stream breaks, the screen says that what stands above does not count, and shows the next attempt."""
    models = ("-a", "local:test?words=20&fail=disconnect@1", "-b", "local:silent", "-t", "1")
    with Terminal("chat", *models, cwd=tmp_path) as terminal:
        terminal.expect("; the text above is")
        terminal.expect("test  local:test\n")
        terminal.expect("attempt 2\n")
        assert terminal.wait() == 0
    text = found(tmp_path).texts[0].split()
    assert "".join(text) in "".join(terminal.text.split())


def test_a_conversation_without_a_pause_can_be_stopped(tmp_path: Path) -> None:
    """Ctrl-C takes effect even when no model ever makes the loop wait."""
    command = [sys.executable, "-m", "pidgin_cli", "chat", "-a", "local:silent", "-b", "local:silent"]
    with subprocess.Popen(
        [*command, "-t", "10000000", "--display", "quiet"],
        cwd=tmp_path,
        env=ENVIRONMENT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as child:
        try:
            until(lambda: [log for log in tmp_path.glob("**/conv_*.jsonl") if log.stat().st_size > 100_000])
            child.send_signal(signal.SIGINT)
            assert child.wait(5) == 130
        finally:
            child.kill()


# Ollama


@contextmanager
def asked_to_pull(cwd: Path) -> Iterator[tuple[Terminal, Any]]:
    """A conversation that needs a model which Ollama does not have."""
    with loopback_in_thread() as server:
        argv = ("chat", "-a", "ollama:tiny", "-b", "local:silent", "-t", "1")
        with Terminal(*argv, cwd=cwd, env=server.env) as terminal:
            terminal.expect("Ollama does not have tiny. Download it now? [y/N]: ")
            yield terminal, server


def test_ollama_pull_after_a_yes(tmp_path: Path) -> None:
    """Nothing is downloaded without a yes; with one, the conversation begins."""
    with asked_to_pull(tmp_path) as (terminal, server):
        assert not any(request.path == "/api/pull" for request in server.requests)
        terminal.type("y\n")
        terminal.expect("Ollama has tiny now")
        terminal.expect("Hello from the loopback.")
        assert terminal.wait() == 0


@pytest.mark.parametrize(("answer", "status"), [("n\n", 2), ("\n", 2), ("\x04", 2), ("\x03", 130)])
def test_ollama_pull_after_anything_else(tmp_path: Path, answer: str, status: int) -> None:
    """No, Enter, Ctrl-D and Ctrl-C download nothing and start nothing."""
    with asked_to_pull(tmp_path) as (terminal, server):
        terminal.type(answer)
        if status == 2:
            terminal.expect("Error: Ollama does not have tiny; get it with: ollama pull tiny\n")
        assert terminal.wait() == status
        assert "Traceback" not in terminal.text
        assert not any(request.path == "/api/pull" for request in server.requests)
        assert not list(tmp_path.glob("**/experiment_*"))


def test_standard_input_at_a_terminal(tmp_path: Path) -> None:
    """-p - reads what is typed until Ctrl-D; the menu still works afterwards. Ctrl-C leaves at once."""
    with Terminal("chat", "-a", SLOW, "-b", SLOW, "-p", "-", cwd=tmp_path) as terminal:
        terminal.expect("Ctrl-D on a line of its own ends it.")
        terminal.type("Typed here.\n\x04")
        terminal.expect("[HUMAN] Typed here.")
        terminal.press_ctrl_c()
        terminal.expect("finishing")
        terminal.press_ctrl_c()
        assert terminal.wait() == 130
    assert found(tmp_path).start["opening"] == "Typed here."
    other = tmp_path / "other"
    other.mkdir()
    with Terminal("chat", "-a", SLOW, "-b", SLOW, "-p", "-", cwd=other) as terminal:
        terminal.expect("Ctrl-D on a line of its own ends it.")
        terminal.type("never\n")
        terminal.press_ctrl_c()
        assert terminal.wait() == 130
    assert not list(other.iterdir())


def test_completion_in_a_real_shell(tmp_path: Path) -> None:
    """What `pidgin completion bash` prints can be evaluated by bash."""
    done = process("completion", "bash", cwd=tmp_path)
    assert done.status == 0
    subprocess.run(["bash", "-n"], input=done.out.encode(), check=True, timeout=DEADLINE_S)
