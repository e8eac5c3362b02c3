package rawio

import (
	"syscall"
	"unsafe"
)

// Read reads what has come, up to len(p) bytes, which are not none; EAGAIN if nothing has.
func Read(fd uintptr, p []byte) (int, error) {
	for {
		n, _, errno := syscall.RawSyscall(syscall.SYS_READ, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		if errno != syscall.EINTR {
			return result(n, errno)
		}
	}
}

// mostPieces is what one writev takes.
const mostPieces = 1024

// Write writes as much of pieces, the first of which is not empty, as the socket takes; EAGAIN if it takes nothing.
func Write(fd uintptr, pieces [][]byte) (int, error) {
	if len(pieces) > 1 {
		return writeVector(fd, pieces[:min(len(pieces), mostPieces)])
	}
	p := pieces[0]
	for {
		n, _, errno := syscall.RawSyscall(syscall.SYS_WRITE, fd, uintptr(unsafe.Pointer(unsafe.SliceData(p))), uintptr(len(p)))
		if errno != syscall.EINTR {
			return result(n, errno)
		}
	}
}

func writeVector(fd uintptr, pieces [][]byte) (int, error) {
	vector := make([]syscall.Iovec, len(pieces))
	for i, p := range pieces {
		vector[i].Base = unsafe.SliceData(p)
		vector[i].SetLen(len(p))
	}
	for {
		n, _, errno := syscall.RawSyscall(syscall.SYS_WRITEV, fd, uintptr(unsafe.Pointer(unsafe.SliceData(vector))), uintptr(len(vector)))
		if errno != syscall.EINTR {
			return result(n, errno)
		}
	}
}

func result(n uintptr, errno syscall.Errno) (int, error) {
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
