"""A record's numbers of its paper, less those that are known to stand there by mistake."""

from functools import lru_cache
from pathlib import Path
from typing import Any

from cxrbench.core.frozen import Frozen
from cxrbench.core.record import Record
from cxrbench.core.reported import MEANS, SHARES, PaperMetric, Share
from cxrbench.core.yamlfile import read_yaml

TITLES = {**MEANS, **SHARES}
FILE = Path(__file__).with_name("withdrawn.yaml")


class Withdrawn(Frozen):
    """Numbers that some records carry and that are none of theirs."""

    method: str
    dataset: str
    data: dict[str, Any] = {}
    params: dict[str, Any] = {}
    macro: dict[PaperMetric, Share]
    why: str

    def fits(self, record: Record) -> bool:
        """Whether the record is one of those."""
        given = ((self.data, record.dataset_params), (self.params, record.params))
        return (
            record.method == self.method
            and record.dataset == self.dataset
            and all(has.get(key) == value for wanted, has in given for key, value in wanted.items())
        )

    def names(self, macro: dict[str, Any]) -> list[PaperMetric]:
        """The metrics of a record's numbers that are withdrawn."""
        return [name for name, value in self.macro.items() if macro.get(name) == value]


@lru_cache(maxsize=1)
def withdrawals() -> tuple[Withdrawn, ...]:
    """The entries of `withdrawn.yaml`."""
    entries = enumerate(read_yaml(FILE))
    return tuple(Withdrawn.parse(entry, where=f"{FILE}: entry {i}") for i, entry in entries)


def paper_numbers(record: Record) -> tuple[dict[str, Any] | None, list[str]]:
    """(the record's `reported` without what is withdrawn, sentences on what was)."""
    reported = record.reported
    macro = (reported or {}).get("macro")
    if reported is None or not isinstance(macro, dict):
        return reported, []
    kept, said = dict(macro), []
    for entry in withdrawals():
        if entry.fits(record):
            gone = {name: kept.pop(name) for name in entry.names(kept)}
            said += [
                f"the paper's {TITLES[name]} {gone[name]} is withdrawn: {entry.why}"
                for name in gone
            ]
    if not said:
        return reported, []
    return ({**reported, "macro": kept} if kept else None), said
