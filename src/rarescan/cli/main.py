"""The way in from the command line: `main` runs a verb and maps errors to exit codes.

A problem that a person can solve is one line with its remedy; only bugs show a traceback.
Results go to stdout, everything else to stderr.
"""

import signal
import sys
from types import FrameType

import psutil
import typer

from rarescan.errors import ExitCode, RarescanError, disk_full
from rarescan.progress import show_log

app = typer.Typer(
    help="Generative data augmentation for rare-disease MRI: from a PACS export to a verdict.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,  # pretty tracebacks show local values, and so identifiers
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def main() -> None:
    """Run the command line and exit with the right status."""
    show_log()
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, _stop)
    # Their commands register themselves on `app`.
    from rarescan.cli import bench, beside, classify, compress, echo, grid, verbs  # noqa: F401

    try:
        app()
    except RarescanError as error:
        _end(error, error.exit_code)
    except OSError as error:
        full = disk_full(error)
        if full is None:
            raise
        _end(full, full.exit_code)


def _end(error: RarescanError, code: ExitCode) -> None:
    _say(f"rarescan: {error.problem} {error.remedy}", code)


def _say(text: str, code: ExitCode) -> None:
    sys.stderr.write(" ".join(text.split()) + "\n")
    sys.exit(int(code))


def _stop(number: int, _frame: FrameType | None) -> None:
    """Ask running jobs to save their work, and end (Prefect's own server ends by itself)."""
    for child in psutil.Process().children(recursive=True):
        child.terminate()
    interrupted = number == signal.SIGINT
    code = ExitCode.INTERRUPTED if interrupted else ExitCode.TERMINATED
    _say("rarescan: Interrupted. Repeat the command to continue.", code)
