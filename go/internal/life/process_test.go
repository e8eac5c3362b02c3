package life

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"hivemind/p2pd/internal/control"
)

// hello is the first request of a client.
var hello = fmt.Sprintf(`{"op": "hello", "version": %d}`, control.Version)

// process is a daemon in a process of its own.
type process struct {
	cmd    *exec.Cmd
	line   map[string]any // its first line of output
	owner  net.Conn
	exited chan int
}

// startProcess starts a daemon with an owner's connection and the given further fields.
func startProcess(t *testing.T, fields map[string]any) *process {
	t.Helper()
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	owner, err := net.FileConn(ours)
	if err != nil {
		t.Fatal(err)
	}
	ours.Close()
	t.Cleanup(func() { owner.Close() })

	cfg := map[string]any{"owner_fd": 3, "parent_pid": os.Getpid(), "auto_nat": false, "relay": false}
	for key, value := range fields {
		cfg[key] = value
	}
	text, err := json.Marshal(cfg)
	if err != nil {
		t.Fatal(err)
	}
	p := &process{cmd: command("daemon"), owner: owner, exited: make(chan int, 1)}
	p.cmd.Stdin = strings.NewReader(string(text))
	p.cmd.ExtraFiles = []*os.File{theirs}
	out, err := p.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	theirs.Close()
	t.Cleanup(func() { _ = p.cmd.Process.Kill() })
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal("no first line:", err)
	}
	if err := json.Unmarshal(line, &p.line); err != nil {
		t.Fatalf("%q: %v", line, err)
	}
	go func() {
		_ = p.cmd.Wait()
		p.exited <- p.cmd.ProcessState.ExitCode()
	}()
	return p
}

func (p *process) mustExit(t *testing.T, code int) {
	t.Helper()
	select {
	case got := <-p.exited:
		if got != code {
			t.Errorf("exit code %d, not %d", got, code)
		}
	case <-time.After(patience):
		t.Error("it lives on")
	}
}

// The control protocol, as far as these tests need it.
const (
	frameRequest = 1
	frameOpen    = 3
	frameAccept  = 5
	frameReset   = 8
	frameEvent   = 10
)

func send(t *testing.T, sock net.Conn, kind, flags byte, code uint16, stream uint32, payload []byte) {
	t.Helper()
	frame := binary.LittleEndian.AppendUint32(nil, uint32(len(payload)))
	frame = append(frame, kind, flags)
	frame = binary.LittleEndian.AppendUint16(frame, code)
	frame = binary.LittleEndian.AppendUint32(frame, stream)
	frame = binary.LittleEndian.AppendUint32(frame, 0)
	if _, err := sock.Write(append(frame, payload...)); err != nil {
		t.Fatal(err)
	}
}

func receive(t *testing.T, sock net.Conn) (kind byte, code uint16, stream uint32, payload []byte) {
	t.Helper()
	if err := sock.SetReadDeadline(time.Now().Add(patience)); err != nil {
		t.Fatal(err)
	}
	for {
		var head [16]byte
		if _, err := io.ReadFull(sock, head[:]); err != nil {
			t.Fatal(err)
		}
		payload = make([]byte, binary.LittleEndian.Uint32(head[0:]))
		if _, err := io.ReadFull(sock, payload); err != nil {
			t.Fatal(err)
		}
		if head[4] != frameEvent { // events come between the others at any time
			return head[4], binary.LittleEndian.Uint16(head[6:]), binary.LittleEndian.Uint32(head[8:]), payload
		}
	}
}

func request(t *testing.T, sock net.Conn, text string) {
	t.Helper()
	send(t, sock, frameRequest, 0, 0, 7, []byte(text))
	if _, _, _, answer := receive(t, sock); strings.Contains(string(answer), "error") {
		t.Fatalf("%s: %s", text, answer)
	}
}

// hangingCall makes a unary call that the callee's owner never answers.
func hangingCall(t *testing.T, caller, callee *process) {
	t.Helper()
	request(t, callee.owner, hello)
	request(t, callee.owner, `{"op": "listen", "name": "T.rpc_x", "mode": 1}`)
	request(t, caller.owner, hello)
	addrs, err := json.Marshal(callee.line["addrs"])
	if err != nil {
		t.Fatal(err)
	}
	request(t, caller.owner, fmt.Sprintf(`{"op": "connect", "peer": %q, "addrs": %s, "timeout": 30}`, callee.line["peer_id"], addrs))
	id, err := peer.Decode(callee.line["peer_id"].(string))
	if err != nil {
		t.Fatal(err)
	}
	payload := binary.LittleEndian.AppendUint16(nil, uint16(len(id)))
	payload = binary.LittleEndian.AppendUint16(payload, uint16(len("T.rpc_x")))
	payload = append(append(payload, id...), "T.rpc_x..."...)
	send(t, caller.owner, frameOpen, 2, 1, 1, payload)
	if kind, _, _, _ := receive(t, callee.owner); kind != frameAccept {
		t.Fatalf("frame type %d", kind)
	}
}
