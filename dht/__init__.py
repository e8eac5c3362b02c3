"""The distributed hash table: records that expire, kept by the peers themselves."""

from hivemind.crypto import RSAPrivateKey, RSAPublicKey
from hivemind.dht.bootstrap import parse_initial_peers
from hivemind.dht.changes import Change
from hivemind.dht.config import DEFAULT_NUM_WORKERS, DHTNodeOptions
from hivemind.dht.counters import DHTStats
from hivemind.dht.dht import DHT
from hivemind.dht.examination import PeerReport, examine_peer
from hivemind.dht.node import DHTNode
from hivemind.dht.records import DHTValue
from hivemind.dht.routing import DHTID
from hivemind.dht.schema import BytesWithPublicKey, SchemaValidator, conbytes
from hivemind.dht.signing import Ed25519SignatureValidator, RSASignatureValidator
from hivemind.dht.validation import CompositeValidator, DHTRecord, RecordValidatorBase
from hivemind.dht.watch import DHTWatch, Watch
from hivemind.timed_storage import ValueWithExpiration

__all__ = [
    "DEFAULT_NUM_WORKERS",
    "DHT",
    "DHTID",
    "BytesWithPublicKey",
    "Change",
    "CompositeValidator",
    "DHTNode",
    "DHTNodeOptions",
    "DHTRecord",
    "DHTStats",
    "DHTValue",
    "DHTWatch",
    "Ed25519SignatureValidator",
    "PeerReport",
    "RSAPrivateKey",
    "RSAPublicKey",
    "RSASignatureValidator",
    "RecordValidatorBase",
    "SchemaValidator",
    "ValueWithExpiration",
    "Watch",
    "conbytes",
    "examine_peer",
    "parse_initial_peers",
]
