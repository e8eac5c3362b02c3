package guard

import (
	"time"

	"github.com/libp2p/go-libp2p/core/peer"
)

// Ban refuses p for a time from now on.
func (g *Guard) Ban(p peer.ID, span time.Duration) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.ban(p, span)
}

// ban is Ban with mu held.
func (g *Guard) ban(p peer.ID, span time.Duration) {
	now := g.now()
	if _, known := g.bans[p]; !known && len(g.bans) >= maxBans {
		g.makeRoom(now)
	}
	g.bans[p] = now.Add(span)
}

// makeRoom forgets bans that are over, or the one that would be over next, of some that it looks at; mu is held.
func (g *Guard) makeRoom(now time.Time) {
	var next peer.ID
	left := sample
	for p, until := range g.bans {
		if left--; left < 0 {
			break
		}
		if !until.After(now) {
			delete(g.bans, p)
		} else if next == "" || until.Before(g.bans[next]) {
			next = p
		}
	}
	if len(g.bans) >= maxBans {
		delete(g.bans, next)
	}
}

// Unban lets p in again; it tells whether p was refused.
func (g *Guard) Unban(p peer.ID) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	until, known := g.bans[p]
	delete(g.bans, p)
	return known && until.After(g.now())
}

// Banned is for how long p is still refused; 0 if it is not.
func (g *Guard) Banned(p peer.ID) time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	until, known := g.bans[p]
	if !known {
		return 0
	}
	left := until.Sub(g.now())
	if left <= 0 {
		delete(g.bans, p)
		return 0
	}
	return left
}

// Bans returns all who are refused, and for how long still.
func (g *Guard) Bans() map[peer.ID]time.Duration {
	g.mu.Lock()
	defer g.mu.Unlock()
	now, left := g.now(), make(map[peer.ID]time.Duration, len(g.bans))
	for p, until := range g.bans {
		if until.After(now) {
			left[p] = until.Sub(now)
		} else {
			delete(g.bans, p)
		}
	}
	return left
}
