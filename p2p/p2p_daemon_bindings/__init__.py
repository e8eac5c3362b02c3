"""Names of hivemind 1.1 at their old places: limits, errors and ids.

What spoke with the daemon of 1.1 (`ControlClient`, `DaemonConnector`, `Client`, its messages) is gone: `hivemind.P2P`
is all there is to call.
"""
