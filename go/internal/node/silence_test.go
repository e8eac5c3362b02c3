//go:build linux

package node

import (
	"net"
	"testing"

	"golang.org/x/sys/unix"
)

// TestKernelsWatchConnections: with what they are told.
func TestKernelsWatchConnections(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	boundSilence(conn)
	raw, err := conn.(socket).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	if err := raw.Control(func(fd uintptr) {
		for option, want := range map[int]int{
			unix.TCP_USER_TIMEOUT: int(silence.Milliseconds()), unix.TCP_KEEPIDLE: int(askAfter.Seconds()),
			unix.TCP_KEEPINTVL: int(askAgain.Seconds()),
		} {
			if got, err := unix.GetsockoptInt(int(fd), unix.IPPROTO_TCP, option); err != nil || got != want {
				t.Errorf("option %d is %d, not %d; %v", option, got, want, err)
			}
		}
	}); err != nil {
		t.Fatal(err)
	}
}
