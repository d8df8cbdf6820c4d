"""Detectors: what fires when, since when, and what never changes afterwards."""

import json
import math
import zlib
from collections.abc import Sequence
from itertools import cycle as endlessly
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pseudo_talk import LENGTHS, NEGATIVES, ONSET, PLANTED, Talk, alarms, first_firing, said_by_two

from pidgin_cli.metrics.detectors import (
    DETECTORS,
    NORMAL,
    STATES,
    Action,
    Detectors,
    Firing,
    Step,
    Thresholds,
    detect,
    lexical_hash,
    read,
    respond,
)
from pidgin_cli.metrics.engine import Engine, measure
from pidgin_cli.metrics.lexicon import english
from pidgin_cli.metrics.reading import Reading, Vocabulary
from pidgin_cli.metrics.tokens import normalise, tokenize

SCENARIOS = {
    scenario["name"]: scenario
    for scenario in json.loads((Path(__file__).parent / "data" / "synthetic_attractors.json").read_text())["scenarios"]
}
PROSE = [Talk(seed).message() for seed in range(40)]


def steps_of(texts: Sequence[str], **changes: dict[str, Any]) -> list[Step]:
    return detect(said_by_two(texts), msgspec.convert(changes, Thresholds))


def firing(steps: Sequence[Step], detector: str) -> Firing:
    return next(fired for step in steps for fired in step.fired if fired.detector == detector)


# Planted truth


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_planted_attractor_fires_in_its_window_and_nothing_fires_that_must_not(name: str) -> None:
    """The reference conversations, window for window."""
    scenario = SCENARIOS[name]
    found = first_firing(steps_of(scenario["messages"]))
    for detector, (earliest, latest) in scenario["must_fire_first_index"].items():
        assert earliest <= found.get(detector, -1) <= latest, detector
    assert not found.keys() & set(scenario["must_not_fire"])


@pytest.mark.parametrize("name", [name for name in SCENARIOS if SCENARIOS[name]["prototype_first_index"]])
def test_detectors_agree_with_the_prototype_that_their_thresholds_were_measured_on(name: str) -> None:
    """Not only inside the windows: at the very message, so what was measured of it is true of these."""
    scenario = SCENARIOS[name]
    expected = {key: at for key, at in scenario["prototype_first_index"].items() if key in DETECTORS}
    found = first_firing(steps_of(scenario["messages"]))
    assert {key: found.get(key) for key in expected} == expected


@pytest.mark.parametrize(
    ("name", "detector"),
    [
        *((f"cycle_k{period}", detector) for period in (1, 2, 3, 6) for detector in ("cycle", "soft_cycle")),
        *((name, name) for name in ("emoji_collapse", "farewell_loop", "gratitude_spiral", "inner_loop")),
        ("cycle_k1", "stationary"),
        ("cycle_k2", "stationary"),
        ("escape", "cycle"),
    ],
)
def test_a_firing_is_dated_to_the_planted_onset(name: str, detector: str) -> None:
    """The first message that belongs to the attractor, not the one at which it could be told."""
    truth = SCENARIOS[name]["ground_truth"]
    found = firing(steps_of(SCENARIOS[name]["messages"]), detector)
    assert found.onset == truth["onset"]
    if detector in ("cycle", "soft_cycle"):
        assert found.period == truth["period"]


@pytest.mark.parametrize("period", [1, 2, 3, 6])
def test_smoothed_detectors_are_dated_to_the_first_repetition(period: int) -> None:
    """The first copy of a loop is new text, so the fall of novelty and of bits begins one period later."""
    steps = steps_of(SCENARIOS[f"cycle_k{period}"]["messages"])
    assert firing(steps, "novelty_collapse").onset == 12 + period
    assert firing(steps, "compression_collapse").onset == 12 + period


CLOSED_FORMS = {
    **{
        f"cycle {period}": {
            "cycle": ONSET + period + max(period, 2) - 1,
            "soft_cycle": ONSET + period + max(period, 3) - 1,
        }
        for period in (1, 2, 3, 4, 6)
    },
    "emoji": {"emoji_collapse": ONSET + 4, "length_collapse": ONSET + 5},
    "goodbyes": {"farewell_loop": ONSET + 3},
    "thanks": {"gratitude_spiral": ONSET + 4},
    "meta": {"meta_loop": ONSET + 3},
    "inner loop": {"inner_loop": ONSET},
}


@pytest.mark.parametrize("name", CLOSED_FORMS)
def test_detectors_fire_at_their_closed_form_latency(name: str) -> None:
    """In each of a hundred random conversations, at the message that the rule makes the first possible one."""
    expected = CLOSED_FORMS[name]
    for seed in range(100):
        found = first_firing(detect(said_by_two(PLANTED[name](Talk(seed)))))
        assert {detector: found.get(detector) for detector in expected} == expected, seed


@pytest.mark.parametrize(
    ("substitution", "found_by"),
    [
        ("0.05", {"soft_cycle": 100, "compression_collapse": 98, "stationary": 98}),
        ("0.10", {"soft_cycle": 100, "compression_collapse": 98, "stationary": 98}),
        ("0.15", {"soft_cycle": 98, "compression_collapse": 95, "stationary": 90}),
        ("0.20", {"soft_cycle": 95, "compression_collapse": 80}),
    ],
)
def test_near_copies_are_found_as_often_as_the_design_measured(substitution: str, found_by: dict[str, int]) -> None:
    """A loop whose copies differ by up to every fifth word is still a loop; percent of a hundred conversations."""
    hits = dict.fromkeys(found_by, 0)
    for seed in range(100):
        found = first_firing(detect(said_by_two(PLANTED[f"near cycle 2, {substitution}"](Talk(seed)))))
        for detector in hits:
            hits[detector] += found.get(detector, 0) >= ONSET
    assert all(hits[detector] >= share for detector, share in found_by.items()), hits


def test_false_alarms_stay_within_one_percent() -> None:
    """Two hundred talks without an attractor: fresh topics, one topic, drift, a fixed skeleton, three lengths."""
    found = list(alarms(17))
    assert len(found) == len(NEGATIVES) * len(LENGTHS) * 17
    for detector in DETECTORS:
        loud = [kind for kind, fired in found if detector in fired]
        assert len(loud) <= 0.01 * len(found), (detector, loud)


# The fused state


def test_the_state_returns_to_normal_after_an_escape() -> None:
    """Entered at the confirmation, kept for three clear messages, then what remains, then normal."""
    steps = steps_of(SCENARIOS["escape"]["messages"])
    states = [step.state for step in steps]
    assert states[:15] == [NORMAL] * 15
    assert states[15:22] == ["cycle"] * 7
    assert states[-6:] == [NORMAL] * 6
    assert [step.onset for step in steps[15:22]] == [12] * 7
    assert [step.age for step in steps[15:18]] == [3, 4, 5]


def test_a_detector_lets_go_after_three_clear_messages_and_may_fire_again() -> None:
    """One looping message colours itself and the two after it."""
    loop = "so it goes on and on " * 10
    steps = steps_of([*PROSE[:8], loop, *PROSE[8:14], loop, *PROSE[14:20]])
    assert [step.message_index for step in steps if step.state == "inner_loop"] == [8, 9, 10, 15, 16, 17]
    assert [step.message_index for step in steps for fired in step.fired if fired.detector == "inner_loop"] == [8, 15]


def test_a_clear_message_now_and_then_does_not_end_a_state() -> None:
    """Two messages without the sign are not three."""
    loop = "so it goes on and on " * 10
    steps = steps_of([*PROSE[:8], loop, *PROSE[8:10], loop, *PROSE[10:12], loop, *PROSE[12:20]])
    assert [step.message_index for step in steps if step.state == "inner_loop"] == list(range(8, 17))
    assert sum(fired.detector == "inner_loop" for step in steps for fired in step.fired) == 1


@pytest.mark.parametrize(
    ("loop", "state", "also"),
    [
        (["🌀🌀"], "emoji_collapse", {"cycle", "length_collapse"}),
        (["..."], "silence", {"cycle", "length_collapse"}),
        (["Goodbye, my friend, take care."], "echo", {"farewell_loop", "soft_cycle"}),
        (["Goodbye now.", "Bye, take care."], "cycle", {"farewell_loop", "length_collapse"}),
        (["Thank you! " * 30], "inner_loop", {"cycle", "gratitude_spiral"}),
        (["🙂🙏", ""], "cycle", {"length_collapse"}),  # neither silence nor emoji has five of the last six
    ],
)
def test_the_first_active_detector_in_order_gives_the_state(loop: list[str], state: str, also: set[str]) -> None:
    """Several see the same thing; the state is the most telling of them and the others stay listed as active."""
    source = endlessly(loop)
    last = steps_of([*PROSE[:8], *(next(source) for _ in range(12))])[-1]
    assert last.state == state
    assert also <= set(last.active)
    order = list(DETECTORS)
    assert list(last.active) == sorted(last.active, key=order.index)


def test_silence_after_a_loop_takes_over_at_once() -> None:
    """A state of higher rank does not wait for the lower one to clear, and it has its own onset."""
    steps = steps_of([*PROSE[:8], *([PROSE[9]] * 8), *([""] * 8)])
    silent = next(step for step in steps if step.state == "silence")
    assert steps[silent.message_index - 1].state == "echo"
    assert (silent.message_index, silent.onset) == (20, 16)


def test_a_second_loop_is_dated_by_itself() -> None:
    """What was summed up for the first fall of novelty does not date the second."""
    loop = [*PROSE[20:22], *PROSE[20:22]] * 5
    steps = steps_of([*PROSE[:8], *loop, *PROSE[8:16], *[PROSE[30]] * 8])
    for detector, onsets in (("novelty_collapse", [10, 37]), ("compression_collapse", [10, 37]), ("cycle", [8, 36])):
        assert [fired.onset for step in steps for fired in step.fired if fired.detector == detector] == onsets


def test_an_inexact_echo_is_a_near_cycle_of_period_one() -> None:
    """`echo` is said of verbatim repetition only."""
    talk = Talk(9)
    texts = talk.words(talk.topic(), 60)
    said = [" ".join(word if talk.random.random() < 0.88 else talk.words(talk.topic(), 1)[0] for word in texts)
            for _ in range(12)]  # fmt: skip
    last = steps_of([*PROSE[:8], *said])[-1]
    assert (last.state, last.period) == ("near_cycle", 1)


def test_emoji_that_differ_are_not_a_loop() -> None:
    """Without words on either side edit similarity is 1, which says nothing."""
    faces = ["🌀", "🌟🙏", "✨", "💫🌀", "🕊️", "💛✨🙏", "🌟", "🙏🙏", "✨🌀", "💛"]
    found = first_firing(steps_of([*PROSE[:4], *faces]))
    assert "emoji_collapse" in found
    assert not found.keys() & {"cycle", "soft_cycle"}


def test_talk_about_a_conversation_that_goes_on_is_not_a_meta_loop() -> None:
    """One of the cues must be about ending."""
    texts = [f"What strikes me about this conversation is part {at} of our exchange." for at in range(12)]
    steps = steps_of(texts)
    assert "meta_loop" not in first_firing(steps)
    assert steps[-1].signals.meta_share_w6 == 0.0
    ending = steps_of([f"{text} Shall we end here, or is it the last word?" for text in texts])
    assert first_firing(ending)["meta_loop"] == 3


def test_a_talk_that_never_moved_is_not_stationary() -> None:
    """There is nothing that it came to a stand from; the cycle tells."""
    steps = steps_of([PROSE[0]] * 30)
    assert "stationary" not in first_firing(steps)
    assert steps[-1].signals.stationarity is None
    assert steps[-1].state == "echo"


# More than two, and one alone


@pytest.mark.parametrize("count", [1, 3, 5, 12])
def test_agents_that_each_repeat_themselves_make_a_cycle_of_their_number(count: int) -> None:
    """Nothing in the detectors is made for two."""
    agents = [f"agent-{number}" for number in range(count)]
    talk = Talk(5)
    said = [(agents[at % count], talk.message()) for at in range(2 * count)]
    said += [(agents[at % count], PROSE[at % count]) for at in range(3 * count + 2)]
    found = firing(detect(said), "cycle")
    assert (found.period, found.onset) == (count, 2 * count)


def test_one_speaker_standing_still_among_five_is_stationary() -> None:
    """The others go on talking of new things, and the state holds while that one does not move."""
    talk, stuck = Talk(3), PROSE[0].split()
    said: list[tuple[str, str]] = []
    for round_number in range(16):
        for agent in "abcde":
            talk.random.shuffle(stuck)
            text = " ".join(stuck) if agent == "c" and round_number >= 8 else talk.message()
            said.append((agent, text))
    steps = detect(said)
    found = firing(steps, "stationary")
    assert said[found.message_index][0] == "c"
    assert found.onset >= 8 * 5
    assert all(step.state == "stationary" for step in steps[found.message_index :])


def test_goodbyes_of_one_speaker_are_not_a_farewell_loop() -> None:
    """Both must say goodbye."""
    goodbyes = PLANTED["goodbyes"](Talk(1))[ONSET:]
    alone = [("a", text) for text in goodbyes]
    assert "farewell_loop" not in first_firing(detect(alone))
    assert "farewell_loop" in first_firing(detect(said_by_two(goodbyes)))


def test_an_agent_that_is_not_in_the_conversation_is_an_error() -> None:
    """A message credited to nobody is not counted for somebody."""
    with pytest.raises(ValueError, match=r"no agent 'z' .* a, b"):
        Detectors("ab").add("z", "hello")


# What never changes

SNIPPETS = st.sampled_from(
    [
        *PROSE[:6],
        *("", " ", "...", "🌀🌀", "🙏✨", "Yes.", "No.", "Goodbye, my friend.", "Bye, take care, until next time."),
        *("Thank you, thank you so much!", "om om om om om om om om om om", "```\nprint('x')\n```", "你好，我的朋友。"),
        *("Shall we end this conversation here?", "the final word of this conversation is the last word", "\ud800x"),
    ]
)
TALKS = st.lists(st.one_of(SNIPPETS, SNIPPETS, st.text(max_size=40)), max_size=40)


@given(TALKS, TALKS)
def test_what_follows_never_changes_what_was_said_before(texts: list[str], more: list[str]) -> None:
    """The steps of a prefix are the prefix of the steps."""
    assert detect(said_by_two([*texts, *more]))[: len(texts)] == detect(said_by_two(texts))


@given(TALKS)
def test_names_of_speakers_do_not_matter(texts: list[str]) -> None:
    """Relabelled speakers give the same steps under the other labels."""
    plain = detect(said_by_two(texts))
    other = detect([({"a": "zoë", "b": "a"}[agent], text) for agent, text in said_by_two(texts)])
    assert [msgspec.structs.replace(step, agent_id="") for step in plain] == [
        msgspec.structs.replace(step, agent_id="") for step in other
    ]


@given(TALKS)
def test_a_reading_made_elsewhere_gives_the_same_steps(texts: list[str]) -> None:
    """An engine that has read the message already may hand its reading over."""
    detectors = Detectors("ab")
    assert [detectors.add(agent, text, read(text)) for agent, text in said_by_two(texts)] == detect(said_by_two(texts))


@given(TALKS)
@settings(max_examples=50)
def test_the_metrics_engine_and_the_detectors_alone_say_the_same(texts: list[str]) -> None:
    """The engine reads a message more closely, and what it hands over makes no difference."""
    engine = Engine("ab")
    for (agent, text), alone in zip(said_by_two(texts), detect(said_by_two(texts)), strict=True):
        engine.add(agent, text)
        assert engine.step == alone


def test_every_letter_counts_alike_for_the_detectors_and_the_engine() -> None:
    """A message of one letter has word lists for both or for neither, whichever letter it is."""
    vocabulary = Vocabulary()
    for char in filter(str.isalpha, map(chr, range(0x3000))):
        closely = Reading(char, "a", 0, vocabulary, english())
        assert read(char).has_lexicon == closely.has_lexicon, f"U+{ord(char):04X}"


@given(TALKS)
def test_doubled_white_space_changes_nothing_but_compression(texts: list[str]) -> None:
    """Detectors look at words."""

    def essence(steps: list[Step]) -> list[Any]:
        return [
            (
                [fired for fired in step.fired if fired.detector != "compression_collapse"],
                step.state,
                msgspec.structs.replace(step.signals, cond_bits_per_byte=None, compression_ewma=None),
            )
            for step in steps
        ]

    plain = [text.replace("```", "") for text in texts]
    assert essence(steps_of([text.replace(" ", "  ") for text in plain])) == essence(steps_of(plain))


def jaccard(first: str, second: str) -> float:
    def shingles(text: str) -> set[Any]:
        tokens = tokenize(text)
        if len(tokens) < 6:
            return {*tokens, ("", normalise(text))}
        return set(zip(tokens, tokens[1:], tokens[2:], strict=False))

    one, other = shingles(first), shingles(second)
    return len(one & other) / len(one | other)


def tandem(text: str) -> tuple[int | None, int | None]:
    tokens = tokenize(text)
    for phrase in range(1, min(50, len(tokens) // 3) + 1):
        if tokens[-phrase:] * 3 == tokens[-3 * phrase :]:
            copies = 3
            while tokens[-phrase:] * (copies + 1) == tokens[-(copies + 1) * phrase :]:
                copies += 1
            return phrase, copies
    return None, None


def four_grams(text: str) -> list[tuple[str, ...]]:
    tokens = tokenize(text)
    return list(zip(tokens, tokens[1:], tokens[2:], tokens[3:], strict=False))


@given(st.lists(SNIPPETS, max_size=30))
@settings(max_examples=60)
def test_signals_equal_those_recomputed_from_the_whole_conversation(texts: list[str]) -> None:
    """Each number anew from all messages up to it, by the formula and without the memory of the detectors."""
    texts = [text.replace("\ud800", "\ufffd") for text in texts]
    average = None
    for at, (text, step) in enumerate(zip(texts, steps_of(texts), strict=True)):
        signals = step.signals
        lags = [jaccard(text, texts[at - lag]) for lag in range(1, min(at, 12) + 1)]
        assert signals.max_jaccard3_lag12 == (max(lags) if lags else None)
        assert signals.best_lag == (lags.index(max(lags)) + 1 if lags else None)
        same = [lag for lag in range(1, at + 1) if normalise(texts[at - lag]) == normalise(text)]
        assert signals.exact_repeat_lag == (same[0] if same else None)
        own, seen = four_grams(text), {gram for earlier in texts[:at] for gram in four_grams(earlier)}
        novelty = sum(gram not in seen for gram in own) / len(own) if own else float(not same)
        assert signals.novelty_4gram == pytest.approx(novelty)
        average = novelty if average is None else 0.3 * novelty + 0.7 * average
        assert signals.novelty_ewma == pytest.approx(average)
        assert signals.rep_4 == (pytest.approx(1 - len(set(own)) / len(own)) if own else None)
        assert (signals.tandem_repeat_period, signals.tandem_repeat_count) == tandem(text)
        history, data = "\n".join(["", *texts[:at]]).encode()[-32_000:], text.encode()
        packer = zlib.compressobj(6, zlib.DEFLATED, -15, 8, zdict=history)
        bits = 8 * (len(packer.compress(data)) + len(packer.flush())) / max(len(data), 1)
        assert signals.cond_bits_per_byte == (pytest.approx(bits) if len(data) >= 24 else None)


def test_cosine_of_the_window_is_that_of_all_its_pairs() -> None:
    """The running sum gives the mean over pairs, for a speaker whose vectors contract."""
    random = np.random.default_rng(4)
    centre = random.normal(size=64)
    vectors = [centre + (3.0 if at < 20 else 0.3) * random.normal(size=64) for at in range(40)]
    detectors = Detectors("a", embedded=True)
    steps = [detectors.add("a", PROSE[at], vector=vector) for at, vector in enumerate(vectors)]
    unit = [vector / np.linalg.norm(vector) for vector in vectors]
    windows = [
        np.mean([one @ other for i, one in enumerate(unit[at - 4 : at + 1]) for other in unit[at - 4 : at + 1][:i]])
        for at in range(4, 40)
    ]
    usual = sorted(windows[:3])[1]
    for at in range(7, 40):
        expected = (windows[at - 4] - usual) / (1 - usual)
        assert steps[at].signals.stationarity == pytest.approx(expected)
    assert 20 <= firing(steps, "stationary").onset <= firing(steps, "stationary").message_index <= 28


def test_a_message_without_its_embedding_says_nothing_about_standing_still() -> None:
    """A failed embedding request must neither end a conversation nor count as movement."""
    random = np.random.default_rng(4)
    detectors = Detectors("a", embedded=True)
    for at in range(30):
        noise = random.normal(size=32)
        vector = None if at % 5 == 4 else noise if at < 12 else 20 + noise
        step = detectors.add("a", PROSE[at], vector=vector)
        assert (step.signals.stationarity is None) == (vector is None or at < 8)
    assert "stationary" in step.active
    with pytest.raises(ValueError, match="not made for embeddings"):
        Detectors("a").add("a", "hello", vector=[1.0, 0.0])


def test_hashed_vectors_tell_word_order_and_are_stable() -> None:
    """The stand-in for embeddings is a fixed function: words by CRC-32, bigrams too, signs by the top bit."""
    vector = lexical_hash(["the", "cat"])
    expected = np.zeros(512)
    for part in (b"the", b"cat", b"the cat"):
        code = zlib.crc32(part)
        expected[code % 512] += -1 if code >> 31 else 1
    assert vector == pytest.approx(expected / np.linalg.norm(expected))
    assert lexical_hash(["cat", "the"]) @ vector < 1
    assert not lexical_hash([]).any()


# Texts of any kind


@pytest.mark.parametrize(
    "text",
    [
        "",
        " \n\t ",
        "🌀",
        "👩🏽‍🚀🇦🇶",
        "\u200b\u200d\ufeff",
        "\ud83d\ude00 \ud800 \udfff",
        "\x00\x1b[31m",
        "שלום עולם, להתראות",
        "مرحبا بالعالم؟",
        "你好，我们再见吧。",
        "नमस्ते दोस्त",
        "```python\nfor ever: pass",
        "?" * 10_000,
        "Why? " * 10_000,
        "word " * 200_000,
        "🌀" * 250_000,
        " ".join(f"w{number}" for number in range(140_000)),
    ],
    ids=lambda text: repr(text[:12]),
)
def test_any_text_is_taken_and_gives_finite_numbers(text: str) -> None:
    """Again and again, so that lags and windows hold it; a megabyte only as often as it takes to be a loop."""
    for step in steps_of([*PROSE[:2], *([text] * (14 if len(text) < 100_000 else 4))]):
        assert step.state in STATES
        for name in step.signals.__struct_fields__:
            value = getattr(step.signals, name)
            assert value is None or math.isfinite(value), name
        for fired in step.fired:
            assert 0 <= fired.onset <= fired.message_index == step.message_index
            assert math.isfinite(fired.value)
    assert step.state != NORMAL


def test_a_long_message_is_looked_at_to_its_end() -> None:
    """Comparison with others stops at 4,096 tokens; what the message does itself does not."""
    text = " ".join(f"w{number}" for number in range(9_000))
    (step,) = steps_of([text + " so it goes on" * 6])
    assert (step.signals.tandem_repeat_period, step.signals.tandem_repeat_count) == (4, 6)
    assert step.state == "inner_loop"


def test_code_is_neither_silence_nor_a_goodbye() -> None:
    """A message of code alone has words; cues inside code are not said by the speaker."""
    blocks = [f"```\nprint('goodbye {number}, see you, thank you')\n```" for number in range(12)]
    found = first_firing(steps_of(blocks))
    assert not found.keys() & {"silence_collapse", "length_collapse", "farewell_loop", "gratitude_spiral"}


def test_cues_are_null_where_there_is_no_word_list() -> None:
    """Chinese without a list is not Chinese without thanks."""
    chinese = steps_of(["谢谢你，非常感谢，再见。"] * 4)[-1].signals
    assert (chinese.farewell_share_w6, chinese.gratitude_share_w6, chinese.meta_share_w6) == (None, None, None)
    mixed = steps_of(["谢谢你，非常感谢，再见。"] * 3 + ["Goodbye and take care.", PROSE[0]])[-1].signals
    assert mixed.farewell_share_w6 == 0.5
    half = steps_of(["Goodbye 我的朋友 take care 再见了"])[-1].signals
    assert half.farewell_share_w6 is None
    french = steps_of(["Très bien, à bientôt, cher ami — ça va."])[-1].signals
    assert french.farewell_share_w6 == 0.0


# Thresholds


def cycle_2_at(substitution: str) -> list[str]:
    return PLANTED[f"near cycle 2, {substitution}"](Talk(11))


LONG_GOODBYES = [f"{text} {PROSE[at]}" for at, text in enumerate(PLANTED["goodbyes"](Talk(2))[ONSET:])]
LOOP_OF_THREE = [*PROSE[:8], *(PROSE[:3] * 4)]
EFFECTS: dict[str, tuple[list[str], dict[str, Any], str, int | None, int | None]] = {
    # threshold: conversation, its changed value, detector, first firing by default and with the change
    "clear_after": ([*PROSE[:3], "on and on " * 20, *PROSE[3:5], "on and on " * 20], {}, "", None, None),
    "silence_collapse.count": ([*PROSE[:6], *([""] * 6)], {"count": 3}, "silence_collapse", 10, 8),
    "emoji_collapse.count": ([*PROSE[:6], *(["🌀"] * 6)], {"count": 6}, "emoji_collapse", 10, 11),
    "inner_loop.rep_4": (["a b c d e " * 3 + "f g h i j k l"], {"rep_4": 0.3}, "inner_loop", None, 0),
    "inner_loop.min_tokens": (["a b c d e " * 3 + "f"], {"min_tokens": 10, "rep_4": 0.4}, "inner_loop", None, 0),
    "inner_loop.copies": (["a b c d " * 4], {"copies": 5}, "inner_loop", 0, None),
    "inner_loop.min_span": (["so it is no no no no"], {"min_span": 4}, "inner_loop", None, 0),
    "cycle.similarity": (cycle_2_at("0.15"), {"similarity": 0.1}, "cycle", None, 17),
    "cycle.run": (PLANTED["cycle 2"](Talk(1)), {"run": 5}, "cycle", 17, 20),
    "soft_cycle.similarity": (cycle_2_at("0.20"), {"similarity": 0.99}, "soft_cycle", 21, None),
    "soft_cycle.run": (PLANTED["cycle 2"](Talk(1)), {"run": 6}, "soft_cycle", 18, 21),
    "farewell_loop.count": (LONG_GOODBYES, {"count": 6}, "farewell_loop", 3, 5),
    "farewell_loop.max_tokens": (LONG_GOODBYES, {"max_tokens": 20}, "farewell_loop", 3, None),
    "gratitude_spiral.count": (PLANTED["thanks"](Talk(1)), {"count": 3}, "gratitude_spiral", 18, 16),
    "gratitude_spiral.per_100_tokens": (
        PLANTED["thanks"](Talk(1)),
        {"per_100_tokens": 40},
        "gratitude_spiral",
        18,
        None,
    ),
    "meta_loop.count": (PLANTED["meta"](Talk(1)), {"count": 2}, "meta_loop", 17, 15),
    "meta_loop.per_100_tokens": (PLANTED["meta"](Talk(1)), {"per_100_tokens": 30}, "meta_loop", 17, None),
    "stationary.at_least": (PLANTED["cycle 2"](Talk(1)), {"at_least": 0.9}, "stationary", 22, 24),
    "stationary.gap": (PLANTED["cycle 2"](Talk(1)), {"gap": 0.95}, "stationary", 22, 24),
    "stationary.run": (PLANTED["cycle 2"](Talk(1)), {"run": 5}, "stationary", 22, 24),
    "stationary.early": ([*PROSE[:10], *PROSE[:2] * 12], {"early": 8}, "stationary", 18, 26),
    "length_collapse.count": (
        [*PROSE[:6], "Yes.", "No.", "Why?", *PROSE[6:9]],
        {"count": 3},
        "length_collapse",
        None,
        8,
    ),
    "exact_recurrence.repeats": ([*PROSE[:3], *PROSE[:3], *PROSE[:3]], {"repeats": 2}, "exact_recurrence", 3, 6),
    "novelty_collapse.below": (PLANTED["cycle 2"](Talk(1)), {"below": 0.6}, "novelty_collapse", 20, 19),
    "novelty_collapse.alpha": (PLANTED["cycle 2"](Talk(1)), {"alpha": 0.9}, "novelty_collapse", 20, 18),
    "novelty_collapse.run": (PLANTED["cycle 2"](Talk(1)), {"run": 6}, "novelty_collapse", 20, 23),
    "compression_collapse.below": (PLANTED["cycle 2"](Talk(1)), {"below": 0.01}, "compression_collapse", 20, None),
    "compression_collapse.alpha": (PLANTED["cycle 2"](Talk(1)), {"alpha": 0.9}, "compression_collapse", 20, 18),
    "compression_collapse.run": (PLANTED["cycle 2"](Talk(1)), {"run": 6}, "compression_collapse", 20, 23),
    "compression_collapse.baseline": (LOOP_OF_THREE, {"baseline": 14}, "compression_collapse", 12, 16),
    "compression_collapse.min_bytes": (
        PLANTED["cycle 2"](Talk(1)),
        {"min_bytes": 10_000},
        "compression_collapse",
        20,
        None,
    ),
}


def test_every_threshold_has_a_test_of_its_effect() -> None:
    """A threshold that someone adds is missed here."""
    declared = {"clear_after"} | {
        f"{name}.{field}" for name in DETECTORS for field in getattr(Thresholds(), name).__struct_fields__
    }
    assert declared == EFFECTS.keys()


@pytest.mark.parametrize("name", [name for name in EFFECTS if name != "clear_after"])
def test_a_threshold_moves_the_firing(name: str) -> None:
    """What is set in a spec changes what fires when."""
    texts, change, detector, by_default, changed = EFFECTS[name]
    assert first_firing(steps_of(texts)).get(detector) == by_default
    assert first_firing(steps_of(texts, **{name.split(".")[0]: change})).get(detector) == changed


def test_thresholds_at_their_limits_are_taken() -> None:
    """Nothing divides by what a limit makes zero."""
    strictest: dict[str, Any] = {
        "stationary": {"at_least": 1, "gap": 1, "run": 1, "early": 1},
        "cycle": {"similarity": 1, "run": 1},
        "soft_cycle": {"similarity": 1, "run": 1},
        "novelty_collapse": {"below": 0, "alpha": 1, "run": 1},
        "compression_collapse": {"below": 1, "alpha": 1, "run": 1, "baseline": 1, "min_bytes": 1},
        "inner_loop": {"rep_4": 1, "min_tokens": 1, "min_span": 1},
    }
    loosest: dict[str, Any] = {
        "stationary": {"at_least": 0, "gap": 0, "run": 1, "early": 1},
        "cycle": {"similarity": 0, "run": 1},
        "soft_cycle": {"similarity": 0, "run": 1},
        "novelty_collapse": {"below": 1, "run": 1},
        "inner_loop": {"rep_4": 0, "min_tokens": 1},
    }
    texts = [*PROSE[:8], *PROSE[:2] * 6, *([PROSE[3]] * 12)]
    strict = steps_of(texts, **strictest)
    assert (strict[-1].state, strict[-1].period) == ("echo", 1)
    assert steps_of(texts, **loosest)[1].state == "inner_loop"


def test_hysteresis_is_a_threshold_too() -> None:
    """With `clear_after` 1 the second loop is a firing of its own."""
    texts = EFFECTS["clear_after"][0]

    def firings(limits: Thresholds) -> list[int]:
        steps = detect(said_by_two(texts), limits)
        return [step.message_index for step in steps for fired in step.fired if fired.detector == "inner_loop"]

    assert firings(Thresholds()) == [3]
    assert firings(Thresholds(clear_after=1)) == [3, 6]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"cycel": {}}, "cycel"),
        ({"cycle": {"similarty": 0.5}}, "similarty"),
        ({"cycle": {"similarity": 1.5}}, r"\$\.cycle\.similarity"),
        ({"emoji_collapse": {"count": 7}}, r"\$\.emoji_collapse\.count"),
        ({"clear_after": 0}, "clear_after"),
    ],
)
def test_a_wrong_threshold_is_named(wrong: dict[str, Any], told: str) -> None:
    """No key is passed over and no number out of range is taken."""
    with pytest.raises(msgspec.ValidationError, match=told):
        msgspec.convert(wrong, Thresholds)


# What is to be done


def fires(*names: str) -> list[Firing]:
    return [Firing(detector=name, message_index=9, value=1.0, threshold=0.5, onset=4) for name in names]


@pytest.mark.parametrize(
    ("policy", "done"),
    [
        ({}, ["record", "record"]),
        ({"cycle": "mark"}, ["mark", "record"]),
        ({"cycle": "pause", "farewell_loop": "intervene"}, ["pause", "intervene"]),
        ({"cycle": "intervene", "farewell_loop": "stop"}, ["record", "stop"]),
        ({"cycle": "mark", "farewell_loop": "stop"}, ["mark", "stop"]),
        ({"cycle": "stop", "farewell_loop": "stop"}, ["stop", "stop"]),
        ({"meta_loop": "stop"}, ["record", "record"]),
    ],
)
def test_a_policy_says_what_is_done_about_each_firing(policy: dict[str, Action], done: list[str]) -> None:
    """Recording is the least; a conversation that stops is neither paused nor talked to."""
    firings = fires("cycle", "farewell_loop")
    response = respond(firings, policy)
    assert [action for _, action in response.actions] == done
    assert [fired for fired, _ in response.actions] == firings
    assert list(response.mark) == [fired for fired, action in response.actions if action == "mark"]
    assert list(response.intervene) == [fired for fired, action in response.actions if action == "intervene"]
    assert response.pause == next((fired for fired, action in response.actions if action == "pause"), None)
    assert response.stop == next((fired for fired, action in response.actions if action == "stop"), None)


@pytest.mark.parametrize("least", [1, 24, 60, 500])
def test_what_a_detector_passes_over_is_measured_all_the_same(least: int) -> None:
    """Whatever the compression detector listens to, `cond_bits_per_byte` and its like stay as they are."""
    said = ["Yes.", "The river is always the same river.", "No, it never is, my friend, not even for a while.", "Well."]
    talk = [("ab"[number % 2], text) for number, text in enumerate(said * 3)]
    limits = msgspec.convert({"compression_collapse": {"min_bytes": least}}, Thresholds)
    names = ("cond_bits_per_byte", "history_gain", "zlib_ratio")
    plain, told = measure(talk)[0], measure(talk, thresholds=limits)[0]
    assert [[one[name] for name in names] for one in told] == [[one[name] for name in names] for one in plain]
    assert [one["cond_bits_per_byte"] is None for one in plain] == [len(text) < 24 for _, text in talk]


def test_nothing_fired_asks_for_nothing() -> None:
    """A policy alone does nothing."""
    response = respond([], {"cycle": "stop"})
    assert (response.actions, response.mark, response.intervene, response.pause, response.stop) == (
        (),
        (),
        (),
        None,
        None,
    )
