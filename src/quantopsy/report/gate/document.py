"""A gate as one JSON document: what ``--json`` prints."""

from __future__ import annotations

from typing import Any

from quantopsy.analysis.document import comparison_document
from quantopsy.analysis.gate.candidate import Candidate
from quantopsy.analysis.gate.judge import Check, Judged
from quantopsy.analysis.significance import Interval
from quantopsy.core.plain import plain
from quantopsy.report.gate.words import cautions, sentence


def gate_document(judged: Judged) -> dict[str, Any]:
    """Plain JSON values; a number that is not finite is null. ``layers`` is null where either is a recipe."""
    return {
        "passed": judged.passed,
        "level": judged.level,
        "rules": plain(judged.rules),
        "old": _candidate(judged.old),
        "new": _candidate(judged.new),
        "checks": [_check(check, judged) for check in judged.checks],
        "specs": [
            {
                "layer": change.layer,
                "role": change.role,
                "before": None if change.before is None else change.before.to_json(),
                "after": None if change.after is None else change.after.to_json(),
            }
            for change in judged.specs
        ],
        "ranges": None if judged.ranges is None else [plain(c) for c in judged.ranges if c.factor > 1.0],
        "only_old": list(judged.only_old),
        "only_new": list(judged.only_new),
        "layers": None if judged.layers is None else comparison_document(judged.layers)["differences"][0],
        "cautions": cautions(judged),
    }


def _check(check: Check, judged: Judged) -> dict[str, Any]:
    return {
        "rule": check.rule,
        "name": check.name,
        "status": check.status,
        "finding": check.finding,
        "limit": plain(check.limit),
        "value": plain(check.value),
        "before": plain(check.before),
        "interval": _interval(check.interval),
        "level": None if check.interval is None else check.interval.level,
        "significant": None if check.interval is None else check.interval.low > 0 or check.interval.high < 0,
        "images": check.images,
        "predicted": check.predicted,
        "names": list(check.names),
        "reason": sentence(check, judged),
    }


def _candidate(side: Candidate) -> dict[str, Any]:
    return {
        "label": side.label,
        "kind": side.kind,
        "bits": side.bits,
        "metric": side.metric,
        "unit": side.unit,
        "float": plain(side.float_value),
        "value": plain(side.value),
        "degradation": plain(side.lost.value),
        "degradation_interval": _interval(side.lost),
        "samples": side.samples,
        "coverage": plain(side.coverage),
        "weight_bytes": plain(side.bytes),
        "quantized_layers": len(side.quantized),
        "layers": len(side.layers),
    }


def _interval(found: Interval | None) -> list[float | None] | None:
    return None if found is None else [plain(found.low), plain(found.high)]
