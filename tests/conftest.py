"""Shared by all tests: hypothesis without wall-clock deadlines, because the machines are noisy."""

from hypothesis import HealthCheck, settings

settings.register_profile(
    "nsa", deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("nsa")
