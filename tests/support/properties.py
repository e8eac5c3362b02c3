"""How hypothesis runs: no time limits on single examples, as machines may be loaded. A pytest plugin."""

from __future__ import annotations

from hypothesis import HealthCheck, settings

settings.register_profile("hivemind", deadline=None, suppress_health_check=[HealthCheck.too_slow], print_blob=True)
settings.load_profile("hivemind")
