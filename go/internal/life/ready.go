// Package life is the daemon's existence as a process: its first line of output, its exit codes, its logs, signals, and the
// watch over its parent.
package life

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"hivemind/p2pd/internal/node"
)

// Exit codes, as docs/control-protocol.md lists them.
const (
	ExitOK        = 0
	ExitInternal  = 1
	ExitConfig    = 2
	ExitIdentity  = 3
	ExitListen    = 4
	ExitBootstrap = 5
	ExitKilled    = 6
)

// Ready is the line that tells the parent that the daemon serves.
type Ready struct {
	Ready   bool     `json:"ready"`
	Version int      `json:"version"`
	PID     int      `json:"pid"`
	PeerID  string   `json:"peer_id"`
	Addrs   []string `json:"addrs"`
	Listen  []string `json:"listen"` // for a daemon that is to take this one's place
	Control string   `json:"control"`
	Metrics string   `json:"metrics"` // where Prometheus text is served; "" is nowhere
}

// Fatal is the line that tells the parent why the daemon could not start.
type Fatal struct {
	Fatal string `json:"fatal"`
	Error string `json:"error"`
	Hint  string `json:"hint"`
}

// WriteLine writes a value as one line of JSON.
func WriteLine(out io.Writer, value any) error {
	line, err := json.Marshal(value)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\n", line)
	return err
}

// ErrConfig marks a wrong configuration.
var ErrConfig = errors.New("config")

// Explain returns the line and the exit code for what kept the daemon from starting.
func Explain(err error) (Fatal, int) {
	switch {
	case errors.Is(err, ErrConfig):
		return Fatal{"config", err.Error(), "see docs/control-protocol.md for the fields"}, ExitConfig
	case errors.Is(err, node.ErrIdentity):
		return Fatal{"identity", err.Error(), "give a readable key file, or a path where one can be made"}, ExitIdentity
	case errors.Is(err, node.ErrListen):
		return Fatal{"listen", err.Error(), "another process may have the port; port 0 takes a free one"}, ExitListen
	case errors.Is(err, node.ErrBootstrap):
		return Fatal{"bootstrap", err.Error(), "check that an initial peer is running and that its address can be reached from here"},
			ExitBootstrap
	}
	return Fatal{"internal", err.Error(), "a fault of the daemon; please report it with its log"}, ExitInternal
}
