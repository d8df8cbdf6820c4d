"""Names that several experiments have, wherever a command takes a name."""

from pathlib import Path

import pytest
from commands import Pidgin, error_of, pidgin

import pidgin_cli
from pidgin_cli.core.errors import NotFound
from pidgin_cli.eventlog.folder import OutputRoot

__all__ = ["pidgin"]

TALK = ("chat", "-a", "local:test?words=3", "-b", "local:test?words=3", "-t", "1", "--display", "quiet")
TAKE_A_NAME: tuple[tuple[str, ...], ...] = (
    *(("resume", "twice"), ("stop", "twice"), ("pause", "twice"), ("show", "twice"), ("show", "--tree", "twice")),
    *(("attach", "twice"), ("monitor", "--once", "twice"), ("logs", "twice"), ("rebuild", "twice")),
    *(("import", "twice"), ("verify", "twice"), ("transcript", "twice"), ("notebook", "twice"), ("report", "twice")),
    *(("export", "twice", "--to", "out"), ("compare", "twice", "other"), ("compare", "other", "twice:arm=x")),
    *(("words", "twice"), ("branch", "twice", "--turn", "1"), ("replay", "twice")),
    *(("diff", "twice", "other"), ("chat", "-a", "replay:twice", "-b", "local:test", "-t", "1")),
)


def test_a_name_that_several_have_is_never_guessed(pidgin: Pidgin) -> None:
    """Every command that takes a name ends with one line that lists the ids of all that have it, and does nothing."""
    for name in ("twice", "twice", "other"):
        assert pidgin(*TALK, "-n", name).status == 0
    ids = {folder.experiment_id: folder.slug for folder in OutputRoot().folders()}
    before = sorted(Path().rglob("*"))
    for command in TAKE_A_NAME:
        told = error_of(pidgin(*command))
        for experiment_id, name in ids.items():
            assert (experiment_id in told) == (name == "twice"), (command, told)
    assert [path for path in sorted(Path().rglob("*")) if path.suffix not in (".duckdb", ".lock")] == before
    Path("twice").mkdir()
    assert "is ambiguous" in error_of(pidgin("import", "twice")), "a folder is meant by ./twice"
    assert "nothing in twice can be read" in error_of(pidgin("import", "./twice"))
    with pytest.raises(NotFound, match="ambiguous"):
        pidgin_cli.open_output(refresh=False).messages("twice")


def test_a_name_like_a_conversations_id_is_a_name(pidgin: Pidgin) -> None:
    """An experiment named in the form of such an id is found by it wherever a conversation is asked for."""
    assert pidgin(*TALK, "-n", "painting-1").status == 0
    assert "1 request" in pidgin("replay", "painting-1").out or "2 requests" in pidgin("replay", "painting-1").out
    assert pidgin("diff", "painting-1", "painting-1").status == 0
    assert pidgin("transcript", "painting-1").status == 0
    assert pidgin("branch", "painting-1", "--turn", "1", "-t", "2", "--display", "quiet").status == 0


def test_a_talk_that_takes_a_name_in_use_says_so(pidgin: Pidgin) -> None:
    """`chat -n` may give a name twice; a note says what else has it, and how to tell them apart."""
    assert pidgin(*TALK, "-n", "mine").err == ""
    (first,) = OutputRoot().folders()
    told = pidgin(*TALK, "-n", "mine")
    assert told.status == 0
    assert told.err == f"Note: {first.experiment_id} answers to the name 'mine', too; tell them apart by their ids\n"
    run = ("run", *TALK[1:], "-n", "Mine!")
    assert " answer to the name 'Mine!', too" in pidgin(*run).err
    assert pidgin(*run, "--seed", "1").status == 2
    assert pidgin(*TALK, "-n", "yours").err == ""
