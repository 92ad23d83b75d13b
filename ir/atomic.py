"""Output that appears whole or not at all."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InterlinguaError, UsageError

_DISK_FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


@contextmanager
def atomic_folder(
    folder: str | os.PathLike[str], *, names: Iterable[str] = (), removes: Iterable[str] = (), overwrite: bool = False
) -> Iterator[Path]:
    """A temporary folder whose files move into `folder` together when the block ends well, and vanish when it does not.

    A `folder` that does not exist is made; one that does keeps the files that the block did not write. `names` are files that the block is known
    to write, so that an existing one is refused before the work and not after it; `removes` are old files that the new ones put out of use.

    Raises UsageError where a file exists and `overwrite` is false, or where the place cannot be written to; InterlinguaError where the disk is full.
    """
    import secrets
    import shutil

    folder = Path(folder)
    removes = [name for name in removes if os.path.lexists(folder / name)]
    home = next(p for p in (folder, *folder.absolute().parents) if os.path.lexists(p))  # the file system that the files will live on
    if not home.is_dir():
        raise UsageError(f"output {folder}: {home} is a file, expected a folder")
    _refuse_existing(folder, [*names, *removes], overwrite)
    staging = home / f".interlingua-{secrets.token_hex(6)}.partial"  # not tempfile: its folders are closed to the group, and the output would be
    try:
        staging.mkdir()
    except OSError as error:
        raise UsageError(f"output {folder} cannot be written to: {error.strerror}") from error
    try:
        yield staging
        _publish(staging, folder, removes, overwrite)
    except OSError as error:
        if not _disk_full(error):
            raise
        reason = error.strerror or str(error)
        raise InterlinguaError(
            f"output {folder}: the disk is full ({reason}), nothing was written\n  free some space or choose another place"
        ) from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def atomic_file(path: str | os.PathLike[str], *, overwrite: bool = False) -> Iterator[Path]:
    """A temporary path that becomes `path` when the block ends well, and vanishes when it does not; errors as for `atomic_folder`."""
    path = Path(path)
    with atomic_folder(path.parent, names=[path.name], overwrite=overwrite) as staging:
        yield staging / path.name


def _refuse_existing(folder: Path, names: Iterable[str | Path], overwrite: bool) -> None:
    existing = sorted({str(name) for name in names if os.path.lexists(folder / name)})
    if folders := [name for name in existing if (folder / name).is_dir()]:
        raise UsageError(f"output {folder / folders[0]} is a folder, expected to write a file there")
    if existing and not overwrite:
        what = existing[0] if len(existing) == 1 else f"{existing[0]} and {len(existing) - 1} more"
        raise UsageError(f"output {folder} already has {what}\n  overwrite it (--overwrite, overwrite=True) or choose another place")


def _publish(staging: Path, folder: Path, removes: list[str], overwrite: bool) -> None:
    """Move what was staged into place; where a move fails, those before it are taken back."""
    if not os.path.lexists(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.rename(staging, folder)
        return
    files = sorted(p.relative_to(staging) for p in staging.rglob("*") if not p.is_dir())
    _refuse_existing(folder, files, overwrite)
    undo: list[tuple[Path, Path]] = []
    try:
        for name in files:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            kept = _keep(staging, folder, name, undo) if os.path.lexists(folder / name) else None
            os.replace(staging / name, folder / name)
            if kept is None:
                undo.append((folder / name, staging / name))
        for name in {Path(r) for r in removes} - set(files):
            _keep(staging, folder, name, undo)
            (folder / name).unlink(missing_ok=True)
    except BaseException:
        for now, before in reversed(undo):
            os.replace(now, before)
        raise


def _keep(staging: Path, folder: Path, name: Path, undo: list[tuple[Path, Path]]) -> Path:
    """Keep the old file until all moves are done; by a hard link where there are such, so that no reader finds it missing."""
    kept = staging / ".replaced" / name
    kept.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(folder / name, kept, follow_symlinks=False)
    except (OSError, NotImplementedError):
        os.rename(folder / name, kept)
    undo.append((kept, folder / name))
    return kept


def _disk_full(error: OSError) -> bool:
    # NumPy's tofile reports a short write without an errno
    return error.errno in _DISK_FULL or (error.errno is None and "requested and" in str(error))
