"""Files that are written whole or not at all, and what a disk's refusal means to a user."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from diffprobe.errors import UserError


@contextmanager
def whole(target: Path) -> Iterator[Path]:
    """A path to write to that becomes `target` only once it is complete and on the disk."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.partial")
    try:
        yield partial
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        partial.replace(target)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


@contextmanager
def explained(path: Path) -> Iterator[None]:
    """Turn the disk's refusals to write to `path` into a UserError, one line that names the fix, with exit code 4."""
    try:
        yield
    except OSError as error:
        told = _REMEDIES.get(error.errno or 0) or f"{error.strerror or str(error).splitlines()[0]}: choose another --out"
        raise UserError(f"cannot write to {path}: {told}", exit_code=4) from error


_AGAIN = "then run the same command again; what was measured is kept"
_REMEDIES = {
    errno.ENOSPC: f"the disk is full: free some space, {_AGAIN}",
    errno.EDQUOT: f"the disk quota is used up: free some space, {_AGAIN}",
    errno.EFBIG: f"a file would be larger than allowed here: raise the limit (`ulimit -f`), {_AGAIN}",
    errno.EROFS: "the disk is read-only: choose another --out",
    errno.EACCES: "no permission to write there: choose another --out",
    errno.EPERM: "no permission to write there: choose another --out",
    errno.EEXIST: "a file of that name is in the way: choose another --out",
    errno.ENOTDIR: "a file of that name is in the way: choose another --out",
}
