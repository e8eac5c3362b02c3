package node

import (
	"errors"
	"io"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
)

func TestAPeerCallsItself(t *testing.T) {
	n := start(t, nil)
	n.Handle("echo", func(s network.Stream) {
		if s.Conn().RemotePeer() != n.ID() || s.Protocol() != "echo" {
			t.Error(s.Conn().RemotePeer(), s.Protocol())
		}
		_, _ = io.Copy(s, s)
		_ = s.Close()
	})
	for _, size := range []int{0, 1, 3 << 20} {
		s, err := n.Open(within(t), n.ID(), "echo")
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			_, _ = s.Write(make([]byte, size))
			_ = s.CloseWrite()
		}()
		if back, err := io.ReadAll(s); err != nil || len(back) != size {
			t.Fatal(size, len(back), err)
		}
		_ = s.Close()
	}
	if len(n.Peers()) != 0 {
		t.Error("it counts itself among its peers")
	}
}

func TestAPeerIsToldWhatBecameOfItsOwnStreams(t *testing.T) {
	n := start(t, nil)
	if _, err := n.Open(within(t), n.ID(), "nothing"); !errors.Is(err, ErrNotSupported) {
		t.Error(err)
	}
	n.Handle("busy", func(s network.Stream) { _ = s.ResetWithError(CodeBusy) })
	s, err := n.Open(within(t), n.ID(), "busy")
	if err != nil {
		t.Fatal(err)
	}
	_, err = io.ReadAll(s)
	if err = ClassifyStream(n.ID(), "busy", err); !errors.Is(err, ErrBusy) {
		t.Error(err)
	}
	entered, ended := make(chan struct{}), make(chan struct{})
	n.Handle("hang", func(s network.Stream) {
		close(entered)
		_, _ = io.ReadAll(s)
		close(ended)
	})
	if s, err = n.Open(within(t), n.ID(), "hang"); err != nil {
		t.Fatal(err)
	}
	awaitClosed(t, entered)
	n.Close()
	awaitClosed(t, ended)
	if _, err = s.Read(make([]byte, 1)); err == nil {
		t.Error("it outlives its peer")
	}
	if _, err = n.Open(within(t), n.ID(), "hang"); err == nil {
		t.Error("opened on a closed peer")
	}
}

func awaitClosed(t *testing.T, ch <-chan struct{}) {
	t.Helper()
	select {
	case <-ch:
	case <-time.After(patience):
		t.Fatal("it takes too long")
	}
}
