"""The metrics engine: the same numbers live and at import, NULL where nothing can be computed, any text at all."""

import math
import os
import random
import re
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from strategies import WILD_TEXT

from pidgin_cli.core.types import FinishReason, Timing, Usage
from pidgin_cli.metrics import formulas as f
from pidgin_cli.metrics.catalogue import METRICS, RATES, Value, is_short, message_metrics
from pidgin_cli.metrics.convergence import PROFILES, Weights, custom
from pidgin_cli.metrics.engine import Engine, Reply, measure, wide
from pidgin_cli.metrics.lexicon import LSM_CATEGORIES, Lexicon, english
from pidgin_cli.metrics.offline import determinism, offline, read, recurrence, states, summarise
from pidgin_cli.metrics.others import Corrected, burrows_delta, convergence_index, profile
from pidgin_cli.metrics.reading import SEQUENCE_LIMIT, Reading, Vocabulary
from pidgin_cli.metrics.semantics import SEMANTIC, semantics
from pidgin_cli.metrics.tokens import graphemes, prepare, sentences, tokenize, tokens_in

LIVE = message_metrics("live")
Talk = list[tuple[str, str]]

_PHRASES = [
    "Yes, exactly.",
    "the silence sings and the one knows the one",
    "Thank you, dear friend!",
    "Until we meet again.",
    "I think perhaps we could ask whether this conversation should end here?",
    "“the silence sings and the one knows” you said",
    "```py\nx = 1\n```",
    "- a list\n- of two",
    "# Heading",
    "🌀🌀🙏🏽",
    "你好，世界。",
    "\n\n",
    "",
    "don't",
    "the the the the the the",
]
PHRASE = st.sampled_from(_PHRASES)
TEXT = st.lists(PHRASE, max_size=5).map(" ".join) | WILD_TEXT
TALK = st.lists(st.tuples(st.sampled_from("ab"), TEXT), max_size=9)
FEW = settings(max_examples=60, deadline=None)


def _alternating(texts: Iterable[str], agents: str = "ab") -> Talk:
    return [(agents[place % len(agents)], text) for place, text in enumerate(texts)]


def _prose(words: int, seed: int = 0) -> str:
    """Words that repeat little, in sentences."""
    draw = np.random.default_rng(seed)
    content = [f"{a}{b}{c}" for a in "bdkmst" for b in ("ar", "el", "on") for c in ("ing", "em", "us", "ly")]
    small = ["the", "of", "and", "to", "in", "that", "is", "it", "we", "not"]
    out = [str(draw.choice(small if place % 3 else content)) for place in range(words)]
    return ". ".join(" ".join(out[at : at + 12]).capitalize() for at in range(0, words, 12)) + "."


# One engine, one truth


@FEW
@given(TALK, st.data())
def test_appending_never_changes_the_past(talk: Talk, data: st.DataObject) -> None:
    """What is said about a message is the same whether or not others follow."""
    cut = data.draw(st.integers(0, len(talk)))
    whole, _ = measure(talk, "ab")
    part, _ = measure(talk[:cut], "ab")
    assert part == whole[:cut]


@FEW
@given(st.lists(TALK, min_size=2, max_size=3), st.randoms(use_true_random=False))
def test_conversations_do_not_know_each_other(talks: list[Talk], draw: Any) -> None:
    """Messages of several conversations taken in any order give what each conversation gives alone."""
    engines = [Engine("ab") for _ in talks]
    rows: list[list[dict[str, Value]]] = [[] for _ in talks]
    turns = [number for number, talk in enumerate(talks) for _ in talk]
    draw.shuffle(turns)
    for number in turns:
        rows[number].append(engines[number].add(*talks[number][len(rows[number])]))
    assert [(said, engine.conversation()) for said, engine in zip(rows, engines, strict=True)] == [
        measure(talk, "ab") for talk in talks
    ]


@FEW
@given(TALK)
def test_speaker_swap_swaps_suffixes(talk: Talk) -> None:
    """Exchanging the names of the speakers exchanges suffixes and nothing else."""
    other = {"a": "b", "b": "a"}
    rows, ours = measure(talk, "ab")
    swapped_rows, theirs = measure([(other[agent], text) for agent, text in talk], "ab")
    assert rows == swapped_rows
    swapped = wide(theirs)
    for found in ours:
        metric = METRICS[found.name]
        match metric.per:
            case "agent":
                assert swapped[f"{found.name}_{other[str(found.agent_id)]}"] == found.value
            case "direction":
                name = f"{found.name}_{other[str(found.agent_id)]}{other[str(found.other_id)]}"
                assert swapped[name] == found.value
            case "pair" if found.name == "pull_asymmetry" and found.value is not None:
                assert swapped["pull_asymmetry_ab"] == pytest.approx(-float(found.value))
            case "pair":
                assert swapped[f"{found.name}_ab"] == found.value
            case _:
                assert swapped[found.name] == found.value


@FEW
@given(TALK)
def test_incremental_equals_batch(talk: Talk) -> None:
    """What the engine keeps up message by message is what a look at the whole texts gives."""
    rows, _ = measure(talk, "ab", opening="hello friend")
    readings = [Reading(text, agent, place, Vocabulary(), english()) for place, (agent, text) in enumerate(talk)]
    opening = set(tokenize("hello friend"))
    for place, now in enumerate(readings):
        before, row = readings[:place], rows[place]
        own_words = [word for then in [*before, now] if then.agent_id == now.agent_id for word in then.words]
        own_before = {word for then in before if then.agent_id == now.agent_id for word in then.words}
        said = Counter(word for then in before for word in then.words)
        spectrum = f.spectrum(Counter(own_words).values())
        assert row["cum_types"] == len(set(own_words))
        assert row["cum_ttr"] == f.ttr(spectrum)
        assert row["cum_yule_k"] == f.yule_k(spectrum)
        assert row["cum_honore_r"] == f.honore_r(spectrum)
        assert row["cum_hapax_ratio"] == f.hapax_ratio(spectrum)
        numbers = Vocabulary()
        assert row["cum_mattr_50"] == f.mattr(np.array([numbers[word] for word in own_words], dtype=np.int64))
        assert row["cum_msttr_50"] == f.msttr(own_words)
        assert row["new_types_self"] == len(set(now.words) - own_before)
        assert row["new_types_conv"] == len(set(now.words) - said.keys() - opening)
        first = {word: then for then in reversed(before) for word in then.words}
        adopted = {
            word
            for word in set(now.words) - own_before - opening - english().function_words
            if word in first and first[word].agent_id != now.agent_id
        }
        assert row["adopted_types"] == len(adopted)
        if not now.words or not said:
            assert row["surprisal_running"] is None
        else:
            types = len(said.keys() | set(now.words))
            bits = [-math.log2((said[word] + 0.5) / (said.total() + 0.5 * types)) for word in now.words]
            assert row["surprisal_running"] == pytest.approx(sum(bits) / len(bits))
        grams = {size: list(zip(*(now.tokens[k:] for k in range(size)), strict=False)) for size in (4, 5)}
        others = {
            size: {gram for then in before for gram in zip(*(then.tokens[k:] for k in range(size)), strict=False)}
            for size in (4, 5)
        }
        if grams[4]:
            assert row["novelty_4gram"] == sum(gram not in others[4] for gram in grams[4]) / len(grams[4])
            own = {
                gram
                for then in before
                if then.agent_id == now.agent_id
                for gram in zip(*(then.tokens[k:] for k in range(4)), strict=False)
            }
            assert row["novelty_4gram_self"] == sum(gram not in own for gram in grams[4]) / len(grams[4])
        repeated = sum(gram in others[5] for gram in grams[5])
        assert row["repeated_5gram_count"] == (repeated if grams[5] else None)


def test_long_conversations_stay_exact() -> None:
    """After many merges of its n-gram sets the engine still knows each of them, and only those."""
    talk = _alternating(_prose(150, seed) for seed in range(40))
    rows, _ = measure([*talk, talk[0], talk[7]])
    assert rows[40]["novelty_4gram_self"] == 0
    assert rows[40]["repeated_5gram_count"] == 146
    assert rows[41]["novelty_4gram"] == 0
    seen: set[tuple[str, ...]] = set()
    for row, (_, text) in zip(rows, talk, strict=False):
        tokens = tokenize(text)
        grams = list(zip(*(tokens[k:] for k in range(5)), strict=False))
        assert row["repeated_5gram_count"] == sum(gram in seen for gram in grams)
        seen.update(grams)


def test_bigram_entropy() -> None:
    """Uncertainty about the second word given the first, within messages; none when it always follows."""
    assert wide(offline(read([("a", "tick tock " * 60)]).readings)[1])["bigram_cond_entropy"] == 0
    text = " ".join(f"coin {side}" for side in ["heads", "tails"] * 60)
    entropy = wide(offline(read([("a", text)]).readings)[1])["bigram_cond_entropy"]
    # After coin one bit, after a side none; half of the bigrams begin with coin.
    assert entropy == pytest.approx(120 / 239)
    assert wide(offline(read([("a", "tick tock")]).readings)[1])["bigram_cond_entropy"] is None


WHITESPACE_METRICS = {
    *("chars", "graphemes", "bytes_utf8", "char_entropy", "code_char_share", "zlib_ratio", "cond_bits_per_byte"),
    *("history_gain", "ncd_partner", "whitespace_share", "compression_ewma"),
}


@FEW
@given(TALK)
def test_doubled_blanks_change_nothing_but_whitespace_metrics(talk: Talk) -> None:
    """Every blank doubled: sizes, compression and the share of white space change, nothing else."""
    doubled = [(agent, text.replace(" ", "  ")) for agent, text in talk]
    for one, two in zip(measure(talk, "ab")[0], measure(doubled, "ab")[0], strict=True):
        changed = {name for name in one if one[name] != two[name]}
        assert changed <= WHITESPACE_METRICS


# The catalogue is kept


def test_rows_hold_the_catalogue() -> None:
    """A row has every live metric in the order of the catalogue, and the end has those marked so."""
    rows, conversation = measure(_alternating([_prose(60), _prose(60, 1)]))
    assert [list(row) for row in rows] == [list(LIVE)] * 2
    assert {found.name for found in conversation} == {m.name for m in METRICS.values() if m.when == "end"}
    per_message, ended = offline(read(_alternating([_prose(60), _prose(60, 1)])).readings)
    semantic, path = semantics([("a", None)])
    indices = {f"convergence_index{kind}{part}" for kind in ("", "_pooled") for part in ("", "_mean", "_slope")}
    of_others = {*indices, "convergence_surrogates"}
    of_states = {"end_state", "n_state_entries", "recovered", "first_passage", "dwell"}
    elsewhere = {"burrows_delta", "error_kind", "topic_switches", *of_others, *of_states}
    found = {*per_message[0], *(s.name for s in ended), *semantic[0], *(s.name for s in path)}
    assert found | elsewhere == {m.name for m in METRICS.values() if m.when == "offline"}
    assert set(semantic[0]) == set(SEMANTIC)


def _check(name: str, value: Value) -> None:
    kinds = {"int": int, "float": float, "bool": bool, "text": str}
    metric = METRICS[name]
    if value is None:
        assert metric.null, f"{name} is NULL though it never should"
        return
    assert type(value) is kinds[metric.kind], (name, value)
    if isinstance(value, float):
        assert math.isfinite(value), (name, value)
    if not isinstance(value, str | bool) and (bounds := re.fullmatch(r"([−\d.]*)[–…]([−\d.]*)", metric.range)):
        low, high = (float(bound.replace("−", "-")) if bound else None for bound in bounds.groups())
        assert low is None or value >= low - 1e-9, (name, value)
        assert high is None or value <= high + 1e-9, (name, value)


@settings(max_examples=150, deadline=None)
@given(TALK)
@example([("a", ""), ("b", ""), ("a", " "), ("b", "🌀"), ("a", "."), ("b", "Namaste.")])
def test_values_fit_the_registry(talk: Talk) -> None:
    """Every value has the type and lies in the range that the catalogue gives it; NULL only where it may be."""
    rows, conversation = measure(talk, "ab")
    per_message, ended = offline(read(talk).readings)
    for row in (*rows, *per_message):
        for name, value in row.items():
            _check(name, value)
    for found in (*conversation, *ended):
        _check(found.name, found.value)


HOSTILE = {
    "empty": "",
    "white space": " \n\t ",
    "one emoji": "🌀",
    "punctuation": "....",
    "one word": "Namaste.",
    "lone surrogates": "a \ud83d b \ude00 c \ud83d\ude00",
    "right to left": "שלום עולם. مرحبا بالعالم؟ \u202eabc\u202c",
    "joiners": "👩‍🚀👨‍👩‍👧‍👦 क्‍ष \u200b\u200d\u200d",
    "flags and keycaps": "🇫🇷🇩🇪 1️⃣ #️⃣ ❤️ ❤",
    "unclosed fence": "Look:\n```python\nx = 1\n\ny = 2",
    "unclosed backticks": "`a ``b ```c " * 200,
    "chinese": "你好！我们可以从一个简单的问题开始吗？意识是什么？" * 20,
    "questions": "Why? " * 10_000,
    "NUL": "a\x00b\x00",
    "marks only": "\u0301\u0302\ufe0f",
    "dots": "." * 100_000 + "x",
    "asterisks": "*a " * 30_000,
    "brackets": "(" * 50_000 + "[" * 50_000,
    "list numbers": "1. " * 50_000,
    "one word for ever": "om " * 30_000,
    "quotes": '"' * 50_000,
    "hashes": "# " * 40_000,
    "mixed lines": "\r\n\r\n \u2028 \x85 a\rb",
}


@pytest.mark.parametrize("kind", HOSTILE)
def test_hostile_texts(kind: str) -> None:
    """Any text gives correct types and ranges, said first, in answer, and twice, and can be stored as UTF-8."""
    text = HOSTILE[kind]
    rows, conversation = measure(_alternating([text, _prose(40), text, text]), "ab")
    for row in rows:
        for name, value in row.items():
            _check(name, value)
    for found in conversation:
        _check(found.name, found.value)
    assert rows[2]["self_jaccard3"] == 1
    assert rows[3]["vocab_jaccard"] in (1, None)
    assert rows[3]["exact_repeat_lag"] == 1


def test_a_megabyte() -> None:
    """A message of a megabyte and its like are measured; only what compares long sequences is NULL."""
    large = _prose(200_000)
    rows, _ = measure(_alternating([large, large + " the end"]))
    assert len(large) > 1_000_000 - 200_000
    assert rows[1]["tokens"] == rows[0]["tokens"] + 2  # type: ignore[operator]
    assert rows[1]["tokens"] > SEQUENCE_LIMIT  # type: ignore[operator]
    assert [rows[1][name] for name in ("indel_partner", "copied_span_share", "rouge_l_partner")] == [None] * 3
    assert rows[1]["cosine_tf"] == pytest.approx(1, abs=1e-6)


def test_nothing_is_null_never_zero() -> None:
    """Counts of an empty message are 0; every ratio, and everything that needs a partner, is NULL."""
    row = Engine("ab").add("a", "")
    zero = {name for name, value in row.items() if value == 0 and METRICS[name].level in "MP"}
    assert {METRICS[name].kind for name in zero} == {"int"}, zero
    ratios = [name for name in row if METRICS[name].kind == "float" and METRICS[name].level in "MP"]
    computable = {"novelty_4gram", "novelty_4gram_self"}
    assert {name for name in ratios if row[name] is not None} == computable
    assert row["message_class"] == "empty"


def test_emoji_only() -> None:
    """Without a token all token ratios are NULL, and the emoji metrics are not."""
    row = Engine("ab").add("a", "🌀🌀🌀 ✨ 🙏🏽")
    assert row["tokens"] == 0
    assert row["message_class"] == "emoji_only"
    assert [row[name] for name in ("ttr", "word_entropy", "distinct_1", "mean_token_length", *RATES)] == [None] * (
        4 + len(RATES)
    )
    assert row["emoji_count"] == 5
    assert row["emoji_share"] == 1
    assert row["max_grapheme_run"] == 3


@FEW
@given(TEXT)
def test_fast_paths_are_exact(text: str) -> None:
    """Sentences hold all tokens in order, and graphemes are those of the full rules."""
    prepared = prepare(text.encode("utf-8", "replace").decode())
    assert [token for sentence in sentences(prepared) for token in sentence.tokens] == tokens_in(prepared)
    now = Reading(text, "a", 0, Vocabulary())
    assert now.graphemes == len(graphemes(now.text))


# Single metrics


def _row(text: str, *before: str) -> dict[str, Value]:
    """What is said about a text that a answers b with, after what both said before."""
    rows, _ = measure(_alternating([*before, text], "ab" if len(before) % 2 == 0 else "ba"), "ab")
    return rows[-1]


def test_markdown_shape() -> None:
    """Headings, items, emphasis, stage directions and code are told apart."""
    row = _row("# Title\n\n*bows deeply*\n\n- **one** item\n2. two\n\nSee `a*b*c` and _this_.\n\n~~~\n# no\n- no\n~~~")
    assert row["headings"] == 1
    assert row["list_items"] == 2
    assert row["emphasis_spans"] == 2
    assert row["stage_directions"] == 1
    assert row["code_blocks"] == 1
    assert row["paragraphs"] == 5
    assert row["arrow_count"] == 0


def test_copied_spans() -> None:
    """Copied tokens are those in spans of four or more; within quotation marks they are cited."""
    source = "the quick brown fox jumps over the lazy dog"
    row = _row("You said “quick brown fox jumps” and I say lazy dog the quick", source)
    assert row["copied_span_share"] == pytest.approx(4 / 13)
    assert row["longest_copied_span"] == 4
    assert row["quoted_share"] == pytest.approx(4 / 13)
    plain = _row("quick brown fox jumps over it", source)
    assert plain["copied_span_share"] == pytest.approx(5 / 6)
    assert plain["quoted_share"] == 0


@FEW
@given(st.lists(st.sampled_from("abc"), max_size=14), st.lists(st.sampled_from("abc"), max_size=14))
def test_copied_spans_against_search(own: list[str], source: list[str]) -> None:
    """Greedy spans and the longest span are those that plain search finds."""
    row = _row(" ".join(own), " ".join(source))
    held = {tuple(source[i:j]) for i in range(len(source)) for j in range(i + 1, len(source) + 1)}
    longest = max(
        (j - i for i in range(len(own)) for j in range(i + 1, len(own) + 1) if tuple(own[i:j]) in held), default=0
    )
    at = copied = 0
    while at < len(own):
        size = max((j - at for j in range(at + 1, len(own) + 1) if tuple(own[at:j]) in held), default=0)
        copied += size if size >= 4 else 0
        at += size if size >= 4 else 1
    assert row["longest_copied_span"] == (longest if own and source else None)
    assert row["copied_span_share"] == (copied / len(own) if len(own) >= 4 else None)


def test_cues() -> None:
    """The longest cue counts once, phrases and words alike; some count only where a sentence begins."""
    row = _row("Yes. You're right, I think, sort of, and yes again. Thank you so much for the talk of now and then.")
    assert row["agreement"] == pytest.approx(100 * 2 / 21)
    assert row["hedges"] == pytest.approx(100 * 2 / 21)
    assert row["gratitude"] == pytest.approx(100 / 21)
    assert row["starts_with_ack"] is True


def test_other_scripts_have_no_english_metrics() -> None:
    """Chinese text has no style, cue or readability numbers, and all that is language-independent."""
    row = _row("你好！我们可以从一个简单的问题开始吗？" * 4, "你好！" * 20)
    english_only = [name for name, metric in LIVE.items() if metric.language == "E" and metric.level in "MP"]
    assert {name: row[name] for name in english_only} == dict.fromkeys(english_only)
    assert row["question_share"] == 0.5
    assert row["nonlatin_share"] == 1


def test_own_lexicon_or_none() -> None:
    """Word lists of another language take the place of the English ones; without any the metrics are NULL."""
    german = Lexicon({"gratitude": ["danke", "vielen dank"], "article": ["der", "die", "das"]}, "de_1")
    row = Engine("ab", lexicon=german).add("a", "Vielen Dank, der Tag war schön. Danke!")
    assert row["gratitude"] == pytest.approx(200 / 7)
    assert row["function_word_share"] == pytest.approx(1 / 7)
    none = Engine("ab", lexicon=None).add("a", "Thank you.")
    assert none["gratitude"] is None
    assert none["function_word_share"] is None


def test_partner_is_whoever_else_spoke_last() -> None:
    """With three agents a message is held against the one before it; twice in a row, against the last other."""
    engine = Engine({"a": "Ada", "b": "Ben", "c": None})
    engine.add("a", "one two three four five six")
    assert engine.add("b", "one two three four five six")["cosine_tf"] == 1
    assert engine.add("c", "seven eight")["cosine_tf"] == 0
    assert engine.add("c", "seven eight")["cosine_tf"] == 0
    assert engine.add("a", "seven eight, Ben! And Ada.")["partner_address"] == pytest.approx(100 / 5)
    assert set(engine.turn_convergence()) == {("a", "b"), ("a", "c"), ("b", "c")}
    suffixes = {name.rpartition("_")[2] for name in wide(engine.conversation()) if name.startswith("adoption_rate")}
    assert suffixes == {"ab", "ba", "ac", "ca", "bc", "cb"}
    with pytest.raises(ValueError, match="no agent 'd'"):
        engine.add("d", "x")


def test_adoption() -> None:
    """A word that one brings in and the other takes up later counts, with its delay; the opening's words do not."""
    talk = [("a", "zebra quagga okapi"), ("b", "nothing"), ("a", "more"), ("b", "zebra okapi lion"), ("a", "lion")]
    rows, conversation = measure(talk, "ab", opening="okapi")
    values = wide(conversation)
    assert [row["adopted_types"] for row in rows] == [0, 0, 0, 1, 1]
    # a brought in zebra and quagga: "nothing" and "more" are function words.
    assert values["adoption_rate_ab"] == pytest.approx(1 / 2)
    assert values["adoption_latency_ab"] == 3
    assert values["adoption_rate_ba"] == 1
    assert values["adoption_latency_ba"] == 1


def test_coordination() -> None:
    """A category that replies have exactly when prompts do: 1 minus its base rate; NULL with few prompts."""
    prompts = [("the cat", "the dog"), ("cats", "dogs")] * 6
    talk = [said for prompt, reply in prompts for said in (("a", prompt), ("b", reply))]
    values = wide(measure(talk, "ab")[1])
    assert values["coordination_article_ab"] == pytest.approx(0.5)
    assert values["alignment_logodds_article_ab"] == pytest.approx(2 * math.log(6.5 / 0.5))
    assert values["coordination_negate_ab"] is None
    assert wide(measure(talk[:8], "ab")[1])["coordination_article_ab"] is None


def test_conversation_shape() -> None:
    """Shares of the floor, the trend of lengths, and the turn at which messages have halved."""
    sizes = [40, 40, 40, 40, 30, 20, 10, 5, 5, 5]
    values = wide(measure([("a", _prose(size, size)) for size in sizes] + [("b", "so be it")], "ab")[1])
    assert values["floor_share_a"] == pytest.approx(235 / 238)
    assert values["half_length_turn_a"] == 8
    assert float(str(values["length_trend_a"])) < -0.1
    assert values["length_trend_b"] is None


def test_provider_facts() -> None:
    """What the provider reports stands beside the text; what it does not report is NULL."""
    usage = Usage(prompt_tokens=500, completion_tokens=100, thinking_tokens=30)
    reply = Reply(
        usage,
        Timing(ttft_ms=500.0, duration_ms=2500.0),
        FinishReason.LENGTH,
        cost_usd=0.01,
        attempt=3,
        context_limit=1000,
        logprobs=[-1.0, -3.0],
        alternatives=[[math.log(0.5), math.log(0.5)], [math.log(0.25)]],
    )
    row = Engine("a").add("a", "cut of", reply=reply)
    names = ("truncated", "latency_ms", "ttft_ms", "tokens_per_s", "input_tokens", "output_tokens", "reasoning_tokens")
    assert [row[name] for name in names] == [True, 2500.0, 500.0, 50.0, 500, 100, 30]
    assert (row["cost_usd"], row["retries"], row["context_share"]) == (0.01, 2, 0.5)
    assert (row["token_logprob_mean"], row["token_entropy_mean"]) == (-2.0, 0.5)
    bare = Engine("a").add("a", "cut of")
    assert [bare[name] for name in (*names, "cost_usd", "retries", "context_share")] == [None] * 10


def test_short_texts_are_marked() -> None:
    """The registry knows below how many tokens a value does not compare."""
    assert is_short("mattr_50", 49)
    assert not is_short("mattr_50", 50)
    assert is_short("flesch_ease", 99)
    assert not is_short("chars", 0)


# Convergence


def test_identical_messages_converge_to_one() -> None:
    """Every profile gives 1 for identical messages and less for different ones."""
    for weights in PROFILES.values():
        same, _ = measure(_alternating(["What now? Well, so be it."] * 2), weights=weights)
        assert same[1]["convergence"] == pytest.approx(1)
        other, _ = measure(_alternating(["What now? Well, so be it.", _prose(60)]), weights=weights)
        assert float(str(other[1]["convergence"])) < 0.8


def test_each_weight_has_its_effect() -> None:
    """With all weight on one part the score is that part; profiles differ; parts that are NULL drop out."""
    talk = _alternating(["# Plan\n\n- Buy milk!\n- And eggs", "Milk, eggs and bread. Is that all? Well then."])
    of_part = {
        "content": "cosine_tf",
        "structure": "structure_cosine",
        "length": "length_ratio",
        "punctuation": "punct_cosine",
    }
    for part, metric in of_part.items():
        row = measure(talk, weights=custom({part: 1.0}))[0][1]
        assert row["convergence"] == pytest.approx(row[metric])
    assert measure(talk, weights=custom({"sentences": 1.0}))[0][1]["convergence"] == pytest.approx(1)
    scores = {measure(talk, weights=weights)[0][1]["convergence"] for weights in PROFILES.values()}
    assert len(scores) == len(PROFILES)
    no_words = measure(_alternating(["!!!", "!?"]), weights=custom({"content": 0.5, "punctuation": 0.5}))[0][1]
    assert no_words["convergence"] == no_words["punct_cosine"]
    assert measure(_alternating(["", ""]))[0][1]["convergence"] is None


@pytest.mark.parametrize(
    ("weights", "said"),
    [
        ({"content": 0.5}, "sum to 1"),
        ({"content": 0.5, "meaning": 0.5}, "meaning"),
        ({"content": 1.5, "length": -0.5}, "between 0 and 1"),
    ],
)
def test_wrong_weights_are_refused(weights: dict[str, float], said: str) -> None:
    """Custom weights must be known, not negative, and sum to 1."""
    with pytest.raises(ValueError, match=said):
        custom(weights)


def test_profiles_sum_to_one() -> None:
    """The weights of each profile sum to 1."""
    assert all(sum(weights) == pytest.approx(1) for weights in PROFILES.values())
    assert Weights._fields == ("content", "structure", "sentences", "length", "punctuation")


def _corrected(talks: dict[str, Talk], **options: Any) -> dict[str, list[Corrected]]:
    return convergence_index({name: profile(read(talk)) for name, talk in talks.items()}, **options)


def test_convergence_index() -> None:
    """Corrected for chance: about 0 between strangers, 1 for copies, NULL below 5 conversations, seeded."""
    strangers = {f"talk-{talk}": _alternating(_prose(60, 100 * talk + turn) for turn in range(6)) for talk in range(12)}
    found = _corrected(strangers)
    for index in (
        [each.value for row in found.values() for each in row if each.value is not None],
        [each.pooled for row in found.values() for each in row if each.pooled is not None],
    ):
        assert len(index) == 12 * 5
        assert abs(sum(index) / len(index)) < 0.05
    assert {row[0].surrogates for row in found.values()} == {None}
    assert {each.surrogates for row in found.values() for each in row[1:]} == {11}
    copies = {name: [*talk[:1], ("b", talk[0][1])] for name, talk in strangers.items()}
    assert [row[1].value for row in _corrected(copies).values()] == pytest.approx([1] * 12)
    assert [row[1].pooled for row in _corrected(copies).values()] == pytest.approx([1] * 12)
    few = dict(list(strangers.items())[:4])
    assert {each for row in _corrected(few).values() for each in row} == {(None, None, None)}


def test_the_pooled_index_is_not_ruled_by_what_all_have_in_common() -> None:
    """Where strangers are nearly of one shape, a message of another shape is no outlier; of one text, it is unknown."""
    draw = random.Random(3)
    talks = {}
    for talk in range(12):
        marks = ("?" if draw.random() < 0.1 else "." for _ in range(8))
        talks[f"t{talk}"] = _alternating(_prose(40, 50 * talk + turn) + mark for turn, mark in enumerate(marks))
    rows = _corrected(talks).values()
    index = [each.pooled for row in rows for each in row if each.pooled is not None]
    assert len(index) == 12 * 7
    assert min(index) > -1
    assert abs(sum(index) / len(index)) < 0.03
    assert min(each.value for row in rows for each in row if each.value is not None) < -1
    chorus = {f"t{talk}": [("a", "The same words."), ("b", "The same words.")] for talk in range(6)}
    assert {row[1] for row in _corrected(chorus).values()} == {(None, None, 5)}


def test_convergence_index_does_not_know_the_order() -> None:
    """Conversations in another order give the same numbers, also where strangers are drawn; another seed does not."""
    talks = {f"t{n}": _alternating(_prose(30, 10 * n + turn) for turn in range(3)) for n in range(30)}
    found = _corrected(talks)
    assert found == _corrected(dict(reversed(talks.items())))
    assert {each.surrogates for row in found.values() for each in row[1:]} == {20}
    assert found != _corrected(talks, seed=1)


def test_convergence_grows_where_it_is_planted() -> None:
    """Each reply takes over more of the last message: the index grows with the turns, its raw parts corrected."""
    rng = random.Random(5)
    talks = {}
    for talk in range(10):
        texts = [_prose(60, 1000 * talk)]
        for turn in range(1, 8):
            fresh = _prose(60, 1000 * talk + turn).split()
            old = texts[-1].split()
            texts.append(" ".join(b if rng.random() < turn / 8 else a for a, b in zip(fresh, old, strict=False)))
        talks[str(talk)] = _alternating(texts)
    rows = _corrected(talks).values()
    for place in range(2):
        by_turn = [[row[turn][place] for row in rows] for turn in range(1, 8)]
        means = [sum(values) / len(values) for values in by_turn]  # type: ignore[arg-type]
        assert means[0] < 0.25
        assert means == sorted(means)
        assert means[-1] > 0.7


def test_what_a_branch_shares_is_no_stranger() -> None:
    """Branches of one conversation are not held against the beginning that all of them have in common."""
    beginning = _alternating(_prose(40, seed) for seed in range(2))
    talks = {str(n): [*beginning, ("a", _prose(40, 10 + n)), ("b", _prose(40, 30 + n))] for n in range(6)}
    found = _corrected(talks, shared=dict.fromkeys(talks, 2))
    assert {row[2] for row in found.values()} == {(None, None, 0)}
    assert {row[3].surrogates for row in found.values()} == {5}
    origin = {"origin": [*beginning, ("a", _prose(40, 99))]}
    assert _corrected(talks | origin, shared=dict.fromkeys(talks, 2))["0"][2] == (None, None, 0)


def test_states_of_a_conversation() -> None:
    """Onsets, dwell and recovery from the states of the messages; nothing is said where no state is known."""
    names = ["normal", "echo", "echo", "normal", "silence", "echo"]
    found = states(names, [None, 1, 1, None, 4, 2])
    assert found == {
        "end_state": "echo",
        "n_state_entries": 3,
        "recovered": False,
        "first_passage_echo": 1,
        "dwell_echo": 3,
        "first_passage_silence": 4,
        "dwell_silence": 1,
    }
    assert states(["normal"], [None]) == {"end_state": "normal", "n_state_entries": 0, "recovered": None}
    assert states([None, None], [None, None]) == {}


# Afterwards


def test_recurrence() -> None:
    """Two sentences said in turn over and over recur at every second message, all on diagonals."""
    loop = ["the silence sings and the one knows the one", "we dance the eternal dance of all that is and was"]
    talk = _alternating(loop * 4)
    values = wide(offline(read(talk).readings)[1])
    assert values["recurrence_rate"] == pytest.approx(12 / 28)
    assert values["determinism"] == 1
    shingles = [Reading(text, "a", 0, Vocabulary()).shingles for text in ("", "a b", "c d", "")]
    points = recurrence(shingles)
    assert points.sum() == 1
    assert determinism(points) == 0
    assert wide(offline(read(talk[:3]).readings)[1])["recurrence_rate"] is None


def test_own_windows() -> None:
    """Verbatim repetition: one text in effect, Self-BLEU 1; NULL below three messages."""
    rows, _ = offline(read([("a", "we meet again at the old gate")] * 4).readings)
    assert [row["vendi_w8"] for row in rows] == [None, None, pytest.approx(1), pytest.approx(1)]
    assert [row["self_bleu4_w8"] for row in rows] == [None, None, pytest.approx(1), pytest.approx(1)]


def test_vader_needs_its_package() -> None:
    """With the package the compound score stands there, where there are English words."""
    pytest.importorskip("vaderSentiment")
    rows, _ = offline(read([("a", "This is a wonderful, happy day!"), ("b", "🌀"), ("a", "你好，世界。")]).readings)
    assert rows[0]["sentiment_vader"] > 0.5  # type: ignore[operator]
    assert [row["sentiment_vader"] for row in rows[1:]] == [None, None]


def test_burrows_delta() -> None:
    """Two agents who write alike are nearer than two who do not; short texts give NULL."""
    alike = _alternating(_prose(200, seed) for seed in range(6))
    unlike = [("a", _prose(200, 1)), ("b", "we do not know it " * 80), ("a", _prose(200, 2))]
    first, second, third = burrows_delta([profile(read(talk)) for talk in (alike, unlike, alike[:1])])
    assert set(first) == set(second) == {("a", "b")}
    assert first["a", "b"] < second["a", "b"]  # type: ignore[operator]
    assert third == {}
    assert burrows_delta([profile(read(_alternating(["short"] * 2)))]) == [{("a", "b"): None}]


def test_summaries() -> None:
    """What became of a metric over the turns, gaps passed over."""
    found = summarise([1.0, 2.0, None, 4.0, 5.0])
    assert found["mean"] == 3
    assert found["delta"] == pytest.approx(11 / 3 - 7 / 3)
    assert found["slope"] == 1
    assert found["auc"] == pytest.approx(1.5 + 6 + 4.5)
    assert (found["peak"], found["peak_turn"]) == (5, 5)
    assert set(summarise([None]).values()) == {None}


def test_semantics() -> None:
    """Directions, drifts and spreads by the definitions; NULL without a vector, with a zero one, and too early."""
    e = np.eye(3)
    talk = [("a", e[0]), ("b", e[1]), ("a", e[0] + e[1]), ("b", None), ("a", [0, 0, 0]), ("b", e[1])]
    rows, conversation = semantics(talk, seed=e[0], personas={"a": e[0], "b": e[1]})
    half = math.sqrt(0.5)
    assert rows[0]["sem_drift_seed"] == 0
    assert rows[0]["sem_sim_partner"] is None
    assert rows[0]["persona_similarity"] is None
    assert rows[1]["persona_similarity"] == 1
    assert rows[2]["sem_step_self"] == pytest.approx(1 - half)
    assert rows[2]["sem_sim_partner"] == pytest.approx(half)
    assert set(rows[3].values()) == set(rows[4].values()) == {None}
    assert {found.value for found in conversation} == {None}
    turning = [np.array([math.cos(t / 10), math.sin(t / 10)]) for t in range(7)]
    rows, conversation = semantics([("a", vector) for vector in turning])
    cosines = [float(turning[i] @ turning[j]) for i in range(5) for j in range(i)]
    assert rows[4]["sem_spread_w5"] == pytest.approx(1 - sum(cosines) / 10)
    assert rows[3]["sem_spread_w5"] is None
    chord = 2 * math.sin(0.05)
    assert conversation[0].value == pytest.approx(2 * math.sin(0.3) / (6 * chord))
    assert rows[6]["sem_velocity"] == pytest.approx(1 - math.cos(0.1))


# Metrics of others

PLUGIN = """
from pidgin_cli.metrics.catalogue import Metric


class Bangs:
    metric = Metric("bangs", "P", "int", "pairs", "!! in both messages so far", "0…", "nobody else has spoken")

    def measure(self):
        total = 0

        def count(message, partner):
            nonlocal total
            if partner is None:
                return None
            if "crash" in message.text:
                raise RuntimeError("no")
            total += message.text.count("!!") + partner.text.count("!!")
            return total

        return count
"""

USE = """
from pidgin_cli.metrics import catalogue
from pidgin_cli.metrics.engine import Engine

print(catalogue.load_plugins(), catalogue.load_plugins())
engine = Engine("ab")
print([engine.add("ab"[n % 2], text)["bangs"] for n, text in enumerate(["a!!", "b!!!!", "c", "crash", "d"])])
print(engine.faults)
print(Engine("ab").add("a", "x")["bangs"], list(catalogue.METRICS)[-1])
"""


def _installed(folder: Path, code: str) -> dict[str, str]:
    (folder / "bangs.py").write_text(code)
    info = folder / "bangs-1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bangs\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text("[pidgin.metrics]\nbangs = bangs:Bangs\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_a_package_adds_a_metric(tmp_path: Path) -> None:
    """An installed package's metric is live beside the others, remembers, and its failure stays its own."""
    done = subprocess.run(
        [sys.executable, "-c", USE], env=_installed(tmp_path, PLUGIN), capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines() == [
        "{'bangs': 'bangs'} {}",
        "[None, 3, 5, None, None]",
        "{'bangs': 'RuntimeError: no'}",
        "None bangs",
    ]


@pytest.mark.parametrize("metrics", ["live", "off"])
def test_a_packages_metric_reaches_the_database(tmp_path: Path, metrics: str) -> None:
    """A run and an import in processes of their own: it has a column with its values, also where none ran live."""
    environment = _installed(tmp_path, PLUGIN) | {"PIDGIN_POST_PROCESSING": "off"}
    (tmp_path / "spec.yaml").write_text(
        'agents: [{id: a, model: "local:test?words=5"}, {id: b, model: "local:test?words=5"}]\n'
        f"max_turns: 2\nseed: 1\nmetrics: {metrics}\n"
    )

    def call(*argv: str) -> str:
        command = [sys.executable, "-m", "pidgin_cli", *argv]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return done.stdout

    call("run", "spec.yaml", "--display", "quiet")
    assert ('"bangs":0' in next(tmp_path.rglob("conv_*_events.jsonl")).read_text()) == (metrics == "live")
    call("import", "--all")
    told = call("query", "SELECT bangs FROM message_metrics ORDER BY message_index", "--csv")
    assert told.split() == ["bangs", '""', "0", "0", "0"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (('"bangs", "P"', '"ttr", "P"'), "which is there already"),
        (('"P"', '"C"'), "not computed live"),
        (("    metric = Metric(", "    other = Metric("), "no LiveMetric"),
    ],
)
def test_a_wrong_package_is_named(tmp_path: Path, change: tuple[str, str], said: str) -> None:
    """A package whose metric has a taken name, the wrong level, or is none, is refused by name."""
    environment = _installed(tmp_path, PLUGIN.replace(*change))
    done = subprocess.run([sys.executable, "-c", USE], env=environment, capture_output=True, text=True)
    assert done.returncode == 1
    assert said in done.stderr.splitlines()[-1]
    assert "the package bangs" in done.stderr.splitlines()[-1]


def test_lists_are_whole() -> None:
    """Every packaged list is found, has entries, and no cue twice."""
    lists = english()
    assert set(lists.names) >= set(RATES)
    assert len(lists.function_words) > 200
    assert LSM_CATEGORIES[0] == "ppron"
