package life

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"hivemind/p2pd/internal/control"
)

// patience bounds every wait of the tests.
const patience = 30 * time.Second

// The test binary plays all parts: with this variable set it is a daemon, or a parent that starts one.
const roleVariable = "P2PD_TEST_ROLE"

func TestMain(m *testing.M) {
	switch os.Getenv(roleVariable) {
	case "daemon":
		os.Exit(Run(os.Stdin, os.Stdout, os.Stderr))
	case "parent":
		os.Exit(playParent())
	}
	os.Exit(m.Run())
}

// playParent starts a daemon that watches this process, prints its ready line, and waits to be killed. A grandchild without
// an exec's care for descriptors would keep the daemon's pipes open: here the daemon's standard input is left open likewise.
func playParent() int {
	daemon := command("daemon")
	daemon.Stdin = strings.NewReader(fmt.Sprintf(`{"parent_pid": %d, "auto_nat": false, "relay": false}`, os.Getpid()))
	daemon.Stdout = os.Stdout
	if err := daemon.Start(); err != nil {
		return 1
	}
	time.Sleep(time.Hour)
	return 0
}

func command(role string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), roleVariable+"="+role)
	cmd.Stderr = os.Stderr
	return cmd
}

func TestReadyLine(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run", "control.sock")
	p := startProcess(t, map[string]any{"control_path": path})
	id, _ := p.line["peer_id"].(string)
	addrs, _ := p.line["addrs"].([]any)
	if p.line["ready"] != true || p.line["version"] != float64(control.Version) || p.line["pid"] != float64(p.cmd.Process.Pid) ||
		p.line["control"] != path || len(addrs) != 1 || !strings.HasSuffix(fmt.Sprint(addrs[0]), "/p2p/"+id) {
		t.Errorf("%v", p.line)
	}
	p.owner.Close()
	p.mustExit(t, ExitOK)
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the control socket is left: %v", err)
	}
}

// TestAnotherInItsPlace: a daemon with the seed and the ports of one before is the same peer at the same addresses.
func TestAnotherInItsPlace(t *testing.T) {
	seed := strings.Repeat("5a", 32)
	first := startProcess(t, map[string]any{"identity_seed": seed, "listen": []string{"/ip4/127.0.0.1/tcp/0", "/ip4/127.0.0.1/udp/0/quic-v1"}})
	if err := first.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-first.exited
	second := startProcess(t, map[string]any{"identity_seed": seed, "listen": first.line["listen"]})
	if fmt.Sprint(second.line["addrs"]) != fmt.Sprint(first.line["addrs"]) || second.line["peer_id"] != first.line["peer_id"] {
		t.Errorf("%v\n%v", first.line, second.line)
	}
}

// TestWhoRemovesTheFolder: an owner that lives on may start another daemon in it; whoever else is left, the daemon is the last.
func TestWhoRemovesTheFolder(t *testing.T) {
	for name, end := range map[string]func(p *process){
		"kept":  func(p *process) { _ = p.cmd.Process.Signal(syscall.SIGTERM) },
		"owner": func(p *process) { p.owner.Close() },
		"asked": func(p *process) {
			request(t, p.owner, hello)
			request(t, p.owner, `{"op": "shutdown"}`)
		},
	} {
		t.Run(name, func(t *testing.T) {
			folder := filepath.Join(t.TempDir(), "run")
			p := startProcess(t, map[string]any{"control_path": filepath.Join(folder, "control.sock"), "own_folder": true})
			if err := os.WriteFile(filepath.Join(folder, "a socket of the owner's"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			end(p)
			p.mustExit(t, ExitOK)
			if _, err := os.Stat(folder); os.IsNotExist(err) == (name == "kept") {
				t.Errorf("the folder: %v", err)
			}
			if _, err := os.Stat(filepath.Join(folder, "control.sock")); !os.IsNotExist(err) {
				t.Errorf("the control socket: %v", err)
			}
		})
	}
}

func TestFatalLines(t *testing.T) {
	folder := t.TempDir()
	garbage := filepath.Join(folder, "garbage")
	if err := os.WriteFile(garbage, []byte("garbage"), 0o600); err != nil {
		t.Fatal(err)
	}
	taken, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	port := taken.Addr().(*net.TCPAddr).Port
	free := port // nobody is there that speaks the protocol: the bootstrap fails
	for name, c := range map[string]struct {
		fields map[string]any
		fatal  string
		code   int
		text   string
	}{
		"config":   {map[string]any{"tls": false, "noise": false, "max_message": 0}, "config", ExitConfig, "max_message"},
		"unknown":  {map[string]any{"colour": "red"}, "config", ExitConfig, "colour"},
		"parent":   {map[string]any{"parent_pid": 1 << 22}, "config", ExitConfig, "parent"},
		"owner":    {map[string]any{"owner_fd": 77}, "config", ExitConfig, "owner_fd"},
		"identity": {map[string]any{"identity_path": garbage}, "identity", ExitIdentity, garbage},
		"listen":   {map[string]any{"listen": []string{fmt.Sprintf("/ip4/127.0.0.1/tcp/%d", port)}}, "listen", ExitListen, fmt.Sprint(port)},
		"bootstrap": {map[string]any{
			"bootstrap":         []string{fmt.Sprintf("/ip4/127.0.0.1/tcp/%d/p2p/12D3KooWDkoDGH4nombUoQhXxEbkG7JYCxY3GexGA3XsQqPL4vqW", free)},
			"bootstrap_timeout": 0.3,
		}, "bootstrap", ExitBootstrap, "failed to connect to bootstrap peers"},
	} {
		t.Run(name, func(t *testing.T) {
			p := startProcess(t, c.fields)
			text := fmt.Sprint(p.line["error"])
			if p.line["fatal"] != c.fatal || !strings.Contains(text, c.text) || p.line["hint"] == "" {
				t.Errorf("%v", p.line)
			}
			p.mustExit(t, c.code)
		})
	}
}

func TestSignalsStop(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		p := startProcess(t, nil)
		if err := p.cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		p.mustExit(t, ExitOK)
	}
}

// TestSecondSignalKills: a call that nobody answers keeps the daemon for its grace period after the first signal.
func TestSecondSignalKills(t *testing.T) {
	callee, caller := startProcess(t, nil), startProcess(t, nil)
	hangingCall(t, caller, callee)
	if err := caller.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	again := time.NewTicker(100 * time.Millisecond) // the first may still be on its way
	defer again.Stop()
	deadline := time.After(patience)
	for {
		select {
		case <-again.C:
			_ = caller.cmd.Process.Signal(syscall.SIGTERM)
		case code := <-caller.exited:
			if code != ExitKilled {
				t.Errorf("exit code %d", code)
			}
			return
		case <-deadline:
			t.Fatal("it lives on")
		}
	}
}

func TestFirstSignalWaitsForCallsOnlySoLong(t *testing.T) {
	callee, caller := startProcess(t, nil), startProcess(t, nil)
	hangingCall(t, caller, callee)
	begun := time.Now()
	if err := caller.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	caller.mustExit(t, ExitOK)
	if took := time.Since(begun); took < drainTime {
		t.Errorf("a call under way was given %s only", took)
	}
}

// TestKilledPeersBreakTheirStreams: what a killed daemon leaves behind must not look like a proper end.
func TestKilledPeersBreakTheirStreams(t *testing.T) {
	callee, caller := startProcess(t, nil), startProcess(t, nil)
	hangingCall(t, caller, callee)
	if err := callee.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	kind, code, _, text := receive(t, caller.owner)
	if kind != frameReset || code != 5 {
		t.Errorf("frame %d, code %d: %s", kind, code, text)
	}
}

func TestDaemonEndsWithItsParent(t *testing.T) {
	parent := command("parent")
	out, err := parent.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := parent.Start(); err != nil {
		t.Fatal(err)
	}
	defer parent.Process.Kill() //nolint:errcheck // it is dead by then
	var ready Ready
	line, err := bufio.NewReader(out).ReadBytes('\n')
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(line, &ready); err != nil || !ready.Ready {
		t.Fatalf("%q: %v", line, err)
	}
	if err := parent.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = parent.Wait()
	begun := time.Now()
	for !ended(ready.PID) {
		if time.Since(begun) > patience {
			t.Fatal("the daemon lives on")
		}
		time.Sleep(time.Millisecond)
	}
	t.Logf("gone after %s", time.Since(begun))
}

// ended tells whether a process of another's has ended; nobody but init may have waited for it yet.
func ended(pid int) bool {
	if err := syscall.Kill(pid, 0); errors.Is(err, syscall.ESRCH) {
		return true
	}
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err != nil || strings.Contains(string(stat), ") Z ")
}

func TestShutdownRequestStops(t *testing.T) {
	p := startProcess(t, nil)
	request(t, p.owner, hello)
	request(t, p.owner, `{"op": "shutdown"}`)
	p.mustExit(t, ExitOK)
}

func TestLogsNeverBlock(t *testing.T) {
	read, written := io.Pipe() // nobody reads yet
	logs := NewLogWriter(written)
	for i := range logBacklog + 100 {
		fmt.Fprintf(logs, "line %d\n", i)
	}
	go func() {
		logs.Flush(patience)
		written.Close()
	}()
	text, err := io.ReadAll(read)
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Count(string(text), "line ")
	if lines < logBacklog || lines > logBacklog+2 || !strings.Contains(string(text), `"msg":"log lines dropped"`) {
		t.Errorf("%d lines; the loss is not told: %t", lines, strings.Contains(string(text), "dropped"))
	}
}
