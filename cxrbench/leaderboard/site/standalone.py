"""A page of the site as one text that needs no other file: for panels that show a page by itself."""

import html
import re
from pathlib import Path

STYLE = '<link rel="stylesheet" href="style.css">'
# Links and scripts lead to files that are not there; the words of a link stay.
LINK = re.compile(r"<a\b[^>]*\bhref=\"(?!#)[^\"]*\"[^>]*>(.*?)</a>", re.DOTALL)
SCRIPT = re.compile(r"<script\b[^>]*></script>\n?")
POLICY = re.compile(r'(<meta http-equiv="Content-Security-Policy" content=")[^"]*(">)')
ALONE = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"


def standalone(page: Path) -> str:
    """The text of a page beside its style sheet, with the style inside and without links.

    Only for pages without figures: nothing of what they name is there. It still loads nothing from elsewhere.
    """
    text = page.read_text(encoding="utf-8")
    style = (page.parent / "style.css").read_text(encoding="utf-8")
    if STYLE not in text or "<img" in text:
        raise ValueError(f"{page}: not a page that can stand alone")
    text = SCRIPT.sub("", text.replace(STYLE, f"<style>\n{style}</style>"))
    return POLICY.sub(rf"\g<1>{html.escape(ALONE)}\g<2>", LINK.sub(r"\1", text))
