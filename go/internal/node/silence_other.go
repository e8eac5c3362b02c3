//go:build !linux

package node

import (
	"syscall"
	"time"
)

// setUserTimeout: elsewhere only connections without traffic are watched.
func setUserTimeout(syscall.Conn, time.Duration) error { return nil }
