"""The formulas agree with the reference implementations, text by text and pair by pair."""

import json
import math
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pidgin_cli.metrics import formulas as f
from pidgin_cli.metrics.engine import Engine, measure
from pidgin_cli.metrics.lexicon import LSM_CATEGORIES
from pidgin_cli.metrics.offline import offline, read
from pidgin_cli.metrics.tokens import emoji_in, fold_skin_tone, graphemes, tokenize
from pidgin_cli.metrics.windows import vendi_score

GOLDEN: dict[str, Any] = json.loads((Path(__file__).parent / "data" / "golden_metrics.json").read_text("utf-8"))
TEXTS: dict[str, Any] = {**GOLDEN["texts"], **GOLDEN["edge_cases"]}
PAIRS: dict[str, Any] = GOLDEN["pairs"]

LEXICAL = {
    "ttr": ("ttr", "lexicalrichness.ttr", 1e-9),
    "root_ttr": ("root_ttr_guiraud", "lexicalrichness.rttr", 1e-9),
    "herdan_c": ("herdan_c", "lexicalrichness.Herdan", 1e-9),
    "maas_a2": ("maas_a2", "lexicalrichness.Maas(ln)", 1e-9),
    "yule_k": ("yule_k", "lexicalrichness.yulek", 1e-9),
    "simpson_d": ("simpson_d", "lexicalrichness.simpsond", 1e-9),
    "mattr_50": ("mattr_50", "lexical_diversity.mattr", 1e-9),
    "msttr_50": ("msttr_50", "lexical_diversity.msttr", 1e-9),
    "mtld": ("mtld_072", "lexical_diversity.mtld(min=10; <)", 1e-6),
    "hdd_42": ("hdd_42", "lexicalrichness.hdd(42)", 1e-9),
    "hapax_ratio": ("hapax_ratio_types", "nltk.FreqDist", 1e-9),
    "honore_r": ("honore_r", "definition on nltk.FreqDist: 100*ln(N)/(1-V1/V)", 1e-6),
    "sichel_s": ("sichel_s", "definition on nltk.FreqDist: V2/V", 1e-9),
    "word_entropy": ("word_entropy_bits", "scipy.stats.entropy(base=2)", 1e-9),
    **{f"distinct_{n}": (f"distinct_{n}", "nltk.util.ngrams", 1e-9) for n in (1, 2, 3)},
    **{f"rep_{n}": (f"rep_{n}", "nltk.util.ngrams", 1e-9) for n in (2, 3, 4)},
}
"""Metric: its name in the file, the library that is matched, the tolerance."""

SHORT = {"mtld": 10, "hdd_42": 42}
"""Tokens below which the libraries give 0 and we give NULL."""


def _of_tokens(tokens: list[str]) -> dict[str, Any]:
    """The metrics of a text that has just these tokens."""
    return Engine(["a"]).add("a", " ".join(tokens))


def _text(key_or_text: str) -> str:
    return str(TEXTS[key_or_text]["text"]) if key_or_text in TEXTS else key_or_text


@pytest.mark.parametrize("key", TEXTS)
def test_tokens(key: str) -> None:
    """The tokeniser gives the tokens of the reference."""
    assert tokenize(TEXTS[key]["text"]) == TEXTS[key]["tokens"]


@pytest.mark.parametrize("metric", LEXICAL)
@pytest.mark.parametrize("key", TEXTS)
def test_lexical(key: str, metric: str) -> None:
    """Each lexical metric equals its reference; where the library fails or says 0 for want of text, it is NULL."""
    name, call, tolerance = LEXICAL[metric]
    tokens = TEXTS[key]["tokens"]
    reference = TEXTS[key]["lexical"].get(name, {}).get(call)
    value = _of_tokens(tokens)[metric]
    computable = isinstance(reference, int | float) and len(tokens) >= SHORT.get(metric, 1)
    if metric == "mtld" and reference == 0:
        computable = False
    if computable:
        assert value == pytest.approx(reference, abs=tolerance)
    else:
        assert value is None


def test_every_lexical_metric_has_a_reference() -> None:
    """No name in the table above is misspelt: each is compared with a number at least once."""
    compared = {
        metric
        for metric, (name, call, _) in LEXICAL.items()
        for text in TEXTS.values()
        if isinstance(text["lexical"].get(name, {}).get(call), int | float)
    }
    assert compared == LEXICAL.keys()


def test_heaps_and_zipf() -> None:
    """The slopes over all prefixes and ranks equal those of scipy on the one text that is long enough."""
    text = TEXTS["t1_gettysburg"]
    lexical = text["lexical"]
    _, conversation = measure([("a", text["text"])])
    values = {found.name: found.value for found in conversation}
    slope = lexical["heaps_beta_ols_all_prefixes"]["scipy.stats.linregress(ln n, ln V(n)) slope"]
    assert values["heaps_beta"] == pytest.approx(slope, abs=1e-9)
    zipf = lexical["zipf_exponent_ols_loglog"]["scipy.stats.linregress slope * -1 (ties by rank order)"]
    assert f.zipf_s(Counter(text["tokens"]).values()) == pytest.approx(zipf, abs=1e-9)


@pytest.mark.parametrize("key", TEXTS)
def test_raw(key: str) -> None:
    """Code points, graphemes, bytes, character entropy, zlib bytes and emoji equal their references."""
    text, raw = TEXTS[key]["text"], TEXTS[key]["raw"]
    values = Engine(["a"]).add("a", text)
    assert values["chars"] == raw["chars_codepoints"]["builtin.len"]
    assert values["graphemes"] == len(graphemes(text)) == raw["chars_graphemes"]["regex.findall(r'\\X')"]
    assert values["bytes_utf8"] == raw["bytes_utf8"]["builtin"]
    entropy = raw["char_entropy_bits"]["scipy.stats.entropy(base=2) over code points incl. whitespace"]
    assert values["char_entropy"] == (None if entropy is None else pytest.approx(entropy, abs=1e-9))
    size = raw["compressed_bytes"]["zlib.compress(level=9)"]
    assert f.zlib_bytes(text.encode()) == pytest.approx(size, rel=0.02)
    if len(text.encode()) >= 100:
        assert values["zlib_ratio"] == pytest.approx(size / len(text.encode()), rel=0.02)
    else:
        assert values["zlib_ratio"] is None
    assert values["emoji_count"] == raw["emoji_count"]["emoji.emoji_count"]
    assert len(set(emoji_in(text))) == raw["emoji_count"]["emoji.emoji_count(unique=True)"]
    assert values["emoji_types"] == len({fold_skin_tone(emoji) for emoji in emoji_in(text)})


@pytest.mark.parametrize("key", ["t1_gettysburg", "t2_hedged_dialogue"])
def test_readability(key: str) -> None:
    """With syllables estimated, English prose stays within 3 points and 1.5 grades of textstat."""
    values, reference = Engine(["a"]).add("a", TEXTS[key]["text"]), TEXTS[key]["raw"]["textstat"]
    assert values["flesch_ease"] == pytest.approx(reference["flesch_reading_ease"], abs=3)
    assert values["fk_grade"] == pytest.approx(reference["flesch_kincaid_grade"], abs=1.5)


@pytest.mark.parametrize("key", ["t1_gettysburg", "t2_hedged_dialogue", "t3_bliss_loop", "t5_markdown_code"])
def test_vader(key: str) -> None:
    """With its package installed, the compound score of VADER is handed on as it is."""
    pytest.importorskip("vaderSentiment")
    rows, _ = offline(read([("a", TEXTS[key]["text"])]).readings)
    assert rows[0]["sentiment_vader"] == pytest.approx(TEXTS[key]["raw"]["vader"]["compound"], abs=1e-9)


def test_coleman_liau() -> None:
    """The published formula, on counts done by hand."""
    assert f.coleman_liau(100, 5, 420) == pytest.approx(0.0588 * 420 - 0.296 * 5 - 15.8)


def test_no_readability_without_english() -> None:
    """The multiscript text, which libraries call very easy, has none; nor has one that is mostly code."""
    for text in (TEXTS["t4_multiscript"]["text"], "Run this:\n```\n" + "x = compute(y)\n" * 9 + "```"):
        values = Engine(["a"]).add("a", text)
        assert [values[name] for name in ("flesch_ease", "fk_grade", "coleman_liau")] == [None] * 3


def test_sentences_of_the_golden_texts() -> None:
    """Full stops of abbreviations, numbers and list items end no sentence; two-word sentences count."""
    counted = {key: Engine(["a"]).add("a", text["text"])["sentences"] for key, text in GOLDEN["texts"].items()}
    assert counted == {
        "t1_gettysburg": 10,
        "t2_hedged_dialogue": 8,
        "t3_bliss_loop": 16,
        "t4_multiscript": 8,
        "t5_markdown_code": 6,
        "t6_emoji_only": 0,
    }


@pytest.mark.parametrize("key", PAIRS)
def test_pairs(key: str) -> None:
    """Each similarity of two texts equals its reference; b answers a."""
    a, b, reference = _text(PAIRS[key]["a"]), _text(PAIRS[key]["b"]), PAIRS[key]["values"]
    engine = Engine(["a", "b"])
    engine.add("a", a)
    values = engine.add("b", b)
    n, m = len(tokenize(a)), len(tokenize(b))
    assert values["vocab_jaccard"] == pytest.approx(
        reference["jaccard_vocab"]["1 - scipy.spatial.distance.jaccard"], abs=1e-9
    )
    overlap = reference["overlap_coefficient_vocab"]["definition"]
    assert values["vocab_overlap_coef"] == pytest.approx(overlap, abs=1e-9)
    cosine = reference["cosine_tf"]["sklearn.metrics.pairwise.cosine_similarity"]
    assert values["cosine_tf"] == pytest.approx(cosine, abs=1e-9)
    jsd = reference["jsd_bits"]["scipy jensenshannon(base=2)**2"]
    assert values["jsd"] == pytest.approx(jsd, abs=1e-9)
    bleu = reference["bleu4"]["nltk sentence_bleu(ref=a,hyp=b) method1"]
    assert values["bleu4_partner"] == pytest.approx(bleu, abs=1e-9)
    lla = reference["lla"]["definition: sum_{w in b}[w in set(a)]/(|a|*|b|)"]
    assert values["lla"] == pytest.approx(lla, abs=1e-9)
    lcs = reference["lcs_token_ratio"]["rapidfuzz LCSseq.normalized_similarity (LCS/max)"] * max(n, m)
    assert values["indel_partner"] == pytest.approx(2 * lcs / (n + m), abs=1e-9)
    if "'" not in a + b:  # rouge-score cuts words at apostrophes
        rouge = reference["rougeL_f"]["rouge_score target=a prediction=b"]
        assert values["rouge_l_partner"] == pytest.approx(rouge, abs=1e-9)
    data = a.encode(), b.encode()
    ncd = reference["ncd_zlib9"]["(C(ab)-min)/(max) via zlib"]
    assert f.ncd(*data, *map(f.zlib_bytes, data)) == pytest.approx(ncd, rel=0.02)
    if min(map(len, data)) >= 100:
        assert values["ncd_partner"] == pytest.approx(ncd, rel=0.02)
    else:
        assert values["ncd_partner"] is None


@pytest.mark.parametrize("key", GOLDEN["sets"])
def test_sets(key: str) -> None:
    """Self-BLEU and the Vendi score of a set of texts equal their references, and so does the kernel."""
    documents = GOLDEN["sets"][key]
    tokens = [tokenize(text) for text in documents["documents"]]
    assert tokens == documents["tokens"]
    bleu = "nltk via vendi_score.text_utils.self_bleu (method1, all other docs as refs, mean)"
    rows, _ = offline(read([("a", text) for text in documents["documents"]]).readings)
    assert rows[-1]["self_bleu4_w8"] == pytest.approx(documents["values"]["self_bleu4"][bleu], abs=1e-9)
    score = documents["values"]["vendi_1gram_cosine"]["vendi_score.vendi.score_K(K,q=1)"]
    bags = [Counter(each) for each in tokens]
    assert rows[-1]["vendi_w8"] == pytest.approx(score, abs=1e-8)
    kernel = [[f.cosine(one, two) for two in bags] for one in bags]
    assert np.allclose(np.array(kernel, dtype=float), documents["kernel_unigram_cosine"], atol=1e-9)


def test_vendi_kernels() -> None:
    """The Vendi score of the explicit kernels."""
    for case in GOLDEN["vendi_kernels"]:
        if case["q"] == 1:
            assert vendi_score(np.array(case["K"], dtype=float)) == pytest.approx(case["vendi_score"], abs=1e-8)


def test_lsm_formula() -> None:
    """Published style matching, on percentages with 0.0001, by category and as a mean."""
    reference = GOLDEN["lsm_formula"]
    one, two = reference["percent_a"], reference["percent_b"]
    assert len(one) == len(LSM_CATEGORIES)
    assert f.lsm(one, two)[0] == pytest.approx(reference["lsm_eps_0.0001_on_percentages (published)"], abs=1e-9)
    each = [f.lsm_category(p, q) for p, q in zip(one, two, strict=True)]
    assert each == pytest.approx(list(reference["per_category_eps_0.0001"].values()), abs=1e-9)
    assert f.lsm([0.0] * 9, [0.0] * 9) == (reference["all_zero_pair_gives"], None)


def test_maas_is_natural() -> None:
    """The variant with decimal logarithms is larger by ln 10."""
    lexical = TEXTS["t1_gettysburg"]["lexical"]["maas_a2"]
    ratio = lexical["lexical_diversity.maas_ttr(log10)"] / lexical["lexicalrichness.Maas(ln)"]
    assert ratio == pytest.approx(math.log(10), rel=1e-6)
