"""The files of a leaderboard, each a function of its tables alone."""

from pathlib import Path

from cxrbench.core.store import write_atomic
from cxrbench.leaderboard.export.document import to_json
from cxrbench.leaderboard.export.latex import to_latex
from cxrbench.leaderboard.export.longform import to_parquet
from cxrbench.leaderboard.markdown import pairs_to_csv, to_csv, to_markdown
from cxrbench.leaderboard.rows import Table

NAMES = (
    "LEADERBOARD.md",
    "leaderboard.csv",
    "pairwise.csv",
    "leaderboard.tex",
    "leaderboard.parquet",
    "leaderboard.json",
)


def write_tables(tables: list[Table], excluded: list[str], folder: Path) -> list[Path]:
    """Write the tables to a folder in every form; the paths, the one for reading first."""
    contents = (
        to_markdown(tables, excluded).encode(),
        to_csv(tables).encode(),
        pairs_to_csv(tables).encode(),
        to_latex(tables).encode(),
        to_parquet(tables),
        to_json(tables, excluded).encode(),
    )
    paths = [folder / name for name in NAMES]
    for path, content in zip(paths, contents, strict=True):
        write_atomic(path, content)
    return paths
