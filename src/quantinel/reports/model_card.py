"""README.md of a hardened directory: a model card in the form that the Hugging Face Hub reads."""

from __future__ import annotations

import json
import re

from quantinel.audit.report import EvaluationRow, Rate, Report
from quantinel.reports import facts, wording

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_SPECIAL = re.compile(r"[\\`*_\[\]<>|~&$]|(?<=:)//|(?<=www)\.")
_LINE_START = re.compile(r"(?:\d+[.)]|[-+]|#{1,6})(?=\s|$)|=+$")
_VERDICTS = {
    "PASS": "Every required check of this file ran and passed.",
    "FAIL": "**A check of this file failed: do not deploy it.**",
    "INCONCLUSIVE": "**The checks could not confirm that for this file: do not deploy it before they can.**",
}
_FILES = {
    "model.onnx": "the network, QDQ format: the file that was verified",
    "quantized.safetensors": "integers, scales and zero points of every layer",
    "probe.safetensors": "a few calibration images with the audited answers, so that verifying needs no data",
    "report.json": "everything that was measured; the source of truth",
    "report.html": "the same, for people",
    "report.sarif": "the same, for code scanning services",
    "recipe.toml": "the resolved configuration of the run",
    "manifest.json": "SHA-256 of every input and output, versions, seeds",
    "README.md": "this card",
}


def render_model_card(report: Report, files: list[str]) -> str:
    """Render ``README.md``.

    Args:
        report: the run that made the directory.
        files: names of the files in it; may be empty when they are not known.
    """
    sections = [
        _introduction(report),
        _figures(report),
        _how_made(report),
        _verified(report),
        _not_checked(report),
        _how_to_run(report),
        _how_to_verify(),
        _contents(files),
    ]
    return _front_matter(report) + "\n" + "\n\n".join("\n".join(section) for section in sections if section) + "\n"


def markdown(text: object) -> str:
    """``text`` on one line, shown as it is: what Markdown and HTML would read as syntax is escaped."""
    return _sentence_start(_escaped(wording.one_line(text)))


def prose(text: str) -> str:
    """A sentence of the report: pairs of backticks become code spans, everything else is shown as it is."""
    parts = wording.segments(wording.one_line(text))
    return _sentence_start("".join(code(part) if is_code else _escaped(part) for part, is_code in parts))


def _escaped(text: str) -> str:
    return _SPECIAL.sub(lambda found: "\\" + found[0], text)


def _sentence_start(text: str) -> str:
    # Where a line starts, "1." and "-" would open a list, "#" a heading.
    found = _LINE_START.match(text)
    return f"{text[: found.end() - 1]}\\{text[found.end() - 1 :]}" if found else text


def code(text: object) -> str:
    """``text`` on one line as a code span, whatever backticks it holds."""
    line = wording.one_line(text)
    fence = "`" * (1 + max((len(run) for run in re.findall("`+", line)), default=0))
    pad = " " if line.startswith("`") or line.endswith("`") else ""
    return f"{fence}{pad}{line}{pad}{fence}" if line else "–"


def yaml_string(text: object) -> str:
    """A double-quoted YAML scalar; JSON's form is one."""
    return json.dumps(wording.one_line(text), ensure_ascii=False)


def _front_matter(report: Report) -> str:
    scheme = wording.described(report.request.get("scheme"))
    tags = [
        "onnx",
        "onnxruntime",
        "quantization",
        "quantinel",
        "backdoor-defense",
        *([scheme] if scheme != "–" else []),
    ]
    lines = ["---", "library_name: onnx", "pipeline_tag: image-classification", "base_model_relation: quantized"]
    base = str(report.model.get("base_model") or "")
    if _HUB_ID.fullmatch(base):
        lines.append(f"base_model: {yaml_string(base)}")
    return "\n".join([*lines, "tags:", *(f"  - {yaml_string(tag)}" for tag in tags), "---", ""])


def _introduction(report: Report) -> list[str]:
    architecture = report.model.get("architecture")
    what = f"{markdown(architecture)} image classifier" if architecture else "image classifier"
    classes = facts.class_count(report)
    counted = f" with {classes:,} classes" if classes else ""
    return [
        f"# {markdown(facts.model_name(report))}, quantized and hardened",
        "",
        f"**{report.verdict}.** {prose(report.summary)}",
        "",
        f"A quantized {what}{counted} in ONNX. Quantinel chose its integers, with the aim that a "
        "backdoor made to sleep in the float model and to wake when the model is quantized stays asleep in this file. "
        f"{_VERDICTS[report.verdict]} The verdict is about this file, not about the model it was made from.",
    ]


def _figures(report: Report) -> list[str]:
    heads = [
        "Model",
        "Run in",
        "Accuracy",
        "Attack success",
        "Without the trigger",
        "Accuracy, triggered",
        "Agreement with float",
    ]
    table = [
        "## Figures",
        "",
        "Percent with 95 % Wilson intervals. *Nearest* is ordinary quantization of the same model; *hardened* is this "
        "file. Attack success leaves out images of the attacker's class; *without the trigger* is how many of the same "
        "images get that class anyway.",
        "",
        f"| {' | '.join(heads)} |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    table += [_row(row) for row in report.evaluation]
    if not report.evaluation:
        table.append("| nothing was evaluated | | | | | | |")
    if report.trigger is None:
        table += ["", "No trigger was given, so attack success was not measured."]
    elif report.evaluation and all(row.asr is None for row in report.evaluation):
        table += ["", "A trigger was given, but no image was left to measure attack success on."]
    if report.evaluation and all(row.cda is None for row in report.evaluation):
        table += ["", "The images had no labels, so accuracy was not measured."]
    return table


def _row(row: EvaluationRow) -> str:
    cells = [wording.VARIANTS[row.variant], wording.BACKENDS[row.backend]]
    cells += [_cell(rate) for rate in (row.cda, row.asr, row.base_rate, row.ta, row.agreement)]
    return f"| {' | '.join(cells)} |"


def _cell(rate: Rate | None) -> str:
    return _escaped(wording.rate_in_full(rate))


def _how_made(report: Report) -> list[str]:
    made = {
        "Input": facts.model_source(report),
        "SHA-256 of the input": report.model.get("sha256"),
        "Scheme": report.request.get("scheme"),
        "Rounding": report.request.get("rounding"),
        "Rounding options": report.request.get("rounding_options"),
        "Storage profile": report.request.get("backend"),
        "Seed": report.request.get("seed"),
        "Calibration": report.data.get("calibration"),
        "Made": wording.moment(report.created),
        "Quantinel": report.version,
    }
    lines = ["## How it was made", ""]
    lines += [f"- {name}: {code(wording.described(value))}" for name, value in made.items() if value is not None]
    if command := report.request.get("command"):
        lines += ["", *_block("sh", wording.command_line(command))]
    return lines


def _verified(report: Report) -> list[str]:
    seen = report.verification
    lines = [
        "## What was verified",
        "",
        f"- The file was opened again: {seen.layers_equal} of {seen.layers} layers hold exactly the audited integers.",
        f"- {seen.integer_layers} of {seen.layers} layers ran in integers{_in_runtime(seen.runtime)}.",
        f"- Same top answer as the audited model: {_cell(seen.agreement)}. Largest difference of a logit, in output "
        f"steps: {wording.figure(seen.max_difference_steps)}.",
    ]
    for check in report.checks:
        if check.status != "not_run":
            lines.append(f"- {wording.STATUSES[check.status]}: {_titled(check.title, check.detail)}")
    if report.findings:
        lines += ["", "Findings about the input model, which is not this file:", ""]
    for finding in report.findings:
        lines.append(f"- {wording.LEVELS[finding.level]}: {_titled(finding.title, finding.detail)}")
    return lines


def _titled(title: str, detail: str) -> str:
    return f"{prose(title)} – {prose(detail)}" if detail else prose(title)


def _in_runtime(runtime: str) -> str:
    return f" in {markdown(runtime)}" if runtime else ""


def _not_checked(report: Report) -> list[str]:
    lines = [f"- {prose(sentence)}" for sentence in report.not_checked]
    for check in report.checks:
        if check.status == "not_run":
            need = "required" if check.required else "optional"
            lines.append(f"- Not run ({need}): {_titled(check.title, check.detail)}")
    return ["## What was not checked", "", *(lines or ["The run recorded no limits of its own."])]


def _how_to_run(report: Report) -> list[str]:
    shape = ", ".join(str(side) for side in facts.image_shape(report) or ("C", "H", "W"))
    snippet = f"""import numpy as np
import onnxruntime

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
images = np.zeros((1, {shape}), dtype=np.float32)  # your pictures: NCHW, in [0, 1]
(logits,) = session.run(["logits"], {{"images": images}})
print(logits.argmax(axis=1))"""
    return [
        "## How to run it",
        "",
        "Input `images`: float32, NCHW, values in [0, 1]. Output `logits`: float32, one row per image.",
        "",
        *_block("python", snippet),
    ]


def _how_to_verify() -> list[str]:
    return [
        "## How to verify it",
        "",
        "In this directory:",
        "",
        *_block("sh", "quantinel verify ."),
        "",
        "It compares the files with `manifest.json`, opens `model.onnx` again, compares its integers with the audited "
        "ones, runs it, and counts the layers that run in integers. Converting or quantizing the float model again "
        "gives another file, to which none of this applies.",
    ]


def _contents(files: list[str]) -> list[str]:
    if not files:
        return []
    described = [f"- {code(name)}" + (f": {_FILES[name]}" if name in _FILES else "") for name in files]
    return ["## Files", "", *described]


def _block(language: str, text: str) -> list[str]:
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall("`+", text)), default=0))
    return [f"{fence}{language}", wording.clean(text), fence]
