"""Draws the pictures of the README from real runs: `make pictures`.

Each run is a conversation of the embedded model, held by the real command in a folder of its own; the picture is what
`ChatDisplay` prints for its record at that width. Not part of `make check`: times and ids differ from run to run.
"""

import io
import os
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme

from pidgin_cli.eventlog.log import read_record
from pidgin_cli.monitor.chat import ChatDisplay

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
    IMAGES.mkdir(exist_ok=True)
    console.save_svg(str(IMAGES / f"{name}.svg"), title="", theme=THEME, code_format=SVG, unique_id=name)


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


if __name__ == "__main__":
    main()
