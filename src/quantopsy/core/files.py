"""Files that are there whole or not at all."""

from __future__ import annotations

from pathlib import Path

from quantopsy.core.errors import QuantopsyError


def write_file(path: str | Path, content: str | bytes, thing: str = "file") -> Path:
    """Write ``content`` to ``path``, in UTF-8 where it is text; its folder is made where there is none.

    ``thing`` is what messages call it. Raises :class:`QuantopsyError` where it cannot be written.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if path.exists() and not path.is_file():  # a pipe, a terminal
            path.write_bytes(data)
        else:
            temporary = path.with_name(f"{path.name}.new")
            temporary.write_bytes(data)
            temporary.replace(path)
    except OSError as error:
        reason = f"cannot be written ({error.strerror})"
        raise QuantopsyError(f"{thing} {str(path)!r}", reason, "give another") from error
    return path
