"""Check that the links of the Markdown files lead somewhere: files exist, headings exist.

Addresses of other sites are not visited; a check that needs the network fails for the wrong reasons.
"""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_LINK = re.compile(r"(?<!\!)\[[^\]]*\]\(([^)\s]+)\)")
_FENCE = re.compile(r"^(```|~~~).*?^\1", re.DOTALL | re.MULTILINE)
_HEADING = re.compile(r"^#+\s+(.+?)\s*$", re.MULTILINE)


def anchors(text: str) -> set[str]:
    """The anchors that the headings of `text` get, in the form that code hosts give them."""
    found = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        plain = re.sub(r"[^\w\- ]", "", re.sub(r"[`*]", "", heading).lower())
        found.add(plain.replace(" ", "-"))
    return found


def broken_links(file: Path) -> Iterator[str]:
    """Yield a sentence for every link of `file` that leads nowhere."""
    text = _FENCE.sub("", file.read_text(encoding="utf-8"))
    for target in _LINK.findall(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", target):
            continue
        path, _, anchor = target.partition("#")
        goal = (file.parent / path) if path else file
        if not goal.exists():
            yield f"{file}: there is no {target}"
        elif anchor and goal.suffix == ".md" and anchor not in anchors(goal.read_text("utf-8")):
            yield f"{file}: {path or file.name} has no heading #{anchor}"


def main() -> int:
    listed = subprocess.run(["git", "ls-files", "-z", "*.md"], stdout=subprocess.PIPE, check=True)
    files = [Path(name.decode()) for name in listed.stdout.split(b"\0") if name]
    broken = [line for file in files if file.exists() for line in broken_links(file)]
    for line in broken:
        print(line, file=sys.stderr)
    print(f"{len(files)} documents, {len(broken)} broken links", file=sys.stderr)
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
