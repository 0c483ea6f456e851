"""The recording of the demo that README shows: what a real run prints, drawn as a terminal by rich.

python docs/record.py    # writes docs/assets/demo.svg
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.terminal_theme import TerminalTheme
from rich.text import Text

SVG = Path(__file__).parent / "assets" / "demo.svg"
COMMANDS = (
    "taskvec demo tryout",
    "cd tryout",
    "taskvec transfer --target instruct --donor grpo --reference sft -o out --alpha 0.8",
)
WIDTH = 104
THEME = TerminalTheme(
    (24, 27, 33), (222, 226, 234),
    [(60, 64, 72), (240, 113, 120), (126, 200, 140), (232, 195, 108), (115, 170, 245), (196, 148, 240),
     (110, 200, 210), (222, 226, 234)],
    [(110, 116, 128), (250, 140, 145), (150, 220, 160), (245, 215, 140), (145, 190, 250), (215, 175, 250),
     (140, 220, 228), (250, 252, 255)],
)  # fmt: skip
# rich loads a font from elsewhere, which no page of ours does.
_FONT_FACE = re.compile(r"@font-face \{.*?\}\s*", re.DOTALL)


def run(commands: tuple[str, ...] = COMMANDS) -> list[tuple[str, str]]:
    """Each command and what it printed, stdout and stderr in order, with the colours of a terminal."""
    done = []
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        for command in commands:
            program, *words = command.split()
            if program == "cd":
                place = place / words[0]
                done.append((command, ""))
                continue
            result = subprocess.run(
                [sys.executable, "-m", "taskvec", *words],
                cwd=place,
                env={
                    **os.environ,
                    "FORCE_COLOR": "1",
                    "COLUMNS": str(WIDTH),
                    "HF_HUB_OFFLINE": "1",
                    "TASKVEC_PROGRESS": "none",
                },
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                check=True,
            )
            done.append(
                (command, result.stdout.replace(f"{Path(folder).resolve()}/", "").replace(folder, ""))
            )
    return done


def draw(done: list[tuple[str, str]]) -> str:
    """The session as SVG: text that can be selected and read out, and no font from elsewhere."""
    console = Console(record=True, width=WIDTH, file=open(os.devnull, "w", encoding="utf-8"))  # noqa: SIM115
    for command, printed in done:
        console.print(Text.assemble(("$ ", "bold green"), (command, "bold")))
        if printed:
            console.print(Text.from_ansi(printed.rstrip("\n")))
    svg = console.export_svg(title="taskvec", theme=THEME, unique_id="demo")
    return _FONT_FACE.sub("", svg).replace("Fira Code", "ui-monospace, Menlo, Consolas, DejaVu Sans Mono")


if __name__ == "__main__":
    SVG.write_text(draw(run()), encoding="utf-8")
    print(SVG)
