"""``taskvec`` and ``python -m taskvec``: the command line, which ends in order from its first import on.

Nothing is imported before :func:`main` that could be interrupted, or find no memory, for long.
"""

from __future__ import annotations

import gc
import os

TYPE_CHECKING = False  # as in `taskvec`
if TYPE_CHECKING:
    from typing import NoReturn


def main() -> NoReturn:
    """The console entry point."""
    gc.disable()  # until the command line is there: modules stay, and the collector would look for 0.005 s
    try:
        from taskvec.cli import main as command_line

        command_line()
    except KeyboardInterrupt:
        _end(130, b"error: interrupted\n")
    except MemoryError:
        # what the command line says of it takes memory, and there was none for that either
        _end(2, b"error: out of memory\n  hint: free memory, then run the same command again\n")


def _end(code: int, message: bytes) -> NoReturn:
    """End at once: nothing has been begun, or all of it has ended, and no more can be counted on."""
    try:
        os.write(2, message)
    finally:
        os._exit(code)


if __name__ == "__main__":
    main()
