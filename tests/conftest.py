"""No test is timed by hypothesis: a busy machine is no counterexample. None reads what another one has computed."""

import sys

import pytest
from hypothesis import settings

settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

CACHES = {
    "llmhalluc.tasks.math.reading": ("read_statement",),
    "llmhalluc.tasks.math.answers": ("gold_reading",),
    "llmhalluc.tasks.math.process": ("_worked", "_question_numbers"),
}


@pytest.fixture(autouse=True)
def no_cached_readings():
    for module, names in CACHES.items():
        for name in names:
            if module in sys.modules:
                getattr(sys.modules[module], name).cache_clear()
