"""What reaches the screen: hostile text has no effect, lines fit, and the record keeps every character."""

import io
import re
from pathlib import Path
from urllib.parse import quote

import pytest
from commands import Pidgin, error_of, pidgin, record
from hypothesis import example, given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console
from terminal import Terminal, plain

from pidgin_cli.core.events import (
    APIErrorEvent,
    ContextLimitEvent,
    ConversationEndEvent,
    ConversationStartEvent,
    Event,
    LimitChangedEvent,
    MessageCompleteEvent,
    MessageRequestEvent,
    ModelLoadEvent,
    RateLimitEvent,
    SystemPromptEvent,
    Totals,
    View,
    WarningEvent,
)
from pidgin_cli.core.types import Agent, EndReason, FinishReason, Message, Role, Status, TextDelta, Timing, Usage
from pidgin_cli.monitor.chat import ChatDisplay, TailDisplay, cost_text, count
from pidgin_cli.monitor.text import Wrapper, one_line, visible

__all__ = ["pidgin"]

# Text that is anything: words, wide and joined characters, controls, long runs without a blank.
CHARS = st.one_of(
    st.sampled_from("ab \n\t\u00a0\u3000-漢字カナ한\u0301\u200b\u200d\ufe0f❤👩🐦é\u2028"),
    st.characters(exclude_categories=["Cs"]),
)
TEXT = st.lists(st.one_of(CHARS, st.text(alphabet="xyz漢", max_size=40)), max_size=40).map("".join)


def wrapped(text: str, width: int | None, cuts: list[int] | None = None, indent: str = "  ") -> str:
    """`text` as the wrapper breaks it, fed in pieces that end at `cuts`."""
    out: list[str] = []
    wrapper = Wrapper(out.append, width, indent)
    ends = sorted({min(cut, len(text)) for cut in cuts or ()} | {len(text)})
    start = 0
    for end in ends:
        wrapper.feed(text[start:end])
        start = end
    wrapper.close()
    return "".join(out)


@given(TEXT, st.integers(6, 60))
def test_wrapping_loses_no_word(text: str, width: int) -> None:
    """The lines joined give the text back, blanks aside."""
    assert "".join(wrapped(visible(text), width).split()) == "".join(visible(text).split())


@given(st.lists(st.text(alphabet="abcdefgé", min_size=1, max_size=12), max_size=40), st.integers(16, 60))
def test_words_that_fit_stay_whole(words: list[str], width: int) -> None:
    """Words that fit on a line are never cut, and stay in order."""
    assert wrapped(" ".join(words), width).split() == words


@given(TEXT, st.integers(6, 60))
@example("❤\ufe0f" * 40, 10)
def test_no_line_is_too_wide(text: str, width: int) -> None:
    """In cells, whatever the text is made of."""
    assert max(map(cell_len, wrapped(visible(text), width).split("\n"))) <= width


@given(TEXT, st.integers(6, 60), st.lists(st.integers(0, 400), max_size=12))
def test_pieces_do_not_matter(text: str, width: int, cuts: list[int]) -> None:
    """How a text was cut into pieces on its way does not show."""
    assert wrapped(visible(text), width, cuts) == wrapped(visible(text), width)


def test_wrapping_reads_well() -> None:
    """Indentation of code and blank lines stay, wrapped lines start at the margin, wide text breaks anywhere."""
    text = "for x in y:\n    print(x)\n\nEin Satz, der nicht passt. " + "w" * 22 + " 漢字漢字漢字漢字漢字漢字"
    assert wrapped(text, 20).split("\n") == [
        "  for x in y:",
        "      print(x)",
        "",
        "  Ein Satz, der",
        "  nicht passt.",
        "  wwwwwwwwwwwwwwwwww",
        "  wwww 漢字漢字漢字",
        "  漢字漢字漢字",
    ]


def test_a_whole_word_is_shown_at_once() -> None:
    """A word is on the screen as soon as the next character says that it is whole."""
    out: list[str] = []
    wrapper = Wrapper(out.append, 40)
    wrapper.feed("Hel")
    assert "".join(out) == ""
    wrapper.feed("lo wor")
    assert "".join(out) == "Hello"


@pytest.mark.parametrize("text", ["x" * 400_000, "漢" * 200_000, "a" + "\u0301" * 400_000, " " * 400_000 + "x"])
def test_endless_words_take_no_endless_time(text: str) -> None:
    """Text without a break costs in proportion to its length: the time-out of the tests would end a square."""
    assert "".join(wrapped(text, 80, list(range(0, len(text), 50))).split()) == text.strip()
    assert cell_len(one_line(text, 80)) <= 80


@given(TEXT, st.integers(0, 60))
def test_one_line(text: str, width: int) -> None:
    """At most so many cells, on one line; whole where it fits, else with an ellipsis."""
    line = one_line(text, width)
    flat = " ".join(visible(text).split())
    assert "\n" not in line
    assert cell_len(line) <= width
    assert line == flat or line.endswith("…") or width < 1
    if not {"\ufe0f", "\u200d"} & set(flat) and cell_len(flat) <= width:
        assert line == flat


UNSAFE = re.compile(
    r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff\u2028\u2029]"
)


@given(st.text())
def test_visible_text_is_inert(text: str) -> None:
    """No control, bidirectional or surrogate character is left, and nothing else is touched."""
    assert not UNSAFE.search(visible(text))
    harmless = UNSAFE.sub("", text)
    assert visible(harmless) == harmless


# Hostile text, end to end

HOSTILE = (
    "start \x1b[38;5;213mcolour\x1b[2J\x1b[H \x1b]0;title\x07 \x1b]8;;http://evil\x1b\\link\x1b]8;;\x1b\\ "
    "safe text\rOVERWRITTEN \x08\x08\x9b31m c1 \x9d0;title\x9c \u202egnp.exe\u202c \u2066i\u2069 \u200f\u061c "
    "[red]red[/red] [link=http://evil]l[/link] :skull: [bold \x0b\x0c\x85\u2028\u2029 \x7f\x00\x1bP1$r\x1b\\ end"
)
OURS = re.compile(r"\x1b\[[0-9;]*m|\x1b\[\?25[lh]|\x1b\[2K|\x1b\[1A|\r")


def is_inert(shown: str) -> None:
    """Nothing of `HOSTILE` took effect; what Pidgin itself writes is allowed for."""
    assert "\x1b[38;5;213m" not in shown
    rest = OURS.sub("", shown)
    assert not UNSAFE.search(rest.replace("\n", "")), repr(UNSAFE.findall(rest))
    assert ":skull:" in rest
    assert "[link=http://evil]l[/link]" in " ".join(rest.split())


def hostile_flags(text: str = HOSTILE) -> list[str]:
    """A conversation in which everything that can be hostile is."""
    reply = f"local:test?reply={quote(text)}&thinking=1&name={quote(text[:30])}"
    Path("hostile.yaml").write_text(f"base: basic\nprompts: {{1: {{both: {ascii_yaml(text)}}}}}\n")
    return [
        *(
            "chat",
            "-a",
            reply,
            "-b",
            "local:test?words=5&fail=disconnect@1&name=\x1b[38;5;213mN\x1b]0;t\x07",
            "--agent",
            f"c={reply}",
            "-t",
            "1",
        ),
        *("-p", text.replace("\x00", ""), "--prompt-tag", "\x1b[38;5;213mT", "-n", text[:60].replace("\x00", "")),
        *("--awareness-a", "hostile.yaml", "--show-thinking", "--show-system-prompts", "--choose-names"),
    ]


def ascii_yaml(text: str) -> str:
    return '"' + "".join(f"\\U{ord(char):08x}" for char in text) + '"'


def test_hostile_text_in_a_pipe(pidgin: Pidgin) -> None:
    """Piped, no escape code comes out at all; the record holds every character as it was."""
    said = pidgin(*hostile_flags())
    assert (said.status, said.err) == (0, "")
    assert "\x1b" not in said.out
    is_inert(said.out)
    found = record()
    assert found.texts[0] == found.texts[2] == HOSTILE
    assert found.start["opening"] == HOSTILE.replace("\x00", "")
    assert found.of("Intervention")[0]["text"] == HOSTILE
    for flags in (("show", found.id), ("show", f"{found.id}-1", "--show-thinking"), ("list",), ("resume", found.id)):
        assert not UNSAFE.search(pidgin(*flags).out.replace("\n", ""))
    is_inert(pidgin("show", found.id).out)
    is_inert(pidgin(*hostile_flags(), "--tail").out)


def test_hostile_text_in_a_terminal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal no byte of a model or a prompt acts."""
    monkeypatch.chdir(tmp_path)
    with Terminal(*hostile_flags(), cwd=tmp_path, columns=140) as terminal:
        assert terminal.wait() == 0
    shown = terminal.raw.decode()
    is_inert(shown)
    for name in ("list", "show"):
        target = (record().id,) if name == "show" else ()
        with Terminal(name, *target, cwd=tmp_path, columns=140) as terminal:
            assert terminal.wait() == 0
        assert not UNSAFE.search(OURS.sub("", terminal.raw.decode()).replace("\n", ""))


def test_hostile_text_in_errors(pidgin: Pidgin) -> None:
    """Nor does it act in what is said about wrong use and about failures."""
    bad = HOSTILE.replace("\x00", "").replace("\x85", "").replace("\u2028", "").replace("\u2029", "")
    Path("bad.yaml").write_text(f"{ascii_yaml(bad)}: 1\n")
    for flags in (
        ("-a", bad, "-b", "local:test"),
        ("-a", f"local:test?{bad}=1", "-b", "local:test"),
        ("-a", "local:test", "-b", "local:test", "--agent", bad),
        ("-a", "local:test", "-b", "local:test", "-w", bad),
        ("-a", "local:test", "-b", "local:test", "-w", "bad.yaml"),
        ("-a", "local:test", "-b", "local:test", "-p", f"@{bad}"),
        ("-a", "local:test", "-b", "local:test", "--first", bad),
        ("-a", "local:test", "-b", "local:test", f"--{bad}"),
    ):
        said = pidgin("chat", *flags)
        assert said.status == 2
        assert not UNSAFE.search(said.err.replace("\n", "")), said.err
    error = error_of(pidgin("show", bad))
    assert not UNSAFE.search(error.replace("\n", ""))
    said = pidgin(bad)
    assert not UNSAFE.search(said.err.replace("\n", ""))


# Widths and colours

LONG = "local:test?words=40&thinking=1&fail=rate_limit@1,disconnect@2&name=Ein+sehr+langer+Name+mit+漢字漢字"


def screen_of(tmp_path: Path, columns: int, **env: str) -> Terminal:
    """A conversation with everything in it that a screen may show."""
    Path("own.yaml").write_text("base: research\nprompts: {1: {both: 'Zwischenruf: 漢字 und " + "x" * 200 + "'}}\n")
    flags = ("-t", "2", "-w", "own.yaml", "--choose-names", "--show-thinking", "--show-system-prompts")
    opening = "漢字" * 60 + " Grüße 👩‍🚀👩‍🚀👩‍🚀 ❤️❤️❤️ " + "lang" * 60
    argv = ("chat", "-a", LONG, "-b", LONG, *flags, "-p", opening, "-n", "ein langer Name " * 5)
    with Terminal(*argv, cwd=tmp_path, columns=columns, env=env) as terminal:
        assert terminal.wait() == 0
    return terminal


def too_wide(raw: bytes, columns: int) -> list[str]:
    """Lines that do not fit. What is to be copied (paths, commands) is never broken and does not count."""
    lines = re.split(r"[\r\n]+", plain(raw.decode()))
    copied = ("record: ", "read it again: ", "/")
    return [line for line in lines if cell_len(line) > columns and not line.startswith(copied)]


@pytest.mark.parametrize("columns", [30, 80, 140])
def test_every_line_fits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, columns: int) -> None:
    """No line is wider than the terminal, in any display; text keeps to 100 columns where there is more room."""
    monkeypatch.chdir(tmp_path)
    raw = screen_of(tmp_path, columns).raw
    assert too_wide(raw, columns) == []
    widest = max(cell_len(line.rstrip()) for line in re.split(r"[\r\n]+", plain(raw.decode())) if line.startswith("  "))
    assert widest <= 100
    assert widest > min(columns, 100) - 12
    for argv in (("list",), ("show", record().id), ("show", f"{record().id}-1"), ("doctor",)):
        with Terminal(*argv, cwd=tmp_path, columns=columns) as terminal:
            assert terminal.wait() == 0
        assert too_wide(terminal.raw, columns) == []
        if argv == ("list",):
            assert record().id in terminal.text


@pytest.mark.parametrize("columns", [20, 30, 80])
def test_tail_fits(columns: int) -> None:
    """One line per event, cut where the terminal ends."""
    out = io.StringIO()
    display = TailDisplay(Console(file=out, force_terminal=True, width=columns, color_system=None))
    for event in (START, REQUEST, COMPLETE):
        display.take(event)
    lines = out.getvalue().splitlines()
    assert len(lines) == 3
    assert all(cell_len(line) <= columns for line in lines)


def test_no_color_means_no_escape_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With NO_COLOR even a terminal gets plain text, and who is waited for is still shown."""
    monkeypatch.chdir(tmp_path)
    terminal = screen_of(tmp_path, 80, NO_COLOR="1")
    assert b"\x1b" not in terminal.raw
    assert "(thinking) " in terminal.text
    assert b"\x1b" in screen_of(tmp_path, 80).raw


def test_two_speakers_look_different(tmp_path: Path) -> None:
    """In self-play the names and their colours differ; thinking is dim and italic."""
    flags = ("-a", "local:test?words=5&thinking=1", "-b", "local:test?words=5&thinking=1", "-t", "1", "--show-thinking")
    with Terminal("chat", *flags, cwd=tmp_path) as terminal:
        assert terminal.wait() == 0
    raw = terminal.raw.decode()
    styles = dict(re.findall(r"\x1b\[(1;\d+)m(test-[ab])", raw))
    assert len(styles) == 2
    assert len(set(re.findall(r"\x1b\[1;(\d+)mtest-a", raw))) == 1
    thought = re.search(r"\x1b\[2;3m {2}(\S.*?)\x1b\[0m", raw)
    assert thought is not None


# Events as they are shown

AGENTS = (Agent(id="a", model="local:test", name="Ada"), Agent(id="b", model="local:test", name="Bob"))
START = ConversationStartEvent(
    schema_version=1,
    pidgin_version="0",
    spec={"max_turns": 2},
    spec_hash="0",
    agents=AGENTS,
    opening="Good morning. " * 20,
    prompt_tag="HUMAN",
    seed=1,
    arm="",
    repetition=1,
)
REQUEST = MessageRequestEvent(
    agent_id="a", turn_number=1, message_index=0, view=View(0, 0, 0, 1), digest="0" * 24, parameters={}
)


def complete(text: str, *, usage: Usage | None = None, timing: Timing | None = None) -> MessageCompleteEvent:
    """A message of agent a."""
    return MessageCompleteEvent(
        agent_id="a",
        turn_number=1,
        message_index=0,
        message=Message(role=Role.ASSISTANT, content=text),
        finish_reason=FinishReason.STOP,
        usage=usage or Usage(),
        cost=0.0,
        timing=timing or Timing(),
        model_requested="local:test",
        model_served="test",
    )


COMPLETE = complete("Dies und das. " * 30)


def shown(*steps: object, width: int | None = None) -> str:
    """What a chat display writes for events and for pieces of agent a's reply."""
    out = io.StringIO()
    console = Console(file=out, force_terminal=width is not None, width=width or 400, color_system=None)
    display = ChatDisplay(console, show_system_prompts=True)
    for step in steps:
        if isinstance(step, str):
            display.live("a", TextDelta(step))
        else:
            display.take(step)  # type: ignore[arg-type]
    display.finish()
    return out.getvalue()


def test_streamed_and_read_texts_look_the_same() -> None:
    """A reply that came in pieces ends up on the screen as one that is read from a record."""
    text = "Ein Satz.\n\n    eingerückt\nund 漢字 dazu. " * 5
    message = complete(text)
    pieces = re.findall(r"(?s).{1,3}", text)
    for width in (None, 40):
        assert shown(START, REQUEST, *pieces, message, width=width) == shown(START, REQUEST, message, width=width)


def test_a_record_without_its_beginning_is_shown() -> None:
    """Messages are readable even if nobody knows any more who the agents were."""
    assert "Dies und das." in shown(REQUEST, COMPLETE)


def test_empty_system_prompts_are_not_shown() -> None:
    """An agent without a system prompt has none on the screen."""
    prompt = SystemPromptEvent(agent_id="a", text=None, placement=None)
    assert "system prompt" not in shown(START, prompt)


@pytest.mark.parametrize(
    ("cost", "text"), [(None, "$?"), (0.0, "$0"), (0.00012, "$0.0001"), (0.5, "$0.5000"), (12.345, "$12.35")]
)
def test_costs(cost: float | None, text: str) -> None:
    """An unknown cost is never shown as none."""
    assert cost_text(cost) == text


def queued(wait_s: float | None, message: str) -> RateLimitEvent:
    return RateLimitEvent(
        agent_id="a",
        turn_number=1,
        message_index=0,
        provider="openai",
        attempt=1,
        reason="limit",
        wait_s=wait_s,
        message=message,
    )


@pytest.mark.parametrize(
    ("event", "chat", "tail"),
    [
        (WarningEvent(agent_id="a", what="seed", reason="not taken"), "Ada: seed left out: not taken", "seed left out"),
        (WarningEvent(what="seed", reason="not taken"), "seed left out: not taken", "seed left out: not taken"),
        (
            LimitChangedEvent(provider="openai", model="gpt-x", limit=8, before=4, why="slow start"),
            "requests at once of openai gpt-x: 4 → 8 (slow start)",
            "requests at once of openai gpt-x: 4 → 8 (slow start)",
        ),
        (
            LimitChangedEvent(
                provider="openai",
                model="gpt-x",
                what="tokens per minute",
                limit=30_000,
                why="told by the provider",
            ),
            "tokens per minute of openai gpt-x: 30,000 (told by the provider)",
            "tokens per minute of openai gpt-x: 30,000 (told by the provider)",
        ),
        (
            queued(None, "8 requests are under way"),
            "Ada waits for openai: 8 requests are under way",
            "waits for openai: 8 requests are under way",
        ),
        (
            queued(12.34, "no more than 50 requests per minute"),
            "Ada waits for openai, at least 12.3 s: no more than 50 requests per minute",
            "waits for openai, at least 12.3 s: no more than 50 requests per minute",
        ),
        (
            ModelLoadEvent(provider="ollama", model="qwen", action="switch", duration_ms=2340.0),
            "switched to ollama qwen in 2.3 s",
            "switched to ollama qwen in 2.3 s",
        ),
        (
            ModelLoadEvent(provider="ollama", model="qwen", action="degraded", why="no answer"),
            "the memory for ollama qwen is not looked after: no answer",
            "not looked after: no answer",
        ),
        (
            ContextLimitEvent(agent_id="a", turn_number=1, policy="stop", estimated_tokens=4321, limit_tokens=4096),
            "the context window of Ada is full: needs about 4,321 of 4,096 tokens",
            "needs about 4,321 of 4,096 tokens",
        ),
        (ContextLimitEvent(agent_id="a", turn_number=1, policy="stop"), "of Ada is full\n", "ContextLimit"),
    ],
)
def test_what_happens_beside_the_talk_is_told(event: Event, chat: str, tail: str) -> None:
    """Warnings, changed limits, loaded models and full windows are told by both displays."""
    assert chat in shown(START, event)
    out = io.StringIO()
    TailDisplay(Console(file=out, width=200)).take(event)
    assert tail in out.getvalue()


def test_a_note_while_waiting_does_not_take_the_name() -> None:
    """On a terminal without colours the speaker's name stands above the reply even if a note came between."""
    note = LimitChangedEvent(provider="openai", model="gpt-x", limit=8, before=4, why="growth")
    lines = shown(START, REQUEST, note, "Hello.", complete("Hello."), width=80).splitlines()
    hello = next(number for number, line in enumerate(lines) if "Hello." in line)
    assert lines[hello - 1].startswith("Ada")


def test_a_long_wait_for_a_place_is_told() -> None:
    """Among the facts of a message, from a second on."""
    assert "waited 1.5 s" in shown(START, complete("Hi.", timing=Timing(queued_ms=1500.0)))
    assert "waited" not in shown(START, complete("Hi.", timing=Timing(queued_ms=900.0)))


def test_the_same_error_is_told_once() -> None:
    """The end repeats an error only if it is another one than the last on the screen."""
    failed = APIErrorEvent(
        agent_id="a",
        turn_number=1,
        message_index=0,
        error="AuthenticationFailed",
        provider="openai",
        retryable=False,
        attempt=1,
        message="a wrong\nkey",
    )

    def end(error: str) -> ConversationEndEvent:
        totals = Totals(turns=0, messages=0)
        return ConversationEndEvent(
            status=Status.FAILED, end_reason=EndReason.PROVIDER_ERROR, totals=totals, error=error
        )

    assert shown(START, REQUEST, failed, end("AuthenticationFailed: a wrong\nkey")).count("AuthenticationFailed") == 1
    assert "Fault: another" in shown(START, REQUEST, failed, end("Fault: another"))
    assert "AuthenticationFailed" in shown(START, REQUEST, end("AuthenticationFailed: a wrong key"))


def test_one_is_singular() -> None:
    """One token is no tokens."""
    assert "  1 token ·" in shown(START, complete("Hi.", usage=Usage(completion_tokens=1)))
    assert [count(number, "turn") for number in (0, 1, 1000)] == ["0 turns", "1 turn", "1,000 turns"]
