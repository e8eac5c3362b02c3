package life

import (
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// parentPoll bounds how late a parent's death is noticed where the system has no pidfd.
const parentPoll = 250 * time.Millisecond

// WatchParent returns a channel that is closed when the process pid, this one's parent, has ended. A pidfd tells it at once and for
// certain: the parent's standard streams may be held open by its other children, and PR_SET_PDEATHSIG fires when the *thread* that
// started this process ends.
func WatchParent(pid int) (<-chan struct{}, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	// The number may be another process's by now: only its being our parent says that it lives.
	if os.Getppid() != pid {
		if err == nil {
			unix.Close(fd)
		}
		return nil, fmt.Errorf("process %d is not the parent of this one (%d is); it may have ended already", pid, os.Getppid())
	}
	gone := make(chan struct{})
	if err != nil {
		go pollParent(pid, gone)
		return gone, nil
	}
	go func() {
		defer close(gone)
		defer unix.Close(fd)
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			if _, err := unix.Poll(poll, -1); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}()
	return gone, nil
}

func pollParent(pid int, gone chan<- struct{}) {
	defer close(gone)
	for os.Getppid() == pid {
		time.Sleep(parentPoll)
	}
}
