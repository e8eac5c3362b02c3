"""Protobuf messages as they stand on the wire of hivemind 1.1; the ``*_pb2`` modules are generated (``make proto``)."""
