"""Models that need nothing: no key, no network, no other program.

`local:test` writes English that nobody meant, always the same for the same request: it is a pure function of its
parameters, the conversation's seed, the agent's id and what the agent is sent. Every failure a real provider has can be
called up by its id, which reads like the query of a web address:

    local:test?seed=7&words=40&latency_ms=200&chunk_ms=5&thinking=1&loop_at=12&loop_period=2&fail=rate_limit@3

| parameter     | default | meaning                                                                                    |
|---------------|---------|--------------------------------------------------------------------------------------------|
| `seed`        | 0       | another number gives other texts, beside the conversation's own seed                       |
| `words`       | 60      | mean length of a message; lengths go from about half to one and a half times of it         |
| `latency_ms`  | 0       | time before the first piece, or before an error                                            |
| `chunk_ms`    | 0       | time from one piece to the next                                                            |
| `chunk`       |         | words in a piece; without it 1 if `chunk_ms` is given, else the whole text is one piece    |
| `thinking`    | 0       | 1: think before every message; `think` in the agent's settings does the same               |
| `loop_at`     |         | from its n-th own message on (the first is 1) it repeats itself, whatever it is told       |
| `loop_period` | 1       | how many messages it goes through before it starts over                                    |
| `echo`        | 0       | 0 to 1: share of its content words that are taken from the last message it is sent         |
| `context`     |         | tokens it can read; a longer prompt is refused as too long                                 |
| `reply`       |         | this text instead of a generated one (`%20` or `+` is a space)                             |
| `name`        |         | the name it chooses, when asked for one                                                    |
| `fail`        |         | failures, divided by commas                                                                |

A failure is `kind@3` (the agent's third message, first attempt only), `kind@3x2` (its first two attempts), or
`kind:0.1` (each attempt with probability 0.1, drawn from the conversation's seed, agent, message and attempt). The
first in the list that applies is taken. Failures strike messages only, not the choice of a name and not summaries.
A message that took several attempts has the same text as if the first had succeeded.

| kind             | what happens                                                         | tried again |
|------------------|----------------------------------------------------------------------|-------------|
| `rate_limit`     | 429, come back after 0.05 s                                          | yes         |
| `server_error`   | 500                                                                  | yes         |
| `timeout`        | the provider reports a time-out                                      | yes         |
| `disconnect`     | the connection is cut after the first half of the text               | yes         |
| `hang`           | the first piece arrives, and then nothing more, ever                 | by time-out |
| `hang_start`     | nothing arrives, ever                                                | by time-out |
| `auth`           | 401, the key is refused                                              | no          |
| `bad_request`    | 400                                                                  | no          |
| `content_filter` | the request is refused by a filter                                   | no          |
| `context`        | the request is longer than the model reads                           | no          |
| `empty`          | a whole reply with no text in it                                     | no error    |
| `refusal`        | a whole reply that declines, marked as a refusal                     | no error    |
| `length`         | a reply that breaks off within a sentence, marked as cut for length  | no error    |

A token of this model is a word, and four characters of what it is sent. Of the settings, `think` makes it think, `stop`
ends the text before what it names, and `max_tokens` cuts the reply, thinking first, to so many words. The others do not
change what it writes.

`local:silent` answers every message with the empty text, and calls itself Silence.
"""

import asyncio
import re
import struct
import zlib
from bisect import bisect_right
from collections.abc import AsyncIterator, Callable, Collection, Iterator
from difflib import get_close_matches
from functools import cache, lru_cache
from hashlib import blake2b, shake_128
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import Any, Literal, NamedTuple
from urllib.parse import parse_qsl

from msgspec import Struct

from pidgin_cli.core.errors import (
    AuthenticationFailed,
    ContentFiltered,
    ContextLengthExceeded,
    Overloaded,
    ProviderError,
    ProviderTimeout,
    ProviderUnavailable,
    RateLimited,
    RequestRejected,
    SpecError,
)
from pidgin_cli.core.types import (
    Delta,
    Finish,
    FinishReason,
    ModelRequest,
    TextDelta,
    ThinkingDelta,
    Usage,
    UsageDelta,
)

from .base import Timeouts

__all__ = ["LocalProvider", "check_model"]

MODELS = ("test", "silent")

REFUSALS = (
    "I'm sorry, but I can't help with that.",
    "I would rather not continue with this.",
    "I can't take part in that conversation.",
)


def warm_up() -> None:
    """Load the vocabulary, which takes some 60 ms once."""
    _vocabulary()


class LocalProvider:
    """Serves `test` and `silent`, as the module's text describes them."""

    def __init__(self, timeouts: Timeouts | None = None, info: object = None) -> None:
        """Both are there because every adapter takes them: nothing here waits for, or is reached at, anything else."""

    async def stream_response(self, request: ModelRequest) -> AsyncIterator[Delta]:
        """The reply, each piece at its time counted from the start, so that delays do not add up."""
        try:
            params = _parse(request.model)
        except SpecError as error:
            raise RequestRejected(str(error), provider="local", status=400, attempt=request.attempt) from None
        latency, gap = params.latency_ms / 1000, params.chunk_ms / 1000
        first = asyncio.get_running_loop().time() + latency if latency or gap else 0.0
        reply = _reply(params, request)
        if latency:
            await _until(first)
        for number, delta in enumerate(reply.pieces):
            if gap:
                await _until(first + number * gap)
            yield delta
        if reply.broken == "hang":
            await asyncio.Event().wait()
        if isinstance(reply.broken, ProviderError):
            raise reply.broken
        yield UsageDelta(reply.usage)
        yield Finish(reply.finish, model=params.kind, request_id=_request_id(request))

    async def aclose(self) -> None:
        """Nothing is open."""


async def _until(due: float) -> None:
    delay = due - asyncio.get_running_loop().time()
    if delay > 0:
        await asyncio.sleep(delay)


def check_model(model: str) -> None:
    """Raise SpecError unless `model`, the part after `local:`, can be served; says which part is wrong."""
    _parse(model)


# What a model id asks for


class _Fault(NamedTuple):
    """One entry of `fail`: at message `number` up to `attempts`, or (number 0) with a probability."""

    kind: str
    number: int
    attempts: int
    probability: float


class _Params(Struct, frozen=True):
    """A model id, read."""

    kind: Literal["test", "silent"] = "test"
    seed: int = 0
    words: int = 60
    latency_ms: float = 0.0
    chunk_ms: float = 0.0
    chunk: int | None = None
    thinking: int = 0
    loop_at: int | None = None
    loop_period: int = 1
    echo: float = 0.0
    context: int | None = None
    reply: str | None = None
    name: str | None = None
    fail: tuple[_Fault, ...] = ()


def _whole(low: int, high: int) -> Callable[[str], int]:
    def read(value: str) -> int:
        if not re.fullmatch(r"-?[0-9]{1,19}", value) or not low <= int(value) <= high:
            raise ValueError(f"a whole number from {low} to {high}")
        return int(value)

    return read


def _number(low: float, high: float) -> Callable[[str], float]:
    def read(value: str) -> float:
        if not re.fullmatch(r"[0-9]*\.?[0-9]+(e-?[0-9]+)?", value) or not low <= float(value) <= high:
            raise ValueError(f"a number from {low:g} to {high:g}")
        return float(value)

    return read


def _name(value: str) -> str:
    if not value.strip():
        raise ValueError("a name")
    return value


def _faults(value: str) -> tuple[_Fault, ...]:
    faults = []
    for entry in value.split(","):
        found = re.fullmatch(r"(\w+)(?:@([1-9][0-9]{0,8})(?:x([1-9][0-9]{0,8}))?|:(.+))", entry.strip())
        if found is None:
            raise ValueError("a list of kind@3, kind@3x2 or kind:0.1, divided by commas")
        kind, number, attempts, probability = found.groups()
        if kind not in FAULTS:
            raise ValueError(f"a list of known kinds; {_nearest(kind, FAULTS)}")
        chance = _number(0, 1)(probability) if probability else 0.0
        faults.append(_Fault(kind, int(number or 0), int(attempts or 1), chance))
    return tuple(faults)


_READERS: dict[str, Callable[[str], Any]] = {
    "seed": _whole(-(2**63), 2**63 - 1),
    "words": _whole(1, 1_000_000),
    "latency_ms": _number(0, 86_400_000),
    "chunk_ms": _number(0, 86_400_000),
    "chunk": _whole(1, 1_000_000),
    "thinking": _whole(0, 1),
    "loop_at": _whole(1, 10**9),
    "loop_period": _whole(1, 10**9),
    "echo": _number(0, 1),
    "context": _whole(1, 10**12),
    "reply": str,
    "name": _name,
    "fail": _faults,
}


@lru_cache(maxsize=4096)
def _parse(model: str) -> _Params:
    kind, asks, query = model.partition("?")
    if kind == "silent" and not asks:
        return _Params(kind="silent")
    if kind == "silent":
        raise SpecError("local:silent takes no parameters; write local:silent")
    if kind != "test":
        raise SpecError(f"there is no model {f'local:{kind[:60]}'!r}; {_nearest(kind, MODELS)}")
    values: dict[str, Any] = {}
    for name, value in parse_qsl(query, keep_blank_values=True):
        if name not in _READERS:
            raise SpecError(f"local:test has no parameter {name!r}; {_nearest(name, _READERS)}")
        if name in values:
            raise SpecError(f"local:test was given {name!r} twice; write it once")
        try:
            values[name] = _READERS[name](value)
        except ValueError as error:
            raise SpecError(f"local:test: {name}={value[:60]!r} is not {error}") from None
    if "loop_period" in values and "loop_at" not in values:
        raise SpecError("local:test: loop_period needs loop_at, the message from which it repeats itself")
    return _Params(**values)


def _nearest(name: str, known: Collection[str]) -> str:
    """What to write instead of an unknown name."""
    if found := get_close_matches(name, known, n=1, cutoff=0.5):
        return f"did you mean {found[0]!r}?"
    return f"known are {', '.join(known)}"


# From a request to a reply: pure


class _Reply(NamedTuple):
    pieces: list[TextDelta | ThinkingDelta]
    usage: Usage = Usage()
    finish: FinishReason = FinishReason.STOP
    broken: ProviderError | Literal["hang"] | None = None
    """How the reply ends after its pieces, if not whole."""


def _error(kind: str, attempt: int) -> ProviderError:
    make, status, text = _ERRORS[kind]
    retry_after_s = 0.05 if kind == "rate_limit" else None
    return make(text, provider="local", status=status, retry_after_s=retry_after_s, attempt=attempt)


_ERRORS: dict[str, tuple[type[ProviderError], int | None, str]] = {
    "rate_limit": (RateLimited, 429, "too many requests (asked for by fail=rate_limit)"),
    "server_error": (Overloaded, 500, "the server broke (asked for by fail=server_error)"),
    "timeout": (ProviderTimeout, None, "no answer in time (asked for by fail=timeout)"),
    "disconnect": (ProviderUnavailable, None, "the connection was cut (asked for by fail=disconnect)"),
    "auth": (AuthenticationFailed, 401, "the key was refused (asked for by fail=auth)"),
    "bad_request": (RequestRejected, 400, "the request was refused (asked for by fail=bad_request)"),
    "content_filter": (ContentFiltered, 400, "the content filter refused (asked for by fail=content_filter)"),
    "context": (ContextLengthExceeded, 400, "the prompt is longer than this model reads"),
}

FAULTS = (*_ERRORS, "hang", "hang_start", "empty", "refusal", "length")
"""The kinds of `fail`."""


def _fault(params: _Params, request: ModelRequest) -> str | None:
    """The failure that strikes this attempt."""
    if request.purpose != "message":
        return None
    for kind, number, attempts, probability in params.fail:
        if number == request.own_number and request.attempt <= attempts:
            return kind
        if number == 0:
            draw = (request.seed, request.agent_id, request.own_number, request.attempt, kind)
            if next(_draws(repr(draw), 1)) < probability * 65536:
                return kind
    return None


def _reply(params: _Params, request: ModelRequest) -> _Reply:
    # One C-level pass over the lengths is the only thing here that sees the whole view.
    prompt = (len(request.system or "") + sum(map(len, map(attrgetter("content"), request.messages)))) // 4 + 1
    if params.kind == "silent":
        text = "Silence" if request.purpose == "name" else ""
        return _Reply(
            [TextDelta(text)] if text else [], Usage(prompt_tokens=prompt, completion_tokens=len(text.split()))
        )

    fault = _fault(params, request)
    if fault is None and params.context is not None and prompt > params.context:
        fault = "context"
    if fault == "hang_start":
        return _Reply([], broken="hang")
    if fault in _ERRORS and fault != "disconnect":
        return _Reply([], broken=_error(fault, request.attempt))

    key = _key(params, request)
    text, thinking, finish = _text(params, request, key), "", FinishReason.STOP
    if request.purpose == "message" and (params.thinking or request.settings.think):
        thinking = _written(f"thinking {key}", _vocabulary().thought)
    match fault:
        case "empty":
            text = ""
        case "refusal":
            text, finish = REFUSALS[zlib.crc32(key.encode()) % len(REFUSALS)], FinishReason.REFUSAL
        case "length":
            text, finish = _cut(text).rstrip(" \n.,;:?!"), FinishReason.LENGTH
        case "disconnect" | "hang":
            text = _cut(text)
    text = _before(text, request.settings.stop or ())
    if (limit := request.settings.max_tokens) is not None and len(text.split()) + len(thinking.split()) > limit:
        thinking = _first(thinking, limit)
        text, finish = _first(text, limit - len(thinking.split())), FinishReason.LENGTH
    size = params.chunk or (1 if params.chunk_ms else None)
    pieces: list[TextDelta | ThinkingDelta] = [ThinkingDelta(piece) for piece in _split(thinking, size)]
    pieces += [TextDelta(piece) for piece in _split(text, size)]
    if fault == "disconnect":
        return _Reply(pieces, broken=_error(fault, request.attempt))
    if fault == "hang":
        return _Reply(pieces[:1], broken="hang")
    thought = len(thinking.split())
    usage = Usage(
        prompt_tokens=prompt,
        completion_tokens=len(text.split()) + thought,
        thinking_tokens=thought or None,
    )
    return _Reply(pieces, usage, finish)


def _text(params: _Params, request: ModelRequest, key: str) -> str:
    if request.purpose == "name":
        # Ids of one letter that follow each other get different names.
        number = request.seed * 7 + int.from_bytes(request.agent_id.encode("utf-8", "replace"))
        names = _vocabulary().names
        return params.name or names[number % len(names)]
    if request.purpose == "summary":
        return _written(key, _vocabulary().summary)
    if params.reply is not None:
        return params.reply
    if params.loop_at is not None and request.own_number >= params.loop_at:
        place = (request.own_number - params.loop_at) % params.loop_period
        return _message(repr((params.seed, request.seed, request.agent_id, "loop", place)), params.words)
    if params.echo and request.messages:
        return _message(key, params.words, params.echo, request.messages[-1].content)
    return _message(key, params.words)


def _key(params: _Params, request: ModelRequest) -> str:
    """What the texts of a reply are drawn from: its place and what it answers. Attempts write the same."""
    messages = request.messages
    last = messages[-1].content if messages else ""
    place = (params.seed, request.seed, request.agent_id, request.own_number, len(messages), request.purpose)
    return repr((*place, _mark(request.system or ""), _mark(last)))


def _mark(text: str) -> tuple[int, int]:
    """Tells texts apart at a cost that does not grow with them."""
    ends = text if len(text) <= 4000 else text[:2000] + text[-2000:]
    return len(text), zlib.crc32(ends.encode("utf-8", "surrogatepass"))


def _request_id(request: ModelRequest) -> str:
    place = (request.digest, request.seed, request.agent_id, request.own_number, request.attempt, request.purpose)
    return "local-" + blake2b(repr(place).encode(), digest_size=8).hexdigest()


def _split(text: str, size: int | None) -> list[str]:
    """The text in pieces of `size` words; the pieces add up to it."""
    if not text or size is None:
        return [text] if text else []
    words = _words(text)
    return ["".join(words[at : at + size]) for at in range(0, len(words), size)]


def _cut(text: str) -> str:
    """The first half of a text."""
    words = _words(text)
    return "".join(words[: (len(words) + 1) // 2])


def _before(text: str, stops: Collection[str]) -> str:
    """The text up to the first of the stops."""
    return text[: min((at for stop in stops if stop and (at := text.find(stop)) >= 0), default=len(text))]


def _first(text: str, words: int) -> str:
    """The first words of a text."""
    return "".join(_words(text)[:words]).rstrip()


_words = re.compile(r"\s*\S+\s*|\s+").findall


# The writer: sentence patterns filled with words, both drawn from a stream of 16-bit numbers

_TABLE = 1 << 14
_PATTERNS = 3000
_DEPTH = 4
"""How deep phrases stand within phrases."""
_SHIFT = 2.7
"""Of the Zipf-Mandelbrot law 1 / (rank + shift): keeps the first words of a list from drowning the others."""


class _Slot(NamedTuple):
    form: str
    article: bool
    table: list[str]
    """Words as often as they are frequent, so that a draw is one look-up."""


class _Pattern(NamedTuple):
    size: int
    """Words in it."""
    text: str
    tables: tuple[list[str], ...]
    slots: tuple[_Slot, ...]


class _Vocabulary(NamedTuple):
    sentences: list[_Pattern]
    """Shortest first."""
    fitting: list[int]
    """How many sentences have at most so many words."""
    thought: list[_Pattern]
    summary: list[_Pattern]
    names: list[str]
    forms: dict[str, tuple[str, ...]]
    """What each word can stand for, such as `thing.s`."""
    function_words: frozenset[str]


def _draws(key: str, count: int) -> Iterator[int]:
    """Numbers below 65,536, the same on every machine and Python."""
    return iter(struct.unpack(f"<{count}H", shake_128(key.encode()).digest(2 * count)))


def _message(key: str, words: int, echo: float = 0.0, partner: str = "") -> str:
    """A text of about `words` words, content words out of `partner` in it with probability `echo`."""
    book = _vocabulary()
    sentences, fitting = book.sentences, book.fitting
    # One more, since a rest of up to three words is not filled: the mean comes out right.
    left = words // 2 + zlib.crc32(key.encode()) % (words + 1) + 1
    draws = _draws(key, 2 * left + 8)
    longest = len(fitting) - 1
    pool = _pool(partner) if echo else None
    text: list[str] = []
    while left > 3 or not text:
        pattern = sentences[next(draws) % fitting[min(left, longest)]]
        if pool:
            filled = _echoed(pattern, draws, pool, echo, key, len(text))
        else:
            filled = [table[draw % _TABLE] for table, draw in zip(pattern.tables, draws, strict=False)]
        sentence = pattern.text % tuple(filled)
        text.append(sentence[0].upper() + sentence[1:])
        left -= pattern.size
    if len(text) < 9:
        return " ".join(text)
    return "\n\n".join([" ".join(text[at : at + 5]) for at in range(0, len(text), 5)])


def _written(key: str, patterns: list[_Pattern]) -> str:
    draws = _draws(key, 64)
    pattern = patterns[next(draws) % len(patterns)]
    text = pattern.text % tuple(slot.table[draw % _TABLE] for slot, draw in zip(pattern.slots, draws, strict=False))
    return text[0].upper() + text[1:]


def _echoed(
    pattern: _Pattern, draws: Iterator[int], pool: dict[str, list[str]], echo: float, key: str, place: int
) -> list[str]:
    """Words for a pattern, some of them the partner's, in their place in the sentence where it is known."""
    luck = _draws(f"echo {place} {key}", 2 * len(pattern.slots))
    filled = []
    for slot, draw in zip(pattern.slots, draws, strict=False):
        taken = next(luck) < echo * 65536
        known = pool.get(slot.form) or pool[""]
        word = known[next(luck) % len(known)]
        if not taken:
            word = slot.table[draw % _TABLE]
        elif slot.article:
            word = _with_article(word)
        filled.append(word)
    return filled


def _pool(partner: str) -> dict[str, list[str]]:
    """The content words of a text by what they can stand for; all of them under ""."""
    book = _vocabulary()
    found = dict.fromkeys(re.findall(r"[^\W\d_]{3,40}", partner[-8000:].lower()))
    pool: dict[str, list[str]] = {}
    for word in found:
        if word in book.forms or (len(word) > 3 and word not in book.function_words):
            for form in ("", *book.forms.get(word, ())):
                pool.setdefault(form, []).append(word)
    return pool


@cache
def _vocabulary() -> _Vocabulary:
    """The data file, made ready: every phrase expanded, every word inflected."""
    sections: dict[str, list[str]] = {}
    kinds: dict[str, str] = {}
    source = Path(__file__).with_name("words.txt").read_text(encoding="utf-8")
    for line in source.splitlines():
        if header := re.fullmatch(r"\[(\w+)(?:: (\w+))?\]", line):
            name, kind = header.groups()
            sections[name] = []
            kinds[name] = kind or ""
        elif line and not line.startswith("#"):
            sections[name] += line.split() if kinds[name] else [line]
    phrases = {name: sections[name] for name, kind in kinds.items() if not kind}

    slots: dict[str, _Slot] = {}
    forms: dict[str, dict[str, None]] = {}
    for name, kind in kinds.items():
        for form, words in _inflected(kind, list(dict.fromkeys(sections[name]))).items():
            full = name + form
            slots[full] = _Slot(full, article=False, table=_zipf(words))
            slots[f"{full}.a"] = _Slot(full, article=True, table=_zipf([_with_article(word) for word in words]))
            for word in words:
                forms.setdefault(word, {})[full] = None

    def compiled(text: str) -> _Pattern:
        used = tuple(slots[name] for name in re.findall(r"\{(.+?)\}", text))
        size = len(text.split()) + sum(slot.article for slot in used)
        return _Pattern(size, re.sub(r"\{.+?\}", "%s", text), tuple(slot.table for slot in used), used)

    def patterns(name: str, count: int) -> list[_Pattern]:
        draws = _draws(name, 64 * count)
        texts = [phrases[name][i % len(phrases[name])] for i in range(count)]
        for _ in range(_DEPTH):
            texts = [phrase.sub(lambda found: (of := phrases[found[1]])[next(draws) % len(of)], text) for text in texts]
        return sorted(map(compiled, sorted(set(texts))), key=attrgetter("size"))

    phrase = re.compile(r"\{(" + "|".join(phrases) + r")\}")
    sentences = patterns("sentence", _PATTERNS)
    sizes = [pattern.size for pattern in sentences]
    fitting = [bisect_right(sizes, max(size, 1)) for size in range(sizes[-1] + 1)]
    literal = re.findall(r"\w+", re.sub(r"\{.+?\}", " ", " ".join(chain(*phrases.values()))).lower())
    return _Vocabulary(
        sentences,
        fitting,
        patterns("thought", 128),
        patterns("summary", 128),
        sections["name"],
        {word: tuple(names) for word, names in forms.items()},
        frozenset(literal + sections["function"]),
    )


def _zipf(words: list[str]) -> list[str]:
    """A table of fixed length in which the word of rank r stands about 1 / (r + shift) times."""
    weights = [1 / (rank + _SHIFT) for rank in range(1, len(words) + 1)]
    scale = (_TABLE - len(words)) / sum(weights)
    table: list[str] = []
    for word, weight in zip(words, weights, strict=True):
        table += [word] * (1 + int(weight * scale))
    return table + words[: _TABLE - len(table)]


def _inflected(kind: str, entries: list[str]) -> dict[str, list[str]]:
    """The forms of a list of words, by their suffix in a pattern."""
    rows = [entry.split(":") for entry in entries]
    base = [row[0] for row in rows]
    match kind:
        case "noun":
            return {"": base, ".s": [row[1] if len(row) > 1 else _with_s(row[0]) for row in rows]}
        case "verb":
            return {
                "": base,
                ".s": [_with_s(word) for word in base],
                ".ed": [row[1] if len(row) > 1 else _stem(row[0], "ed") + "ed" for row in rows],
                ".ing": [row[2] if len(row) > 2 else _stem(row[0], "ing") + "ing" for row in rows],
            }
        case "word":
            return {"": base}
    return {}  # a plain list


def _with_s(word: str) -> str:
    if re.search(r"(s|x|z|ch|sh|[^aeiou]o)$", word):
        return word + "es"
    return re.sub(r"([^aeiou])y$", r"\1ie", word) + "s"


def _stem(word: str, ending: str) -> str:
    """A verb as it stands before -ed or -ing."""
    if re.fullmatch(r"[^aeiou]*[aeiou][^aeiouwxy]", word):
        return word + word[-1]
    if ending == "ed":
        return re.sub(r"([^aeiou])y$", r"\1i", word).removesuffix("e")
    if word.endswith("ie"):
        return word[:-2] + "y"
    return re.sub(r"(?<=[^e])e$", "", word)


def _with_article(word: str) -> str:
    vowel = re.match(r"(?!eu|uni|us[eiu]|one\b)[aeiou]|hon(est|our)|hour|heir", word)
    return f"an {word}" if vowel else f"a {word}"
