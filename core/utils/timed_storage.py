"""Path of hivemind 1.1 for `hivemind.timed_storage` and the network's time."""

from hivemind.clock import MAX_DHT_TIME_DISCREPANCY_SECONDS, DHTExpiration, get_dht_time
from hivemind.timed_storage import TimedStorage, ValueWithExpiration

__all__ = ["MAX_DHT_TIME_DISCREPANCY_SECONDS", "DHTExpiration", "TimedStorage", "ValueWithExpiration", "get_dht_time"]
