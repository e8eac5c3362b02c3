package life

import (
	"errors"

	"golang.org/x/sys/unix"
)

// watchProcess makes ready to wait for the end of a process, by a pidfd.
func watchProcess(pid int) (wait func(), err error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, err
	}
	return func() {
		defer unix.Close(fd)
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		for {
			if _, err := unix.Poll(poll, -1); !errors.Is(err, unix.EINTR) {
				return
			}
		}
	}, nil
}
