"""Shared by all tests: hypothesis without time limits, because test machines may be busy; which files start first."""

from collections import Counter

from hypothesis import HealthCheck, Phase, settings

settings.register_profile(
    "nsa", deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("nsa")
settings.register_profile("mutants", settings(), phases=[Phase.explicit, Phase.generate])  # that it fails is enough

# Few tests that take a minute or so. By its own order, most tests first, pytest-xdist would start these last, and one
# worker would wait for the other. test_same_bits.py and test_packaging.py build in one folder, one after the other.
LONG = ("test_torch_npu.py", "test_same_bits.py", "test_bench.py", "test_packaging.py")


def pytest_collection_modifyitems(config, items):
    if not hasattr(config, "workerinput"):
        return
    tests = Counter(item.path for item in items)
    rank = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: (rank.get(item.path.name, len(LONG)), -tests[item.path], item.path))
