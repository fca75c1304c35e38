"""A gate as JUnit XML, as continuous integration reads it: a test case for each check.

Elements and attributes are those that pytest writes with ``--junit-xml`` (its family ``xunit2``).
"""

from __future__ import annotations

import re
from pathlib import Path
from xml.etree import ElementTree

from quantopsy.analysis.gate.judge import Judged
from quantopsy.core.files import write_file
from quantopsy.report.gate.words import cautions, heading, outcome, sentence

_CLASS = "quantopsy.gate"

# What XML 1.0 cannot hold, not even as a reference (section 2.2).
_FORBIDDEN = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def junit(judged: Judged) -> str:
    """The document; a failed check is a ``failure``, one without a limit or without numbers is ``skipped``."""
    tally = {
        "errors": "0",
        "failures": str(sum(check.status == "failed" for check in judged.checks)),
        "skipped": str(sum(check.status == "skipped" for check in judged.checks)),
        "tests": str(len(judged.checks)),
        "time": "0.000",
    }
    root = ElementTree.Element("testsuites", {"name": _text("quantopsy gate")})
    suite = ElementTree.SubElement(root, "testsuite", {"name": _text(heading(judged)), **tally})
    for check in judged.checks:
        case = ElementTree.SubElement(
            suite, "testcase", {"classname": _CLASS, "name": _text(check.name), "time": "0.000"}
        )
        reason = _text(sentence(check, judged))
        if check.status == "failed":
            ElementTree.SubElement(case, "failure", {"message": reason}).text = _text("\n".join([reason, *check.names]))
        elif check.status == "skipped":
            ElementTree.SubElement(case, "skipped", {"type": "quantopsy.skip", "message": reason}).text = reason
        else:
            ElementTree.SubElement(case, "system-out").text = reason
    ElementTree.SubElement(suite, "system-out").text = _text("\n".join([outcome(judged), *cautions(judged)]))
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode", xml_declaration=True) + "\n"


def write_junit(judged: Judged, path: str | Path) -> Path:
    """Write the document to ``path``; raises :class:`QuantopsyError` where that cannot be."""
    return write_file(path, junit(judged), "JUnit file")


def _text(value: str) -> str:
    return _FORBIDDEN.sub("\N{REPLACEMENT CHARACTER}", value)
