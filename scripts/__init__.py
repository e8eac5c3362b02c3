"""The command lines: ``hivemind``, ``hivemind-dht``, ``hivemind-relay``. They start without torch."""
