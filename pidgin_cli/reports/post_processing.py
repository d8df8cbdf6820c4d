"""`PostProcessor`: what is done with an experiment when it has ended, and whenever somebody asks for it again.

A queue of steps. Each writes its files whole or not at all, so that a process that is killed leaves nothing half done,
and the same steps can be run again at any time. A step that fails is told of and holds up no other.
"""

import asyncio
import fcntl
import traceback
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING

from pidgin_cli.core.errors import LogError, PidginError, SpecError, StoreError
from pidgin_cli.core.events import Event, PostProcessingCompleteEvent, PostProcessingStartEvent
from pidgin_cli.eventlog.folder import ExperimentFolder, OutputRoot
from pidgin_cli.eventlog.log import EventLog, Syncer, read_record
from pidgin_cli.eventlog.manifest import UNFINISHED, Manifest, read_manifest, tell_post_processing

from .text import count, visible
from .transcript import Lineage, summary, transcript, write_file

if TYPE_CHECKING:
    # What a step stands on is imported when that step runs: drawing and the database take longer than a transcript.
    from pidgin_cli.database.store import EventStore

    from .figures import Figure
    from .study import Study

__all__ = ["DONE", "FAILED", "STEPS", "PostProcessor", "Progress", "missing"]

Progress = Callable[[str], None]
"""Told what is being done, such as `transcripts: 12 of 200`."""

DONE = "done"
FAILED = "failed"
"""Outcomes begin with one of these; what there is to say of it follows after a colon."""


class PostProcessor:
    """Post-processing of one experiment."""

    def __init__(
        self,
        root: OutputRoot,
        folder: ExperimentFolder,
        *,
        store: Callable[[OutputRoot], "EventStore"],
        lineage: Lineage,
        is_live: Callable[[str], bool] = lambda _: False,
        manifest: Callable[[OutputRoot, ExperimentFolder], Manifest] = lambda _, folder: read_manifest(folder),
        progress: Progress | None = None,
        embeddings: str | None = None,
    ) -> None:
        """
        Args:
            embeddings: the embedding model; None: the one that the spec names, if it names one.
            store: opens the database with all its columns.
            lineage: what a branch shares, in front of what is its own.
            is_live: whether a runner is at work on an experiment.
            manifest: gives it as of now, with what a dead runner left behind as interrupted.
        """
        self.root = root
        self.folder = folder
        self._store = store
        self._lineage = lineage
        self._embeddings = embeddings
        self._is_live = is_live
        self._manifest = manifest
        self._progress = progress or (lambda _: None)
        self._step = ""
        self._study: Study | None = None
        self._figures: list[Figure] | None = None
        self._faults: list[Exception] = []
        """Of figures that should be there."""

    def run(self, only: Collection[str] = ()) -> dict[str, str]:
        """Run the steps, or `only` some of them, in their order; gives the outcome of each.

        Another process that post-processes the same experiment is waited for. Call it from a thread in which no event
        loop is running.

        Raises:
            SpecError: there is no such step.
            LogError: `post_processing.log` cannot be written.
        """
        if unknown := [name for name in only if name not in STEPS]:
            raise SpecError(f"there is no step {unknown[0]!r}; there are {', '.join(STEPS)}")
        steps = [name for name in STEPS if not only or name in only]
        with self._journal() as journal:
            note(journal, f"post-processing: {', '.join(steps)}")
            begun = dict.fromkeys(steps, UNFINISHED)
            self._record(PostProcessingStartEvent(tasks=tuple(steps)), begun, journal)
            outcomes = {name: self._outcome(name, journal) for name in steps}
            self._record(PostProcessingCompleteEvent(outcomes=outcomes), outcomes, journal)
        return outcomes

    def _outcome(self, name: str, journal: IO[str]) -> str:
        self._step = name
        self.tell()
        try:
            said = STEPS[name](self)
        except Exception as error:  # whatever is wrong with one step, the others are still to be done
            why = visible(str(error)).replace("\n", " ") if isinstance(error, PidginError) else _faulty(error)
            note(journal, f"{name}: {FAILED}: {why}")
            if not isinstance(error, PidginError):
                note(journal, visible(traceback.format_exc()))
            return f"{FAILED}: {why}"
        outcome = f"{DONE}: {said}" if said else DONE
        note(journal, f"{name}: {outcome}")
        return outcome

    def tell(self, what: str = "") -> None:
        """Report progress within a step."""
        self._progress(f"{self._step}: {what}" if what else self._step)

    @contextmanager
    def _journal(self) -> Iterator[IO[str]]:
        path = self.folder.path / "post_processing.log"
        try:
            journal = path.open("a", encoding="utf-8", errors="replace")
        except OSError as error:
            raise LogError(f"{path} cannot be written: {error.strerror}") from error
        with journal:
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self._progress("waiting for another process that does the same")
                fcntl.flock(journal, fcntl.LOCK_EX)
            yield journal

    def _record(self, event: Event, outcomes: Mapping[str, str], journal: IO[str]) -> None:
        """Write an event into the experiment's log and what follows from it into the manifest.

        Not while a runner holds the log, and not where the experiment has never run: its log begins with its start.
        """
        if not self.folder.events.exists():
            return
        try:
            asyncio.run(self._append(event, outcomes))
        except LogError as error:
            note(journal, f"{type(event).__name__} is not in the record: {error}")

    async def _append(self, event: Event, outcomes: Mapping[str, str]) -> None:
        syncer = Syncer()
        try:
            log, _ = EventLog.resume(
                self.folder.events, experiment_id=self.folder.experiment_id, conversation_id=None, syncer=syncer
            )
            try:
                log.append(event)
                log.flush()
                tell_post_processing(self.folder, outcomes)
            finally:
                await log.aclose()
        finally:
            await syncer.aclose()

    # What the steps share

    @property
    def manifest(self) -> Manifest:
        """As of now."""
        return self._manifest(self.root, self.folder)

    def open_store(self) -> "EventStore":
        return self._store(self.root)

    @property
    def study(self) -> "Study":
        """The experiment as the database has it."""
        if self._study is None:
            from .study import Study

            with self.open_store() as store:
                self._study = Study.load(store, self.folder.experiment_id)
        return self._study

    @property
    def figures(self) -> list["Figure"]:
        if self._figures is None:
            from .figures import FIGURES, draw, undrawn

            study = self.study
            found, self._faults = [], []
            for place, name in enumerate(FIGURES, 1):
                self.tell(f"{name}, {place} of {len(FIGURES)}")
                try:
                    found.append(draw(study, name))
                except Exception as fault:  # the others are still to be drawn
                    self._faults.append(fault)
                    found.append(undrawn(name, f"it could not be drawn: {_faulty(fault)}"))
            self._figures = found
        return self._figures

    # Steps

    def take_in(self) -> str:
        with self.open_store() as store:
            (imported,) = store.import_experiments(
                [self.folder],
                is_live=self._is_live,
                waiting=lambda: self.tell("waiting for another import"),
            )
        self._study = self._figures = None
        if imported.failed:
            raise StoreError(imported.failed)
        if imported.damage:
            more = len(imported.damage) - 1
            return f"damaged: {imported.damage[0]}" + (f", and {count(more, 'other fault')}" if more else "")
        return f"{imported.messages} messages" if imported.conversations else "nothing has changed"

    def check_metrics(self) -> str:
        """Compute the metrics that are for afterwards, and say how many messages have any.

        Conversations of which the database holds other messages than the record are named; raises where all are such.
        """
        from .measuring import measure

        with self.open_store() as store:
            measured = measure(
                store,
                self.root,
                self.folder,
                lineage=self._lineage,
                embeddings=self._embeddings,
                progress=self.tell,
            )
            self._study = self._figures = None
            taken = {
                row["conversation_id"]: row["messages"] for row in store.conversations.of(self.folder.experiment_id)
            }
            with_metrics = len(store.metrics.by_message(self.folder.experiment_id, ()))
        recorded = {name: entry.messages for name, entry in self.manifest.conversations.items() if entry.last_seq >= 0}
        differing = [name for name, number in recorded.items() if taken.get(name) != number]
        told = measured.told()
        if differing and not self._is_live(self.folder.experiment_id):
            fault = f"the database and the record differ in the messages of {', '.join(differing[:5])}"
            if len(differing) > 5:
                fault += f" and {len(differing) - 5} more"
            if len(differing) == len(recorded):
                raise StoreError(fault)
            told.insert(0, fault)
        total = sum(taken.values())
        if not total:
            return "; ".join(("there are no messages", *told))
        return "; ".join((f"{with_metrics} of {total} messages have metrics", *told))

    def write_transcripts(self) -> str:
        where = self.folder.path / "transcripts"
        logs = self.folder.logs()
        failed = []
        for place, (conversation_id, log) in enumerate(logs.items(), 1):
            self.tell(f"{place} of {len(logs)}")
            try:
                text = transcript(self.root, read_record(log), self._lineage)
            except LogError as error:
                failed.append(str(error))
                continue
            write_file(where / f"conv_{conversation_id}.md", text)
        write_file(where / "summary.md", summary(self.folder, self.manifest))
        if failed:
            raise LogError(f"{len(failed)} of {len(logs)} cannot be written: {failed[0]}")
        return count(len(logs), "conversation")

    def write_readme(self) -> str:
        from .readme import readme

        write_file(self.folder.path / "README.md", readme(self.folder, self.manifest, self.tell))
        return ""

    def write_notebook(self) -> str:
        from .notebook import notebook

        write_file(self.folder.path / "notebook.ipynb", notebook(self.manifest))
        return ""

    def write_figures(self) -> str:
        from .drawing import for_file, png
        from .figures import as_csv

        where = self.folder.path / "figures"
        absent = []
        wanted = set()
        for figure in self.figures:
            if figure.svg is None:
                absent.append(f"no {figure.name} ({figure.absent})")
                continue
            self.tell(f"{figure.name} as a file")
            for suffix, content in (
                ("svg", for_file(figure.svg).encode()),
                ("png", png(figure.svg)),
                ("csv", as_csv(figure)),
            ):
                write_file(where / f"{figure.name}.{suffix}", content)
                wanted.add(f"{figure.name}.{suffix}")
        _remove_old(where, wanted)
        if self._faults:
            raise ExceptionGroup(f"{len(self._faults)} of {len(self.figures)} could not be drawn", self._faults)
        return "; ".join((count(len(self.figures) - len(absent), "figure"), *absent))

    def write_report(self) -> str:
        from .page import page

        why = None
        try:
            figures = self.figures
        except Exception as error:  # told of by the step that it belongs to
            figures, why = [], str(error) if isinstance(error, PidginError) else _faulty(error)
        self.tell()
        text = page(self.root, self.folder, self.manifest, figures, self._lineage, why_none=why, progress=self.tell)
        write_file(self.folder.path / "report.html", text)
        return "" if why is None else f"without figures: {why}"


STEPS: Mapping[str, Callable[[PostProcessor], str]] = {
    "import": PostProcessor.take_in,
    "metrics": PostProcessor.check_metrics,
    "transcripts": PostProcessor.write_transcripts,
    "readme": PostProcessor.write_readme,
    "notebook": PostProcessor.write_notebook,
    "figures": PostProcessor.write_figures,
    "report": PostProcessor.write_report,
}
"""By name, in their order; each gives what there is to say of it."""


def missing(manifest: Manifest, wanted: Collection[str]) -> tuple[str, ...]:
    """The steps to run so that all that are `wanted`, or were begun by somebody, are done; none where they are."""
    outcomes = manifest.post_processing or {}
    names = {*wanted, *outcomes}
    if all(outcomes.get(name, "").startswith(DONE) for name in names):
        return ()
    return tuple(name for name in STEPS if name in names)


def _remove_old(where: Path, wanted: Collection[str]) -> None:
    """Files of figures that there were earlier and that are absent now."""
    from .figures import FIGURES

    for name in FIGURES:
        for suffix in ("svg", "png", "csv"):
            if f"{name}.{suffix}" not in wanted:
                (where / f"{name}.{suffix}").unlink(missing_ok=True)


def _faulty(error: BaseException) -> str:
    said = visible(str(error)).strip().partition("\n")[0][:300]
    return f"{type(error).__name__}: {said}" if said else type(error).__name__


def note(journal: IO[str], text: str) -> None:
    journal.write(f"{datetime.now(UTC):%Y-%m-%dT%H:%M:%SZ} {text}\n")
    journal.flush()
