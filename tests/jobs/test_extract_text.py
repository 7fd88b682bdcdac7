"""`extract-text` as a program: what it makes of each kind of file."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


def extract(path: Path) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "holdoverd.jobs.processors.extract_text"],
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": str(ROOT / "daemon"),
            "HOLDOVER_FILE": str(path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def archive(path: Path, **parts: str) -> Path:
    with zipfile.ZipFile(path, "w") as file:
        for name, text in parts.items():
            file.writestr(name.replace("__", "/") + ".xml", text)
    return path


def test_each_kind_gives_its_words(tmp_path: Path) -> None:
    plain = tmp_path / "a.txt"
    plain.write_bytes("\ufeffä\r\nb".encode())
    assert extract(plain) == (0, "ä\nb", "")
    wide = tmp_path / "b.txt"
    wide.write_bytes("wide ü".encode("utf-16"))
    assert extract(wide)[:2] == (0, "wide ü")
    page = tmp_path / "c.html"
    page.write_text("<head><title>no</title></head><p>one &amp; <b>two</b></p><script>no</script>x")
    assert extract(page)[:2] == (0, "one & two\nx")
    word = archive(
        tmp_path / "d.docx",
        word__document='<w:d xmlns:w="w"><w:p><w:t>one</w:t></w:p><w:p><w:t>two</w:t></w:p></w:d>',
        word__styles="<no>no</no>",
    )
    assert extract(word)[:2] == (0, "one\ntwo\n\n")
    slides = archive(
        tmp_path / "e.pptx",
        **{f"ppt__slides__slide{n}": f'<a:p xmlns:a="a">{n}</a:p>' for n in (10, 2)},
    )
    assert extract(slides)[:2] == (0, "2\n\n10\n\n")


@pytest.mark.parametrize("content", [b"\x89PNG\0\0", b"PK\x03\x04broken", b"a\0b"])
def test_what_has_no_words_is_refused_for_good(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.bin"
    path.write_bytes(content)
    status, out, said = extract(path)
    assert (status, out) == (65, "")
    assert "x.bin" in said


def test_a_document_that_unfolds_is_refused(tmp_path: Path) -> None:
    bomb = '<!DOCTYPE d [<!ENTITY a "aaaa"><!ENTITY b "&a;&a;">]><d>&b;</d>'
    status, _, said = extract(archive(tmp_path / "b.docx", word__document=bomb))
    assert status == 65
    assert "declares entities" in said
