"""Text that comes from a file, made fit to be shown to a person."""

from __future__ import annotations


def printable(text: object) -> str:
    r"""Write out what a terminal or a browser would obey instead of show.

    Layer names, paths and messages may be a stranger's: control characters move the cursor, open
    links and change the window's title, marks of direction reorder what is read, a newline forges a
    line. All that Unicode calls not printable is written as Python writes it.

    >>> printable("fc\x1b[2J\n\u202etxt")
    'fc\\x1b[2J\\n\\u202etxt'
    """
    shown = str(text)
    if shown.isprintable():
        return shown
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
        for character in shown
    )
