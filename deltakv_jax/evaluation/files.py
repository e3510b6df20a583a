"""Files that are at no time incomplete, and places checked before a long run."""

import os
from pathlib import Path

from deltakv_jax.errors import UserError


def check_writable(path: Path, option: str) -> None:
    """Raises UserError where no file can be made at `path`; better now than after the run."""
    if path.is_dir():
        raise UserError(f"{option} {path} is a folder; give a file's name")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UserError(f"{option} {path}: cannot write in the folder {str(path.parent)!r}")


def write_atomically(path: Path, content: bytes, option: str) -> None:
    """Writes a file: what was there stays until the new content is on disk and takes its place.

    Raises:
      UserError: where that fails, naming the `option` that asked for it.
    """
    part = path.with_name(f".{path.name}.part")
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    except OSError as error:
        raise UserError(f"{option} {path}: {error.strerror}") from None
    finally:
        part.unlink(missing_ok=True)
