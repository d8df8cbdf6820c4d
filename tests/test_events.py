"""The values of `core` and the lines they become: types, events, codec."""

import json
import re
import tempfile
from dataclasses import make_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, find, given, settings
from hypothesis import strategies as st
from strategies import ENVELOPE, STAMPED, TEXT, WILD_TEXT, events, filled, of_type

from pidgin_cli.core import errors
from pidgin_cli.core.events import (
    EVENT_TYPES,
    AgentNamedEvent,
    ConversationStartEvent,
    Event,
    MessageCompleteEvent,
    MessageRequestEvent,
    RateLimitEvent,
    SystemPromptEvent,
    View,
)
from pidgin_cli.core.types import (
    Agent,
    Finish,
    FinishReason,
    Message,
    ResponseFold,
    Role,
    TextDelta,
    ThinkingBlock,
    ThinkingDelta,
    Timing,
    ToolCall,
    ToolCallDelta,
    Usage,
    UsageDelta,
    add_usage,
    clean_text,
    fold,
    text_of,
)
from pidgin_cli.eventlog.codec import Skipped, decode, encode, encode_into
from pidgin_cli.eventlog.log import EventLog, Syncer, read_record

DESIGN_NAMES = re.findall(
    r"\w+",
    """
ConversationStartEvent SystemPromptEvent AgentNamedEvent TurnStartEvent MessageRequestEvent ThinkingCompleteEvent
MessageCompleteEvent MessageAbandonedEvent TokenUsageEvent TurnCompleteEvent ConvergenceWarningEvent AttractorEvent
InterventionEvent ContextTruncationEvent HistoryCompactedEvent ContextLimitEvent ToolCallEvent ToolResultEvent
SafetyDecisionEvent RateLimitEvent APIErrorEvent ErrorEvent ConversationPausedEvent ConversationResumedEvent
ConversationBranchedEvent ConversationEndEvent ExperimentStartEvent ExperimentCompleteEvent PostProcessingStartEvent
PostProcessingCompleteEvent
    """,
)

EXAMPLES = settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))


def utterance(text: str, **changes: Any) -> MessageCompleteEvent:
    return MessageCompleteEvent(
        agent_id="a",
        turn_number=1,
        message_index=0,
        message=Message(Role.ASSISTANT, text, id="m0"),
        finish_reason=FinishReason.STOP,
        model_requested="local:test",
        **changes,
    )


def through_a_file(reported: list[Event], conversation_id: str | None = "abcd1234-1") -> tuple[list[Event], bytes]:
    """What a reader finds after a log has written these, and the bytes."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "conv_abcd1234-1_events.jsonl"
        log = EventLog(
            path,
            experiment_id="abcd1234",
            conversation_id=conversation_id,
            syncer=Syncer(),
            durability="none",
        )
        for event in reported:
            log.append(event)
        log.flush()
        record = read_record(path)
        log._abandon()
        assert record.skipped == []
        assert record.whole_bytes == record.total_bytes == path.stat().st_size
        return record.events, path.read_bytes()


def replaced(text: str) -> str:
    """What UTF-8 can carry of a text, said the slow way: pairs joined, lone halves replaced."""
    joined = re.sub(
        "([\ud800-\udbff])([\udc00-\udfff])",
        lambda pair: chr(0x10000 + ((ord(pair[1]) - 0xD800) << 10) + ord(pair[2]) - 0xDC00),
        text,
    )
    return re.sub("[\ud800-\udfff]", "\ufffd", joined)


# --- members of the union


def test_every_event_of_the_design_is_in_the_union() -> None:
    """No event of DESIGN 5.2 is missing, and no event that is declared is left out of the union."""
    subclasses = {kind.__name__ for kind in Event.__subclasses__() if kind.__module__ == Event.__module__}
    assert set(DESIGN_NAMES) <= {kind.__name__ for kind in EVENT_TYPES} == subclasses


@pytest.mark.parametrize("kind", EVENT_TYPES, ids=lambda kind: kind.__name__)
@EXAMPLES
@given(data=st.data())
def test_every_event_comes_back_equal_from_a_file(kind: type[Event], data: st.DataObject) -> None:
    """Any value of any member survives a real log and a real reader unchanged, stamps aside."""
    reported = data.draw(st.lists(st.one_of(events(kind), filled(kind)), min_size=1, max_size=4))
    before = [msgspec.structs.asdict(event) for event in reported]
    start = datetime.now(UTC)
    found, _ = through_a_file(reported)
    assert found == reported
    for place, (old, new) in enumerate(zip(before, found, strict=True)):
        now = msgspec.structs.asdict(new)
        assert {name: value for name, value in now.items() if name not in STAMPED} == {
            name: value for name, value in old.items() if name not in STAMPED
        }
        assert (new.seq, new.event_id) == (place, f"abcd1234-1:{place}")
        assert (new.experiment_id, new.conversation_id) == ("abcd1234", "abcd1234-1")
        assert start <= new.timestamp <= datetime.now(UTC)


@pytest.mark.parametrize("kind", EVENT_TYPES, ids=lambda kind: kind.__name__)
@settings(EXAMPLES, max_examples=4)
@given(data=st.data())
def test_the_envelope_comes_first_and_absent_optionals_are_left_out(kind: type[Event], data: st.DataObject) -> None:
    """A line begins with the envelope in its order; a field at its default is not written; a full one is whole."""
    reported = [data.draw(events(kind)), data.draw(filled(kind))]
    _, raw = through_a_file(reported)
    head = ["event_type", "event_id", "seq", "timestamp", "experiment_id", "conversation_id"]
    for event, line in zip(reported, raw.decode().removesuffix("\n").split("\n"), strict=True):
        written = json.loads(line)
        assert list(written)[:6] == head
        assert written["event_type"] == kind.__name__
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", written["timestamp"])
        for field in msgspec.structs.fields(kind):
            value = getattr(event, field.name)
            default = field.default if field.default is not msgspec.NODEFAULT else {}
            if field.required or (value is not None and value != default):
                assert field.name in written
            elif value is None or value is default or default == {}:
                assert field.name not in written


def test_absent_means_not_written() -> None:
    """A field left at its default takes no room in the line; a required one is written even when it is empty."""
    _, raw = through_a_file([utterance(""), SystemPromptEvent(agent_id="a")])
    first, second = map(json.loads, raw.splitlines())
    assert list(first)[6:] == [
        "agent_id",
        "turn_number",
        "message_index",
        "message",
        "finish_reason",
        "model_requested",
    ]
    assert first["message"] == {"role": "assistant", "content": "", "id": "m0"}
    assert list(second)[6:] == ["agent_id"]


def test_experiment_events_have_no_conversation() -> None:
    """In the experiment's own log the conversation is absent and ids carry the experiment's name."""
    _, raw = through_a_file([SystemPromptEvent(agent_id="a")], conversation_id=None)
    assert list(json.loads(raw))[:5] == ["event_type", "event_id", "seq", "timestamp", "experiment_id"]
    assert "conversation_id" not in json.loads(raw)
    assert json.loads(raw)["event_id"] == "abcd1234:0"


def test_a_view_is_an_index_range() -> None:
    """`view` stands in the line as from, to, omitted and extra, all four always, and is read back."""
    asked = MessageRequestEvent(agent_id="b", turn_number=1, message_index=1, view=View(0, 1, 0, 0), digest="d")
    found, raw = through_a_file([asked])
    assert json.loads(raw)["view"] == {"from": 0, "to": 1, "omitted": 0, "extra": 0}
    assert found == [asked]


def test_strategies_refuse_what_they_do_not_know() -> None:
    """A new kind of field cannot slip past the round-trip test: the strategies say that they cannot make it."""
    strange = make_dataclass("Strange", [("x", int)])

    class NewEvent(Event, frozen=True, kw_only=True, omit_defaults=True):
        thing: strange  # type: ignore[valid-type]

    try:
        with pytest.raises(TypeError, match="cannot make"):
            events(NewEvent)
    finally:
        del NewEvent


def test_strategies_reach_every_field() -> None:
    """What `filled` draws leaves no optional at None and no collection empty."""
    seen: list[Event] = []

    @settings(EXAMPLES, max_examples=2)
    @given(data=st.data())
    def draw(data: st.DataObject) -> None:
        seen.extend(data.draw(filled(kind)) for kind in EVENT_TYPES)

    draw()
    for event in seen:
        for name, value in msgspec.structs.asdict(event).items():
            assert name in ENVELOPE or value not in (None, (), {}, ""), (type(event), name)


# --- text


@pytest.mark.parametrize(
    ("strategy", "wanted"),
    [
        (TEXT, "\x00"),
        (TEXT, "\u2028"),
        (TEXT, "[\U00010000-\U0010ffff]"),
        (WILD_TEXT, "^[^\ud800-\udfff]*[\ud800-\udbff][^\udc00-\udfff]"),
        (WILD_TEXT, "[\ud800-\udbff]$"),
        (WILD_TEXT, "[\ud800-\udbff][\udc00-\udfff]"),
        (WILD_TEXT, "^[\udc00-\udfff]"),
    ],
)
def test_the_text_strategies_hold_what_they_should(strategy: st.SearchStrategy[str], wanted: str) -> None:
    """The tests below really meet NUL, line separators, and halves of pairs: alone, joined, first and last."""
    assert find(strategy, lambda text: re.search(wanted, text) is not None)


@EXAMPLES
@given(TEXT)
def test_any_text_comes_back_equal(text: str) -> None:
    """NUL, U+2028, escapes, bidi marks, non-characters: the message reads as it was, on one line."""
    found, raw = through_a_file([utterance(text)])
    assert isinstance(found[0], MessageCompleteEvent)
    assert found[0].message.content == text
    assert not found[0].text_replaced
    assert raw.count(b"\n") == 1


@settings(EXAMPLES, max_examples=60)
@given(WILD_TEXT, WILD_TEXT)
def test_lone_surrogates_are_replaced_and_flagged(text: str, key: str) -> None:
    """Text that UTF-8 cannot carry is written with U+FFFD in place of each lone half, and the event says so."""
    started = ConversationStartEvent(
        schema_version=1,
        pidgin_version="0",
        spec={key: (text, [{"inner": key}]), "n": 2**60},
        spec_hash="",
        agents=(Agent("a", "local:test", text),),
        opening=text,
        prompt_tag="",
        seed=1,
        arm="",
        repetition=0,
    )
    (found, after), raw = through_a_file([started, utterance("next")])
    assert isinstance(found, ConversationStartEvent)
    assert found.opening == found.agents[0].name == replaced(text)
    assert found.spec == {replaced(key): [replaced(text), [{"inner": replaced(key)}]], "n": 2**60}
    assert found.text_replaced == (clean_text(text)[1] or clean_text(key)[1])
    assert not after.text_replaced
    assert (after.seq, raw.count(b"\n")) == (1, 2)
    assert raw.decode("utf-8", "strict")


def test_a_megabyte_of_text_comes_back() -> None:
    """A message of 1 MB, plain or strange, is one line and comes back equal."""
    plain = "lorem ipsum " * 90_000
    strange = "\x00\u2028😀\n" * 60_000
    found, raw = through_a_file([utterance(plain), utterance(strange), utterance("\ud800" * 1_000_000)])
    contents = [event.message.content for event in found if isinstance(event, MessageCompleteEvent)]
    assert contents == [plain, strange, "\ufffd" * 1_000_000]
    assert raw.count(b"\n") == 3


@given(WILD_TEXT)
@settings(max_examples=200, deadline=None)
def test_clean_text_replaces_lone_halves_only(text: str) -> None:
    """`clean_text` joins pairs, replaces each lone half by one U+FFFD, says whether it did, and is idempotent."""
    cleaned, changed = clean_text(text)
    assert cleaned == replaced(text)
    without_pairs = re.sub("[\ud800-\udbff][\udc00-\udfff]", "", text)
    assert changed == bool(re.search("[\ud800-\udfff]", without_pairs))
    assert clean_text(cleaned) == (cleaned, False)


def test_an_own_replacement_character_is_not_a_fault() -> None:
    """A U+FFFD that the model itself wrote is text like any other and raises no flag."""
    assert clean_text("\ufffd") == ("\ufffd", False)
    assert clean_text("\ufffd\ud83d\ude00") == ("\ufffd😀", False)
    assert clean_text("\ufffd\ud83d") == ("\ufffd\ufffd", True)


# --- lines that are not as expected


def test_unknown_fields_are_ignored() -> None:
    """A line with fields of a later version is read as the event it is, at every depth."""
    event = utterance("hello")
    line = json.loads(encode(event))
    line["later"] = {"x": [1]}
    line["message"]["later"] = 1
    assert decode(json.dumps(line).encode()) == event


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"event_type":"TelepathyEvent","seq":4,"x":1}', "unknown"),
        (b'{"event_type":"Event","seq":4}', "unknown"),
        (b'{"seq":4}', "broken"),
        (b'{"event_type":7}', "broken"),
        (b'{"event_type":"AgentNamedEvent"}', "broken"),
        (b'{"event_type":"AgentNamedEvent","agent_id":1,"name":"","reply":""}', "broken"),
        (b'{"event_type":"TelepathyEvent","seq":4', "broken"),
        (b"[]", "broken"),
        (b"null", "broken"),
        (b"\x00\x00\x00", "broken"),
        (b"\xff\xfe", "broken"),
        (b'{"event_type":"SystemPromptEvent","agent_id":"\xff"}', "broken"),
        (b"[" * 100_000, "broken"),
        (b'{"a":' * 100_000, "broken"),
        (b"", "broken"),
    ],
    ids=lambda value: repr(value[:24]) if isinstance(value, bytes) else value,
)
def test_a_line_that_is_no_event_is_handed_back(line: bytes, why: str) -> None:
    """What is not an event comes back as it is with its number and the reason; nothing is raised."""
    found = decode(line, 7)
    assert found == Skipped(7, why, line)
    assert str(found).startswith(f"line 7: {why}: ")
    assert len(str(found)) < 400


@given(st.binary(max_size=60), st.sampled_from([b"", b'{"event_type":"', b'{"event_type":"AgentNamedEvent",']))
@settings(max_examples=200, deadline=None)
def test_decoding_never_raises(tail: bytes, head: bytes) -> None:
    """Whatever the bytes, decoding gives an event or says why not."""
    found = decode(head + tail)
    assert isinstance(found, Event | Skipped)


@pytest.mark.parametrize("bad", [{"x": object()}, {"x": [{"y": 1j}]}, {1j: 2}], ids=["value", "deep", "key"])
def test_an_event_that_cannot_be_encoded_leaves_no_trace(bad: dict[str, Any]) -> None:
    """An error while encoding leaves the buffer as it was: half a line never gets in front of the next event."""
    buffer = bytearray(b"before\n")
    event = MessageRequestEvent(
        agent_id="a", turn_number=1, message_index=0, view=View(0, 0, 0, 1), digest="x" * 5000, parameters=bad
    )
    with pytest.raises(TypeError):
        encode_into(event, buffer)
    assert buffer == b"before\n"
    good = AgentNamedEvent(agent_id="a", name="Ada", reply="Ada.")
    encode_into(good, buffer)
    assert decode(bytes(buffer).splitlines()[1]) == good


@given(st.sampled_from(EVENT_TYPES).flatmap(events))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_both_encoders_write_the_same_line(event: Event) -> None:
    """`encode` and `encode_into` agree to the byte, and `decode` is the inverse of both."""
    buffer = bytearray()
    encode_into(event, buffer)
    assert bytes(buffer) == encode(event) + b"\n"
    assert decode(encode(event)) == event


def test_old_records_stay_readable() -> None:
    """A line with only the required fields, as an older version wrote it, is read with defaults for the rest."""
    line = (
        b'{"event_type":"RateLimitEvent","event_id":"x-1:3","seq":3,"timestamp":"2026-01-02T03:04:05Z",'
        b'"experiment_id":"x","conversation_id":"x-1","agent_id":"a","turn_number":1,"message_index":0,'
        b'"provider":"openai","attempt":1,"wait_s":2}'
    )
    found = decode(line)
    assert isinstance(found, RateLimitEvent)
    assert (found.wait_s, found.status, found.message) == (2.0, None, "")
    assert found.timestamp == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


# --- the fold of deltas


def splits(text: str) -> st.SearchStrategy[list[str]]:
    """Every way to cut a text into pieces, empty ones included."""
    cuts = st.lists(st.integers(0, len(text)), max_size=8).map(sorted)
    return cuts.map(lambda at: [text[i:j] for i, j in zip([0, *at], [*at, len(text)], strict=True)])


def halves(text: str) -> str:
    """The text as UTF-16 has it: letters beyond the first plane as two surrogates."""
    units = text.encode("utf-16-le", "surrogatepass")
    return "".join(chr(int.from_bytes(units[i : i + 2], "little")) for i in range(0, len(units), 2))


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_how_text_is_split_does_not_matter(data: st.DataObject) -> None:
    """However a reply is cut into deltas, the response is the same."""
    text, thought, arguments = (data.draw(WILD_TEXT | TEXT.map(halves)) for _ in range(3))
    finish = Finish(FinishReason.LENGTH, model="m", timing=Timing(ttft_ms=1.0))

    def response(texts: list[str], thoughts: list[str], pieces: list[str]) -> Any:
        calls = [ToolCallDelta(0, "call", "look", "")] + [ToolCallDelta(0, arguments=piece) for piece in pieces]
        return fold(
            [
                *(ThinkingDelta(piece) for piece in thoughts),
                *(TextDelta(piece) for piece in texts),
                *calls,
                UsageDelta(Usage(1, 2)),
                finish,
            ]
        )

    whole = response([text], [thought], [arguments])
    parts = response(*(data.draw(splits(value)) for value in (text, thought, arguments)))
    assert whole == parts
    assert whole.message.content == replaced(text)
    assert text_of(whole.message.thinking) == replaced(thought)
    assert whole.message.tool_calls == (ToolCall("call", "look", replaced(arguments)),)
    assert (whole.finish, whole.usage) == (finish, Usage(1, 2))
    assert whole.message.text_replaced == any(clean_text(part)[1] for part in (text, thought, arguments))


def test_halves_of_a_letter_in_two_deltas_are_joined() -> None:
    """An emoji whose surrogates arrive in two pieces is that emoji, unflagged, in text and in thinking."""
    reply = fold(
        [ThinkingDelta("\ud83d"), ThinkingDelta("\ude00"), TextDelta("a\ud83d"), TextDelta("\ude00b"), Finish()]
    )
    assert reply.message == Message(Role.ASSISTANT, "a😀b", thinking=(ThinkingBlock("😀"),))


@pytest.mark.parametrize(
    "delta",
    [
        TextDelta("\ud83d"),
        ThinkingDelta("\ud83d"),
        ThinkingDelta("\ud83d", "sig"),
        ToolCallDelta(0, "i", "n", "\ud83d"),
    ],
    ids=["text", "thinking", "signed thinking", "arguments"],
)
def test_a_lone_half_anywhere_in_a_reply_is_flagged(delta: Any) -> None:
    """Whatever part of a reply held a lone surrogate: it is U+FFFD in the message, and the message says so."""
    message = fold([delta, Finish()]).message
    assert message.text_replaced
    msgspec.json.encode(message)
    held = [message.content, *(b.text for b in message.thinking), *(c.arguments for c in message.tool_calls)]
    assert "".join(held) == "\ufffd"


def test_thinking_blocks_end_at_signatures() -> None:
    """A signature closes a block; a block may be a bare signature; an empty piece makes no block."""
    deltas = [
        ThinkingDelta("one "),
        ThinkingDelta("more"),
        ThinkingDelta("", signature="s1"),
        ThinkingDelta("", signature="redacted"),
        ThinkingDelta("open"),
        ThinkingDelta(""),
    ]
    thinking = fold([*deltas, Finish()]).message.thinking
    assert thinking == (ThinkingBlock("one more", "s1"), ThinkingBlock("", "redacted"), ThinkingBlock("open"))
    assert fold([ThinkingDelta(""), Finish()]).message.thinking == ()
    assert text_of(thinking) == "one more\n\nopen"


def test_tool_calls_are_kept_apart_by_index() -> None:
    """Pieces of several calls may be mixed; they come out in order of index with their first id and name."""
    deltas = [
        ToolCallDelta(1, "c1", "second", "{"),
        ToolCallDelta(0, "c0", "first"),
        ToolCallDelta(1, arguments="}"),
        ToolCallDelta(0, arguments="[]"),
        Finish(FinishReason.TOOL_CALLS),
    ]
    assert fold(deltas).message.tool_calls == (ToolCall("c0", "first", "[]"), ToolCall("c1", "second", "{}"))


def test_a_stream_without_a_finish_is_no_reply() -> None:
    """A fold refuses to give a response before `Finish`, and still tells what had arrived."""
    with pytest.raises(ValueError, match="without a finish"):
        fold([])
    state = ResponseFold()
    for delta in (ThinkingDelta("hm"), TextDelta("half a "), TextDelta("sent\ud83d")):
        state.add(delta)
    with pytest.raises(ValueError, match="without a finish"):
        state.response()
    assert state.text == "half a sent\ufffd"
    assert state.thinking == (ThinkingBlock("hm"),)


@pytest.mark.parametrize(
    ("delta", "started"),
    [
        (UsageDelta(Usage(1, 0)), True),
        (UsageDelta(Usage()), True),
        (Finish(), True),
        (TextDelta("x"), True),
        (TextDelta(""), True),
        (ThinkingDelta("x"), True),
        (ThinkingDelta("", "sig"), True),
        (ToolCallDelta(0), True),
    ],
    ids=repr,
)
def test_a_reply_has_started_with_its_first_delta(delta: Any, started: bool) -> None:
    """`started` turns true with any delta: the same line that `Retrying` draws for starting again."""
    state = ResponseFold()
    assert not state.started
    state.add(delta)
    assert state.started is started


usages = of_type(msgspec.inspect.type_info(Usage))


@given(usages, usages)
@settings(max_examples=60, deadline=None)
def test_later_usage_replaces_what_it_reports(old: Usage, new: Usage) -> None:
    """A field that a later report sets wins; one that it leaves open keeps what was known."""
    merged = add_usage(old, new)
    for name in ("prompt_tokens", "completion_tokens", "thinking_tokens", "cached_tokens", "cache_write_tokens"):
        was, reported = getattr(old, name), getattr(new, name)
        assert getattr(merged, name) == (was if reported is None else reported)
    assert merged.estimated is new.estimated


# --- errors


def test_every_error_is_documented_and_carries_its_exit_status() -> None:
    """All errors descend from PidginError; wrong use exits 2, the rest 1; only passing troubles are retried."""
    kinds = [getattr(errors, name) for name in errors.__all__]
    assert all(issubclass(kind, errors.PidginError) for kind in kinds)
    assert {kind.__name__ for kind in kinds if kind.exit_code == 2} == {"SpecError", "NotFound"}
    retried = {kind.__name__ for kind in kinds if getattr(kind, "retryable", False)}
    assert retried == {"RateLimited", "Overloaded", "ProviderTimeout", "ProviderUnavailable"}
    assert all(kind.__name__ in (errors.__doc__ or "") for kind in kinds)
