"""A look at one peer: does it answer, how fast, is its clock right, can it call back."""

from __future__ import annotations

from dataclasses import dataclass

from hivemind.clock import get_dht_time, monotonic
from hivemind.dht.node import DHTNode
from hivemind.identity import PeerID
from hivemind.proto import dht_pb2

__all__ = ["PeerReport", "examine_peer"]


@dataclass(frozen=True)
class PeerReport:
    """What was seen.

    :param in_client_mode: it answers, but is no node that keeps records
    :param round_trip: seconds from a call to its answer
    :param clock_offset: seconds by which its clock is ahead of this one, give or take half of ``round_trip``; None if
        it does not say
    :param calls_back: whether it could call this node, be it over the connection that is there
    """

    in_client_mode: bool
    round_trip: float
    clock_offset: float | None
    calls_back: bool


async def examine_peer(node: DHTNode, peer: PeerID) -> PeerReport:
    """Call ``peer`` twice, on the node's loop.

    :raises HivemindError: if it does not answer
    """
    protocol = node.protocol
    stub = protocol.get_stub(peer)
    sent, began = get_dht_time(), monotonic()
    request = dht_pb2.PingRequest(peer=protocol.node_info)
    answer: dht_pb2.PingResponse = await stub.rpc_ping(request, timeout=protocol.wait_timeout)
    round_trip = monotonic() - began
    offset = answer.dht_time - (sent + round_trip / 2) if answer.dht_time else None
    # it calls back before it answers, and has as much time for that
    request = dht_pb2.PingRequest(peer=protocol.node_info, validate=True)
    checked: dht_pb2.PingResponse = await stub.rpc_ping(request, timeout=2 * protocol.wait_timeout)
    return PeerReport(
        in_client_mode=not answer.peer.node_id,
        round_trip=round_trip,
        clock_offset=offset,
        calls_back=checked.available,
    )
