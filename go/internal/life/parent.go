package life

import (
	"fmt"
	"os"
	"time"
)

// parentPoll bounds how late a parent's death is noticed where the system cannot tell it.
const parentPoll = 250 * time.Millisecond

// WatchParent returns a channel that is closed when the process pid, this one's parent, has ended; an error ends the daemon. The system tells it at once and for
// certain: the parent's standard streams may be held open by its other children, and PR_SET_PDEATHSIG fires when the *thread* that
// started this process ends.
func WatchParent(pid int) (<-chan struct{}, error) {
	wait, err := watchProcess(pid)
	if err != nil {
		wait = func() { pollParent(pid) }
	}
	gone := make(chan struct{})
	// The number may be another process's by now: only its being our parent says that it lives.
	if os.Getppid() != pid {
		return nil, fmt.Errorf("process %d is not the parent of this one (%d is); it may have ended already", pid, os.Getppid())
	}
	go func() {
		defer close(gone)
		wait()
	}()
	return gone, nil
}

func pollParent(pid int) {
	for os.Getppid() == pid {
		time.Sleep(parentPoll)
	}
}
