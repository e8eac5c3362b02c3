package control

import (
	"fmt"
	"testing"
)

// benchPair starts two daemons with clients that use little time themselves.
func benchPair(b *testing.B) (caller, callee *daemon) {
	b.Helper()
	caller, callee = startDaemon(b, nil), startDaemon(b, nil)
	caller.meet(callee)
	return caller, callee
}

func BenchmarkUnaryEcho(b *testing.B) {
	for _, size := range []int{128, 64 << 10, 1 << 20, 3 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			caller, callee := benchPair(b)
			callee.listen("T.rpc_x", ModeUnary)
			go func() {
				for {
					id, _, request := callee.acceptUnary()
					if callee.closed.Load() {
						return
					}
					callee.sendAll(id, request)
				}
			}()
			request := pattern(size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			for b.Loop() {
				if _, _, fault := caller.call(callee.node.ID(), "T.rpc_x", request); fault != nil {
					b.Fatal(fault)
				}
			}
			callee.closed.Store(true)
		})
	}
}

func BenchmarkStream(b *testing.B) {
	for _, size := range []int{1 << 10, 64 << 10, 1 << 20} {
		b.Run(fmt.Sprint(size), func(b *testing.B) {
			caller, callee := benchPair(b)
			callee.listen("T.stream", ModeMessages)
			out := caller.open(callee.node.ID(), "T.stream", ModeMessages, patience, nil)
			caller.sendAll(out, pattern(1))
			in, _, _ := callee.accept()
			callee.mustReceive(in, pattern(1))
			message := pattern(size)
			b.SetBytes(int64(size))
			b.ReportAllocs()
			go func() {
				for range b.N {
					caller.sendAll(out, message)
				}
			}()
			for range b.N {
				if got, _, _, fault := callee.receive(in); fault != nil || len(got) != size {
					b.Fatal(len(got), fault)
				}
			}
		})
	}
}
