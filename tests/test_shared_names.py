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
    assert pidgin("run", *TALK[1:], "-n", "Mine!", "-q").err == "", "which is found by this very name alone"
    assert pidgin("show", "Mine!").status == 0
    assert pidgin(*TALK, "-n", "yours").err == ""


@pytest.mark.parametrize("verb", ["stop", "pause", "resume", "show"])
def test_a_name_never_stands_for_another(pidgin: Pidgin, verb: str) -> None:
    """What a folder's name cannot show of two names does not make one of them, and names in any alphabet work."""
    for name in ("中国 study", "日本"):
        assert pidgin(*TALK, "-n", name).status == 0
    ids = {folder.name(): folder.experiment_id for folder in OutputRoot().folders()}
    assert "no experiment '日本 study'" in error_of(pidgin(verb, "日本 study"))
    for named, experiment_id in ids.items():
        said = pidgin(verb, str(named), *(("--display", "quiet") if verb == "resume" else ()))
        if verb in ("stop", "pause"):
            assert f"{experiment_id} is not running" in error_of(said)
        else:
            assert said.status == 0
            assert verb != "show" or said.out.startswith(f"{experiment_id}  {named}")


def test_a_name_without_a_latin_letter_is_one_name(pidgin: Pidgin, tmp_path: Path) -> None:
    """Such an experiment goes on with its spec, is not taken for another, and a second of the name is told of."""
    run = ("run", *TALK[1:], "-q")
    for name in ("日本", "中国", "日本"):
        assert pidgin(*run, "-n", name).status == 0
    assert [folder.name() for folder in OutputRoot().folders()] in (["日本", "中国"], ["中国", "日本"])
    assert "is in use by experiment" in error_of(pidgin(*run, "-n", "日本", "--temperature", "0.5"))
    assert "answers to the name '中国', too" in pidgin(*TALK, "-n", "中国").err
    assert "is ambiguous" in error_of(pidgin("show", "中国"))
