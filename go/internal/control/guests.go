package control

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
)

// ServeGuests accepts connections of other processes of this user at path until the server closes. The folder of path is
// made with mode 0700 and then removed at the end; it must have no more than that mode if it exists.
func (srv *Server) ServeGuests(path string) error {
	folder := filepath.Dir(path)
	_, missing := os.Stat(folder)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(folder)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		return fmt.Errorf("folder %s has mode %o; others could reach the control socket, make it 0700", folder, info.Mode().Perm())
	}
	listener, err := net.Listen("unix", path)
	if err != nil {
		return err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		listener.Close()
		return err
	}
	srv.mu.Lock()
	srv.guests = listener
	if missing != nil {
		srv.guestFolder = folder
	}
	srv.mu.Unlock()
	go srv.acceptGuests(listener)
	return nil
}

// acceptGuests ends when Drain closes the listener, which removes the socket file too.
func (srv *Server) acceptGuests(listener net.Listener) {
	for {
		sock, err := listener.Accept()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			srv.log.Error("accepting a guest", "error", err)
			return
		}
		if err := checkGuest(sock); err != nil {
			srv.log.Warn("guest refused", "error", err)
			sock.Close()
			continue
		}
		go srv.ServeConn(sock, false)
	}
}

// checkGuest lets in processes of this user and of root.
func checkGuest(sock net.Conn) error {
	unixSock, ok := sock.(*net.UnixConn)
	if !ok {
		return fs.ErrInvalid
	}
	raw, err := unixSock.SyscallConn()
	if err != nil {
		return err
	}
	var uid uint32
	var credErr error
	if err := raw.Control(func(fd uintptr) { uid, credErr = peerUID(int(fd)) }); err != nil {
		return err
	}
	if credErr != nil {
		return credErr
	}
	if own := uint32(os.Geteuid()); uid != own && uid != 0 {
		return fmt.Errorf("process of user %d, not %d", uid, own)
	}
	return nil
}

// Inherited turns an inherited descriptor into a connection.
func Inherited(fd int) (net.Conn, error) {
	file := os.NewFile(uintptr(fd), "owner")
	if file == nil {
		return nil, fmt.Errorf("descriptor %d is not open", fd)
	}
	defer file.Close() // FileConn has a copy
	sock, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("descriptor %d is not a socket: %w", fd, err)
	}
	return sock, nil
}
