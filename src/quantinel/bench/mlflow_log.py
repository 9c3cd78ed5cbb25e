"""Result rows as runs of an MLflow server: one experiment per suite, one run per row, each row once."""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from datetime import datetime
from typing import Any

from quantinel.bench.row_file import identity
from quantinel.bench.rows import PERCENTAGES, ResultRow, sha256_of
from quantinel.data.guards import import_optional, reason
from quantinel.errors import OutputError

_TAG = "quantinel.row"
_PARAMETERS = (
    "cell", "model", "attack", "attack_variant", "defense", "defense_variant", "detector", "scheme", "compressor",
    "calibration", "architecture", "data", "seed", "backend",
)  # fmt: skip
_TAGS = ("status", "key", "config_sha256", "version", "commit", "hardware", "command", "error")
_METRICS = (*PERCENTAGES, "float_cda", "float_asr", "n_clean", "n_triggered", "seconds")
_LONGEST = 5000


class MlflowLog:
    """Logs rows to a tracking server.

    A row that is there already (`quantinel.bench.row_file.identity`) is not logged again, so that a suite can be run
    with the same server any number of times. The tag that says so is written last: a run that was cut off does not
    count. MLflow reports its own use to its makers unless it is told not to; it is told not to here, unless
    ``MLFLOW_DISABLE_TELEMETRY`` is set already.
    """

    def __init__(self, uri: str, suite_name: str) -> None:
        """Connect, and create the experiment ``quantinel/SUITE`` if it is missing.

        Args:
            uri: of the tracking server, ``http://HOST:5000``, or another store that MLflow knows.
            suite_name: name of the suite.

        Raises:
            UsageError: MLflow is missing.
            OutputError: the server cannot be reached.
        """
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        tracking = import_optional("mlflow.tracking", "--mlflow", "quantinel[mlflow]")
        self._entities = import_optional("mlflow.entities", "--mlflow", "quantinel[mlflow]")
        self._uri = uri
        self._client: Any = self._asked(lambda: tracking.MlflowClient(tracking_uri=uri))
        name = f"quantinel/{suite_name}"
        found = self._asked(lambda: self._client.get_experiment_by_name(name))
        self._experiment: str = (
            self._asked(lambda: self._client.create_experiment(name)) if found is None else found.experiment_id
        )

    def add(self, row: ResultRow) -> None:
        """Log a row, unless it is there.

        Raises:
            OutputError: the server cannot be reached.
        """
        self._asked(lambda: self._add(row))

    def _add(self, row: ResultRow) -> None:
        mark = sha256_of(list(identity(row)))
        if self._client.search_runs([self._experiment], f"tags.`{_TAG}` = '{mark}'", max_results=1):
            return
        started = int(datetime.fromisoformat(row.created).timestamp() * 1000)
        run = self._client.create_run(self._experiment, start_time=started, run_name=row.cell).info.run_id
        entities = self._entities
        self._client.log_batch(
            run,
            metrics=[entities.Metric(name, value, started, 0) for name, value in metrics(row).items()],
            params=[entities.Param(name, value) for name, value in parameters(row).items()],
            tags=[entities.RunTag(f"quantinel.{name}", value) for name, value in _texts(row, _TAGS).items()],
        )
        self._client.set_tag(run, _TAG, mark)
        ended = started + round(1000 * sum(row.stages.values()))
        self._client.set_terminated(run, "FAILED" if row.status == "failed" else "FINISHED", ended)

    def _asked(self, question: Callable[[], Any]) -> Any:
        try:
            return question()
        except Exception as error:  # MLflow's own errors, and those of the libraries below it
            raise OutputError(
                f"MLflow at {self._uri}: {reason(error)[:300]}; check --mlflow, or run without it"
            ) from error


def metrics(row: ResultRow) -> dict[str, float]:
    """Numbers of a row, with the ends of intervals, times of stages, further figures and those of the paper."""
    found = {name: getattr(row, name) for name in _METRICS}
    for name in PERCENTAGES:
        interval = getattr(row, f"{name}_interval")
        if interval is not None:
            found[f"{name}_low"], found[f"{name}_high"] = interval
    found |= {f"seconds.{stage}": value for stage, value in row.stages.items()}
    found |= {f"paper.{name}": value for name, value in (row.published or {}).items()}
    found |= {f"extra.{_allowed(name)}": value for name, value in row.extra.items() if not isinstance(value, str)}
    return {name: float(value) for name, value in found.items() if value is not None}


def parameters(row: ResultRow) -> dict[str, str]:
    """What the cell is, and the options that differ from defaults."""
    options = {
        f"{kind}.{_allowed(name)}": str(value)[:_LONGEST]
        for kind, chosen in row.settings.items()
        for name, value in chosen.items()
    }
    return {**_texts(row, _PARAMETERS), **options}


def _texts(row: ResultRow, names: tuple[str, ...]) -> dict[str, str]:
    return {name: str(value)[:_LONGEST] for name in names if (value := getattr(row, name)) is not None}


def _allowed(name: str) -> str:
    """MLflow takes letters, digits and a few signs."""
    return re.sub(r"[^\w\-. :/]", "_", name)
