package control

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"hivemind/p2pd/internal/config"
)

func TestHeaderLayout(t *testing.T) {
	h := header{length: 0x01020304, kind: typeData, flags: 2, code: 0x0506, stream: 0x0708090a, aux: 0x0b0c0d0e}
	var raw [headSize]byte
	h.put(&raw)
	if want := [headSize]byte{4, 3, 2, 1, 6, 2, 6, 5, 0xa, 9, 8, 7, 0xe, 0xd, 0xc, 0xb}; raw != want {
		t.Errorf("%x", raw)
	}
	if _, err := parseHeader(&raw); err == nil {
		t.Error("a payload over the limit was accepted")
	}
	h.length = MaxPayload
	h.aux = MaxPayload
	h.put(&raw)
	if got, err := parseHeader(&raw); got != h || err != nil {
		t.Errorf("%+v %v", got, err)
	}
}

func FuzzParseTarget(f *testing.F) {
	f.Add(appendTarget(nil, &target{peer: []byte("peer"), name: "name"}))
	f.Fuzz(func(t *testing.T, payload []byte) {
		got, rest, err := parseTarget(payload)
		if err != nil {
			return
		}
		if again := append(appendTarget(nil, &got), rest...); !bytes.Equal(again, payload) {
			t.Fatalf("%x became %x", payload, again)
		}
	})
}

func TestWriterKeepsOrderAndBytes(t *testing.T) {
	var out bytes.Buffer
	w := newWriter(func(pieces net.Buffers) (int64, error) { return pieces.WriteTo(&out) })
	var want bytes.Buffer
	for i, size := range []int{0, 1, copyLimit, copyLimit + 1, MaxPayload, 3, MaxPayload, MaxPayload, MaxPayload, MaxPayload, 0} {
		h := header{kind: typeData, stream: uint32(i), aux: uint32(size), length: uint32(size)}
		var raw [headSize]byte
		h.put(&raw)
		want.Write(raw[:])
		want.Write(pattern(size))
		buf := newBuffer(size)
		copy(buf.data, pattern(size))
		w.sendData(frame{head: h, payload: buf.data, owned: buf})
	}
	w.close(true)
	<-w.done
	if !bytes.Equal(out.Bytes(), want.Bytes()) {
		t.Error("bytes differ")
	}
	if w.sendData(frame{}) {
		t.Error("a closed writer took a frame")
	}
}

func TestWriterThatFailsFreesItsSenders(t *testing.T) {
	w := newWriter(func(net.Buffers) (int64, error) { return 0, net.ErrClosed })
	for w.sendData(frame{payload: make([]byte, MaxPayload)}) { // ends, where a sender would wait for ever
	}
	<-w.done
}

// TestBrokenProtocolEndsTheConnection sends frames that no client may send.
func TestBrokenProtocolEndsTheConnection(t *testing.T) {
	d := startDaemon(t, nil)
	to := appendTarget(nil, &target{peer: []byte(d.node.ID()), name: "T.rpc_x"})
	for name, misbehave := range map[string]func(c *client){
		"payload too large": func(c *client) {
			h := header{length: MaxPayload + 1, kind: typeRequest}
			var raw [headSize]byte
			h.put(&raw)
			_, _ = c.sock.Write(raw[:])
		},
		"unknown type":        func(c *client) { c.send(header{kind: 77}, nil) },
		"the daemon's type":   func(c *client) { c.send(header{kind: typeAccept}, to) },
		"even stream":         func(c *client) { c.send(header{kind: typeOpen, code: 1, stream: 2}, to) },
		"unknown mode":        func(c *client) { c.send(header{kind: typeOpen, code: 9, stream: 1}, to) },
		"target cut short":    func(c *client) { c.send(header{kind: typeOpen, code: 1, stream: 1}, to[:10]) },
		"more than announced": func(c *client) { c.send(header{kind: typeData, stream: 1, aux: 1}, []byte("two")) },
		"stream opened twice": func(c *client) {
			c.send(header{kind: typeOpen, code: 1, stream: 1}, to) // waits for its request
			c.send(header{kind: typeOpen, code: 1, stream: 1}, to)
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := d.connect(t, false)
			misbehave(c)
			select {
			case <-c.ended:
			case <-time.After(patience):
				t.Error("the connection is still open")
			}
		})
	}
	d.must(map[string]any{"op": "stats"}) // other connections live on
}

func TestSendingOverTheCreditEndsTheConnection(t *testing.T) {
	a, b := startPair(t)
	b.listen("T.stream", ModeMessages)
	out, _ := openPair(t, a, b, ModeMessages)
	b.mu.Lock()
	b.manual = true
	b.mu.Unlock()
	for range (2*Window + maxInTransit) / MaxPayload { // more than the network takes
		a.send(header{kind: typeData, stream: out, aux: MaxPayload}, pattern(MaxPayload))
	}
	select {
	case <-a.ended:
	case <-time.After(patience):
		t.Error("the connection is still open")
	}
}

func TestHelloComesFirst(t *testing.T) {
	d := startDaemon(t, nil)
	for name, first := range map[string]func(c *client){
		"another op":    func(c *client) { _, _ = c.request(map[string]any{"op": "peers"}) },
		"other version": func(c *client) { _, _ = c.request(map[string]any{"op": "hello", "version": 99}) },
		"other frame":   func(c *client) { c.send(header{kind: typeFin, stream: 1}, nil) },
	} {
		t.Run(name, func(t *testing.T) {
			ours, theirs := socketPair(t)
			go d.server.ServeConn(theirs, false)
			c := newClient(t, ours)
			first(c)
			select {
			case <-c.ended:
			case <-time.After(patience):
				t.Error("the connection is still open")
			}
		})
	}
}

func TestHelloTellsTheLimits(t *testing.T) {
	d := startDaemon(t, func(cfg *config.Config) { cfg.MaxMessage = 12345 })
	answer := d.must(map[string]any{"op": "hello", "version": Version})
	for key, want := range map[string]any{
		"version": float64(Version), "peer_id": d.node.ID().String(), "window": float64(Window), "max_frame": 266240.0, "max_message": 12345.0,
		"max_unary": 4194304.0,
	} {
		if answer[key] != want {
			t.Errorf("%s: %v, not %v", key, answer[key], want)
		}
	}
}

func TestWrongRequestsAreRefused(t *testing.T) {
	d := startDaemon(t, nil)
	id := d.node.ID().String()
	for _, fields := range []map[string]any{
		{"op": "nonsense"},
		{"op": "peers", "unknown": 1},
		{"op": "listen", "name": "", "mode": 1},
		{"op": "listen", "name": "T.x", "mode": 0},
		{"op": "listen", "name": "T.x", "mode": 1, "max_in_flight": -1},
		{"op": "listen", "name": strings.Repeat("x", 1001), "mode": 1},
		{"op": "unlisten", "name": "T.never"},
		{"op": "connect", "peer": "nonsense"},
		{"op": "connect", "peer": id, "addrs": []string{"nonsense"}},
		{"op": "connect", "peer": id, "addrs": []string{"/ip4/1.2.3.4/tcp/1/p2p/12D3KooWDkoDGH4nombUoQhXxEbkG7JYCxY3GexGA3XsQqPL4vqW"}},
		{"op": "connect", "peer": id, "timeout": -1},
		{"op": "find_peer", "peer": ""},
	} {
		if _, fault := d.request(fields); fault == nil || fault.Code != CodeBadRequest {
			t.Errorf("%v: %+v", fields, fault)
		}
	}
	d.send(header{kind: typeRequest, stream: 99}, []byte("no json"))
	if ev := d.next(99); ev.flags&flagError == 0 {
		t.Errorf("%q", ev.payload)
	}
}

func TestHandlerNamesBelongToOne(t *testing.T) {
	d := startDaemon(t, nil)
	guest := d.connect(t, false)
	d.listen("T.rpc_x", ModeUnary)
	for _, fields := range []map[string]any{
		{"op": "listen", "name": "T.rpc_x", "mode": 1},
		{"op": "listen", "name": "T.rpc_x", "mode": 1, "balanced": true},
		{"op": "listen", "name": "/ipfs/kad/1.0.0", "mode": 3, "balanced": true},
	} {
		if _, fault := guest.request(fields); fault == nil || fault.Code != CodeHandlerTaken {
			t.Errorf("%v: %+v", fields, fault)
		}
	}
	guest.must(map[string]any{"op": "listen", "name": "T.rpc_b", "mode": 1, "balanced": true})
	if _, fault := d.request(map[string]any{"op": "listen", "name": "T.rpc_b", "mode": 2, "balanced": true}); fault == nil {
		t.Error("one name with two modes")
	}
	if _, fault := guest.request(map[string]any{"op": "unlisten", "name": "T.rpc_x"}); fault == nil {
		t.Error("unlistened what another has")
	}
	d.must(map[string]any{"op": "unlisten", "name": "T.rpc_x"})
	guest.listen("T.rpc_x", ModeMessages)
}

func TestOnlyTheOwnerStopsTheDaemon(t *testing.T) {
	d := startDaemon(t, nil)
	guest := d.connect(t, false)
	if _, fault := guest.request(map[string]any{"op": "shutdown"}); fault == nil {
		t.Error("a guest stopped the daemon")
	}
	d.must(map[string]any{"op": "shutdown"})
	select {
	case <-d.server.Shutdown:
	case <-time.After(patience):
		t.Error("not stopped")
	}
}

func TestGuestsConnectByPath(t *testing.T) {
	d := startDaemon(t, nil)
	folder := filepath.Join(t.TempDir(), "run")
	path := filepath.Join(folder, "control.sock")
	if err := d.server.ServeGuests(path); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{folder, path} {
		if info, err := os.Stat(name); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: %v %v", name, info.Mode(), err)
		}
	}
	sock, err := net.Dial("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	c := newClient(t, sock)
	c.must(map[string]any{"op": "hello", "version": Version})
	d.server.Close()
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the socket is left: %v", err)
	}
	select {
	case <-c.ended:
	case <-time.After(patience):
		t.Error("the guest is still connected")
	}
}

func TestOpenFolderIsRefused(t *testing.T) {
	d := startDaemon(t, nil)
	folder := t.TempDir()
	if err := os.Chmod(folder, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := d.server.ServeGuests(filepath.Join(folder, "control.sock")); err == nil || !strings.Contains(err.Error(), "0700") {
		t.Error(err)
	}
}

// TestNothingIsLeft: daemons that have worked and closed leave no goroutine.
func TestNothingIsLeft(t *testing.T) {
	before := runtime.NumGoroutine()
	t.Run("work", func(t *testing.T) {
		a, b := startPair(t)
		b.listen("T.stream", ModeMessages)
		for range 10 {
			out, in := openPair(t, a, b, ModeMessages)
			a.fin(out)
			b.mustFin(in)
			b.fin(in)
			a.mustFin(out)
		}
		openPair(t, a, b, ModeMessages) // left open
	})
	deadline := time.Now().Add(patience)
	for runtime.NumGoroutine() > before+5 { // some of the libraries' global ones stay
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			t.Fatalf("%d goroutines, %d before:\n%s", runtime.NumGoroutine(), before, stacks[:runtime.Stack(stacks, true)])
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func TestClientThatIsKilledIsNoFault(t *testing.T) {
	d := startDaemon(t, nil)
	for _, sent := range [][]byte{{}, {1, 2, 3}, {200, 0, 0, 0, byte(typeRequest), 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0, '{'}} {
		ours, theirs := socketPair(t)
		if _, err := ours.Write(sent); err != nil {
			t.Fatal(err)
		}
		ours.Close()
		if err := newConn(d.server, theirs, false).serve(); err != nil {
			t.Errorf("after %x: %v", sent, err)
		}
	}
}
