"""Gets: values by the ids of their keys, from this node, its cache, and the nodes nearest to the key."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Final

from hivemind.aio import TaskScope
from hivemind.clock import DHTExpiration, get_dht_time
from hivemind.dht.cache import CachePolicy
from hivemind.dht.contacts import Contacts
from hivemind.dht.finding import Finder
from hivemind.dht.key_search import KeySearch
from hivemind.dht.lookup import Lookup, Request
from hivemind.dht.messages import FoundValue, Seen
from hivemind.dht.records import IS_REGULAR_VALUE, pack_subkey
from hivemind.dht.routing import DHTID
from hivemind.dht.search import Answer
from hivemind.dht.storage import DictionaryDHTValue
from hivemind.dht.validation import DHTRecord
from hivemind.errors import SerializationError
from hivemind.log import RateLimit, get_logger
from hivemind.serializer import MSGPackSerializer
from hivemind.timed_storage import TimedStorage, ValueWithExpiration

__all__ = ["Getter", "Result"]

logger = get_logger(__name__)
#: Keys of which it is remembered that they have no value.
MAX_MISSING: Final = 4096

#: A swarm is calm when no known node was lost for so many seconds.
_CALM_SECONDS: Final = 300.0

_undecodable = RateLimit()

Result = ValueWithExpiration[Any] | None


class Getter:
    """The gets of one node. Owned by the network thread."""

    def __init__(self, contacts: Contacts, finder: Finder, scope: TaskScope) -> None:
        self._contacts = contacts
        self._protocol = contacts.protocol
        self._options = contacts.options
        self._counters = contacts.protocol.counters
        self._finder = finder
        self._scope = scope
        self.cache_policy = CachePolicy(contacts.protocol, contacts.options, self._renew, scope)
        #: searches under way that others may join
        self.pending: dict[DHTID, KeySearch] = {}
        # keys of which nobody had a value lately
        self._missing: TimedStorage[DHTID, bool] = TimedStorage(MAX_MISSING)

    def start(
        self,
        keys: Iterable[DHTID],
        sufficient: DHTExpiration | None,
        num_workers: int,
        beam_size: int | None,
        *,
        is_refresh: bool = False,
    ) -> dict[DHTID, asyncio.Future[Result]]:
        """Begin to look for ``keys``; a future for each, of the value as its user stored it.

        :param beam_size: None: as many as it takes
        """
        threshold = get_dht_time() if sufficient is None else sufficient
        futures: dict[DHTID, asyncio.Future[Result]] = {}
        searches: list[KeySearch] = []
        for key in dict.fromkeys(keys):
            self._counters.gets += 1
            running = self.pending.get(key)
            if running is not None and running.sufficient >= threshold:
                futures[key] = self._decoded(key, running.wait(threshold))
                continue
            search = KeySearch(key, threshold, any_will_do=sufficient is None)
            self._look_here(search, count_as_use=not is_refresh)
            if search.found is None and search.any_will_do and key in self._missing:
                self._counters.cache_hits += 1
                search.finish()
                futures[key] = self._decoded(key, search.wait(threshold))
                continue
            futures[key] = self._decoded(key, search.wait(threshold))
            if not search.is_sufficient:
                searches.append(search)
                if self._options.reuse_get_requests:
                    self.pending[key] = search
        if searches:
            self._scope.start(self._run(searches, num_workers, beam_size), name="get")
        return futures

    async def _renew(self, keys: Iterable[DHTID]) -> None:
        """Look for newer values of keys in the cache."""
        found = self.start(keys, float("inf"), self._options.num_workers, None, is_refresh=True)
        await asyncio.gather(*found.values())

    def _look_here(self, search: KeySearch, *, count_as_use: bool) -> None:
        stored, cached = self._protocol.storage.get(search.key), self._protocol.cache.get(search.key)
        counters = self._counters
        search.add(self._decodable(search.key, _own_copy(stored)))
        found_here = search.is_sufficient
        counters.local_hits += found_here
        search.add(self._decodable(search.key, _own_copy(cached)))
        counters.cache_hits += search.is_sufficient and not found_here
        if cached is not None and count_as_use and search.is_sufficient:
            self.cache_policy.note_use(search.key, cached.expiration_time)

    async def _run(self, searches: list[KeySearch], num_workers: int, beam_size: int | None) -> None:
        by_key = {search.key: search for search in searches}
        finder, bucket_size = self._finder, self._protocol.bucket_size

        def on_finished(lookup: Lookup) -> None:
            self._end(by_key[lookup.target])
            self._note_missing(by_key[lookup.target], lookup)
            self.cache_policy.note_found(by_key[lookup.target], lookup.nearest(bucket_size))

        seen: Seen = {}
        # by the identity of a value, which is kept for that: what of it can be decoded, and its version
        decodable: dict[int, tuple[FoundValue | None, FoundValue | None, object]] = {}

        async def ask(request: Request) -> Answer:
            answer = await self._contacts.find(request.peer_id, request.targets, request.node_id, seen)
            if answer is None:
                return None
            for key, (value, _) in answer.items():
                if id(value) not in decodable:
                    found = self._decodable(key, value)
                    decodable[id(value)] = value, found, _version(found)
                _, found, version = decodable[id(value)]
                by_key[key].expiration_at[request.node_id] = found.expiration_time if found else float("-inf")
                by_key[key].add(found)
                if by_key[key].is_sufficient:
                    lookups[key].stop()
                lookups[key].note_version(request.node_id, version)
            return {key: nearest.items() for key, (_, nearest) in answer.items()}

        error: BaseException | None = None
        try:
            # whoever is nearest has the value most likely, and any live one will do
            one_first = searches[0].any_will_do
            replicas = self._options.num_replicas
            # twice as many as hold it: some may have come since it was stored. Where some have gone, all of the beam
            calm = not self._protocol.neighborhood.restless(_CALM_SECONDS)
            enough = 2 * replicas if beam_size is None and one_first and calm else None
            quorum = replicas if beam_size is None and not one_first else None
            beam = bucket_size if beam_size is None else beam_size
            lookups = {key: finder.lookup(key, beam, enough=enough, quorum=quorum) for key in by_key}
            # those of the quorum are asked at once: all of them have to answer
            workers = max(num_workers, quorum or 0)
            await finder.run(lookups.values(), ask, on_finished, workers, one_first=one_first, beyond_crowds=True)
        except BaseException as caught:
            error = caught
            raise
        finally:
            for search in searches:
                if not search.finished:
                    self._end(search, error)

    def _note_missing(self, search: KeySearch, lookup: Lookup) -> None:
        """Remember that there is no value, if the nodes that should have it were asked."""
        seconds = self._options.cache_missing
        if search.found is not None:
            self.note_stored([search.key])
        elif seconds and lookup.complete and lookup.nearest(1):
            self._missing.store(search.key, True, get_dht_time() + seconds)

    def note_stored(self, keys: Iterable[DHTID]) -> None:
        """Values have been stored under ``keys``."""
        for key in keys:
            if key in self._missing:
                del self._missing[key]

    def _end(self, search: KeySearch, error: BaseException | None = None) -> None:
        if self.pending.get(search.key) is search:
            del self.pending[search.key]
        search.finish(error)

    def _decoded(self, key: DHTID, found: asyncio.Future[FoundValue | None]) -> asyncio.Future[Result]:
        """A future of the value as its user stored it; None if there is none, or none that can be decoded."""
        result: asyncio.Future[Result] = asyncio.get_running_loop().create_future()

        def pass_on(ended: asyncio.Future[FoundValue | None]) -> None:
            error = ended.exception()
            if result.done():
                return
            if error is None:
                value = self.decode(key, ended.result())
                self._counters.gets_found += value is not None
                result.set_result(value)
            else:
                result.set_exception(error)
                result.exception()  # of several futures, its user may look at the first only

        if found.done():
            pass_on(found)
        else:
            found.add_done_callback(pass_on)
        return result

    def decode(self, key: DHTID, found: FoundValue | None) -> Result:
        """Strip and deserialize a value as it is stored."""
        if found is None:
            return None
        value, latest = found
        try:
            if not isinstance(value, DictionaryDHTValue):
                return ValueWithExpiration(self._load(key, IS_REGULAR_VALUE, value, latest), latest)
            entries = {
                subkey: ValueWithExpiration(self._load(key, pack_subkey(subkey), entry, expiration), expiration)
                for subkey, (entry, expiration) in value.items()
            }
        except SerializationError as error:
            self._report(key, error)
            return None
        return ValueWithExpiration(entries, latest) if entries else None

    def _decodable(self, key: DHTID, found: FoundValue | None) -> FoundValue | None:
        """What of a value from peers can be decoded: the rest must not hide what others have, however late it expires.
        A dictionary is changed in place."""
        if found is None or not isinstance(found.value, DictionaryDHTValue):
            return found if self.decode(key, found) is not None else None
        for subkey, (value, expiration) in found.value.items():
            try:
                self._load(key, pack_subkey(subkey), value, expiration)
            except SerializationError as error:
                self._report(key, error)
                del found.value[subkey]
        return found if found.value.data else None

    def _load(self, key: DHTID, subkey: bytes, value: bytes, expiration: DHTExpiration) -> Any:
        validator = self._protocol.record_validator
        if validator:
            value = validator.strip_value(DHTRecord(key.to_bytes(), subkey, value, expiration))
        return MSGPackSerializer.loads(value)

    @staticmethod
    def _report(key: DHTID, error: SerializationError) -> None:
        if _undecodable.allow():
            logger.warning(
                "a value under %r cannot be decoded, it counts as missing; a signed one needs its validator: %s",
                key,
                error,
            )


def _version(found: FoundValue | None) -> object:
    """Equal for equal values, as of two values with one expiration neither is newer."""
    if found is None or not isinstance(found.value, DictionaryDHTValue):
        return None if found is None else found.expiration_time
    return frozenset((subkey, expiration) for subkey, (_, expiration) in found.value.data.items())


def _own_copy(found: FoundValue | None) -> FoundValue | None:
    """A dictionary of the local storage goes on changing: the search gets a copy."""
    if found is None or not isinstance(found.value, DictionaryDHTValue):
        return found
    copy = DictionaryDHTValue()
    copy.merge(found.value)
    return ValueWithExpiration(copy, copy.latest_expiration_time) if copy.data else None
