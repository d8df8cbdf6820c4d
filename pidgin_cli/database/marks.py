"""Who speaks where in a plain transcript: the lines that name a speaker, told from headings that look like them.

A mark is `### Name 1 ###` or `Name 1:` on a line of its own, or `Name 1: words`, one of these throughout; names without
numbers are taken where two of them take turns. A message may hold headings of the same shape, such as `Step 2:`. What
tells speakers from headings is that speakers take turns: a reading in which they do is taken where it is the only one.
Everything else is refused, so that no words are put into another mouth.
"""

import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from itertools import chain, combinations, cycle
from typing import NamedTuple

from pidgin_cli.core.errors import LogError

__all__ = ["Mark", "Speaker", "marks_of"]

_NAME = r"[^\W_][\w.+-]{0,40}(?: [\w.+-]{1,40}){0,2}?"
_NUMBER = r"(?P<number>[1-9]\d?)"
_HASHES = re.compile(rf"### (?P<label>\S.{{0,60}}?) {_NUMBER} ###[ \t]*")
_ALONE = re.compile(rf"(?P<label>\S.{{0,60}}?) {_NUMBER}:[ \t]*")
_BESIDE = re.compile(rf"(?P<label>{_NAME}) {_NUMBER}:[ \t]+(?P<words>\S.*)")
_NUMBERED = (_HASHES, _ALONE, _BESIDE)

_DECORATED = r"[\s#*_>\[]*"
_NAMED = re.compile(
    rf"(?P<before>{_DECORATED})(?P<label>{_NAME})(?P<after>[*_\]]{{0,4}}):(?:[ \t]*|[ \t*_]+(?P<words>\S.*))"
)
"""A name without a number, and whatever else may be meant as one."""

_LABELS_AT_MOST = 10
"""Of which it is asked whether they take turns with others."""


class Speaker(NamedTuple):
    """As a mark names one."""

    label: str
    number: int | None

    def __str__(self) -> str:
        return self.label if self.number is None else f"{self.label} {self.number}"


class Mark(NamedTuple):
    """A line that says who speaks from there on."""

    place: int
    """Of the line, counted from 0."""
    speaker: Speaker
    words: str | None
    """What is said on the line itself; None: nothing ever is, in this style."""


def marks_of(lines: Sequence[str]) -> list[Mark]:
    """All marks of a transcript, in order.

    Raises:
        LogError: there are none, or who speaks can be told in no way or in more than one; names the lines.
    """
    first = next((place for place, line in enumerate(lines) if line.strip()), 0)
    own = next((style for style in _NUMBERED if lines and style.fullmatch(lines[first])), None)
    styles = _NUMBERED if own in (None, _BESIDE) else (own,)
    found = {style: marks for style in styles if (marks := _found(lines, style))}
    if own is not None and sum(map(len, found.values())) == 1:
        marks = found[own]
        _refuse_others(lines, marks)
        return marks
    told = {style: readings for style, marks in found.items() if (readings := _readings(marks, certain=style is own))}
    if len(told) > 1:
        raise LogError(_untold([mark for style in told for mark in found[style]]))
    for style, readings in told.items():
        marks = _settled(found[style], readings)
        _refuse_others(lines, marks)
        return marks
    if own is None and (marks := _without_numbers(lines, first)):
        return marks
    if not found:
        raise LogError("no line in it says who speaks, as `Name 1:` or `### Name 1 ###` would")
    marks = list(chain.from_iterable(found.values()))
    if len({mark.speaker for mark in marks}) == 1:
        _refuse_others(lines, marks)
    raise LogError(_untold(marks))


def _found(lines: Sequence[str], style: re.Pattern[str]) -> list[Mark]:
    return [
        Mark(place, Speaker(match["label"], int(match["number"])), match["words"] if style is _BESIDE else None)
        for place, line in enumerate(lines)
        if (match := style.fullmatch(line))
    ]


def _untold(marks: Sequence[Mark]) -> str:
    """Why nobody can say who speaks, with each who might, and the line where he first does."""
    times = Counter(mark.speaker for mark in marks)
    if len(times) == 1:
        (speaker,) = times
        return f"only `{speaker}` speaks in it (line {marks[0].place + 1}), and {len(marks)} times"
    place = {mark.speaker: mark.place + 1 for mark in reversed(marks)}
    shown = ", ".join(
        f"`{speaker}` {'once' if number == 1 else f'{number} times'} (line {place[speaker]})"
        for speaker, number in list(times.items())[:6]
    )
    return f"who speaks in it cannot be told from headings: {shown}{', …' if len(times) > 6 else ''}"


# Readings


def _readings(marks: Sequence[Mark], *, certain: bool) -> list[frozenset[str]]:
    """Sets of labels that may be those of the speakers, all others being headings.

    `certain`: the text begins with the first mark, so that this one at least is no heading.
    """
    times = Counter(mark.speaker for mark in marks)
    by_label: dict[str, list[Speaker]] = {}
    for speaker in times:
        by_label.setdefault(speaker.label, []).append(speaker)
    least = 1 if certain else 2  # a list of steps, each named once, is no conversation
    if len(by_label) == 1:  # there is nothing it could be mistaken for, whoever speaks when
        return [frozenset(by_label)] if len(times) > 1 and min(times.values()) >= least else []
    found = set()
    for anchor in [marks[0].speaker.label] if certain else by_label:
        often = [times[speaker] for speaker in by_label[anchor]]
        near = [
            label
            for label, speakers in by_label.items()
            if label != anchor
            and min(times[speaker] for speaker in speakers) >= least
            and all(abs(times[speaker] - each) <= 1 for speaker in speakers for each in often)
        ]
        if len(near) > _LABELS_AT_MOST:
            raise LogError(_untold(marks))
        for more in _subsets(near):
            labels = frozenset((anchor, *more))
            speakers = [speaker for speaker in times if speaker.label in labels]
            fewest = min(times[speaker] for speaker in speakers)
            distinct = len({speaker.number for speaker in speakers}) == len(speakers)
            if len(speakers) > 1 and fewest >= (least if distinct else 2) and _take_turns(marks, labels):
                found.add(labels)
    return sorted(found, key=len)


def _subsets(labels: Collection[str]) -> Iterator[tuple[str, ...]]:
    return chain.from_iterable(combinations(labels, size) for size in range(len(labels) + 1))


def _take_turns(marks: Sequence[Mark], labels: Collection[str]) -> bool:
    """Whether they speak in the same order in every round; the last one may be cut short."""
    order = list(dict.fromkeys(mark.speaker for mark in marks if mark.speaker.label in labels))
    spoken = (mark.speaker for mark in marks if mark.speaker.label in labels)
    return all(speaker == next_one for speaker, next_one in zip(spoken, cycle(order), strict=False))


def _settled(marks: Sequence[Mark], readings: Sequence[frozenset[str]]) -> list[Mark]:
    """The marks of those who speak. Of several readings the fullest, where it takes the others in and turns recur."""
    best = readings[-1]
    chosen = [mark for mark in marks if mark.speaker.label in best]
    times = Counter(mark.speaker for mark in chosen)
    fits = all(other <= best for other in readings) and (len(readings) == 1 or min(times.values()) > 1)
    # A number that is taken shows that a heading is one; any other may be a speaker who seldom speaks.
    taken = {speaker.number for speaker in times}
    headings = {mark.speaker.label for mark in marks if mark.speaker.label not in best and mark.speaker.number in taken}
    if not fits or any(mark.speaker.label not in best | headings for mark in marks):
        raise LogError(_untold(marks))
    return chosen


# Other lines


def _refuse_others(lines: Sequence[str], marks: Sequence[Mark]) -> None:
    """Raise where a line may be meant as a mark and is none: what follows it would go to the wrong speaker."""
    _refuse_uneven(lines, marks)
    speakers = {mark.speaker for mark in marks}
    labels = "|".join(re.escape(label) for label in {speaker.label for speaker in speakers})
    numbers = Counter(speaker.label for speaker in speakers)
    alone = {label for label, several in numbers.items() if several == 1 and len(numbers) > 1}
    known = re.compile(
        rf"(?P<before>{_DECORATED})(?:{labels})[ _-]?\d{{1,2}}(?P<after>[\s#*_\]]*)(?P<rest>.*)", re.IGNORECASE
    )
    places = {mark.place for mark in marks}
    for place, line in enumerate(lines):
        if place in places:
            continue
        match = known.fullmatch(line)
        meant = match is not None and (
            match["rest"].startswith((":", "：")) or ((match["before"] + match["after"]).strip() and not match["rest"])
        )
        named = _NAMED.fullmatch(line)
        meant = meant or (named is not None and (len(marks) == 1 or named["label"] in alone))
        if meant or (len(marks) == 1 and any(style.fullmatch(line) for style in _NUMBERED)):
            shown = line.strip()[:60]
            raise LogError(
                f"line {place + 1} may be a mark and is not written as line {marks[0].place + 1} is: {shown!r}"
            )


def _refuse_uneven(lines: Sequence[str], marks: Sequence[Mark]) -> None:
    after_blank = {bool(mark.place) and not lines[mark.place - 1].strip(): mark for mark in reversed(marks[1:])}
    if len(after_blank) > 1:
        raise LogError(
            f"before its marks is an empty line (line {after_blank[True].place + 1}) or none "
            f"(line {after_blank[False].place + 1}), so that some of them may belong to a message"
        )


def _without_numbers(lines: Sequence[str], first: int) -> list[Mark]:
    """The marks where nothing but two names stands at the beginning of lines, by turns and more than once each."""
    matches = [(place, match) for place, line in enumerate(lines) if (match := _NAMED.fullmatch(line))]
    marks = [Mark(place, Speaker(match["label"], None), match["words"]) for place, match in matches]
    times = Counter(mark.speaker for mark in marks)
    plain = not any(match["before"] or match["after"] for _, match in matches)
    even = len({mark.words is None for mark in marks}) == 1
    if (
        not plain
        or not even
        or marks[0].place != first
        or len(times) != 2
        or min(times.values()) < 2
        or not _take_turns(marks, {speaker.label for speaker in times})
    ):
        return []
    _refuse_uneven(lines, marks)
    return marks
