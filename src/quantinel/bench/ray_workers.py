"""Stages on Ray: one machine or a cluster, with the same results as processes on this machine.

Nothing is assumed to be shared between machines but the data sets: the files of upstream results travel with the
request, those of the result travel back, and this machine's store keeps them. Start a cluster with
``ray start --head`` on one machine and ``ray start --address=HEAD:6379`` on the others.
"""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from quantinel.bench.execution import execute
from quantinel.bench.messages import Finished, Outcome, Request
from quantinel.bench.store import Store
from quantinel.bench.workers import Event
from quantinel.errors import UsageError, first_line

Files = dict[str, bytes]
_GRACE_SECONDS = 20.0


class RayWorkers:
    """Tasks on a Ray cluster.

    Args:
        address: of a running cluster, "auto" for the one on this machine, or "local" to start one for this run.
        slots: stages at a time; None for what the cluster's cores allow.
        threads: cores that a stage reserves.

    Raises:
        UsageError: Ray is not installed, or there is no cluster at the address.
    """

    def __init__(self, address: str, slots: int | None, threads: int) -> None:
        try:
            import ray
        except ImportError as error:
            raise UsageError("--ray needs Ray; install it with: pip install 'quantinel[ray]'") from error
        self._ray: Any = ray
        logging.getLogger("ray").setLevel(logging.ERROR)
        options: dict[str, Any] = {}
        if address == "local":
            options = {"num_cpus": None if slots is None else slots * threads, "include_dashboard": False}
        try:
            ray.init(
                address=address, log_to_driver=False, logging_level=logging.ERROR, configure_logging=False, **options
            )
        except (OSError, ValueError, RuntimeError) as error:
            if address == "local":
                raise UsageError(f"Ray does not start here ({first_line(error)}); leave --ray out") from error
            raise UsageError(
                f"no Ray cluster answers at {address} ({first_line(error)}); start one with "
                "`ray start --head`, or use --ray local; one that asks for a token needs RAY_AUTH_MODE=token here too"
            ) from error
        cores = int(self._ray.cluster_resources().get("CPU", 1))
        self.slots = slots or max(1, cores // threads)
        self._threads = threads
        self._pending: dict[Any, tuple[str, Request]] = {}
        self._stopped = False
        self._task: Any = ray.remote(_remote)

    def submit(self, tag: str, request: Request) -> None:
        """Send a stage to the cluster, which starts it where cores (and a GPU, for training on one) are free."""
        gpus = 1 if request.device.startswith("cuda") else 0
        remote = self._task.options(num_cpus=self._threads, num_gpus=gpus, max_retries=2)
        folders = {role: pack(Path(path)) for role, path in request.folders.items()}
        self._pending[remote.remote(request, folders)] = (tag, request)

    def events(self, timeout: float) -> Iterator[Event]:
        """Results that came back; their files are stored here first."""
        if not self._pending:
            return
        done, _ = self._ray.wait(list(self._pending), timeout=timeout)
        for reference in done:
            tag, request = self._pending.pop(reference)
            try:
                finished, files = self._ray.get(reference)
            except Exception as error:  # Ray raises its own and the task's classes
                outcome: Outcome = "interrupted" if self._stopped else "failed"
                finished, files = Finished(outcome, f"Ray: {first_line(error)}"), None
            if files is not None:
                self._keep(request, files)
            yield Event(tag, finished=finished)

    def stop(self) -> None:
        """Cancel what has not come back; Ray tasks keep no checkpoints here.

        Without force: a task that is interrupted removes its files from the node, a killed one cannot.
        """
        self._stopped = True
        for reference in self._pending:
            self._ray.cancel(reference)

    def close(self) -> None:
        """Leave the cluster, once what is under way has been interrupted."""
        try:
            if self._pending:
                self.stop()
                self._ray.wait(list(self._pending), num_returns=len(self._pending), timeout=_GRACE_SECONDS)
        finally:
            self._ray.shutdown()

    @staticmethod
    def _keep(request: Request, files: Files) -> None:
        store = Store(Path(request.store))
        with store.lock(request.where):
            if store.find(request.where) is None:
                with store.write(request.where) as folder:
                    unpack(files, folder)


def pack(path: Path) -> Files:
    """A file, or all files of a folder, as bytes by relative name ("" for a single file's folder)."""
    if path.is_file():
        return {f"/{path.name}": path.read_bytes()}
    return {str(item.relative_to(path)): item.read_bytes() for item in sorted(path.rglob("*")) if item.is_file()}


def unpack(files: Files, folder: Path) -> Path:
    """Write packed files; returns the path that stands for what was packed."""
    for name, data in files.items():
        path = folder / name.removeprefix("/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    single = next((name for name in files if name.startswith("/")), None)
    return folder if single is None else folder / single.removeprefix("/")


def _remote(request: Request, folders: dict[str, Files]) -> tuple[Finished, Files | None]:
    """On the cluster: unpack, run, pack."""
    with tempfile.TemporaryDirectory(prefix="quantinel-") as scratch:
        base = Path(scratch)
        places = {}
        for role, files in folders.items():
            (base / role).mkdir()
            places[role] = str(unpack(files, base / role))
        here = replace(request, folders=places, store=str(base / "store"))
        finished = execute(here)
        store = Store(Path(here.store))
        stored = store.find(request.where) is not None
        return finished, pack(store.folder(request.where)) if stored else None
