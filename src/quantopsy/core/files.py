"""Files that are there whole or not at all."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from quantopsy.core.errors import QuantopsyError


def write_file(path: str | Path, content: str | bytes, thing: str = "file") -> Path:
    """Write ``content`` to ``path``, in UTF-8 where it is text; its folder is made where there is none.

    ``thing`` is what messages call it. Raises :class:`QuantopsyError` where it cannot be written.
    """
    path = Path(path)
    data = content.encode() if isinstance(content, str) else content
    target = path.resolve()  # a link stays one
    temporary = target.with_name(f"{target.name}.new")
    try:
        if path.exists() and not path.is_file():  # a pipe, a terminal
            path.write_bytes(data)
        else:
            target.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_bytes(data)
            temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        reason = f"cannot be written ({error.strerror})"
        raise QuantopsyError(f"{thing} {str(path)!r}", reason, "give another") from error
    return path
