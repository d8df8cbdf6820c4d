"""The published word table, from texts and from records."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from commands import Pidgin, error_of, pidgin
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.cells import cell_len
from runs import append, make, said, start
from strategies import TEXT
from terminal import Terminal

from pidgin_cli.core.events import ConversationEndEvent, Event, Totals
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.metrics.tokens import emoji_in, tokenize
from pidgin_cli.metrics.words import WordUse, stop_words, word_table

__all__ = ["pidgin"]


def end(status: Status = Status.COMPLETED, **keys: Any) -> ConversationEndEvent:
    reason = EndReason.TURN_LIMIT if status is Status.COMPLETED else EndReason.PROVIDER_ERROR
    return ConversationEndEvent(status=status, end_reason=reason, totals=Totals(turns=1, messages=1), **keys)


def talk(*texts: str, arm: str = "", last: Event | None = None) -> list[Event]:
    spoken = [said(text, "ab"[at % 2], at // 2 + 1, at) for at, text in enumerate(texts)]
    return [start(arm=arm), *spoken, last or end()]


@pytest.fixture
def root(tmp_path: Path) -> OutputRoot:
    return OutputRoot(tmp_path / "pidgin_output")


# Of texts


def test_the_published_columns() -> None:
    """Mean over all transcripts, share of those with the word, median with the zeros, and most."""
    transcripts = [["Dance! dance", "DANCE eternal"], ["eternal"], ["Dance", ""], ["silence"]]
    dance, eternal, silence = word_table(transcripts)
    assert dance == WordUse("dance", 1.0, 0.5, 0.5, 3, 4)
    assert eternal == WordUse("eternal", 0.5, 0.5, 0.5, 1, 2)
    assert silence == WordUse("silence", 0.25, 0.25, 0.0, 1, 1)


def test_one_transcript_can_hold_nearly_all_uses() -> None:
    """2,725 of 3,000 uses in one of 200 transcripts: a mean of 15 beside a median of 0 and 16.5 %."""
    transcripts = [["🌀" * 2725]] + [["🌀" * 8]] * 19 + [["🌀" * 9]] * 13 + [["calm"]] * 167
    (row,) = word_table(transcripts, "emoji")
    assert (row.word, row.mean, row.present, row.median, row.max, row.uses) == ("🌀", 14.97, 0.165, 0.0, 2725, 2994)


def test_emoji_are_whole_and_without_skin_tone() -> None:
    """Sequences are one emoji, skin tones are folded, bare symbols and lone selectors are none, and none is a word."""
    texts = ["🙏🏽🙏", "👩‍👩‍👧‍👦 🇩🇪 ❤️", "❤ © \ufe0f"]
    assert {row.word: row.uses for row in word_table([texts], "emoji")} == {"🙏": 2, "👩‍👩‍👧‍👦": 1, "🇩🇪": 1, "❤️": 1}
    assert word_table([texts]) == []


def test_the_published_words_are_no_stop_words() -> None:
    """What the published list keeps is kept; what it cannot have counted is not."""
    published = ["consciousness", "every", "always", "dance", "eternal", "love", "perfect", "word", "recognition"]
    published += ["never", "universe", "feel"]
    assert not stop_words() & set(published)
    assert {"the", "a", "i", "you", "it's", "is", "of", "and", "would"} <= stop_words()


def test_orders() -> None:
    """Each column can lead; what is equal there goes by all uses, then by the word."""
    transcripts = [["b b b b a c"], ["a c"], ["d d"]]
    leading = {order: word_table(transcripts, order=order)[0].word for order in ("mean", "present", "median", "max")}
    assert leading == {"mean": "b", "present": "a", "median": "a", "max": "b"}
    assert [row.word for row in word_table(transcripts, order="present")] == ["a", "c", "b", "d"]


@given(st.lists(st.lists(TEXT, max_size=4), min_size=1, max_size=5))
@settings(max_examples=60, deadline=None)
def test_every_use_is_counted_once(transcripts: list[list[str]]) -> None:
    """The uses of all rows are the tokens of all texts, no row depends on the order of transcripts, none is absent."""
    for kind, cut in (("word", tokenize), ("emoji", emoji_in)):
        rows = word_table(transcripts, kind)  # type: ignore[arg-type]
        assert sum(row.uses for row in rows) == sum(len(cut(text)) for texts in transcripts for text in texts)
        assert rows == word_table(transcripts[::-1], kind)  # type: ignore[arg-type]
        for row in rows:
            assert 0 < row.present <= 1
            assert row.mean * len(transcripts) == pytest.approx(row.uses)
            assert row.median <= row.max <= row.uses


# Of records


def rows(out: str) -> list[dict[str, Any]]:
    found = json.loads(out)
    assert isinstance(found, list)
    return found


def test_words_of_an_experiment(root: OutputRoot, pidgin: Pidgin) -> None:
    """The table is that of the texts in the logs; stop words, tokenisation and n are said."""
    make(root, "abcdefgh", [talk("the dance of love", "dance"), talk("love \x1b[2J is"), talk("silence")], name="bliss")
    printed = pidgin("words", "bliss")
    assert printed.status == 0
    lines = printed.out.splitlines()
    assert lines[0] == "bliss: 3 conversations"
    assert lines[2].split()[:6] == ["#", "word", "mean", "uses", "/", "transcript"]
    assert lines[3].split() == ["1", "dance", "0.67", "33.3", "%", "0", "2"]
    assert lines[4].split() == ["2", "love", "0.67", "66.7", "%", "1", "1"]
    assert "tok_uni_v1" in printed.out
    assert "stop words (stop_en_1" in printed.out
    assert "Transcripts have 1 turns, 1 to 2 (median 1) messages; in a turn every scheduled agent" in printed.out
    assert "\x1b" not in printed.out
    found = rows(pidgin("words", "bliss", "--json").out)
    assert {row["word"] for row in found} == {"dance", "love", "2j", "silence"}
    assert {(row["n"], row["tokenizer"], row["stop_words"]) for row in found} == {(3, "tok_uni_v1", "stop_en_1")}
    kept = rows(pidgin("words", "bliss", "--json", "--stop-words").out)
    assert {"the", "of", "is"} <= {row["word"] for row in kept}
    assert {row["stop_words"] for row in kept} == {None}
    table = list(csv.DictReader(io.StringIO(pidgin("words", "bliss", "--csv", "-n", "2").out)))
    assert [(row["word"], float(row["mean"]), row["n"]) for row in table] == [
        ("dance", 2 / 3, "3"),
        ("love", 2 / 3, "3"),
    ]


@pytest.mark.parametrize("width", [60, 80, 140])
def test_the_table_is_straight_at_any_width(root: OutputRoot, tmp_path: Path, pidgin: Pidgin, width: int) -> None:
    """Wide, joined and endless words and emoji keep their columns in a real terminal; whole they are in --json."""
    endless = "x" * 5000
    make(root, "abcdefgh", [talk("你好 👩‍👩‍👧 🕊️ 🌀🌀 שלום", endless)], name="wide")
    for kind in ((), ("--emoji",)):
        with Terminal("words", "wide", *kind, cwd=tmp_path, columns=width) as terminal:
            assert terminal.wait() == 0
            lines = [line.rstrip() for line in terminal.text.splitlines()]
        table = [line for line in lines if line.endswith(("1", "2")) and "%" in line]
        assert len(table) == 4 if not kind else 3
        assert len({cell_len(line) for line in table}) == 1, table
        assert cell_len(table[0]) <= width
    assert endless in {row["word"] for row in rows(pidgin("words", "wide", "--json").out)}


def test_words_by_arm_and_order(root: OutputRoot, pidgin: Pidgin) -> None:
    """Each arm has a table with its own n, and every column can lead it."""
    logs = [
        talk("warm warm", arm="t=1"),
        talk("warm", arm="t=1"),
        talk("cold 🌀🌀 🙏", arm="t=0"),
        talk("🙏", arm="t=0"),
    ]
    make(root, "abcdefgh", logs)
    found = rows(pidgin("words", "abcdefgh", "--by-arm", "--json").out)
    assert {(row["arm"], row["word"], row["mean"], row["n"]) for row in found} == {
        ("t=1", "warm", 1.5, 2),
        ("t=0", "cold", 0.5, 2),
    }
    assert "t=1 (n = 2)" in pidgin("words", "abcdefgh", "--by-arm").out
    emoji = rows(pidgin("words", "abcdefgh", "--emoji", "--json").out)
    assert [(row["emoji"], row["present"], row["mean"]) for row in emoji] == [("🙏", 0.5, 0.5), ("🌀", 0.25, 0.5)]
    by_max = rows(pidgin("words", "abcdefgh", "--emoji", "--json", "--sort", "max").out)
    assert [row["emoji"] for row in by_max] == ["🌀", "🙏"]
    no_emoji = pidgin("words", "abcdefgh", "--emoji", "--by-arm")
    assert "no emoji" in no_emoji.out


def test_what_does_not_count_is_counted_aloud(root: OutputRoot, pidgin: Pidgin) -> None:
    """Invalid, failed and unfinished conversations are left out with a word, and taken in on demand."""
    logs: Sequence[list[Event]] = [
        talk("fine", last=end(notable={"empty": 2})),
        talk("wrong", last=end(invalid=("wrong_model_served",))),
        talk("broken", last=end(Status.FAILED)),
        talk("open")[:-1],
    ]
    make(root, "abcdefgh", logs)
    out = pidgin("words", "abcdefgh").out
    assert out.splitlines()[0] == (
        "abcdefgh: 1 conversation; left out: 1 failed, 1 invalid (wrong_model_served), 1 running; 1 notable, kept"
    )
    assert ("fine" in out, "wrong\x20" in out, "broken" in out) == (True, False, False)
    quiet = pidgin("words", "abcdefgh", "--json")
    assert "left out: 1 failed" in quiet.err
    everything = pidgin("words", "abcdefgh", "--all", "--json")
    assert {row["word"] for row in rows(everything.out)} == {"fine", "wrong", "broken", "open"}
    assert "abcdefgh: 4 conversations; taken in all the same" in everything.err


def test_the_last_end_counts(root: OutputRoot, pidgin: Pidgin) -> None:
    """A conversation that failed, was resumed and completed counts."""
    folder = make(root, "abcdefgh", [talk("first", last=end(Status.FAILED))])
    append(folder, 1, said("second", "b", 1, 1), end())
    assert {row["word"] for row in rows(pidgin("words", "abcdefgh", "--json").out)} == {"first", "second"}


def test_nothing_to_count(root: OutputRoot, pidgin: Pidgin) -> None:
    """An experiment without conversations, and one of empty messages, have empty tables."""
    make(root, "abcdefgh", [], name="nothing")
    make(root, "bcdefghi", [talk("", " \n"), talk("🌀")], name="mute")
    assert "nothing: 0 conversations" in pidgin("words", "nothing").out
    assert "no words" in pidgin("words", "mute").out
    assert rows(pidgin("words", "mute", "--json").out) == []
    assert pidgin("words", "mute", "--csv").out.splitlines() == [
        "word,mean,present,median,max,uses,n,tokenizer,stop_words"
    ]


def test_a_damaged_line_is_told(root: OutputRoot, pidgin: Pidgin) -> None:
    """A line that cannot be read is named; the others count."""
    folder = make(root, "abcdefgh", [talk("one", "two", "three")])
    log = folder.log("abcdefgh-1")
    lines = log.read_bytes().splitlines(keepends=True)
    lines[2] = b"{broken\n"
    log.write_bytes(b"".join(lines))
    done = pidgin("words", "abcdefgh", "--json")
    assert "conv_abcdefgh-1_events.jsonl" in done.err
    assert {row["word"] for row in rows(done.out)} == {"one", "three"}


def test_wrong_use_of_words(root: OutputRoot, pidgin: Pidgin) -> None:
    """Two formats, stop words of emoji, and an experiment that there is not."""
    make(root, "abcdefgh", [talk("one")])
    assert "--json and --csv" in error_of(pidgin("words", "abcdefgh", "--json", "--csv"))
    assert "--stop-words" in error_of(pidgin("words", "abcdefgh", "--emoji", "--stop-words"))
    assert "no experiment" in error_of(pidgin("words", "other"))


def test_the_table_equals_a_count_of_the_files(root: OutputRoot, pidgin: Pidgin) -> None:
    """Of a run with the embedded model, every word of the logs stands in the table as often as it was said."""
    pidgin("run", "-a", "local:test?words=30", "-b", "local:test", "-t", "3", "-r", "3", "--seed", "4", "-n", "real",
           "--display", "quiet")  # fmt: skip
    counted: Counter[str] = Counter()
    for log in root.path.glob("experiments/*/conv_*.jsonl"):
        for line in map(json.loads, log.read_bytes().splitlines()):
            if line["event_type"] == "MessageCompleteEvent":
                counted.update(tokenize(line["message"]["content"]))
    found = rows(pidgin("words", "real", "--json", "--stop-words", "-n", "100000").out)
    assert {row["word"]: row["uses"] for row in found} == counted
    assert counted
