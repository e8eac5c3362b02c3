"""Path of hivemind 1.1 for `hivemind.networking`."""

from hivemind.networking import LOCALHOST, choose_ip_address, log_visible_maddrs

__all__ = ["LOCALHOST", "choose_ip_address", "log_visible_maddrs"]
