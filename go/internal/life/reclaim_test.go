package life

import "testing"

func TestWhenMemoryIsGivenBack(t *testing.T) {
	const mib = 1 << 20
	before := heap{allocated: 100 * mib}
	for name, c := range map[string]struct {
		now  heap
		want bool
	}{
		"dead objects":     {heap{allocated: 100 * mib, live: 20 * mib, objects: 40 * mib}, true},
		"free spans":       {heap{allocated: 100 * mib, live: 20 * mib, objects: 20 * mib, free: 30 * mib}, true},
		"busy":             {heap{allocated: 110 * mib, live: 20 * mib, objects: 40 * mib, free: 30 * mib}, false},
		"nothing to gain":  {heap{allocated: 100 * mib, live: 20 * mib, objects: 21 * mib, free: mib}, false},
		"collected midway": {heap{allocated: 100 * mib, live: 20 * mib, objects: 19 * mib}, false},
	} {
		if isAtRest(before, c.now) != c.want {
			t.Errorf("%s: %v", name, !c.want)
		}
	}
}

func TestTheHeapIsRead(t *testing.T) {
	if now := readHeap(); now.allocated == 0 || now.objects == 0 {
		t.Errorf("%+v", now)
	}
}
