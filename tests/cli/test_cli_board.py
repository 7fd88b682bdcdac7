"""What a session looks like on a terminal: blocks, folds, keys and the line. No I/O."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from holdover.board import Board
from holdover.cursor import Event, Stored, Text
from holdover.keys import Editor, Key, Keys
from holdover.markdown import Blocks, Painter, crop
from holdover.render import Style

TEXT = """\
# Head

Some *words*
over two lines.

* one

  still one
* two

```python
x = 1

y = 2
```
after

1. a

   ```
   in a list

   ```

2. b
"""


@given(st.lists(st.integers(0, len(TEXT)), max_size=30))
def test_blocks_are_the_same_however_the_text_is_cut(cuts: list[int]) -> None:
    whole = Blocks()
    expected = whole.feed(TEXT) + whole.finish()
    places = [0, *sorted(cuts), len(TEXT)]
    blocks, found = Blocks(), list[str]()
    for begin, end in pairwise(places):
        found += blocks.feed(TEXT[begin:end])
        assert "".join(found).replace("\n", "") + blocks.tail().replace("\n", "") == TEXT[
            :end
        ].replace("\n", "")
    assert found + blocks.finish() == expected


def test_a_block_is_whole_once_nothing_can_be_added_to_it() -> None:
    blocks = Blocks()
    assert blocks.feed("# Head\n\n") == []
    assert blocks.feed("S") == ["# Head\n\n"]
    assert blocks.feed("ome\n\n  indented goes with it\n\n") == []
    assert blocks.feed("```py\na\n\nb\n") == ["Some\n\n  indented goes with it\n\n"]
    assert blocks.tail() == "```py\na\n\nb\n"
    assert blocks.feed("```\n") == ["```py\na\n\nb\n```\n"]
    assert blocks.finish() == []


@given(st.text(max_size=200))
def test_no_text_is_lost_between_blocks(text: str) -> None:
    blocks = Blocks()
    found = "".join(blocks.feed(text) + blocks.finish())
    assert found.split() == text.split()


def test_markdown_is_drawn_within_the_width_and_hides_no_link() -> None:
    lines = Painter(colour=False).lines("**bold** [here](http://x.example) " + "word " * 40, 40)
    assert all(len(line) <= 40 for line in lines)
    assert "bold here (http://x.example)" in lines[0]
    assert "\x1b" not in "".join(lines)
    coloured = "".join(Painter(colour=True).lines("**bold** [here](http://x.example)", 60))
    assert "\x1b[1m" in coloured
    assert "\x1b]8" not in coloured


@pytest.mark.parametrize(
    ("text", "width", "end", "expected"),
    [
        ("abc", 3, False, "abc"),
        ("abcd", 3, False, "ab…"),
        ("abcd", 3, True, "…cd"),
        ("日本語", 5, False, "日本…"),
        ("日本語", 4, True, "…語"),
    ],
)
def test_cropping_counts_cells(text: str, width: int, end: bool, expected: str) -> None:
    assert crop(text, width, end=end) == expected


# --- the board -----------------------------------------------------------------------------------


class Shown:
    """A board without colours, and what has scrolled by."""

    def __init__(self) -> None:
        painter = Painter(colour=False)
        self.board = Board(Style(False), lambda text: painter.lines(text, 60), set())
        self.text = ""
        self._seq = 0

    def feed(self, event: Event) -> None:
        self.text += self.board.render(event)

    def stored(self, kind: str, body: object, thread: str = "main", **more: object) -> None:
        self._seq += 1
        message = {"seq": self._seq, "kind": kind, "thread": thread, "body": body, **more}
        self.feed(Stored(message))

    def says(
        self, *content: object, thread: str = "main", shown: dict[int, int] | None = None
    ) -> None:
        self._seq += 1
        body = {"message": {"content": list(content)}}
        message = {"seq": self._seq, "kind": "assistant", "thread": thread, "body": body}
        self.feed(Stored(message, shown or {}))

    def result(self, tool: str, content: str, *, is_error: bool = False) -> None:
        part = {"type": "tool_result", "tool_use_id": tool, "content": content}
        self.stored("user", {"message": {"content": [{**part, "is_error": is_error}]}})

    @property
    def live(self) -> str:
        return "\n".join(self.board.live(20))


def call(tool: str, name: str = "Bash", **given: object) -> dict[str, object]:
    return {"type": "tool_use", "id": tool, "name": name, "input": given}


def test_streamed_markdown_stays_once_its_block_is_whole() -> None:
    shown = Shown()
    for word in ("# He", "ad\n\nSome **wo", "rds** and"):
        shown.feed(Text("text", word, word == "# He"))
    assert "Head" in shown.text
    assert "Some words and" in shown.live
    assert "Some" not in shown.text
    text = "# Head\n\nSome **words** and more"
    shown.says({"type": "text", "text": text}, shown={0: len("# Head\n\nSome **words** and")})
    assert shown.text.count("Some words and more") == 1
    assert shown.live == ""


def test_a_tool_call_is_one_line_with_what_became_of_it() -> None:
    shown = Shown()
    shown.says(call("t1", command="ls -l"), call("t2", "Read", file_path="/x"))
    assert shown.text == ""
    assert shown.live == "○ Bash(ls -l) …\n○ Read(/x) …"
    shown.result("t1", "a\nb\nc\n")
    shown.result("t2", "no such file", is_error=True)
    assert shown.text == "● Bash(ls -l) · 3 lines\n✗ Read(/x) · no such file\n"
    assert shown.live == ""
    # The latest can be looked into.
    assert shown.board.unfolded() == "  │ file_path: /x\n  │ \n  │ no such file\n"


def test_a_sub_agent_is_one_line_that_counts_its_steps() -> None:
    shown = Shown()
    shown.says(call("A", "Agent", description="look around"))
    shown.board.note_threads(
        [{"thread": "A", "parent_thread": "main"}, {"thread": "B", "parent_thread": "A"}]
    )
    shown.says({"type": "text", "text": "from below"}, call("x"), thread="A")
    shown.says({"type": "text", "text": "from further below"}, thread="B")
    assert shown.live == "○ Agent(look around) · 2 steps …"
    shown.result("A", "all\nof it")
    assert shown.text == "● Agent(look around) · 2 steps\n"


def test_thinking_is_folded_to_a_line() -> None:
    shown = Shown()
    shown.feed(Text("thinking", "let me see\n", True))
    shown.feed(Text("thinking", "what there is", False))
    assert shown.live.startswith("~ let me see what there is")
    shown.feed(Text("text", "Here", True))
    assert shown.text == "~ let me see what there is\n"
    assert "what there is" in shown.board.unfolded()


def test_calls_that_got_no_result_do_not_stay_below_for_ever() -> None:
    shown = Shown()
    shown.says(call("t1", command="sleep 9"))
    shown.stored("result", {"subtype": "error_during_execution", "is_error": True})
    assert shown.live == ""
    assert "○ Bash(sleep 9)\n" in shown.text
    assert "failed" in shown.text


@given(st.text(alphabet=st.characters(blacklist_categories=()), max_size=80))
def test_nothing_an_agent_says_reaches_the_terminal_as_a_control(text: str) -> None:
    shown = Shown()
    shown.feed(Text("text", text, True))
    shown.says({"type": "text", "text": text}, {"type": "thinking", "thinking": text})
    shown.says(call("t", text or "x", command=text))
    said = shown.text + shown.live
    shown.result("t", text)
    shown.stored("answer", {"outcome": text, "message": text, "answered_by": text}, request_id="p")
    said += shown.text + shown.live + shown.board.unfolded()
    assert all(
        char == "\n" or char.isprintable() or char.isspace() for char in said if char < "\x80"
    )
    assert "\x1b" not in said


# --- keys ----------------------------------------------------------------------------------------


def names(data: bytes) -> list[str]:
    return [key.text or key.name for key in Keys().feed(data)]


def test_keys_are_known_by_what_terminals_send() -> None:
    assert names(b"a\x1b[A\x1bOB\x1b[1;5C\x7f\r\x04") == [
        "a",
        "up",
        "down",
        "backspace",
        "enter",
        "eof",
    ]
    assert names("é日".encode()) == ["é", "日"]
    assert names(b"\x1b") == ["escape"]
    assert names(b"\x1b[200~two\r\nlines\x1b[201~x") == ["two\nlines", "x"]


@given(
    st.lists(
        st.sampled_from([b"a", "é".encode(), b"\x1b[A", b"\x1b[200~p\rq\x1b[201~", b"\r"]),
        max_size=8,
    ),
    st.data(),
)
def test_keys_are_the_same_however_bytes_are_cut(pressed: list[bytes], data: st.DataObject) -> None:
    whole = b"".join(pressed)
    # A lone escape is a key: everything else may come in pieces.
    keys, found, rest = Keys(), list[Key](), whole
    while rest:
        cut = data.draw(st.integers(1, len(rest)))
        if rest[:cut].endswith(b"\x1b"):
            cut = min(len(rest), cut + 1)
        found += keys.feed(rest[:cut])
        rest = rest[cut:]
    assert found == Keys().feed(whole)


def test_the_line_is_edited_and_remembered() -> None:
    editor = Editor()

    def typed(data: bytes) -> list[str]:
        lines = [editor.press(key) for key in Keys().feed(data)]
        return [line for line in lines if line is not None]

    assert typed(b"helo\x1b[Dl\x1b[C world\r") == ["hello world"]
    assert typed(b"one two\x17three\r") == ["one three"]
    assert typed(b"\x1b[A\x1b[A\r") == ["hello world"]
    assert typed(b"gone\x15kept\r") == ["kept"]
    assert typed(b"abc\x01\x0bx\r") == ["x"]


@given(st.binary(max_size=200))
def test_no_bytes_break_the_line(data: bytes) -> None:
    editor = Editor()
    for key in Keys().feed(data):
        editor.press(key)
        assert 0 <= editor.at <= len(editor.text)
