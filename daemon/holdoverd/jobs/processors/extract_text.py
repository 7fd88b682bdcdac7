"""``extract-text``: the words of a text, HTML, Office (docx, pptx, xlsx), OpenDocument or EPUB file, or a PDF.

PDF needs `pdftotext` (Debian: poppler-utils); the others are read here. What is none of these is
taken as text if it is UTF-8, and refused otherwise.
"""

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from xml.parsers import expat

from holdoverd.jobs.processors import DATA_ERROR, NO_INPUT, UNAVAILABLE, fail

PIECE_BYTES = 1 << 20
# What one part of an archive may unpack to: a small file can hold a very large part.
MAX_PART_BYTES = 256 << 20

# The parts of each kind of archive that hold words, in reading order.
_PARTS = re.compile(
    r"word/(document|footnotes|endnotes)\.xml|ppt/slides/slide\d+\.xml|xl/sharedStrings\.xml"
    r"|content\.xml|.*\.x?html?"
)
# Elements after which a line ends: paragraphs, rows, strings of a sheet.
_BREAKS = {"p", "h", "br", "tr", "table-row", "si", "h1", "h2", "h3", "h4", "h5", "h6", "li", "div"}
_SILENT = {"script", "style", "head"}


def main() -> None:
    path = Path(os.environ.get("HOLDOVER_FILE") or fail(NO_INPUT, "There is no file to read."))
    with path.open("rb") as file:
        begun = file.read(4)
    if begun == b"%PDF":
        pdf(path)
    elif begun == b"PK\x03\x04":
        archive(path)
    elif path.suffix.lower() in (".html", ".htm", ".xhtml"):
        html(plain(path))
    else:
        for piece in plain(path):
            sys.stdout.write(piece)


def plain(path: Path) -> Iterator[str]:
    """The text of a file that is UTF-8 (or UTF-16 with its mark)."""
    with path.open("rb") as file:
        mark = file.read(2)
    coding = "utf-16" if mark in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"
    try:
        with path.open(encoding=coding, newline="") as text:
            while piece := text.read(PIECE_BYTES):
                if "\0" in piece:
                    fail(DATA_ERROR, f"{path.name} is no text, PDF, Office or HTML file.")
                yield piece
    except UnicodeDecodeError:
        fail(DATA_ERROR, f"{path.name} is no text, PDF, Office or HTML file.")


def pdf(path: Path) -> None:
    program = shutil.which("pdftotext")
    if program is None:
        fail(UNAVAILABLE, "A PDF needs the program pdftotext here (Debian: poppler-utils).")
    sys.stdout.flush()
    done = subprocess.run(
        [program, "-q", "-enc", "UTF-8", str(path), "-"], stderr=subprocess.PIPE, check=False
    )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()
        fail(DATA_ERROR, f"pdftotext cannot read {path.name}: {said[-1] if said else 'no reason'}")


def archive(path: Path) -> None:
    try:
        with zipfile.ZipFile(path) as parts:
            names = sorted(filter(_PARTS.fullmatch, parts.namelist()), key=_in_order)
            if not names:
                fail(DATA_ERROR, f"{path.name} is an archive, and none of a document.")
            for name in names:
                if parts.getinfo(name).file_size > MAX_PART_BYTES:
                    fail(DATA_ERROR, f"{name} in {path.name} unpacks to more than it should.")
                data = parts.read(name)
                if name.endswith(("html", "htm")):
                    html(iter([data.decode(errors="replace")]))
                else:
                    xml(data)
                sys.stdout.write("\n")
    except (zipfile.BadZipFile, expat.ExpatError, NotImplementedError, RuntimeError) as error:
        fail(DATA_ERROR, f"{path.name} cannot be read: {error}")


def _in_order(name: str) -> list[str | int]:
    """slide2 before slide10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]


def xml(data: bytes) -> None:
    parser = expat.ParserCreate()

    def refuse(*_: object) -> None:
        # A document has no use for entities of its own, and some unfold without end.
        raise expat.ExpatError("it declares entities")

    def end(name: str) -> None:
        if name.rpartition(":")[2] in _BREAKS:
            sys.stdout.write("\n")

    parser.EntityDeclHandler = refuse
    parser.EndElementHandler = end
    parser.CharacterDataHandler = sys.stdout.write
    parser.Parse(data, True)


class _Words(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self._silent = 0

    def handle_starttag(self, tag: str, attrs: object) -> None:  # noqa: ARG002  the base's signature
        self._silent += tag in _SILENT
        if tag == "br":
            sys.stdout.write("\n")

    def handle_endtag(self, tag: str) -> None:
        self._silent = max(0, self._silent - (tag in _SILENT))
        if tag in _BREAKS:
            sys.stdout.write("\n")

    def handle_data(self, data: str) -> None:
        if not self._silent:
            sys.stdout.write(data)


def html(pieces: Iterator[str]) -> None:
    words = _Words()
    for piece in pieces:
        words.feed(piece)
    words.close()


if __name__ == "__main__":
    main()
