//go:build !linux

package life

import (
	"fmt"
	"os"
	"time"
)

// parentPoll bounds how late a parent's death is noticed.
const parentPoll = 250 * time.Millisecond

// WatchParent returns a channel that is closed when the process pid, this one's parent, has ended.
func WatchParent(pid int) (<-chan struct{}, error) {
	if os.Getppid() != pid {
		return nil, fmt.Errorf("process %d is not the parent of this one (%d is); it may have ended already", pid, os.Getppid())
	}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		for os.Getppid() == pid {
			time.Sleep(parentPoll)
		}
	}()
	return gone, nil
}
