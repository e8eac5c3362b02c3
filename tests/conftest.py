"""Shared by all tests: nothing may outlive a test (`tests.support.leaks`) or hang it (`tests.support.bounded`)."""

import signal

pytest_plugins = ["tests.support.leaks", "tests.support.bounded", "tests.support.properties"]

# A shell without job control has its background jobs ignore SIGINT, nohup has them ignore SIGHUP, and what they start
# inherits that; processes that tests end by these signals must not.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
