"""Shared by all tests: hypothesis without time limits, because test machines may be busy."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "nsa", deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("nsa")
