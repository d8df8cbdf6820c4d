"""Figures that hold turns, arms and models against each other: from records to the numbers they are drawn from."""

import itertools
import json
import math
import re
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any, NamedTuple

import numpy as np
import pytest
from commands import Pidgin, pidgin
from hypothesis import given
from hypothesis import strategies as st
from loopback import LoopbackServer, loopback_in_thread
from msgspec.structs import replace
from pages import end, talk
from runs import make, start
from scipy.cluster.hierarchy import fcluster, linkage  # type: ignore[import-untyped]
from scipy.spatial.distance import squareform  # type: ignore[import-untyped]

from pidgin_cli.cli.database import open_store
from pidgin_cli.core.events import ConversationStartEvent, Event, MessageCompleteEvent, TurnCompleteEvent
from pidgin_cli.core.types import Agent, Status
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.metrics.engine import measure
from pidgin_cli.metrics.multivariate import cluster_order, correlations, principal_components
from pidgin_cli.reports.drawing import palette
from pidgin_cli.reports.figures import DRAWN_PATHS, Figure, draw
from pidgin_cli.reports.study import Study

__all__ = ["pidgin"]


# The numbers


@pytest.mark.parametrize("shape", [(30, 5), (6, 40), (2, 2)])
def test_principal_components_are_those_of_the_singular_values(shape: tuple[int, int]) -> None:
    """Scores and shares equal those of a singular value decomposition; each component's farthest score is positive."""
    points = np.random.default_rng(3).normal(size=shape) + 5
    found = principal_components(points)
    assert found is not None
    left, singular, _ = np.linalg.svd(points - points.mean(axis=0), full_matrices=False)
    assert np.abs(found.scores) == pytest.approx(np.abs(left[:, :2] * singular[:2]), abs=1e-6)
    assert found.explained == pytest.approx(singular[:2] ** 2 / (singular**2).sum(), abs=1e-9)
    for column in found.scores.T:
        assert column[np.argmax(np.abs(column))] >= 0


def test_points_without_a_plane() -> None:
    """Points that are all the same have no components, points on a line one, and none is none."""
    assert principal_components(np.ones((4, 3))) is None
    assert principal_components(np.zeros((0, 3))) is None
    line = principal_components(np.outer(np.arange(4.0), [1.0, 2.0, 2.0]))
    assert line is not None
    assert np.diff(np.sort(line.scores[:, 0])) == pytest.approx(3)
    assert line.scores[:, 1] == pytest.approx(0, abs=1e-6)
    assert line.explained == pytest.approx((1, 0), abs=1e-9)


@given(st.lists(st.lists(st.none() | st.integers(-50, 50), min_size=3, max_size=3), min_size=1, max_size=12))
def test_correlations_are_over_the_rows_that_both_have(rows: list[list[int | None]]) -> None:
    """Of every two columns as numpy gives it for their common rows; not below three, nor where one does not vary."""
    values = np.array(rows, dtype=float)
    found = correlations(values)
    for i in range(3):
        for j in range(3):
            both = values[np.isfinite(values[:, i]) & np.isfinite(values[:, j])][:, [i, j]]
            if len(both) < 3 or not np.ptp(both, axis=0).all():
                assert np.isnan(found[i, j])
            else:
                assert found[i, j] == pytest.approx(np.corrcoef(both.T)[0, 1], abs=1e-9)


def test_what_goes_together_stands_together() -> None:
    """The order keeps every cluster of average linkage, as scipy finds it, in one piece; what is unknown is apart."""
    source = np.random.default_rng(1).normal(size=(60, 4))
    values = np.hstack([source[:, [place % 4]] + 0.4 * source[:, [(place * 3) % 4]] for place in range(11)])
    values += 0.5 * np.random.default_rng(2).normal(size=values.shape)
    found = correlations(values)
    order = cluster_order(found)
    assert sorted(order) == list(range(11))
    tree = linkage(squareform(1 - found, checks=False), "average")
    for number in range(1, 12):
        labels = fcluster(tree, number, "maxclust")[order]
        assert sum(a != b for a, b in itertools.pairwise(labels)) == len(set(labels)) - 1
    assert cluster_order(np.full((3, 3), np.nan)) in ([0, 1, 2], [2, 1, 0], [1, 0, 2], [2, 0, 1])
    assert cluster_order(np.zeros((0, 0))) == []


# From records


def between(texts: Sequence[str], *, models: Sequence[str] = ("local:x", "local:y"), arm: str = "") -> list[Event]:
    """Two agents with these models say these texts in turn; the record has the live metrics of all."""
    values, _ = measure([("ab"[place % 2], text) for place, text in enumerate(texts)])
    found: list[Event] = []
    for event in talk(*texts):
        match event:
            case ConversationStartEvent():
                agents = tuple(Agent(i, model, f"Agent {i}") for i, model in zip("ab", models, strict=True))
                found.append(replace(start(turns=len(texts) // 2, arm=arm), agents=agents))
            case MessageCompleteEvent():
                found.append(replace(event, model_requested=models["ab".index(event.agent_id)]))
            case TurnCompleteEvent():
                at = 2 * event.turn_number
                of_turn = {str(index): values[index] for index in (at - 2, at - 1)}
                found.append(replace(event, metrics={"version": "1", "messages": of_turn}))
            case _:
                found.append(event)
    return found


def words(number: int) -> str:
    return " ".join(f"w{place}" for place in range(number))


def of_lengths(*lengths: int, arm: str = "") -> list[Event]:
    """A conversation in whose turns both say so many different words."""
    return between([words(number) for number in lengths for _ in "ab"], arm=arm)


LEADS = "the river runs down to the wide grey sea"
OWN = "nobody has ever counted how many stones there were"
FOLLOWS = [LEADS, f"{LEADS} {OWN}", OWN.upper() + " again", f"{OWN} again and then some more of it"]
STUCK = ["Tell me more about the old river by the mill."] * 12
FRESH = [" ".join(f"{chr(97 + n)}{n}{place}" for place in range(9)) for n in range(12)]
ARMS = [f"arm {number:02}" for number in range(12)]
CASES: dict[str, list[list[Event]]] = {
    "three": [of_lengths(10, 12, 14, 30, 40), of_lengths(20, 20, 26, 20), of_lengths(10, 10)],
    "unknown": [
        between([words(9), words(8), *["🌊"] * 2, *map(words, (7, 7, 5, 9))]),
        [*of_lengths(900, 9, 9, 9)[:-1], end(invalid=("wrong_model_served",))],
    ],
    "two arms": [of_lengths(9 + n, 8, 7, 5, arm=arm) for arm in ARMS[:2] for n in range(2)],
    "five arms": [of_lengths(9 + n, 8, 7, 5, arm=arm) for arm in ARMS[:5] for n in range(2)],
    "three turns": [of_lengths(4, 5, 6)],
    "alike": [of_lengths(8 + n, arm=arm) for arm in ARMS[:2] for n in range(6)],
    "apart": [of_lengths(8 + n + 60 * place, arm=arm) for place, arm in enumerate(ARMS[:2]) for n in range(6)],
    "many arms": [of_lengths(5 + n + place, arm=arm) for place, arm in reversed([*enumerate(ARMS)]) for n in range(2)],
    "one arm": [of_lengths(5, 6), of_lengths(7, 8)],
    "one each": [of_lengths(5, arm="x"), of_lengths(7, arm="y")],
    "mixed": [between(FOLLOWS, models=(f"local:{one}", f"local:{two}")) for one, two in ("mn", "nm", "mm")],
    "same model": [between([LEADS] * 4, models=("local:m", "local:m"))],
    "short": [between(["One.", "Two."] * 2)],
    "bare": [talk(*[LEADS] * 8)],
    "bare, mixed": [[e for e in between([LEADS] * 8) if not isinstance(e, TurnCompleteEvent)]],
    "some mute": [
        between([words(n), words(3), words(n + 2), "…", words(2 * n), words(9)], arm=f"arm {n}") for n in (4, 8)
    ],
    "ends": [between(texts, arm=arm) for arm in "xy" for texts in (FRESH, FRESH, STUCK, FRESH, FRESH)],
    "once": [of_lengths(5)],
    "the same": [of_lengths(5, 5)],
    "mute": [between(["…", "🌊"] * 2)],
    "many": [of_lengths(5 + n, 9, 7 + n, 3, 12 - n, arm=f"arm {n % 2}") for n in range(8)],
}


class Drawn(NamedTuple):
    figure: Figure
    rows: list[dict[str, Any]]
    ids: list[str]
    """Of all conversations there are."""


def drawn(study: Study, name: str) -> Drawn:
    figure = draw(study, name)
    rows = [dict(zip(figure.columns, row, strict=True)) for row in figure.rows]
    return Drawn(figure, rows, [each.id for each in study.all])


def loaded(root: OutputRoot, *, imported: bool) -> Study:
    """The one experiment of an output root, from its database."""
    (folder,) = root.folders()
    with open_store(root) as store:
        if not imported:
            assert store.import_experiment(folder).failed is None
        return Study.load(store, folder.experiment_id)


@pytest.fixture(scope="module")
def studies(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Study]:
    """Each case as a study of its own; on the disk and in the database they are one experiment, imported once."""
    root = OutputRoot(tmp_path_factory.mktemp("figures"))
    make(root, "abcdefgh", [talk for talks in CASES.values() for talk in talks], status=Status.COMPLETED)
    whole = loaded(root, imported=False)
    every = iter(whole.all)
    return {
        case: Study(whole.experiment, list(itertools.islice(every, len(talks))), whole.columns, whole.charted)
        for case, talks in CASES.items()
    }


def svg(figure: Figure) -> str:
    assert figure.svg is not None, figure.absent
    return figure.svg


# The heatmap


def test_a_metric_is_held_against_the_first_turns_of_its_conversation(studies: dict[str, Study]) -> None:
    """z is the mean over conversations of what is above their own first three turns, by the spread within those."""
    figure, rows, _ = drawn(studies["three"], "metrics_by_turn")
    found = {row["turn"]: row for row in rows if row["metric"] == "tokens"}
    sd = math.sqrt((4 + 0 + 4 + 4 + 4 + 16 + 0 + 0) / 5)  # five values are free: two, two and one
    assert found[4]["z"] == pytest.approx(fmean([30 - 12, 20 - 22]) / sd)
    assert (found[4]["n"], found[4]["mean"]) == (2, 25)
    assert (found[5]["n"], found[5]["z"]) == (1, pytest.approx((40 - 12) / sd))
    assert found[1]["z"] == pytest.approx(fmean([-2, -2, 0]) / sd)
    assert "3 at turn 1, 1 conversation at turn 5" in figure.caption
    assert "emoji_share" in figure.caption.partition("Always the same in those turns")[2]
    assert not {"emoji_share", "sem_sim_partner"} & {row["metric"] for row in rows}


def test_what_is_not_known_is_no_cell(studies: dict[str, Study]) -> None:
    """A turn without a value has no row and no z of 0; an invalid conversation has no part in any."""
    _, rows, _ = drawn(studies["unknown"], "metrics_by_turn")
    assert {row["turn"] for row in rows if row["metric"] == "word_entropy"} == {1, 3, 4}
    assert {row["turn"] for row in rows if row["metric"] == "tokens"} == {1, 2, 3, 4}
    assert {row["n"] for row in rows} == {1}


def test_every_arm_has_a_colour_of_its_own(studies: dict[str, Study]) -> None:
    """Twelve arms are drawn in twelve colours; there are two dozen of them."""
    assert len(set(palette(24))) == 24
    figure, _, _ = drawn(studies["many arms"], "vocabulary_growth")
    used = [colour for colour in palette(len(ARMS)) if colour in svg(figure)]
    assert len(used) == len(ARMS) > 8


@pytest.mark.parametrize(("case", "arms", "panels"), [("two arms", 2, 2), ("five arms", 5, 0)])
def test_arms_have_panels_of_their_own_while_they_are_few(
    studies: dict[str, Study], case: str, arms: int, panels: int
) -> None:
    """Two arms are drawn side by side with their n, five all together; the table has every arm either way."""
    figure, rows, _ = drawn(studies[case], "metrics_by_turn")
    assert len(set(re.findall(r">arm \d\d \(n = 2\)<", svg(figure)))) == panels
    assert {row["arm"] for row in rows} == {"(all)", *ARMS[:arms]}


# Effects


def test_the_forest_has_the_numbers_of_compare(pidgin: Pidgin) -> None:
    """Of two arms: differences, intervals, p and adjusted p of every measure are those of `pidgin compare --by arm`."""
    lengths = {"x": (5, 9, 6, 8, 7), "y": (30, 40, 35, 33, 41)}
    talks = [
        [
            replace(event, metrics={}) if isinstance(event, TurnCompleteEvent) else event
            for event in of_lengths(n, n + 1)
        ]
        for each in lengths.values()
        for n in each
    ]
    for place, events in enumerate(talks):
        assert isinstance(events[0], ConversationStartEvent)
        events[0] = replace(events[0], arm="xy"[place // 5])
    output = OutputRoot(Path("out"))
    make(output, "abcdefgh", talks, status=Status.COMPLETED)
    told = pidgin("compare", "abcdefgh", "--by", "arm", "--json", "-o", "out")
    expected = {row["measure"]: row for row in json.loads(told.out)}
    figure, rows, _ = drawn(loaded(output, imported=True), "effects")
    found = {row["measure"]: row for row in rows}
    assert set(found) == set(expected) >= {"words", "turns", "total_words"}
    names = {
        "n": "n_b", "n_against": "n_a", "mean": "mean_b", "mean_against": "mean_a", "g": "g", "ci_low": "g_low",
        "ci_high": "g_high", "p": "p", "p_bh": "p_adjusted",
    }  # fmt: skip
    for measure_name in ("words", "total_words"):
        assert expected[measure_name]["p_exact"]
        for ours, theirs in names.items():
            assert found[measure_name][ours] == pytest.approx(expected[measure_name][theirs]), (measure_name, ours)
    assert (found["turns"]["g"], found["turns"]["p_bh"]) == (None, None)
    assert "over all 2 tests" in figure.caption
    assert "turns" in figure.caption.partition("Not drawn")[2]
    assert "n = 5" in figure.caption


@pytest.mark.parametrize("case", ["alike", "apart"])
def test_only_what_stands_is_filled(studies: dict[str, Study], case: str) -> None:
    """Equal arms have rings alone, far apart ones filled marks; beyond the scale they are triangles at its edge."""
    figure, rows, _ = drawn(studies[case], "effects")
    standing = {row["measure"] for row in rows if row["g"] is not None and row["p_bh"] <= 0.05}
    assert ({"words", "total_words"} <= standing) is (case == "apart")
    marks = re.findall(r'<path [^>]*stroke-width="1.6"[^>]*>', svg(figure))
    assert len(marks) == sum(row["g"] is not None for row in rows)
    assert sum('fill="#' in mark for mark in marks) == len(standing)
    assert ("beyond ±4, drawn as a triangle" in figure.caption) is (case == "apart")


def test_many_arms_are_held_against_the_first(studies: dict[str, Study]) -> None:
    """Each other one against the first by name, in one family; those that are not drawn are counted aloud."""
    figure, rows, _ = drawn(studies["many arms"], "effects")
    assert {(row["arm"], row["against"]) for row in rows} == {(arm, ARMS[0]) for arm in ARMS[1:]}
    assert "4 of 11 other arms are drawn; the CSV has all" in figure.caption
    assert f"over all {sum(row['p'] is not None for row in rows)} tests" in figure.caption
    colours = re.findall(r'role-legend-symbol"[^>]*><path[^>]*?(?:stroke|fill)="(#\w+)"', svg(figure))
    assert len(colours) == len(set(colours)) == 4


# Influence


def test_who_copies_whom_goes_by_the_model(studies: dict[str, Study]) -> None:
    """One point per conversation, the same way round whoever sits where; the difference is that of the engine."""
    figure, rows, ids = drawn(studies["mixed"], "influence")
    assert [row["conversation_id"] for row in rows] == ids[:2]
    one, two = rows
    assert (one["model_a"], one["model_b"]) == (two["model_a"], two["model_b"]) == ("local:m", "local:n")
    assert (one["a_to_b"], one["b_to_a"]) == (two["b_to_a"], two["a_to_b"])
    assert (one["messages_of_b"], one["messages_of_a"]) == (2, 1)
    assert one["a_to_b"] == pytest.approx(fmean([9 / 18, 10 / 16]))
    assert one["b_to_a"] == pytest.approx(9 / 10)
    _, summaries = measure([("ab"[place % 2], text) for place, text in enumerate(FOLLOWS)])
    (pulled,) = (each.value for each in summaries if each.name == "pull_asymmetry")
    assert pulled == pytest.approx(one["a_to_b"] - one["b_to_a"])
    assert "n = 3 conversations, complete and valid; 2 between different models" in figure.caption
    assert "more from A to B in 1 of 2, more from B to A in 1" in figure.caption


# The semantic path


@pytest.fixture
def embedding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LoopbackServer]:
    """A server of embeddings, to which all SDKs of this process go, and a cache of its own."""
    with loopback_in_thread() as server:
        for name, value in (server.env | {"PIDGIN_CACHE_DIR": str(tmp_path / "cache")}).items():
            monkeypatch.setenv(name, value)
        yield server


def distances(points: Sequence[Sequence[float]]) -> list[float]:
    return [math.dist(one, other) for one in points for other in points]


def test_the_path_is_that_of_the_chosen_embedding(
    pidgin: Pidgin, embedding: LoopbackServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its vectors come from the cache, nobody is asked again; without the cache lexical hashes stand in, and say so."""
    for name, value in (embedding.env | {"PIDGIN_CACHE_DIR": str(tmp_path / "cache")}).items():
        monkeypatch.setenv(name, value)
    model = "openai:text-embedding-3-small"
    at = {"N.": [0.0, 2.0], "North east.": [3.0, 3.0], "Eastern way.": [5.0, 0.0], "N!": [0.0, 1.0]}
    embedding.embed = lambda text: at.get(text, [1.0, 0.0])
    output = OutputRoot(Path("out"))
    make(output, "abcdefgh", [between(list(at))], status=Status.COMPLETED)
    assert pidgin("import", "abcdefgh", "--embeddings", model, "-o", "out").status == 0
    asked = len(embedding.requests)
    study = loaded(output, imported=True)
    figure, rows, _ = drawn(study, "semantic_path")
    assert len(embedding.requests) == asked > 0
    assert f"embeddings by {model}" in figure.caption
    assert [row["message_index"] for row in rows] == [0, 1, 2, 3]
    directions = [(np.array(each) / np.linalg.norm(each)).tolist() for each in at.values()]
    points = [(row["component_1"], row["component_2"]) for row in rows]
    assert distances(points) == pytest.approx(distances(directions), abs=1e-5)
    shutil.rmtree(tmp_path / "cache")
    without = draw(study, "semantic_path")
    assert f"those of {model} are not in the cache any more" in without.caption
    assert "lexical_hash, which stands for words and pairs of words, not for meaning" in without.caption
    assert len(embedding.requests) == asked


def test_without_a_choice_words_stand_in(studies: dict[str, Study]) -> None:
    """The caption names the stand-in; what has no vector is left out aloud; each path has its title."""
    figure, rows, ids = drawn(studies["some mute"], "semantic_path")
    assert "lexical_hash" in figure.caption
    assert "no embedding model was chosen" in figure.caption
    assert "2 messages without a vector" in figure.caption
    assert [row["message_index"] for row in rows] == [0, 1, 2, 4, 5] * 2
    texts = set(re.findall(r">([^<]+)</(?:text|tspan)>", svg(figure)))
    assert {ids[0], "arm 4", "state at the end", "normal"} <= texts


def test_paths_are_chosen_over_arms_and_ends(studies: dict[str, Study]) -> None:
    """Of every arm the first with each end, then the second, in turn over the arms; never more than are drawn."""
    _, rows, ids = drawn(studies["ends"], "semantic_path")
    found = list(dict.fromkeys((row["conversation_id"], row["end"]) for row in rows))
    assert len(found) == DRAWN_PATHS == 6
    assert [ids.index(name) for name, _ in found] == [0, 5, 2, 7, 1, 6]
    assert len({state for _, state in found}) == 2


# All four


@pytest.mark.parametrize(
    ("name", "case", "why"),
    [
        ("metrics_by_turn", "three turns", "no conversation goes on after the 3 turns that others are held against"),
        ("metrics_by_turn", "bare", "the database holds no metrics by turn: the conversations were run without live"),
        ("effects", "one arm", "it takes two arms with conversations that count"),
        ("effects", "one each", "no measure has two values in two arms and varies within them"),
        ("influence", "same model", "no conversation is between different models"),
        ("influence", "short", "no two different models have answered each other in four words or more"),
        ("influence", "bare, mixed", "the database holds no copied spans: the conversations were run without live"),
        ("semantic_path", "once", "no agent has said two messages in a conversation"),
        ("semantic_path", "the same", "all vectors of messages are the same"),
        ("semantic_path", "mute", "no message holds a word"),
    ],
)
def test_a_figure_that_cannot_be_drawn_says_why(studies: dict[str, Study], name: str, case: str, why: str) -> None:
    """Where the numbers do not make a figure there is none, with the reason, and no number in its place."""
    figure, rows, _ = drawn(studies[case], name)
    assert (figure.absent or "").startswith(why)
    assert (figure.svg, rows) == (None, [])


def test_the_same_record_is_the_same_picture(studies: dict[str, Study]) -> None:
    """Nothing in the four figures is drawn by chance: drawn again, they are equal to the last digit."""
    for name in ("metrics_by_turn", "effects", "influence", "semantic_path"):
        figure = draw(studies["many"], name)
        assert svg(figure) == svg(draw(studies["many"], name))
