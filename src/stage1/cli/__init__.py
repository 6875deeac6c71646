"""The command line, thin: parse, call, print. Results on stdout, everything else on stderr."""

from __future__ import annotations

import os
import sys

# Each registers its commands, in the order in which --help shows them.
from stage1.cli import runs, stages, use, support  # isort: skip
from stage1.cli import challenge  # isort: skip
from stage1.cli import streetvision  # isort: skip
from stage1.cli import reward  # isort: skip
from stage1.cli import cascade  # isort: skip
from stage1.cli.root import app
from stage1.errors import Stage1Error

__all__ = ["app", "cascade", "challenge", "main", "reward", "runs", "stages", "streetvision", "support", "use"]


def main() -> None:
    """Entry point: errors that a user can cause become one line on stderr and the exit code of DESIGN.md."""
    try:
        app()
    except Stage1Error as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (KeyboardInterrupt, SystemExit) as end:
        # Typer makes exits of its own of Ctrl-C (130, without a word) and of a reader of stdout that went away (1).
        if isinstance(end.__context__, BrokenPipeError):
            sys.exit(0)
        if isinstance(end, SystemExit) and end.code != 130:
            raise
        print("interrupted; run the same command to go on", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        # The reader of stdout went away (`| head`): not an error; stop Python from complaining at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except (OSError, MemoryError) as error:
        print(
            f"error: {getattr(error, 'filename', None) or 'system'}: {getattr(error, 'strerror', None) or error or 'out of memory'}",
            file=sys.stderr,
        )
        sys.exit(1)
