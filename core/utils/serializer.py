"""Path of hivemind 1.1 for `hivemind.serializer`."""

from hivemind.serializer import MSGPackSerializer, SerializerBase

__all__ = ["MSGPackSerializer", "SerializerBase"]
