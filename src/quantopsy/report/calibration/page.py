"""A study of a calibration set as a page."""

from __future__ import annotations

from pathlib import Path

from quantopsy.analysis.calibration.result import CalibrationStudy
from quantopsy.report import sheet
from quantopsy.report.calibration.charts import beyond_chart, coverage_chart, metric_chart, noise_chart
from quantopsy.report.calibration.tables import Rows, activation_rows, channel_rows, size_rows
from quantopsy.report.calibration.words import cautions, lead, statements
from quantopsy.report.chart import Chart, Section, Table
from quantopsy.report.sheet import Sheet
from quantopsy.report.wording import count, duration, flattened


def write(study: CalibrationStudy, path: str | Path) -> Path:
    """Write the page of ``study`` to ``path``."""
    return sheet.write(page(study), path)


def page(study: CalibrationStudy) -> Sheet:
    """What stands on the page."""
    return Sheet(
        heading=f"Calibration of {study.model}",
        facts=(
            f"calibration {study.calibration}",
            count(study.images, "image"),
            f"held out {study.data}",
            count(study.evaluation, "image"),
            f"metric {study.metric}",
            f"weights at {study.bits} bits, activations at {study.settings.get('activation_bits')}",
            duration(study.seconds),
        ),
        lead=lead(study),
        statements=tuple(statements(study)),
        cautions=tuple(cautions(study)),
        sections=(
            _section(
                "sizes",
                "How many images",
                size_rows(study),
                (metric_chart(study), noise_chart(study), coverage_chart(study), beyond_chart(study)),
            ),
            _section("activations", "Held-out images against the calibrated ranges", activation_rows(study)),
            _section("channels", "Channels, calibration / evaluation images", channel_rows(study)),
            Section(
                "settings",
                "Settings and provenance",
                table=Table(
                    "Settings and provenance",
                    ("name", "value"),
                    tuple(flattened({**study.settings, **study.provenance})),
                ),
            ),
        ),
    )


def _section(key: str, heading: str, content: Rows, charts: tuple[Chart, ...] = ()) -> Section:
    headings, rows, note = content
    sentence = f"{note[:1].upper()}{note[1:]}."
    return Section(key, heading, sentence, charts=charts, table=Table(heading, headings, tuple(rows)))
