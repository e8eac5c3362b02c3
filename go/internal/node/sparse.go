package node

import (
	"sync"
	"time"
)

// sparsePeriod is between two log lines of one kind that peers can cause.
const sparsePeriod = 10 * time.Second

// sparse lets one log line through in a period, as peers can cause more than anybody wants to read.
type sparse struct {
	mu      sync.Mutex
	next    time.Time // mu
	leftOut int       // mu
}

// allow tells whether a line may be written, and how many were left out since the last one.
func (s *sparse) allow(now time.Time) (leftOut int, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if now.Before(s.next) {
		s.leftOut++
		return 0, false
	}
	s.next = now.Add(sparsePeriod)
	leftOut, s.leftOut = s.leftOut, 0
	return leftOut, true
}
