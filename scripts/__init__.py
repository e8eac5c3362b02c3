"""The command lines: ``hivemind``, ``hivemind-dht``. They start without torch."""
