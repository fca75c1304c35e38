"""The results that most tests of the report look at."""

import pytest
from made_up import make_results

from quantopsy.analysis.results import Results


@pytest.fixture
def results() -> Results:
    """Twenty layers, six bit-widths, layer 5 guilty, layer 9 improved."""
    return make_results()
