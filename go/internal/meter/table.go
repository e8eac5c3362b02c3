package meter

import (
	"container/list"
	"sync"
)

// table keeps counters by key: at most size of them. A new key takes the place of the one that was used least recently, whose
// counts are added to those of the rest; keys with calls under way keep their places.
type table[K comparable] struct {
	size int

	mu      sync.Mutex
	entries map[K]*entry[K] // mu
	order   list.List       // mu: of *entry[K], the last used first
	rest    Counters        // of all keys that have no place
}

type entry[K comparable] struct {
	Counters
	key   K
	users int           // the table's mu: calls under way
	place *list.Element // the table's mu
}

func newTable[K comparable](size int) *table[K] {
	return &table[K]{size: size, entries: make(map[K]*entry[K])}
}

// take returns the counters of key, which keep their place until give; nil are those of the rest.
func (t *table[K]) take(key K) *entry[K] {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.entries[key]
	if e == nil {
		if len(t.entries) >= t.size && !t.makeRoom() {
			return nil
		}
		e = &entry[K]{key: key}
		e.place = t.order.PushFront(e)
		t.entries[key] = e
	} else {
		t.order.MoveToFront(e.place)
	}
	e.users++
	return e
}

func (t *table[K]) give(e *entry[K]) {
	if e == nil {
		return
	}
	t.mu.Lock()
	e.users--
	t.mu.Unlock()
}

// makeRoom removes the entry that was used least recently and is not in use; mu is held.
func (t *table[K]) makeRoom() bool {
	for place := t.order.Back(); place != nil; place = place.Prev() {
		e, _ := place.Value.(*entry[K])
		if e.users == 0 {
			t.order.Remove(place)
			delete(t.entries, e.key)
			t.rest.absorb(&e.Counters)
			return true
		}
	}
	return false
}

// counters are those of an entry that take returned.
func (t *table[K]) counters(e *entry[K]) *Counters {
	if e == nil {
		return &t.rest
	}
	return &e.Counters
}

// read returns a reading by key, and that of the rest.
func (t *table[K]) read() (readings map[K]Reading, rest Reading) {
	t.mu.Lock()
	defer t.mu.Unlock()
	readings = make(map[K]Reading, len(t.entries))
	for key, e := range t.entries {
		readings[key] = e.read()
	}
	return readings, t.rest.read()
}
