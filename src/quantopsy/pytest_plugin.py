"""A fixture for pytest: a test that fails where a new quantized network may not replace the old one.

    def test_the_new_network_may_be_deployed(quantopsy_gate):
        quantopsy_gate("studies/main", "studies/candidate", max_drop=1.0)

pytest finds it once Quantopsy is installed. Nothing heavy is imported before a test asks for the fixture.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from quantopsy.api import Gate

RULES = "quantopsy_rules"


def pytest_addoption(parser: pytest.Parser) -> None:
    """The ini value ``quantopsy_rules``: rules of every gate that is given none."""
    parser.addini(RULES, "TOML file with the rules of quantopsy_gate, relative to the root folder", default="")


@pytest.fixture
def quantopsy_gate(request: pytest.FixtureRequest) -> Callable[..., Gate]:
    """``quantopsy_gate(old, new, rules=None, **changed)``: :func:`quantopsy.gate`, and the test fails where it does.

    Relative paths are of pytest's root folder. ``rules`` are those of the ini value ``quantopsy_rules`` where none are
    given. What each check found goes into the test's properties, and so into ``--junit-xml``.
    """
    root = request.config.rootpath

    def gate(old: Any, new: Any, rules: Any = None, **changed: Any) -> Gate:
        from quantopsy.api import gate as run

        default = request.config.getini(RULES)
        chosen = default if rules is None and default else rules
        found = run(*(_within(root, given) for given in (old, new, chosen)), **changed)
        checks = found.document()["checks"]
        request.node.user_properties += [
            (f"quantopsy.{check['name']}", f"{check['status']}: {check['reason']}") for check in checks
        ]
        if not found.passed:
            broken = [f"{check['name']}: {check['reason']}" for check in checks if check["status"] == "failed"]
            pytest.fail("\n".join(["quantopsy gate failed", *broken]), pytrace=False)
        return found

    return gate


def _within(root: Path, given: Any) -> Any:
    """A path as ``root`` means it; what is no path stays as it is."""
    return root / given if isinstance(given, str | Path) else given
