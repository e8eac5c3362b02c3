package guard

import (
	"fmt"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// bench is a guard with a clock of its own, and what it has told.
type bench struct {
	*Guard
	time            time.Time
	slowed, dropped []peer.ID
}

func newBench(limits Limits) *bench {
	b := &bench{time: time.Unix(1000, 0)}
	events := Events{
		Slowed:  func(p peer.ID, _ Reason) { b.slowed = append(b.slowed, p) },
		Dropped: func(p peer.ID, _ Reason) { b.dropped = append(b.dropped, p) },
	}
	b.Guard = New(limits, events, func() time.Time { return b.time })
	return b
}

func (b *bench) pass(span time.Duration) { b.time = b.time.Add(span) }

func (b *bench) refuse(p peer.ID, times int) {
	for range times {
		b.Refused(p, Calls)
	}
}

var usual = Limits{Streams: 10, Flood: 100, Ban: time.Minute}

func TestSlowedThenDroppedThenLetIn(t *testing.T) {
	b := newBench(usual)
	b.refuse("loud", 100)
	if pause, ok := b.Opened("loud"); pause != 0 || !ok || len(b.slowed) != 0 {
		t.Fatal("slowed down before its time")
	}
	b.refuse("loud", 1)
	if pause, _ := b.Opened("loud"); pause != slowPause || len(b.slowed) != 1 || !b.Slowed("loud") {
		t.Fatal("not slowed down")
	}
	if pause, _ := b.Opened("quiet"); pause != 0 || b.Slowed("quiet") {
		t.Fatal("another peer pays")
	}
	b.refuse("loud", dropAfter)
	if len(b.dropped) != 1 || b.dropped[0] != "loud" || b.Banned("loud") != usual.Ban || b.Banned("quiet") != 0 {
		t.Fatalf("dropped %v, banned for %s", b.dropped, b.Banned("loud"))
	}
	b.pass(usual.Ban)
	if b.Banned("loud") != 0 || b.Slowed("loud") {
		t.Fatal("refused for longer than the ban")
	}
	if counts := b.Counts(); counts.Slowed != 1 || counts.Dropped != 1 || counts.Banned != 0 || counts.Refused["calls"] != 229 {
		t.Fatalf("%+v", counts)
	}
}

// TestWhoPressesOnIsDropped: a peer that is slowed down and keeps opening streams as fast as it is let, without being refused.
func TestWhoPressesOnIsDropped(t *testing.T) {
	b := newBench(usual)
	b.refuse("loud", 101)
	for range 1000 {
		pause, ok := b.Opened("loud")
		if ok {
			b.Closed("loud")
		}
		if len(b.dropped) > 0 {
			return
		}
		b.pass(pause)
	}
	t.Fatal("never dropped")
}

func TestWhoStopsIsForgiven(t *testing.T) {
	b := newBench(usual)
	b.refuse("loud", 101)
	b.pass(3 * time.Second) // 60 of 101 leak
	if pause, _ := b.Opened("loud"); pause != 0 || b.Slowed("loud") {
		t.Fatal("still slowed down")
	}
	b.Closed("loud")
	b.pass(3 * time.Second)
	b.Opened("loud")
	b.Closed("loud")
	if len(b.records) != 0 {
		t.Fatal("still remembered")
	}
}

func TestWhatIsRefusedSlowlyIsNoFlood(t *testing.T) {
	b := newBench(usual)
	for range 10_000 {
		b.Refused("clumsy", Unknown)
		b.pass(time.Second / leakRate)
	}
	if len(b.slowed) != 0 {
		t.Fatal("slowed down")
	}
}

func TestStreamsOverTheLimit(t *testing.T) {
	b := newBench(usual)
	for range usual.Streams {
		if _, ok := b.Opened("p"); !ok {
			t.Fatal("refused within the limit")
		}
	}
	if _, ok := b.Opened("p"); ok {
		t.Fatal("one too many")
	}
	if _, ok := b.Opened("q"); !ok {
		t.Fatal("another peer pays")
	}
	b.Closed("p")
	if _, ok := b.Opened("p"); !ok {
		t.Fatal("one was closed")
	}
	if counts := b.Counts(); counts.Refused["streams"] != 1 {
		t.Fatalf("%+v", counts)
	}
}

func TestNoFloodLimit(t *testing.T) {
	b := newBench(Limits{Streams: 10, Flood: 0, Ban: time.Minute})
	b.refuse("loud", 100_000)
	if pause, ok := b.Opened("loud"); pause != 0 || !ok || len(b.dropped) != 0 {
		t.Fatal("judged, though it was asked not to")
	}
}

func TestBans(t *testing.T) {
	b := newBench(usual)
	b.Ban("p", time.Hour)
	b.Ban("q", time.Second)
	b.pass(time.Second)
	if left := b.Bans(); len(left) != 1 || left["p"] != time.Hour-time.Second {
		t.Fatal(left)
	}
	if !b.Unban("p") || b.Unban("p") || b.Unban("q") || b.Banned("p") != 0 {
		t.Fatal("not let in")
	}
}

// TestMemoryIsBounded: peers are as many as somebody cares to make.
func TestMemoryIsBounded(t *testing.T) {
	b := newBench(usual)
	b.refuse("loud", 90)
	for i := range 3 * maxRecords {
		p := peer.ID(fmt.Sprint(i))
		b.Refused(p, Unknown)
		b.Refused(p, Unknown)
		b.Ban(p, time.Duration(i+1)*time.Millisecond)
	}
	if len(b.records) > maxRecords || len(b.bans) > maxBans {
		t.Fatalf("%d records, %d bans", len(b.records), len(b.bans))
	}
	b.refuse("loud", 11)
	if len(b.slowed) != 1 {
		t.Fatal("the loudest was forgotten for the sake of others")
	}
	if b.Banned(peer.ID(fmt.Sprint(3*maxRecords-1))) == 0 {
		t.Fatal("the longest ban was forgotten for the sake of others")
	}
}
