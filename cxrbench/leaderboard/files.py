"""The files of a leaderboard, each a function of its tables alone."""

from pathlib import Path

from cxrbench.core.store import write_atomic
from cxrbench.leaderboard.export.document import to_json
from cxrbench.leaderboard.export.latex import to_latex
from cxrbench.leaderboard.export.longform import to_parquet
from cxrbench.leaderboard.markdown import pairs_to_csv, to_csv, to_markdown
from cxrbench.leaderboard.rows import Table


def write_tables(tables: list[Table], excluded: list[str], folder: Path) -> list[Path]:
    """Write the tables to a folder in every form; the paths, the one for reading first."""
    files = {
        "LEADERBOARD.md": to_markdown(tables, excluded).encode(),
        "leaderboard.csv": to_csv(tables).encode(),
        "pairwise.csv": pairs_to_csv(tables).encode(),
        "leaderboard.tex": to_latex(tables).encode(),
        "leaderboard.parquet": to_parquet(tables),
        "leaderboard.json": to_json(tables, excluded).encode(),
    }
    for name, data in files.items():
        write_atomic(folder / name, data)
    return [folder / name for name in files]
