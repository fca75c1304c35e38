"""A file is there whole or not at all, or one line says why not."""

from __future__ import annotations

from pathlib import Path

import pytest

from quantopsy.core import QuantopsyError
from quantopsy.core.files import write_file


def test_text_and_bytes_are_written_where_no_folder_was(tmp_path) -> None:
    text, raw = tmp_path / "new" / "page.html", tmp_path / "new" / "model.onnx"
    assert write_file(str(text), "a é b\n") == text
    assert write_file(raw, b"\x00\xff") == raw
    assert text.read_bytes() == "a é b\n".encode()
    assert raw.read_bytes() == b"\x00\xff"
    assert {path.name for path in text.parent.iterdir()} == {"page.html", "model.onnx"}


def test_what_was_there_stays_where_writing_fails(tmp_path, monkeypatch) -> None:
    path = tmp_path / "recipe.json"
    write_file(path, "old")

    def full(self: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(QuantopsyError, match=r"^recipe '.*recipe.json': cannot be written \(No space left on device\)"):
        write_file(path, "new", "recipe")
    assert path.read_text() == "old"


def test_half_a_file_is_not_left_behind(tmp_path, monkeypatch) -> None:
    def stops(self: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", stops)
    with pytest.raises(QuantopsyError, match="cannot be written"):
        write_file(tmp_path / "page.html", "words")
    assert not list(tmp_path.iterdir())


def test_a_link_stays_one(tmp_path) -> None:
    (tmp_path / "kept").mkdir()
    link = tmp_path / "latest.html"
    link.symlink_to(tmp_path / "kept" / "page.html")
    assert write_file(link, "words") == link
    assert link.is_symlink()
    assert (tmp_path / "kept" / "page.html").read_text() == "words"


def test_a_folder_below_a_file_is_one_line(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(QuantopsyError, match=r"^page '.*': cannot be written \(.*\); give another$"):
        write_file(tmp_path / "file" / "page.html", "", "page")


def test_what_is_no_file_is_written_to_and_not_replaced() -> None:
    null = Path("/dev/null")
    assert write_file(null, "words") == null
    assert null.is_char_device()
