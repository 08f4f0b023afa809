"""One job in this process, without a broker: the same ledger, pipeline and files as in a service."""

import hashlib
import json
import os
import shutil
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from model.segmenter import Segmenter
from worker.artifacts import LocalArtifacts
from worker.engine import Engine
from worker.errors import BadRequest, JobDismissed, SlideReasonError
from worker.exemplar import PICTURE
from worker.ledger import JobRow, Ledger
from worker.tasks import AWAY, Runner
from worker.types import JobSpec

RESULTS = ("overlay.zarr", "regions.geojson", "report.json", "report.html")
"""What a job leaves in the output folder."""

MAYBE = (PICTURE,)
"""What only some jobs leave there as well."""

PARTIAL = ".partial-"
"""Work in progress lies in `OUT/.partial-{pid}`: on the same disk, so that results appear by rename."""

BLOCK_THREADS = 2


@dataclass(frozen=True)
class InlineResult:
    """A finished job: its row, and where its results are."""

    job: JobRow
    folder: Path

    @property
    def answer(self) -> str:
        """The answer in words."""
        return self.job.result["answer"]


def run_job_inline(
    spec: JobSpec,
    out_dir: str | Path,
    segmenter: Segmenter,
    progress: Callable[[JobRow, int], None] | None = None,
    overwrite: bool = False,
) -> InlineResult:
    """Run one job to its end.

    Args:
        spec: what is asked; `slide_path` is read in place.
        out_dir: gets `RESULTS`, what applies of `MAYBE`, and nothing else; nothing at all when the job fails.
        segmenter: answers; its name need not be `spec.model`.
        progress: called now and then with the job and the number of tiles through.
        overwrite: replace the results of an earlier run.

    Returns:
        The finished job.

    Raises:
        BadRequest: `out_dir` cannot be used (`field` is `out`), or the spec is not accepted.
        SlideReasonError: whatever ended the job, as it was raised.
    """
    out_dir = Path(out_dir)
    made = _prepare(out_dir, overwrite)
    workspace = out_dir / f"{PARTIAL}{os.getpid()}"
    try:
        workspace.mkdir()
        job = _run(spec, workspace, segmenter, progress)
        folder = LocalArtifacts(workspace).job_folder(job.job_id)
        for name in (*RESULTS, *MAYBE):
            _remove(out_dir / name)
            if name in RESULTS or (folder / name).exists():
                (folder / name).replace(out_dir / name)
    except OSError as error:
        if isinstance(error, SlideReasonError):
            raise
        raise BadRequest(f"the output folder cannot be written: {error.strerror or error}", field="out") from error
    finally:
        shutil.rmtree(workspace, ignore_errors=True)
        for folder in made:
            if not any(folder.iterdir()):
                folder.rmdir()
    return InlineResult(job, out_dir)


def _run(spec: JobSpec, workspace: Path, segmenter: Segmenter, progress: Callable | None) -> JobRow:
    ledger = Ledger(f"sqlite:///{workspace.resolve() / 'ledger.sqlite'}")
    errors: list[Exception] = []
    counts: dict[str, int] = {}
    try:
        job_id, _ = ledger.create_job(spec, job_id=_job_id(spec))
        with Engine(segmenter) as engine:
            runner = Runner(
                ledger, LocalArtifacts(workspace, durable=False), engine, "inline", (spec.model,),
                progress=lambda work, done, failed: counts.update({work.key: done + failed}),
                on_error=lambda _, error: _note(runner, errors, error),
            )  # fmt: skip
            _drain(runner, ledger, job_id, lambda job: progress and progress(job, sum(counts.values())))
        job = ledger.job(job_id)
    finally:
        ledger.close()
    if job.status != "successful":
        raise _reason(job, errors)
    return job


def _drain(runner: Runner, ledger: Ledger, job_id: str, tell: Callable[[JobRow], Any]) -> None:
    """Run units on a few threads until the job is closed; the caller's thread reports."""

    def work() -> None:
        while not over.is_set() and not runner.stopping.is_set():
            if not runner.run_one() and not over.wait(0.05) and not ledger.job(job_id).open:
                return

    over = threading.Event()
    threads = [threading.Thread(target=work, name=f"block-{i}") for i in range(BLOCK_THREADS)]
    for thread in threads:
        thread.start()
    try:
        while any(thread.is_alive() for thread in threads):
            threads[0].join(0.2)
            tell(ledger.job(job_id))
    finally:
        over.set()
        runner.stop()
        for thread in threads:
            thread.join()


def _note(runner: Runner, errors: list[Exception], error: Exception) -> None:
    """A service waits for a full disk to be emptied; somebody at a terminal is told at once."""
    errors.append(error)
    if isinstance(error, AWAY) and not isinstance(error, SlideReasonError):
        runner.stop()


def _reason(job: JobRow, errors: list[Exception]) -> Exception:
    """The error that ended the job: the very one when it was seen, else what the ledger kept of it."""
    for error in reversed(errors):
        if str(error) == job.message or job.status != "failed" or job.error_code == "internal":
            return error
    if job.open:
        return JobDismissed("the job was stopped", subject=job.job_id)
    return SlideReasonError(job.message or f"the job ended {job.status}", field=job.error_field)


def _job_id(spec: JobSpec) -> str:
    """The same question about the same file gives the same ids of job and regions."""
    asked = json.dumps(spec.to_json(), sort_keys=True)
    return hashlib.blake2b(asked.encode(), digest_size=16).hexdigest()


def _prepare(out_dir: Path, overwrite: bool) -> list[Path]:
    """Make the output folder, refuse one in use; returns the folders made, innermost first."""
    if out_dir.exists() and not out_dir.is_dir():
        raise BadRequest(f"{out_dir} is a file; give a folder", field="out")
    missing = [folder for folder in (out_dir, *out_dir.parents) if not folder.exists()]
    try:
        out_dir.mkdir(parents=True, exist_ok=True)
        for leftover in out_dir.glob(f"{PARTIAL}*"):
            if not _alive(leftover.name.removeprefix(PARTIAL)):
                shutil.rmtree(leftover, ignore_errors=True)
        probe = out_dir / f"{PARTIAL}{os.getpid()}-probe"
        probe.touch()
        probe.unlink()
        present = [path.name for path in out_dir.iterdir()]
    except OSError as error:
        raise BadRequest(f"{out_dir} cannot be written: {error.strerror}", field="out") from error
    if present and not overwrite:
        raise BadRequest(f"{out_dir} is not empty; give an empty folder, or overwrite it", field="out")
    return missing


def _alive(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
