package node

import (
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// setUserTimeout bounds how long sent bytes may stay without an answer of the other kernel (RFC 5482).
func setUserTimeout(sock syscall.Conn, bound time.Duration) error {
	raw, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	var set error
	err = raw.Control(func(fd uintptr) {
		set = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(bound.Milliseconds()))
	})
	if err != nil {
		return err
	}
	return set
}
