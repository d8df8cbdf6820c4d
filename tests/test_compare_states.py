"""`pidgin compare`: shares of conversations, turns to a state, measures turn by turn, and every width of terminal."""

import io
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import Pidgin, error_of, pidgin
from lifelines import KaplanMeierFitter  # type: ignore[import-untyped]
from lifelines.statistics import logrank_test  # type: ignore[import-untyped]
from rich.cells import cell_len
from rich.console import Console
from runs import make, said, start

from pidgin_cli.cli.database import open_store
from pidgin_cli.core.events import ConversationEndEvent, Event, Totals, TurnCompleteEvent
from pidgin_cli.core.types import EndReason, Status
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.metrics.statistics import compare_groups, compare_shares, mixed_model
from pidgin_cli.monitor.comparison import Contrast, Effects, Row, as_rows, print_effects
from pidgin_cli.reports.figures import draw
from pidgin_cli.reports.study import Study

__all__ = ["pidgin"]


def ended(reason: EndReason) -> ConversationEndEvent:
    return ConversationEndEvent(status=Status.COMPLETED, end_reason=reason, totals=Totals(turns=1, messages=1))


def talk(
    turns: int,
    states: dict[int, tuple[str, int]] | None,
    reason: EndReason = EndReason.TURN_LIMIT,
    arm: str = "",
    words: Sequence[int] = (),
) -> list[Event]:
    """Two messages a turn; from a message on (by index) a state and its onset. None: without any metrics."""
    found: list[Event] = [start(arm=arm)]
    now: dict[str, Any] = {"state": "normal"}
    for turn in range(1, turns + 1):
        metrics = {}
        for index in (2 * turn - 2, 2 * turn - 1):
            number = words[index] if words else 3
            found.append(said("word " * number, "ab"[index % 2], turn, index))
            if states is not None:
                if index in states:
                    name, onset = states[index]
                    now = {"state": name} | ({} if name == "normal" else {"state_onset": onset})
                metrics[str(index)] = now
        found.append(TurnCompleteEvent(turn_number=turn, metrics={"version": "1", "messages": metrics}))
    return [*found, ended(reason)]


@pytest.fixture
def root(tmp_path: Path) -> OutputRoot:
    return OutputRoot(tmp_path / "pidgin_output")


def rows(out: str) -> dict[str, dict[str, Any]]:
    return {row["measure"]: row for row in json.loads(out)}


ONE = [
    talk(6, {6: ("cycle(2)", 2), 9: ("normal", 0), 10: ("emoji_collapse", 10)}),  # onset: message 2, turn 2
    talk(6, {8: ("emoji_collapse", 6)}),  # turn 4
    talk(6, {}),
    talk(3, {}, EndReason.STOP_REQUEST),
    talk(6, None),
]
TWO = [talk(6, {3: ("cycle(2)", 1)}), talk(6, {4: ("cycle(3)", 2)}), talk(5, {5: ("echo", 5)}, EndReason.DETECTOR)]
TIMES = ([2, 4, 6, 3], [1, 1, 0, 0]), ([1, 2, 3], [1, 1, 1])


@pytest.fixture
def two(root: OutputRoot) -> None:
    make(root, "aaaaaaaa", ONE, name="one")
    make(root, "bbbbbbbb", TWO, name="two")


def test_shares_and_turns_to_a_state(pidgin: Pidgin, two: None) -> None:
    """A state counts from its onset, a stop is another way to end, and without metrics nothing is known."""
    found = rows(pidgin("compare", "one", "two", "--json").out)
    share, time = found["incidence_attractor"], found["first_passage_attractor"]
    assert (share["kind"], share["test"], share["events_a"], share["events_b"]) == ("share", "Fisher", 2, 3)
    assert [share[f"{key}_a"] for key in ("n", "missing", "mean")] == [4, 1, 0.5]
    assert share["p"] == pytest.approx(3 / 7)  # 6 + 3 of the 21 tables with these margins
    assert (share["mean_a_low"], share["mean_a_high"]) == pytest.approx((0.1500, 0.8500), abs=1e-4)
    km = [KaplanMeierFitter().fit(*group) for group in TIMES]
    reference = logrank_test(TIMES[0][0], TIMES[1][0], TIMES[0][1], TIMES[1][1])
    assert (time["kind"], time["test"], time["p"]) == ("time", "log-rank", pytest.approx(reference.p_value))
    assert [(time[f"n_{side}"], time[f"events_{side}"], time[f"ended_otherwise_{side}"]) for side in "ab"] == [
        (4, 2, 1),
        (3, 3, 0),
    ]
    assert time["horizon"] == 6
    assert (time["median_a"], time["median_b"]) == (4, km[1].median_survival_time_)
    # Without the state: all of 4 for two turns, 3/4 for two more, then half of that; all, 2 of 3, and 1 of 3.
    assert (time["mean_a"], time["mean_b"]) == (pytest.approx(2 + 2 * 3 / 4 + 2 * 3 / 8), pytest.approx(2))
    assert time["difference"] == pytest.approx(-2.25)
    assert (time["incidence_a"], time["incidence_b"]) == (0.5, pytest.approx(1))
    printed = pidgin("compare", "one", "two").out
    assert "up to 1 that ended otherwise before" in printed
    asked = [f"--metric={name}" for name in ("incidence_cycle", "first_passage_emoji_collapse", "ended_stop_request")]
    named = rows(pidgin("compare", "one", "two", "--json", *asked).out)
    assert [(row["events_a"], row["events_b"]) for row in named.values()] == [(1, 2), (2, 0), (1, 0)]
    assert named["ended_stop_request"]["n_a"] == 5
    everything = rows(pidgin("compare", "one", "two", "--json", "--metric", "all").out)
    assert {"incidence_echo", "first_passage_cycle", "ended_detector", "ended_turn_limit"} < set(everything)
    assert "incidence_silence" not in everything
    assert "incidence_cycle" in error_of(pidgin("compare", "one", "two", "--metric", "incidence_cycl"))


def test_report_and_comparison_tell_the_same_times(root: OutputRoot, pidgin: Pidgin) -> None:
    """The survival figure dates states back to their onset, as `compare` does: same times, means and p value."""
    x, y = [{8: ("cycle(2)", 2)}, {9: ("cycle(2)", 4)}], [{}, {7: ("echo", 6)}]
    talks = [talk(6, states, arm=arm) for arm, each in (("x", x), ("y", y)) for states in each]
    make(root, "aaaaaaaa", talks, name="study")
    asked = ("--json", "--metric", "first_passage_attractor")
    (time,) = json.loads(pidgin("compare", "study", "--by", "arm", *asked).out)
    with open_store(root) as store:
        figure = draw(Study.load(store, "aaaaaaaa"), "survival")
    entered = {(row[0], row[1]): row[3] for row in figure.rows if row[3]}
    assert entered == {("x", 2): 1, ("x", 3): 1, ("y", 4): 1}
    assert (time["median_a"], time["median_b"], time["horizon"]) == (2, 4, 6)
    assert (time["mean_a"], time["mean_b"]) == (2.5, 5)
    assert "up to turn 6 (± its standard error): x 2.5 ± 0.4, y 5.0 ± 0.7." in figure.caption
    assert f"Log-rank test of the arms: p = {time['p']:.2g}." in figure.caption


def test_every_row_has_the_same_keys(pidgin: Pidgin, two: None) -> None:
    """Means, shares and times fill one table; what does not apply is null."""
    found = json.loads(pidgin("compare", "one", "two", "--json").out)
    assert {row["kind"] for row in found} == {"mean", "share", "time"}
    sides = [
        f"{name}_{side}"
        for side in "ab"
        for name in ("n", "missing", "mean", "sd", "median", "events", "ended_otherwise", "incidence")
    ]
    edges = [
        f"{name}_{edge}" for name in ("mean_a", "mean_b", "difference", "g", "cliffs_delta") for edge in ("low", "high")
    ]
    others = "a b within measure kind pairs difference g cliffs_delta horizon test p p_exact arrangements p_welch"
    last = "p_adjusted adjustment family primary p_all_groups reduce seed mixed_model"
    for row in found:
        assert set(row) == {*sides, *edges, *others.split(), *last.split()}, row["measure"]


def test_what_cannot_differ_is_no_part_of_the_family(pidgin: Pidgin, two: None) -> None:
    """A measure that is the same in all conversations is named, and costs the others nothing."""
    found = rows(pidgin("compare", "one", "two", "--json", "--metric", "words", "--metric", "turns").out)
    assert (found["words"]["p"], found["words"]["p_adjusted"], found["words"]["family"]) == (1.0, None, 1)
    assert found["turns"]["p_adjusted"] == found["turns"]["p"] is not None
    assert "could find anything: words." in pidgin("compare", "one", "two", "--metric", "words").out


def test_pairs_and_several_arms_of_shares_and_times(root: OutputRoot, pidgin: Pidgin) -> None:
    """Paired shares flip signs (McNemar), times stay unpaired and say so; several arms have one log-rank test."""
    make(root, "aaaaaaaa", [talk(4, {3: ("echo", at)} if at else {}, arm=arm) for arm, at in
                            (("x", 0), ("x", 1), ("y", 2), ("y", 3), ("z", 1), ("z", 2))], name="study")  # fmt: skip
    found = json.loads(
        pidgin(*("compare", "study", "--by", "arm", "--json", "--metric", "first_passage_attractor"),
               *("--metric", "incidence_attractor")).out
    )  # fmt: skip
    assert len(found) == 6
    assert {row["adjustment"] for row in found} == {"Holm"}
    assert len({row["p_all_groups"] for row in found if row["kind"] == "time"}) == 1
    assert "p (log-rank)" in pidgin("compare", "study", "--by", "arm", "--metric", "first_passage_attractor").out
    paired = pidgin(
        *("compare", "study:arm=x", "study:arm=y", "--pair-by", "repetition", "--json"),
        *("--metric", "incidence_attractor", "--metric", "first_passage_attractor"),
    )
    share, time = json.loads(paired.out)
    assert (share["test"], share["pairs"], share["difference"]) == ("sign flip", 1, 0.5)
    assert (time["test"], time["pairs"]) == ("log-rank", None)


def lengths(rng: np.random.Generator, slope: float) -> list[int]:
    level = rng.normal(30, 5)
    return [max(1, round(level + slope * (index // 2) + rng.normal(0, 3))) for index in range(12)]


@pytest.fixture
def growing(root: OutputRoot) -> list[list[list[int]]]:
    rng = np.random.default_rng(4)
    words = [[lengths(rng, slope) for _ in range(5)] for slope in (0, 4)]
    for name, group in zip(("flat", "grows"), words, strict=True):
        make(root, name[0] * 8, [talk(6, None, words=each) for each in group], name=name)
    return words


def test_measures_turn_by_turn(pidgin: Pidgin, growing: list[list[list[int]]]) -> None:
    """--mixed adds the model of group and turn: a planted growth stands in the interaction, as fitted by hand."""
    arguments = ("compare", "flat", "grows", "--metric", "words", "--metric", "turns", "--mixed")
    found = rows(pidgin(*arguments, "--json").out)
    model = found["words"]["mixed_model"]
    effects = model["effects"]
    assert 3 < effects["condition=b:turn"]["estimate"] < 5
    assert effects["condition=b:turn"]["p"] < 0.001
    assert abs(effects["turn"]["estimate"]) < 1
    assert (model["n"], model["conversations"], found["turns"]["mixed_model"]) == (120, 10, None)
    said = [
        (mark, f"{mark}{place}", index, number)
        for mark, group in zip("ab", growing, strict=True)
        for place, each in enumerate(group)
        for index, number in enumerate(each)
    ]
    by_hand = mixed_model(
        [number for *_, number in said],
        [mark for mark, *_ in said],
        [index // 2 - 2.5 for *_, index, _ in said],
        [name for _, name, *_ in said],
        covariates={"agent=b": [index % 2 - 0.5 for *_, index, _ in said]},
        random_slope=True,
    )
    assert effects["condition=b"]["estimate"] == pytest.approx(by_hand.effects["condition=b"].estimate)
    assert effects["condition=b:turn"]["low"] == pytest.approx(by_hand.effects["condition=b:turn"].interval.low)
    printed = pidgin(*arguments).out
    assert "turn by turn (mixed model)" in printed
    page = pidgin(*arguments, "--html").out
    assert 'class="stands"' not in page[page.index("turn by turn (mixed model)") :]  # its tests are in no family
    assert "need about 20 conversations" in printed
    assert "mixed model" not in pidgin("compare", "flat", "grows", "--metric", "words").out


def test_mixed_models_say_what_they_lack(
    pidgin: Pidgin, growing: list[list[list[int]]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the extra, or without enough messages, one line; everything else works."""
    error = error_of(pidgin("compare", "flat", "grows", "--metric", "turns", "--mixed"))
    assert "leave --mixed out" in error
    monkeypatch.setitem(sys.modules, "statsmodels.regression.mixed_linear_model", None)
    assert "pip install 'pidgin-cli[analysis]'" in error_of(pidgin("compare", "flat", "grows", "--mixed"))
    assert pidgin("compare", "flat", "grows").status == 0


def test_the_area_under_a_curve(root: OutputRoot, pidgin: Pidgin) -> None:
    """By the trapezium rule over messages: of 2, 4, 4, 8 it is 3 + 4 + 6."""
    make(root, "aaaaaaaa", [talk(2, None, words=(2, 4, 4, 8))], name="one")
    make(root, "bbbbbbbb", [talk(2, None, words=(1, 1, 1, 1))], name="two")
    found = rows(pidgin("compare", "one", "two", "--json", "--reduce", "auc", "--metric", "words").out)
    assert (found["words"]["mean_a"], found["words"]["mean_b"]) == (13, 3)


def test_shares_and_times_stand_on_the_page(pidgin: Pidgin, two: None) -> None:
    """The page has the tables of the terminal at its widest."""
    page = pidgin("compare", "one", "two", "--html").out
    for text in (
        "50.0 % (2/4)",
        "[15.0, 85.0]",
        "first_passage_attractor",
        "incidence A",
        "log-rank",
        "Aalen-Johansen",
    ):
        assert text in page


NUMBERS = ([12345.678, 22345.6, 19876.5, 18000.1], [-0.0001234, 0.0002, 98765.4, 98765.4])


@pytest.mark.parametrize("width", [60, 80, 140])
def test_no_number_is_broken_at_any_width(width: int) -> None:
    """A narrow terminal has fewer columns and folded names, never a number over two lines, and says so."""
    contrast = Contrast("名前🌀 A", "B" * 80)
    found = [
        Row(contrast, "copied_span_share", compare_groups(*NUMBERS, seed=1), None, 0.0001, True),
        Row(contrast, "incidence_🌀名前", compare_shares([True] * 7, [False] * 9), None, 0.03, False),
    ]
    effects = Effects("x", found, ["a sentence"], ["how"], "BH", 0, "mean")
    out = io.StringIO()
    print_effects(Console(file=out, width=width, force_terminal=True, color_system=None), effects)
    lines = out.getvalue().splitlines()
    tables = [line for line in lines if "measure" in line or "share" in line or "[" in line or "%" in line]
    assert all(cell_len(line.rstrip()) <= width for line in tables)
    interval = found[0].found.interval
    assert interval is not None
    for number in (f"[{interval.low:,.0f}, {interval.high:,.0f}]", "100.0 % (7/7)", "0.0 % (0/9)", "<0.001", "0.030"):
        assert number in out.getvalue()
    assert ("There is no room for all columns" in out.getvalue()) == (width < 140)
    assert as_rows(effects)[1]["p"] == found[1].p
