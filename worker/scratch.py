"""Local copies of jobs that live in a bucket: one folder per process, one below it per job that is worked on now.

    {parent}/.lock, worker-{random}/.lock, worker-{random}/jobs/{job_id}/

A process holds the lock of its folder for as long as it lives, however it ends; a folder whose lock can be taken is
what a dead process left, and the next one that starts removes it.
"""

import fcntl
import os
import shutil
import stat
import tempfile
import threading
import uuid
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

LOCK = ".lock"


@dataclass
class Mirror:
    """One job's local copy.

    Attributes:
        root: its folder.
        tags: {key: tag} of the files that were fetched.
        lock: held while files are fetched.
        users: units of work that use it now.
    """

    root: Path
    tags: dict[str, str] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class Scratch:
    """The mirrors of this process; its folder is made when the first one is asked for.

    Args:
        parent: shared by the processes of a machine; None is one of this user's own among the temporary files.

    Attributes:
        folder: of this process; None until it is needed.
    """

    def __init__(self, parent: str | Path | None = None):
        self._parent = None if parent is None else Path(parent)
        self._lock = threading.Lock()
        self.folder: Path | None = None
        self._held: IO | None = None
        self._mirrors: dict[str, Mirror] = {}

    def take(self, job_id: str) -> Mirror:
        """The job's mirror, kept until everyone who took it has given it back.

        Raises:
            OSError: the folder cannot be made, or belongs to somebody else.
        """
        with self._lock:
            if self.folder is None:
                parent = _private_folder() if self._parent is None else self._parent
                self.folder, self._held = _claim_folder(parent)
            mirror = self._mirrors.setdefault(job_id, Mirror(self.folder / "jobs" / job_id))
            mirror.users += 1
            return mirror

    def give_back(self, job_id: str) -> None:
        """Undo one `take`; the last one removes the files."""
        with self._lock:
            mirror = self._mirrors.get(job_id)
            if mirror is None:  # closed meanwhile
                return
            mirror.users -= 1
            if mirror.users:
                return
            del self._mirrors[job_id]
            dropped = mirror.root.with_name(f".dropped-{uuid.uuid4().hex}")
            if mirror.root.exists():  # out of the way first: another unit of the job may start while this is removed
                mirror.root.replace(dropped)
        shutil.rmtree(dropped, ignore_errors=True)

    def close(self) -> None:
        """Remove this process's folder."""
        with self._lock:
            if self.folder is not None:
                shutil.rmtree(self.folder, ignore_errors=True)
                self._held.close()
                self.folder = self._held = None
                self._mirrors.clear()


def _private_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"slidereason-scratch-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    known = folder.lstat()
    if not stat.S_ISDIR(known.st_mode) or known.st_uid != os.getuid() or known.st_mode & 0o077:
        raise PermissionError(f"{folder} is not this user's alone; set SLIDEREASON_SCRATCH to a folder that is")
    return folder


def _claim_folder(parent: Path) -> tuple[Path, IO]:
    """A new folder of this process and its lock; what dead processes left beside it is removed."""
    parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    with (parent / LOCK).open("w") as gate:
        fcntl.flock(gate, fcntl.LOCK_EX)  # so that nobody takes a folder for a dead one's before its lock is held
        for other in parent.glob("worker-*"):
            if _is_left(other):
                shutil.rmtree(other, ignore_errors=True)
        folder = Path(tempfile.mkdtemp(prefix="worker-", dir=parent))
        held = (folder / LOCK).open("w")
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    return folder, held


def _is_left(folder: Path) -> bool:
    try:
        with (folder / LOCK).open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    except FileNotFoundError:
        return True
    except OSError:
        return False
