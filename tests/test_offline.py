"""What is computed after the run, held against the plain form of each definition: equal to the last bit."""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import WILD_TEXT

from pidgin_cli.metrics import formulas as f
from pidgin_cli.metrics import windows
from pidgin_cli.metrics.engine import wide
from pidgin_cli.metrics.lexicon import english
from pidgin_cli.metrics.offline import offline, read, recurrence
from pidgin_cli.metrics.others import Corrected, burrows_delta, convergence_index, profile
from pidgin_cli.metrics.pairs import token_indel
from pidgin_cli.metrics.reading import SEQUENCE_LIMIT, Reading, Vocabulary
from pidgin_cli.metrics.windows import vendi_score

Talk = list[tuple[str, str]]


# The plain forms


def _bleu(texts: Sequence[Sequence[str]]) -> float | None:
    """Mean BLEU-4 of each text against all others."""
    long = [text for text in texts if len(text) >= 4]
    if len(long) < 3:
        return None
    scores = []
    for place, text in enumerate(long):
        others = [other for number, other in enumerate(long) if number != place]
        matched = []
        for size in (1, 2, 3, 4):
            own, *theirs = (
                Counter(tuple(each[at : at + size]) for at in range(len(each) - size + 1)) for each in (text, *others)
            )
            matched.append(sum(min(times, max(other[gram] for other in theirs)) for gram, times in own.items()))
        closest = min(map(len, others), key=lambda size: (abs(size - len(text)), size))
        scores.append(f.bleu4(matched, len(text), closest) or 0.0)
    return sum(scores) / len(scores)


def _vendi(bags: Sequence[Mapping[str, int]]) -> float | None:
    full = [bag for bag in bags if bag]
    if len(full) < 3:
        return None
    return vendi_score(np.array([[1.0 if one is two else f.cosine(one, two) for two in full] for one in full]))


def _char3(one: str, two: str) -> float | None:
    if min(len(one), len(two)) < 10:
        return None
    return f.cosine(*(Counter(text[at : at + 3] for at in range(len(text) - 2)) for text in (one, two)))


def _plain(talk: Talk) -> tuple[list[dict[str, float | None]], dict[str, Any]]:
    readings, _ = read(talk)
    rows: list[dict[str, float | None]] = []
    for index, now in enumerate(readings):
        own = [each for each in readings[: index + 1] if each.agent_id == now.agent_id][-8:]
        partner = next((each for each in reversed(readings[:index]) if each.agent_id != now.agent_id), None)
        rows.append(
            {
                "self_bleu4_w8": _bleu([each.tokens for each in own]),
                "vendi_w8": _vendi([each.counts for each in own]),
                "char3_cosine": _char3(now.normalised, partner.normalised) if partner is not None else None,
            }
        )
    agents = dict.fromkeys(each.agent_id for each in readings)
    words = {agent: [word for each in readings if each.agent_id == agent for word in each.words] for agent in agents}
    of_all: Counter[str] = sum((each.counts for each in readings), Counter())
    found: dict[str, Any] = {"zipf_s": f.zipf_s(of_all.values())}
    for agent, said in words.items():
        found |= {f"cum_mtld_{agent}": f.mtld(said), f"cum_hdd_42_{agent}": f.hdd(Counter(said).values())}
    return rows, found


def _recurrent(shingles: Sequence[set[int]]) -> list[tuple[int, int]]:
    return [
        (row, column)
        for row, one in enumerate(shingles)
        for column, two in enumerate(shingles)
        if row < column and len(one & two) >= 0.6 * len(one | two)
    ]


def _likeness(now: Reading, other: Reading) -> dict[str, float | None]:
    style = None
    if min(len(now.words), len(other.words)) >= 25 and now.has_lexicon and other.has_lexicon:
        style = f.lsm(now.class_percent, other.class_percent)[1]
    comparable = max(len(now.tokens), len(other.tokens)) <= SEQUENCE_LIMIT
    return {
        "cosine_tf": f.cosine(now.counts, other.counts),
        "lsm_nz": style,
        "indel_partner": f.indel(now.coded, other.coded) if comparable else None,
        "structure_cosine": f.vector_cosine(now.structure, other.structure),
    }


def _index(talks: Mapping[str, Talk], shared: Mapping[str, int], seed: int) -> dict[str, list[Corrected]]:
    vocabulary = Vocabulary()
    readings = {
        name: [Reading(text, agent, index, vocabulary, english()) for index, (agent, text) in enumerate(talk)]
        for name, talk in sorted(talks.items())
    }
    return {
        name: [_of_message(readings, shared, name, index, seed) for index in range(len(mine))]
        for name, mine in readings.items()
    }


def _of_message(
    readings: Mapping[str, Sequence[Reading]], shared: Mapping[str, int], name: str, index: int, seed: int
) -> Corrected:
    now = readings[name][index]
    earlier = [each for each in readings[name][:index] if each.agent_id != now.agent_id]
    if not earlier:
        return Corrected(None, None, None)
    partner = earlier[-1]
    at, size = partner.index, len(partner.tokens)
    strangers = [
        other[at]
        for whose, other in readings.items()
        if whose != name
        and shared.get(whose, 0) <= at < len(other)
        and other[at].agent_id == partner.agent_id
        and abs(len(other[at].tokens) - size) <= 0.25 * size
        and not (at < shared.get(name, 0) and other[at].text == partner.text)
    ]
    if len(strangers) < 2:
        return Corrected(None, None, len(strangers))
    if len(strangers) > 20:
        strangers = random.Random(f"{seed}/{name}/{index}").sample(strangers, 20)
    shares = []
    beyond = room = 0.0
    for part, value in _likeness(now, partner).items():
        known = [other for each in strangers if (other := _likeness(now, each)[part]) is not None]
        if value is not None and known:
            mean = sum(known) / len(known)
            beyond += value - mean
            room += 1 - mean
            if mean < 1 - 1e-12:
                shares.append((value - mean) / (1 - mean))
    mean_share = sum(shares) / len(shares) if shares else None
    return Corrected(mean_share, beyond / room if room >= 0.25 else None, len(strangers))


def _delta(talks: Sequence[Talk]) -> list[dict[tuple[str, str], float | None]]:
    bags: list[dict[str, Counter[str]]] = []
    for talk in talks:
        bags.append({})
        for reading in read(talk).readings:
            bags[-1].setdefault(reading.agent_id, Counter()).update(reading.counts)
    total: Counter[str] = sum((bag for said in bags for bag in said.values()), Counter())
    words = sorted(total, key=lambda word: (-total[word], word))[:100]
    table = {
        (place, agent): np.array([bag[word] for word in words]) / bag.total()
        for place, said in enumerate(bags)
        for agent, bag in said.items()
        if bag.total() >= 300
    }
    rates = np.array(list(table.values()))
    spread = rates.std(axis=0, ddof=1)
    scaled = {
        place: (rate[spread > 0] - rates.mean(axis=0)[spread > 0]) / spread[spread > 0] for place, rate in table.items()
    }
    return [
        {
            ("a", "b"): (
                float(np.abs(scaled[place, "a"] - scaled[place, "b"]).mean())
                if (place, "a") in scaled and (place, "b") in scaled
                else None
            )
        }
        for place in range(len(talks))
    ]


# Texts


_TYPES = 600
_WORDS = [f"{'bcdfglmnprst'[n % 12]}{'aeiou'[n // 12 % 5]}{n:x}" for n in range(_TYPES)]
_COMMON = "the of and to a in is that it we you not good but never so happy very ✨ — why? no! VERY least kind of"
_WEIGHTS = list(accumulate(1 / (rank + 3) for rank in range(_TYPES)))


def _prose(draw: random.Random, size: int) -> str:
    """Words of a skewed vocabulary and common ones, with some markdown, code, and other scripts."""
    words = [
        draw.choice(_COMMON.split()) if draw.random() < 0.4 else draw.choices(_WORDS, cum_weights=_WEIGHTS)[0]
        for _ in range(size)
    ]
    for at in range(7, size, 9):
        words[at] += draw.choice([".", "?", "!", ",", ".\n\n- ", ".\n\n## "])
    extra = draw.choice(
        ["", "", "", "\n```\nx = the_code()\n```\n", " `inline the code`", "你好，世界。", "Привет, мир!"]
    )
    return " ".join(words) + extra


def _talk(draw: random.Random, turns: int) -> Talk:
    """Two who now and then say nothing, one word, or what has been said."""
    said: Talk = []
    for turn in range(turns):
        kind = draw.random()
        if kind < 0.1:
            text = draw.choice(["", "✨✨", "Yes.", "so it is now", " "])
        elif kind < 0.25 and said:
            text = draw.choice(said)[1]
        else:
            text = _prose(draw, draw.randrange(30, 60))
        said.append(("ab"[turn % 2 if draw.random() < 0.95 else 0], text))
    return said


# Tests


@pytest.mark.parametrize("cells", [1, 20_000, windows.TABLE_CELLS])
def test_a_conversation(cells: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows of an agent's messages, characters, and richness give the numbers of the definitions; blocks or not."""
    monkeypatch.setattr(windows, "TABLE_CELLS", cells)
    for seed in range(3):
        talk = _talk(random.Random(seed), 50)
        rows, summaries = offline(read(talk).readings)
        plain, of_all = _plain(talk)
        assert [{name: row[name] for name in plain[0]} for row in rows] == plain
        assert {name: wide(summaries)[name] for name in of_all} == of_all
        assert sum(row["self_bleu4_w8"] is not None for row in plain) > 20


@settings(max_examples=60)
@given(st.lists(st.tuples(st.sampled_from("abc"), WILD_TEXT), max_size=14))
def test_any_text(talk: Talk) -> None:
    """The same for whatever is said by three agents in any order."""
    rows, summaries = offline(read(talk).readings)
    plain, of_all = _plain(talk)
    assert [{name: row[name] for name in expected} for row, expected in zip(rows, plain, strict=True)] == plain
    assert {name: wide(summaries)[name] for name in of_all} == of_all


@given(st.lists(st.lists(st.integers(0, 8), min_size=1, max_size=7).map(set), max_size=12))
def test_recurrence(shingles: list[set[int]]) -> None:
    """The same messages recur, by their sets of trigrams."""
    found = recurrence([np.array(sorted(each), dtype=np.uint64) for each in shingles])
    assert [tuple(map(int, place)) for place in np.argwhere(found)] == _recurrent(shingles)


def test_sentiment() -> None:
    """VADER says of a text what it says without us, negations, idioms and contrasts at every edge included."""
    vader = pytest.importorskip("vaderSentiment.vaderSentiment").SentimentIntensityAnalyzer()
    draw = random.Random(3)
    loaded = (
        "good bad happy hate love terrible GREAT not never this no nor or very kind but least at hardly isn't 😀 :)"
        " it was and a day"
    )
    idioms = [
        "kiss of death",
        "to die for",
        "yeah right",
        "the bomb",
        "bad ass",
        "sort of",
        "without doubt",
        "so it is",
    ]
    texts = [" ".join(draw.choices([*loaded.split(), *idioms], k=size)) for size in range(1, 60) for _ in range(4)]
    texts += [f"it was a day {idiom}" for idiom in idioms]
    rows, _ = offline(read([("a", text) for text in texts]).readings)
    known = [(row["sentiment_vader"], text) for row, text in zip(rows, texts, strict=True)]
    assert sum(value is not None for value, _ in known) > 200
    for value, text in known:
        assert value in (None, vader.polarity_scores(text)["compound"]), text


@pytest.mark.parametrize("conversations", [7, 40])
def test_convergence_index(conversations: int) -> None:
    """Surrogates are drawn, compared and averaged as defined; with branches, too, and in any order."""
    draw = random.Random(conversations)
    talks = {f"t{number}": _talk(draw, 8) for number in range(conversations)}
    origin = talks["t0"]
    talks |= {f"branch{number}": [*origin[:3], *_talk(draw, 4)] for number in range(3)}
    shared = {f"branch{number}": 3 for number in range(3)}
    found = convergence_index({name: profile(read(talk)) for name, talk in talks.items()}, 5, shared)
    assert found == _index(talks, shared, 5)
    assert list(found) == list(talks)
    values = [each.value for row in found.values() for each in row]
    assert len({value for value in values if value is not None}) > len(values) / 3


def test_more_types_than_characters(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the numbers of the types outgrow Unicode, sequences are compared all the same."""
    from pidgin_cli.metrics import others

    talks = {str(number): _talk(random.Random(number), 6) for number in range(9)}
    profiles = {name: profile(read(talk)) for name, talk in talks.items()}
    as_characters = convergence_index(profiles)
    monkeypatch.setattr(others, "CODE_POINTS", 40)
    assert convergence_index(profiles) == as_characters
    assert any(isinstance(each.tokens, list) for each in others.profile(read(talks["1"])).messages)


def test_a_conversation_of_too_many_types() -> None:
    """What is compared as characters has no value where there are more types than characters, not a perfect one."""
    vocabulary = Vocabulary(zip(map(str, range(0x110000)), range(1, 0x110001), strict=True))
    one, two = (Reading(text, "a", 0, vocabulary) for text in ("so we meet again", "what a long way"))
    assert token_indel(one, two) is None


def test_burrows_delta() -> None:
    """Commonest words, rates and distances as defined, by agent."""
    draw = random.Random(8)
    talks = [[("ab"[turn % 2], _prose(draw, 70)) for turn in range(2 * draw.randrange(4, 9))] for _ in range(9)]
    found = burrows_delta([profile(read(talk)) for talk in talks])
    assert found == _delta(talks)
    assert len({value for each in found for value in each.values()}) > 5
    skipped = burrows_delta([profile(read(talk)) for talk in talks], shared=[2] * len(talks))
    assert skipped == _delta([talk[2:] for talk in talks])
