//go:build darwin || dragonfly || freebsd || netbsd || openbsd

package life

import (
	"errors"

	"golang.org/x/sys/unix"
)

// watchProcess makes ready to wait for the end of a process, by a kernel queue.
func watchProcess(pid int) (wait func(), err error) {
	queue, err := unix.Kqueue()
	if err != nil {
		return nil, err
	}
	unix.CloseOnExec(queue)
	var end unix.Kevent_t
	unix.SetKevent(&end, pid, unix.EVFILT_PROC, unix.EV_ADD|unix.EV_ONESHOT)
	end.Fflags = unix.NOTE_EXIT
	if _, err := unix.Kevent(queue, []unix.Kevent_t{end}, nil, nil); err != nil {
		unix.Close(queue)
		return nil, err
	}
	return func() {
		defer unix.Close(queue)
		events := make([]unix.Kevent_t, 1)
		for {
			if _, err := unix.Kevent(queue, nil, events, nil); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}, nil
}
