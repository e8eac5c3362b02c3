//go:build !linux

package rawio

import (
	"errors"
	"syscall"
)

// Read reads what has come, up to len(p) bytes, which are not none; EAGAIN if nothing has.
func Read(fd uintptr, p []byte) (int, error) {
	for {
		n, err := syscall.Read(int(fd), p)
		if !errors.Is(err, syscall.EINTR) {
			return max(n, 0), err
		}
	}
}

// Write writes as much of pieces, the first of which is not empty, as the socket takes; EAGAIN if it takes nothing.
func Write(fd uintptr, pieces [][]byte) (int, error) {
	for {
		n, err := syscall.Write(int(fd), pieces[0])
		if !errors.Is(err, syscall.EINTR) {
			return max(n, 0), err
		}
	}
}
