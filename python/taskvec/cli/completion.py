"""``taskvec completion``: what a shell needs to complete commands, options and values."""

from __future__ import annotations

import click

from taskvec.cli.console import Console
from taskvec.cli.options import argument, talk_options, verb

EXAMPLES = """
For this shell and those to come:
  taskvec completion bash >> ~/.bashrc
  taskvec completion zsh >> ~/.zshrc
  taskvec completion fish > ~/.config/fish/completions/taskvec.fish
"""


@verb("completion", examples=EXAMPLES)
@argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]), help="bash, zsh or fish.")
@talk_options("completion")
def command(console: Console, shell: str) -> int:
    """Print the script that lets SHELL complete commands, options, files, cached models and methods."""
    from click.shell_completion import get_completion_class

    from taskvec.cli import cli

    found = get_completion_class(shell)
    assert found is not None  # click has these three
    script = found(cli, {}, "taskvec", "_TASKVEC_COMPLETE").source()
    console.show(script.strip())
    console.emit({"shell": shell, "script": script})
    return 0
