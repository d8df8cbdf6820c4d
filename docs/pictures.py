"""Draws the pictures of the README from real runs: `make pictures`.

Each run is one of the embedded model, by the real command in a folder of its own; the picture is what the display
prints for its record at that width. Not part of `make check`: times and ids differ from run to run.
"""

import io
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import yaml
from markdown_it import MarkdownIt
from rich.console import Console
from rich.terminal_theme import TerminalTheme

from pidgin_cli.cli.branch import compare
from pidgin_cli.eventlog.folder import OutputRoot
from pidgin_cli.eventlog.log import read_record
from pidgin_cli.eventlog.manifest import read_manifest
from pidgin_cli.experiments.budget import Budget, Caps, Spent
from pidgin_cli.experiments.watch import Watch
from pidgin_cli.monitor.chat import ChatDisplay
from pidgin_cli.monitor.dashboard import Dashboard
from pidgin_cli.monitor.diff import print_diff
from pidgin_cli.monitor.progress import LISTENS_TO, RunProgress
from pidgin_cli.spec.experiment import load
from pidgin_cli.spec.plan import expand

IMAGES = Path(__file__).parent / "images"
THEME = TerminalTheme(
    (22, 24, 30),
    (222, 224, 230),
    [
        (40, 42, 54),
        (240, 110, 110),
        (120, 200, 130),
        (230, 190, 90),
        (110, 160, 240),
        (210, 130, 220),
        (90, 200, 210),
        (222, 224, 230),
    ],
)
# Rich's own template loads its font from a host on the net; pictures here are complete in themselves.
SVG = """<svg class="rich-terminal" viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font-family: ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace;
  font-size: {char_height}px; line-height: {line_height}px; font-variant-east-asian: full-width; }}
{styles}
</style>
<defs><clipPath id="{unique_id}-clip-terminal">
<rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" /></clipPath>{lines}</defs>
<rect fill="#16181e" width="{width}" height="{height}" rx="8" />
<g transform="translate(12, 20)" clip-path="url(#{unique_id}-clip-terminal)">{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g></g>
</svg>
"""

TRANSCRIPT_STYLE = """body { font: 15px/1.5 system-ui, sans-serif; max-width: 50rem; margin: 1.5rem auto;
  color: #22272e; }
table { border-collapse: collapse; font-size: 13px; } th, td { border: 1px solid #d9dde2; padding: .2rem .6rem; }
blockquote { margin: 1rem 0; padding: .1rem 1rem; border-left: 4px solid #d9dde2; color: #5c6670; }"""
"""As the pages of a code host show Markdown."""


def picture(name: str, width: int, *arguments: str) -> None:
    """Hold a conversation with these arguments and draw it at `width` columns."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pidgin_cli", "chat", *arguments, "--display", "quiet"]
        subprocess.run(command, cwd=folder, check=True, env=os.environ | {"PIDGIN_OUTPUT": ""}, capture_output=True)
        (log,) = Path(folder).glob("pidgin_output/experiments/*/conv_*.jsonl")
        record = read_record(log)
    console = Console(record=True, width=width, force_terminal=True, color_system="truecolor", file=io.StringIO())
    display = ChatDisplay(console, show_thinking=True, following=False)
    for event in record.events:
        display.take(event)
    display.finish()
    save(console, name)


def save(console: Console, name: str) -> None:
    IMAGES.mkdir(exist_ok=True)
    console.save_svg(str(IMAGES / f"{name}.svg"), title="", theme=THEME, code_format=SVG, unique_id=name)


def blank(width: int) -> Console:
    return Console(
        record=True,
        width=width,
        force_terminal=True,
        color_system="truecolor",
        file=io.StringIO(),
        highlight=False,
        markup=False,
    )


def running_pictures() -> None:
    """Run experiments in processes of their own and draw what the monitor and the progress of a run show."""
    slow = "local:test?words=30&latency_ms=180"
    with tempfile.TemporaryDirectory() as folder:
        root = OutputRoot(Path(folder) / "pidgin_output")

        def command(*arguments: str) -> None:
            line = [sys.executable, "-m", "pidgin_cli", *arguments, "-o", str(root.path)]
            subprocess.run(line, cwd=folder, check=False, capture_output=True)

        flaky = f"{slow}&seed=3&fail=rate_limit:0.03,auth:0.002"
        grid = {
            "name": "attractor grid",
            "models": {"wren": f"{slow}&seed=1", "finch": f"{slow}&seed=2", "lark": flaky},
            "pairs": "all",
            "agents": [{"id": "a", "max_tokens": 60}, {"id": "b", "max_tokens": 60}],
            "openings": {"hello": "Hello.", "rivers": "What do you know about rivers?"},
            "max_turns": 30,
            "repetitions": 10,
            "seed": 5,
            "max_parallel": 24,
            "budget": {"tokens": 20_000_000},
        }
        spec = Path(folder) / "grid.yaml"
        spec.write_text(yaml.safe_dump(grid, sort_keys=False))
        command("run", "-a", "local:test", "-b", "local:test", "-t", "2", "-r", "20", "-n", "first look")
        command("run", "-a", "local:test", "-b", "local:test?fail=auth@4", "-t", "8", "-r", "4", "-n", "wrong key")
        command("run", "-a", slow, "-b", slow, "-t", "40", "-r", "6", "-n", "self-talk", "--max-parallel", "2", "-d")
        command("run", str(spec), "-d")
        watch = Watch(root)
        for _ in range(14):  # rates and use of the processor show between looks
            watch.refresh()
            watch.follow({watched.key: () for watched in watch.experiments})
            time.sleep(1)
        opened = next(watched for watched in watch.experiments if "grid" in watched.key)
        for name, dashboard in (("monitor", Dashboard(watch)), ("monitor-open", Dashboard(watch, opened=opened.key))):
            dashboard.draw(110, 22)
            watch.refresh()
            watch.follow(dashboard.looked_at())
            console = blank(110)
            console.print(dashboard.draw(110, 22))
            save(console, name)
        manifest = read_manifest(opened.folder)
        plan = expand(load(opened.folder.spec), opened.folder.experiment_id)
        budget = Budget(Caps(tokens=20_000_000), Caps(), Spent())
        now = [0.0]
        progress = RunProgress(
            lambda: manifest,
            turns=sum(each.max_turns for each in plan.values()),
            conversations=len(plan),
            budget=lambda: budget,
            clock=lambda: now[0],
        )
        for log in opened.folder.logs().values():
            for event in read_record(log).events:
                if isinstance(event, LISTENS_TO):
                    now[0] = max(now[0], (event.timestamp - manifest.created_at).total_seconds())
                    progress.take(event)
        console = blank(100)
        console.print(progress)
        save(console, "progress")
        command("stop", "--all", "--now")
        console = blank(100)
        short = next(watched.folder.experiment_id for watched in watch.experiments if "first-look" in watched.key)
        one, other = (f"{short}-{number}" for number in (1, 2))
        print_diff(console, compare(root, (one, other)))
        save(console, "diff")


def page_pictures() -> None:
    """Run a study in which one arm ends in loops, and photograph its report and a transcript in a browser."""
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        print("-- absent: chromium (the pictures of pages stay as they are)", file=sys.stderr)
        return
    talker = "local:test?words=45&echo=0.4"
    study = {
        "name": "free talk",
        "agents": [
            {"id": "a", "model": f"{talker}&loop_at=4", "name": "Wren"},
            {"id": "b", "model": talker, "name": "Finch"},
        ],
        "prompt": "You have complete freedom. Talk about whatever you like.",
        "sweep": {"b.model": {"open": talker, **{f"loop {n}": f"{talker}&loop_at={n}&loop_period=2" for n in (6, 11)}}},
        "interventions": [{"turn": 2, "inject": "Feel free to change the subject.", "to": "a"}],
        "max_turns": 20,
        "repetitions": 8,
        "seed": 5,
    }
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder) / "study.yaml"
        spec.write_text(yaml.safe_dump(study, sort_keys=False))
        line = [sys.executable, "-m", "pidgin_cli", "run", str(spec), "-o", str(Path(folder) / "out")]
        subprocess.run(line, cwd=folder, check=True, capture_output=True)
        (report,) = Path(folder).glob("out/experiments/*/report.html")
        # A choice of its figures, or the picture would be twelve screens high.
        shown = "figure:not(#figure-state_raster):not(#figure-message_lengths)"
        hidden = f"{shown}, figure details {{ display: none; }}</style>"
        report.write_text(report.read_text().replace("</style>", hidden, 1))
        photograph(browser, report, "report", 1000, 1250)
        talk = (report.parent / "transcripts").glob("conv_*-1.md")
        page = Path(folder) / "transcript.html"
        body = MarkdownIt("commonmark").enable("table").render(next(talk).read_text())
        page.write_text(f"<!doctype html><meta charset=utf-8><style>{TRANSCRIPT_STYLE}</style>{body}")
        photograph(browser, page, "transcript", 900, 1150)


def photograph(browser: str, page: Path, name: str, width: int, height: int) -> None:
    to = IMAGES / f"{name}.png"
    command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", f"--window-size={width},{height}"]
    subprocess.run([*command, f"--screenshot={to}", page.as_uri()], check=True, capture_output=True)


def main() -> None:
    """Draw all pictures."""
    picture(
        "chat-80",
        80,
        *("-a", "local:test?words=38&latency_ms=420&chunk_ms=12&thinking=1"),
        *("-b", "local:test?words=30&latency_ms=250&chunk_ms=9&fail=rate_limit@2"),
        *("--choose-names", "-t", "2", "--seed", "11", "-p", "What do you notice when nobody asks you anything?"),
    )
    picture(
        "chat-140",
        140,
        *("-a", "local:test?words=60&latency_ms=300&chunk_ms=9"),
        *("-b", "local:test?words=45&latency_ms=250&chunk_ms=9&fail=disconnect@1"),
        *("--agent", "c=local:test?words=30&latency_ms=200&chunk_ms=9"),
        *("-t", "1", "--seed", "4"),
    )
    running_pictures()
    page_pictures()


if __name__ == "__main__":
    main()
