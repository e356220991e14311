"""Floor 5: the command line. No logic, and nothing heavy is imported until a command needs it."""

import sys

import typer

from cxrbench.cli import bench, board, data, models, perf, robustness, tools
from cxrbench.core.errors import CxrbenchError

app = typer.Typer(
    name="cxrbench",
    help="A multi-task benchmark suite for chest X-ray deep learning.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for module in (bench, models, robustness, board, tools, perf, data):
    module.register(app)


def _by_ctrl_c(end: BaseException) -> bool:
    """Whether an exit stands for a KeyboardInterrupt, which typer turns into a silent one with code 130."""
    cause = end.__cause__ or end.__context__
    return cause is not None and (isinstance(cause, KeyboardInterrupt) or _by_ctrl_c(cause))


def main() -> None:
    """The `cxrbench` command: errors become one message and an exit code."""
    try:
        app()
    except CxrbenchError as error:
        print(f"cxrbench: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except SystemExit as end:
        if _by_ctrl_c(end):
            print("cxrbench: interrupted; the same command goes on from here", file=sys.stderr)
        raise
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
