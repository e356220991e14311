"""Floor 5: the command line. No logic, and nothing heavy is imported until a command needs it."""

import sys
from typing import Annotated

import typer

from cxrbench import __version__
from cxrbench.cli import bench, board, data, models, perf, robustness, tools
from cxrbench.core.errors import CxrbenchError

app = typer.Typer(
    name="cxrbench",
    help="A multi-task benchmark suite for chest X-ray deep learning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # its imports are half the time of `--help`
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"cxrbench {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_show_version, is_eager=True, help="Show the version and exit."
        ),
    ] = False,
) -> None:
    pass


for module in (bench, models, robustness, board, tools, perf, data):
    module.register(app)


def _by_ctrl_c(end: BaseException) -> bool:
    """Whether this is a KeyboardInterrupt, or the silent exit with code 130 that typer makes of one."""
    if isinstance(end, SystemExit) and end.code != 130:
        return False
    cause = end.__cause__ or end.__context__
    return isinstance(end, KeyboardInterrupt) or (cause is not None and _by_ctrl_c(cause))


def main() -> None:
    """The `cxrbench` command: errors become one message and an exit code."""
    try:
        app()
    except CxrbenchError as error:
        print(f"cxrbench: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except (SystemExit, KeyboardInterrupt) as end:
        if not _by_ctrl_c(end):
            raise
        print("cxrbench: interrupted; the same command goes on from here", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
