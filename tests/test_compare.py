"""`pidgin compare` and `pidgin power`: effects between records, and plans."""

import json
import re
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pytest
from commands import Pidgin, error_of, pidgin
from runs import append, make, said, start

from pidgin_cli.cli.analysis import REDUCTIONS
from pidgin_cli.core.events import ConversationEndEvent, Event, Totals
from pidgin_cli.core.types import EndReason, Status, Usage
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.metrics.statistics import compare_groups, holm

__all__ = ["pidgin"]


def end(status: Status = Status.COMPLETED, **keys: Any) -> ConversationEndEvent:
    return ConversationEndEvent(
        status=status, end_reason=EndReason.TURN_LIMIT, totals=Totals(turns=1, messages=1), **keys
    )


def talk(*lengths: int, arm: str = "", last: Event | None = None) -> list[Event]:
    """Messages of so many words each."""
    spoken = [said("word " * words, "ab"[at % 2], at // 2 + 1, at) for at, words in enumerate(lengths)]
    return [start(arm=arm), *spoken, last or end()]


def drawn(seed: int, mean: float, n: int = 10) -> list[list[Event]]:
    rng = np.random.default_rng(seed)
    return [talk(*map(int, rng.normal(mean + level, 3, 6).clip(1))) for level in rng.normal(0, 4, n)]


def mean_words(logs: Sequence[Sequence[Event]]) -> list[float]:
    return [float(np.mean([len(e.message.content.split()) for e in log if hasattr(e, "message")])) for log in logs]


def rows(out: str) -> dict[str, dict[str, Any]]:
    """By measure, those of a single contrast."""
    found = json.loads(out)
    by_measure = {row["measure"]: row for row in found}
    assert len(by_measure) == len(found)
    return by_measure


@pytest.fixture
def root(tmp_path: Path) -> OutputRoot:
    return OutputRoot(tmp_path / "pidgin_output")


STUDY = {
    "agents": [{"id": "a", "model": "local:test?words=20"}, {"id": "b", "model": "local:test?words=30"}],
    "max_turns": 3,
    "repetitions": 4,
    "seed": 5,
}


def run_study(pidgin: Pidgin, name: str, **keys: Any) -> None:
    Path(f"{name}.yaml").write_text(json.dumps({"name": name, **STUDY, **keys}))
    assert pidgin("run", f"{name}.yaml", "--display", "quiet").status == 0


# compare


def test_a_planted_effect_is_found(root: OutputRoot, pidgin: Pidgin) -> None:
    """Numbers are those of the statistics over conversation means; what was not planted does not stand."""
    short, long = drawn(1, 20), drawn(2, 35)
    make(root, "aaaaaaaa", short, name="short")
    make(root, "bbbbbbbb", long, name="long")
    found = rows(pidgin("compare", "short", "long", "--json", "--seed", "3").out)
    expected = compare_groups(mean_words(short), mean_words(long), seed=3)
    words = found["words"]
    assert expected.permutation is not None
    assert expected.g is not None
    assert expected.interval is not None
    assert words["difference"] == pytest.approx(expected.difference)
    assert (words["difference_low"], words["difference_high"]) == pytest.approx(expected.interval)
    assert words["g"] == pytest.approx(expected.g.value)
    assert (words["p"], words["n_a"], words["n_b"], words["seed"]) == (expected.permutation.p, 10, 10, 3)
    assert words["p_adjusted"] < 0.01
    assert found["turns"]["p"] == 1.0
    assert found["turns"]["g"] is None
    printed = pidgin("compare", "short", "long").out
    assert "A short   B long" in printed
    assert re.search(r"^words +[\d.]+ \(10\) +[\d.]+ \(10\)", printed, re.MULTILINE)
    assert "Benjamini-Hochberg over the family of" in printed
    assert "n = 10 in the smallest group supports claims of about ±26 points" in printed


def test_nothing_planted_nothing_found(root: OutputRoot, pidgin: Pidgin) -> None:
    """Two experiments from one distribution: no measure stands, and swapping them turns the sign."""
    make(root, "aaaaaaaa", drawn(1, 20), name="one")
    make(root, "bbbbbbbb", drawn(5, 20), name="two")
    found = rows(pidgin("compare", "one", "two", "--json").out)
    assert all(row["p_adjusted"] is None or row["p_adjusted"] > 0.05 for row in found.values())
    swapped = rows(pidgin("compare", "two", "one", "--json").out)
    assert swapped["words"]["difference"] == pytest.approx(-found["words"]["difference"])
    assert swapped["words"]["g"] == pytest.approx(-found["words"]["g"])


def test_what_does_not_count_is_counted_aloud(root: OutputRoot, pidgin: Pidgin) -> None:
    """Invalid and unfinished conversations are left out and named; --all takes them in."""
    logs = [*drawn(1, 20, 4), talk(9, last=end(invalid=("harness_fault",))), talk(8, last=end(Status.FAILED))]
    make(root, "aaaaaaaa", logs, name="one")
    make(root, "bbbbbbbb", drawn(2, 20, 4), name="two")
    out = pidgin("compare", "one", "two").out
    assert "one: 4 conversations; left out: 1 failed, 1 invalid (harness_fault)" in out
    assert rows(pidgin("compare", "one", "two", "--json").out)["words"]["n_a"] == 4
    everything = pidgin("compare", "one", "two", "--json", "--all")
    assert rows(everything.out)["words"]["n_a"] == 6
    assert "one: 6 conversations; taken in all the same" in everything.err


def test_what_is_new_in_the_record_is_compared(root: OutputRoot, pidgin: Pidgin) -> None:
    """A record that has grown since the last import is read again first."""
    folder = make(root, "aaaaaaaa", [*drawn(1, 20, 3), talk(5, 5)[:-1]], name="one")
    make(root, "bbbbbbbb", drawn(2, 20, 4), name="two")
    assert rows(pidgin("compare", "one", "two", "--json").out)["words"]["n_a"] == 3
    append(folder, 4, end())
    assert rows(pidgin("compare", "one", "two", "--json").out)["words"]["n_a"] == 4


def test_values_that_are_missing_stay_missing(root: OutputRoot, pidgin: Pidgin) -> None:
    """No tokens reported, one conversation, only empty messages: null, never 0."""
    make(root, "aaaaaaaa", [talk(0, 0)], name="mute")
    make(root, "bbbbbbbb", [talk(4, 4)], name="one")
    found = rows(pidgin("compare", "mute", "one", "--json").out)
    assert (found["words"]["mean_a"], found["words"]["difference"]) == (0.0, 4.0)
    assert [found["words"][key] for key in ("g", "difference_low", "p_welch", "sd_a")] == [None] * 4
    assert found["words"]["p"] == 1.0
    asked = rows(pidgin("compare", "mute", "one", "--json", "--metric", "mtld", "--metric", "total_words").out)
    assert list(asked) == ["mtld", "total_words"]
    assert (asked["mtld"]["n_a"], asked["mtld"]["missing_a"], asked["mtld"]["mean_a"]) == (0, 1, None)
    assert (asked["mtld"]["p"], asked["mtld"]["p_adjusted"], asked["mtld"]["difference"]) == (None, None, None)
    assert asked["total_words"]["p_adjusted"] == 1.0
    printed = pidgin("compare", "mute", "one", "--metric", "mtld").out
    assert re.search(r"^mtld +– \(0\) +– \(0\) +–", printed, re.MULTILINE)


@pytest.mark.parametrize(
    ("reduce", "expected"),
    [
        *[("first3", 20.0), ("last3", 50.0), ("delta", 30.0), ("slope", 10.0), ("peak", 60.0), ("peak_turn", 3.0)],
        ("lag1_autocorr", 1.0),
    ],
)
def test_ways_to_reduce_a_conversation(root: OutputRoot, pidgin: Pidgin, reduce: str, expected: float) -> None:
    """First and last three messages, their difference, slope, highest, its turn, autocorrelation; totals stay."""
    make(root, "aaaaaaaa", [talk(10, 20, 30, 40, 50, 60)] * 2, name="one")
    make(root, "bbbbbbbb", [talk(5, 5, 5, 5, 5, 5)] * 2, name="two")
    found = rows(pidgin("compare", "one", "two", "--json", "--reduce", reduce).out)
    assert found["words"]["mean_a"] == pytest.approx(expected)
    assert found["words"]["reduce"] == reduce
    assert found["total_words"]["mean_a"] == 210


def test_messages_without_a_value_keep_their_place() -> None:
    """A slope goes by message: where one has no value, the others are no nearer to each other."""
    turns = [1, 1, 2, 2, 3, 3]
    values = [1.0, None, 3.0, None, None, 6.0]
    found = {name: reduction(values, turns) for name, (reduction, _) in REDUCTIONS.items()}
    assert found["slope"] == pytest.approx(1.0)
    assert (found["auc"], found["peak"], found["peak_turn"], found["lag1_autocorr"]) == (17.5, 6.0, 3.0, None)
    assert {reduction([None] * 6, turns) for reduction, _ in REDUCTIONS.values()} == {None}
    assert {reduction([], []) for reduction, _ in REDUCTIONS.values()} == {None}


def test_stored_metrics_are_compared(pidgin: Pidgin) -> None:
    """A run stores its metrics; the headline ones are compared without asking, all of them on demand."""
    run_study(pidgin, "one")
    run_study(pidgin, "two", seed=6)
    default = rows(pidgin("compare", "one", "two", "--json").out)
    assert {"words", "completion_tokens", "turns", "total_tokens", "cosine_tf", "mattr_50"} <= set(default)
    everything = rows(pidgin("compare", "one", "two", "--json", "--metric", "all").out)
    assert set(default) < set(everything)
    assert everything["words"]["mean_a"] == default["words"]["mean_a"]
    asked = json.loads(pidgin("query", "SELECT avg(x) FROM (SELECT avg(cosine_tf) AS x FROM message_metrics m "
                              "JOIN experiments e USING (experiment_id) WHERE e.name = 'one' "
                              "GROUP BY conversation_id)", "--json").out)  # fmt: skip
    assert default["cosine_tf"]["mean_a"] == pytest.approx(next(iter(asked[0].values())))


def test_arms_of_one_experiment(pidgin: Pidgin) -> None:
    """By a swept value, as parts of an experiment, and paired by repetition: the same conversations, the same means."""
    run_study(pidgin, "study", sweep={"a.temperature": [0.2, 1.0]})
    (by,) = json.loads(pidgin("compare", "study", "--by", "a.temperature", "--metric", "words", "--json").out)
    parts = ("study:a.temperature=0.2", "study:a.temperature=1")
    (apart,) = json.loads(pidgin("compare", *parts, "--metric", "words", "--json").out)
    assert (by["a"], by["b"]) == ("a.temperature=0.2", "a.temperature=1.0")
    assert (apart["a"], apart["b"]) == ("study (a.temperature=0.2)", "study (a.temperature=1)")
    for key in ("mean_a", "mean_b", "n_a", "n_b", "difference", "p", "g"):
        assert by[key] == apart[key], key
    assert (by["n_a"], by["p_exact"], by["arrangements"], by["pairs"]) == (4, True, 70, None)
    (paired,) = json.loads(pidgin("compare", *parts, "--metric", "words", "--json", "--pair-by", "repetition").out)
    assert (paired["pairs"], paired["arrangements"]) == (4, 16)
    assert paired["difference"] == pytest.approx(by["difference"])
    printed = pidgin("compare", *parts, "--metric", "words", "--pair-by", "repetition").out
    assert "pairs of the same repetition" in printed
    assert "go by p" in printed
    narrowed = json.loads(pidgin("compare", "study:a.temperature=1,repetition=2", parts[0], "--json").out)
    assert narrowed[0]["n_a"] == 1


def test_one_conversation_without_the_variable_hides_it_for_no_other(pidgin: Pidgin) -> None:
    """Where one does not say what it was put under, the others are compared by it, and it is told how many are not."""
    run_study(pidgin, "study", sweep={"a.temperature": [0.2, 1.0]})
    assert pidgin("import", "study").status == 0
    with duckdb.connect("pidgin_output/experiments/experiments.duckdb") as con:
        con.execute("UPDATE conversations SET arm = NULL, variables = NULL WHERE ends_with(conversation_id, '-1')")
    for key in ("a.temperature", "arm"):
        done = pidgin("compare", "study", "--by", key, "--metric", "words", "--json")
        (row,) = json.loads(done.out)
        assert sorted((row["n_a"], row["n_b"])) == [3, 4]
        assert f"study: 1 conversation without {key}, left out" in done.err
    part = pidgin("compare", "study:a.temperature=0.2", "study:a.temperature=1", "--metric", "words", "--json")
    (row,) = json.loads(part.out)
    assert sorted((row["n_a"], row["n_b"])) == [3, 4]
    assert "1 conversation without a.temperature, left out" in part.err


def test_more_than_two_arms(pidgin: Pidgin) -> None:
    """All pairs, adjusted by Holm within each measure, beside a test of all groups."""
    run_study(pidgin, "study", sweep={"b.max_tokens": [5, 10, 100]})
    found = json.loads(pidgin("compare", "study", "--by", "b.max_tokens", "--metric", "words", "--json").out)
    assert [(row["a"], row["b"]) for row in found] == [
        ("b.max_tokens=5", "b.max_tokens=10"),
        ("b.max_tokens=5", "b.max_tokens=100"),
        ("b.max_tokens=10", "b.max_tokens=100"),
    ]
    assert [row["p_adjusted"] for row in found] == holm([row["p"] for row in found])
    assert {row["adjustment"] for row in found} == {"Holm"}
    assert {row["p_all_groups"] for row in found} == {found[0]["p_all_groups"]}
    assert found[0]["p_all_groups"] < 0.01
    printed = pidgin("compare", "study", "--by", "b.max_tokens", "--metric", "words").out
    assert re.search(r"^words +[\d.]+ +[<\d.]+ +[\d.]+ +[<\d.]+$", printed.split("all groups")[1], re.MULTILINE)


def test_two_experiments_within_each_value(pidgin: Pidgin) -> None:
    """With --by, two experiments are compared at each value that both have; the others are named."""
    run_study(pidgin, "one", sweep={"a.temperature": [0.2, 1.0]})
    run_study(pidgin, "two", seed=9, sweep={"a.temperature": [0.2, 0.7]})
    done = pidgin("compare", "one", "two", "--by", "a.temperature", "--metric", "words", "--json")
    (row,) = json.loads(done.out)
    assert (row["a"], row["b"], row["within"]) == ("one", "two", "a.temperature=0.2")
    assert "one alone has a.temperature=1.0: not compared" in done.err


def test_the_primary_measure_is_no_part_of_the_family(root: OutputRoot, pidgin: Pidgin) -> None:
    """It has no adjusted p, and the others are adjusted without it; Yekutieli's are larger."""
    make(root, "aaaaaaaa", drawn(1, 20), name="one")
    make(root, "bbbbbbbb", drawn(5, 24), name="two")
    plain = rows(pidgin("compare", "one", "two", "--json").out)
    primary = rows(pidgin("compare", "one", "two", "--json", "--primary", "words").out)
    assert (primary["words"]["p_adjusted"], primary["words"]["primary"]) == (None, True)
    assert primary["words"]["p"] == plain["words"]["p"]
    assert primary["turns"]["family"] == plain["turns"]["family"] - 1
    careful = rows(pidgin("compare", "one", "two", "--json", "--yekutieli").out)
    assert careful["words"]["adjustment"] == "BY"
    assert careful["words"]["p_adjusted"] > plain["words"]["p_adjusted"]
    assert "named primary" in pidgin("compare", "one", "two", "--primary", "words").out


class _Page(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_page_needs_nothing_else(root: OutputRoot, pidgin: Pidgin) -> None:
    """One file without scripts or addresses, light and dark, with the numbers of the terminal, names escaped."""
    nasty = "<script>alert(1)</script>&\"'"
    logs = [talk(3, 4, arm=nasty), talk(5, 6, arm=nasty), talk(9, 9, arm="b"), talk(9, 8, arm="b")]
    make(root, "aaaaaaaa", logs, name="one")
    done = pidgin("compare", "one", "--by", "arm", "--html", "--to", "effects.html")
    assert (done.status, done.out) == (0, "effects.html written; open it in a browser\n")
    html = Path("effects.html").read_text(encoding="utf-8")
    page = _Page()
    page.feed(html)
    names = {tag for tag, _ in page.tags}
    assert names & {"script", "link", "img", "iframe"} == set()
    assert not any(name in {"src", "href"} or name.startswith("on") for _, attrs in page.tags for name in attrs)
    assert nasty in page.text
    assert "prefers-color-scheme: dark" in html
    assert "default-src 'none'" in html
    assert "words" in page.text
    assert "svg" in names
    assert pidgin("compare", "one", "--by", "arm", "--html").out == html
    assert "exists already" in error_of(pidgin("compare", "one", "--by", "arm", "--html", "--to", "effects.html"))


def test_names_with_terminal_codes_are_shown_harmlessly(root: OutputRoot, pidgin: Pidgin) -> None:
    """An arm's name cannot act on the terminal."""
    make(root, "aaaaaaaa", [talk(3, 4, arm="\x1b[31mred"), talk(9, 9, arm="blue")], name="one")
    done = pidgin("compare", "one", "--by", "arm")
    assert "\x1b" not in done.out
    assert "red" in done.out


def test_wrong_use_of_compare(root: OutputRoot, pidgin: Pidgin) -> None:
    """One line for each thing that cannot be compared."""
    make(root, "aaaaaaaa", [talk(3, 4), talk(5, 6)], name="one")
    make(root, "bbbbbbbb", [talk(3, 4)], name="two")
    make(root, "cccccccc", [talk(3, 4)[:-1]], name="open")
    make(root, "dddddddd", [], name="nothing")
    for arguments, expected in (
        (("one",), "--by KEY"),
        (("one", "three"), "no experiment 'three'"),
        (("one", "two", "--metric", "wrds"), "there is no measure 'wrds'; near are words"),
        (("one", "two", "--by", "b.temp"), "has no 'b.temp'; there are arm, seating"),
        (("one", "--by", "arm"), "have the same arm"),
        (("one:repetition=9", "two"), "no conversation has repetition=9; there are 1"),
        (("one", "one"), "2 conversations would be in both groups, such as aaaaaaaa-1"),
        (("one", "open"), "open has no conversation to compare; --all"),
        (("one", "nothing"), "nothing has no conversation to compare"),
        (("one", "two", "--primary", "mtld"), "the primary measure 'mtld' is not compared"),
        (("one", "two", "--to", "x.html"), "--to is for --html"),
        (("one", "two", "--html", "--json"), "--html and --json"),
    ):
        said_ = pidgin("compare", *arguments)
        assert expected in error_of(said_), arguments


# power


def plan(pidgin: Pidgin, *arguments: str) -> dict[str, Any]:
    (found,) = json.loads(pidgin("power", *arguments, "--json").out)
    return dict(found)


def test_plans_for_published_effects(pidgin: Pidgin) -> None:
    """The sample sizes of the table for 80 % power, and the other way round."""
    for arguments, n in (
        (("--effect", "0.3"), 176),
        (("--effect", "1.2"), 12),
        (("--incidence", "0.32", "0.57"), 61),
        (("--incidence", "0.3", "0.1"), 60),
        (("--hazard-ratio", "0.5"), 33),
        (("--hazard-ratio", "0.5", "--event-share", "0.5"), 66),
    ):
        assert plan(pidgin, *arguments)["n_per_arm"] == n, arguments
    assert plan(pidgin, "--hazard-ratio", "0.5")["events"] == 66
    assert plan(pidgin, "--effect", "0.5", "--n", "64")["power"] == pytest.approx(0.8, abs=0.005)
    assert plan(pidgin, "--n", "64")["detectable"] == pytest.approx(0.5, abs=0.005)
    assert plan(pidgin, "--n", "64", "--sd", "10")["detectable"] == pytest.approx(5, abs=0.05)
    strict = plan(pidgin, "--effect", "0.5", "--alpha", "0.01", "--power", "0.95")
    assert strict["n_per_arm"] > 140


def test_turns_do_not_replace_conversations(pidgin: Pidgin) -> None:
    """With alike turns, ten times as many of them hardly change the plan; with unlike ones they do."""
    alike = [plan(pidgin, "--effect", "0.5", "--icc", "0.3", "--turns", turns)["n_per_arm"] for turns in ("30", "300")]
    unlike = [plan(pidgin, "--effect", "0.5", "--icc", "0", "--turns", turns)["n_per_arm"] for turns in ("3", "30")]
    assert alike[1] > 0.85 * alike[0]
    assert unlike[1] < 0.3 * unlike[0]
    found = plan(pidgin, "--effect", "4", "--sd", "12", "--icc", "0.3", "--turns", "30")
    assert found["d"] == pytest.approx(4 / (12 * np.sqrt(9.7 / 30)))


def test_a_plan_says_what_it_assumes(pidgin: Pidgin) -> None:
    """The terminal shows the answer, then every assumption."""
    said_ = pidgin("power", "--effect", "4", "--sd", "12", "--icc", "0.1", "--turns", "30")
    lines = said_.out.splitlines()
    assert re.match(r"\d+ conversations per arm \(\d+ in two arms\) find a difference of 4 units", lines[0])
    for expected in ("design effect 3.9, 7.7 effective turns", "Two independent arms", "Two-sided test at 0.05",
                     "The conversation is the unit", "supports claims of about ±"):  # fmt: skip
        assert expected in said_.out
    small = pidgin("power", "--effect", "1", "--n", "10").out
    assert "n = 10 supports claims of about ±26 points" in small
    assert "What none of them shows is in at most 31 % of conversations" in small


def test_wrong_use_of_power(pidgin: Pidgin) -> None:
    """What does not go together, or cannot be."""
    for arguments, expected in (
        ((), "Give --effect"),
        (("--effect", "1", "--incidence", "0.1", "0.2"), "different plans"),
        (("--effect", "1", "--n", "10", "--power", "0.9"), "leave one of them out"),
        (("--effect", "1", "--icc", "0.1"), "belong together"),
        (("--incidence", "0.1", "0.2", "--sd", "2"), "--sd is for"),
        (("--incidence", "0.2", "0.2"), "two different shares"),
        (("--hazard-ratio", "1"), "no effect"),
        (("--effect", "1", "--event-share", "0.5"), "--hazard-ratio"),
        (("--effect", "0.000001"), "no number of conversations"),
        (("--effect", "0"), "range"),
        (("--effect", "nan"), "not a number"),
        (("--power", "1", "--effect", "1"), "range"),
    ):
        assert expected in error_of(pidgin("power", *arguments)), arguments


def test_usage_is_compared_only_where_it_was_reported(root: OutputRoot, pidgin: Pidgin) -> None:
    """Completion tokens that one side does not report are missing there, not 0."""
    import msgspec

    counted = [
        [msgspec.structs.replace(e, usage=Usage(5, 7)) if hasattr(e, "usage") else e for e in talk(4, 4)] for _ in "ab"
    ]
    make(root, "aaaaaaaa", counted, name="one")
    make(root, "bbbbbbbb", [talk(4, 4)] * 2, name="two")
    found = rows(pidgin("compare", "one", "two", "--json").out)["completion_tokens"]
    assert (found["mean_a"], found["mean_b"], found["missing_b"], found["difference"]) == (7.0, None, 2, None)
