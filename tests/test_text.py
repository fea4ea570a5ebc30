"""Text from files: what a person sees is what is there, and nothing is obeyed."""

import unicodedata

import pytest

from deepsz_caffe.text import printable


def test_every_character_that_acts_is_written_out():
    for code in (*range(0x3100), *range(0xD700, 0x10000), *range(0xE0000, 0xE0200)):
        shown = printable(chr(code))
        acts = unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp")
        assert not acts or (shown.isascii() and shown.startswith("\\")), hex(code)
        assert shown.isprintable(), hex(code)


@pytest.mark.parametrize("text", ["fc6", "x[/b]y", "卷积", "a\\b", "4 × 5 → 20 – ✓", ""])
def test_what_only_shows_stays(text):
    assert printable(text) == text
