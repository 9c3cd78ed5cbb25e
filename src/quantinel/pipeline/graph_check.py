"""The check that an emitted file computes what was audited, and nothing beside it."""

from __future__ import annotations

import onnx

from quantinel.audit.report import Check
from quantinel.backends.emitted_graph import EmittedGraph, graph_problem


def graph_check(model: onnx.ModelProto, audited: EmittedGraph | None) -> Check:
    """Compare the re-opened file with the graph that was emitted.

    Args:
        model: the re-opened file.
        audited: as stored with the integers; None where it was not.

    Raises:
        VerificationError: a stored tensor cannot be read.
    """
    problem = (
        "the folder does not say which operators were audited; harden the model again"
        if audited is None
        else graph_problem(model, audited)
    )
    return Check(
        id="graph-equal",
        title="The file's operators, wiring and constants are the audited ones",
        status="pass" if problem is None else "fail",
        required=True,
        detail=f"all {len(model.graph.node)} operators are equal" if problem is None else problem,
    )
