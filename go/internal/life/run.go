package life

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"time"

	"hivemind/p2pd/internal/config"
	"hivemind/p2pd/internal/control"
	"hivemind/p2pd/internal/expose"
	"hivemind/p2pd/internal/node"
)

const (
	// drainTime is how long calls under way may go on after the first signal.
	drainTime = 2 * time.Second
	// closeTime bounds leaving the network; the process exits then in any case.
	closeTime = 500 * time.Millisecond
	// abandonTime is how long a parent may outlive a signal that was for it too: it may have much memory to give back.
	abandonTime = time.Second
	// flushTime bounds writing the last log lines.
	flushTime = 100 * time.Millisecond

	// memoryLimit makes the collector busier before a large heap gets out of hand.
	memoryLimit = 384 << 20
)

// useProcessors leaves half of the processors to the program whose daemon this is: each thread more is another that is woken for a message. On two
// processors calls were up to a fifth faster so, and streams no slower. A relay has no program beside it that works. GOMAXPROCS in the
// environment goes first.
func useProcessors(cfg *config.Config) {
	if os.Getenv("GOMAXPROCS") == "" && !cfg.RelayService {
		runtime.GOMAXPROCS(max(1, runtime.GOMAXPROCS(0)/2))
	}
}

// Run is the daemon from its configuration on in to its exit code.
func Run(in io.Reader, out, errOut io.Writer) int {
	keepHeadroom()
	debug.SetMemoryLimit(memoryLimit)
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	go reclaim(ctx)
	stop := Signals()
	cfg, err := config.Read(in)
	if err != nil {
		return report(out, fmt.Errorf("%w: %w", ErrConfig, err))
	}
	useProcessors(&cfg)
	level, _ := cfg.Level() // Read has checked it
	logs := NewLogWriter(errOut)
	defer logs.Flush(flushTime)
	d := &daemon{cfg: &cfg, log: SetUpLogs(logs, level), stop: stop}
	if err := d.start(out); err != nil {
		return report(out, err)
	}
	d.wait()
	return ExitOK
}

func report(out io.Writer, err error) int {
	line, code := Explain(err)
	if err := WriteLine(out, line); err != nil {
		return code // the parent is gone
	}
	return code
}

// daemon is the parts of a running process.
type daemon struct {
	cfg *config.Config
	log *slog.Logger

	node   *node.Node
	server *control.Server
	expose *expose.Endpoint // nil if off

	stop       <-chan struct{} // a signal
	parentGone <-chan struct{} // nil if not watched
	ownerGone  chan struct{}   // closed when the owner's connection has ended
}

func (d *daemon) start(out io.Writer) error {
	if d.cfg.ParentPID != 0 {
		gone, err := WatchParent(d.cfg.ParentPID)
		if err != nil {
			return fmt.Errorf("%w: parent_pid: %w", ErrConfig, err)
		}
		d.parentGone = gone
	}
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	started := make(chan struct{})
	go d.exitWhileStarting(started)
	network, err := node.New(ctx, d.cfg, d.log)
	close(started)
	if err != nil {
		return err
	}
	d.node = network
	d.server = control.NewServer(network, control.LimitsOf(d.cfg), d.log)
	if err := d.serve(); err != nil {
		d.close()
		return err
	}
	ready := Ready{
		Ready: true, Version: control.Version, PID: os.Getpid(), PeerID: network.ID().String(), Control: d.cfg.ControlPath,
		Addrs: control.Texts(network.Addrs()), Listen: control.Texts(network.ListenAddrs()), Metrics: d.server.Metrics,
	}
	if err := WriteLine(out, &ready); err != nil {
		d.log.Debug("nobody reads the ready line", "error", err)
	}
	return nil
}

// exitWhileStarting ends the process if it is told to stop, or its parent ends, before it serves: nothing is worth closing then.
func (d *daemon) exitWhileStarting(started <-chan struct{}) {
	select {
	case <-started:
	case <-d.stop:
		if d.parentGone == nil || d.abandoned() {
			d.removeFolder()
		}
		os.Exit(ExitOK)
	case <-d.parentGone:
		d.removeFolder()
		os.Exit(ExitOK)
	}
}

func (d *daemon) serve() error {
	if err := d.serveMetrics(); err != nil {
		return fmt.Errorf("%w: metrics_listen: %w", ErrConfig, err)
	}
	if d.cfg.OwnFolder { // so that the server does not take it for its own
		if err := os.MkdirAll(filepath.Dir(d.cfg.ControlPath), 0o700); err != nil {
			return fmt.Errorf("%w: control_path: %w", ErrConfig, err)
		}
	}
	if d.cfg.ControlPath != "" {
		if err := d.server.ServeGuests(d.cfg.ControlPath); err != nil {
			return fmt.Errorf("%w: control_path: %w", ErrConfig, err)
		}
	}
	if d.cfg.OwnerFD == 0 {
		return nil
	}
	sock, err := control.Inherited(d.cfg.OwnerFD)
	if err != nil {
		return fmt.Errorf("%w: owner_fd: %w", ErrConfig, err)
	}
	d.ownerGone = make(chan struct{})
	go func() {
		defer close(d.ownerGone)
		d.server.ServeConn(sock, true)
	}()
	return nil
}

func (d *daemon) serveMetrics() error {
	registry := d.node.Metrics()
	if registry == nil {
		return nil
	}
	if err := expose.Register(registry, d.node, d.server); err != nil {
		return err
	}
	endpoint, err := expose.Serve(d.cfg, registry, d.log)
	if err != nil {
		return err
	}
	d.expose, d.server.Metrics = endpoint, endpoint.Address
	return nil
}

// wait returns when the daemon is to end and has ended; only a signal leaves time to calls under way.
func (d *daemon) wait() {
	select {
	case <-d.stop:
		ctx, cancel := context.WithTimeout(context.Background(), drainTime)
		go func() {
			defer cancel()
			select {
			case <-d.ownerGone:
			case <-d.parentGone:
			case <-ctx.Done():
			}
		}()
		d.server.Drain(ctx)
		cancel()
		d.closeForGood()
		return
	case <-d.parentGone:
		d.removeFolder()
	case <-d.ownerGone:
		d.removeFolder()
	case <-d.server.Shutdown:
		d.removeFolder()
	}
	d.close()
}

// closeForGood is close after a signal: an owner that lives on, and may start another daemon in this one's place, keeps the folder.
func (d *daemon) closeForGood() {
	owned := d.ownerGone != nil
	select {
	case <-d.ownerGone:
		owned = false
	default:
	}
	d.close() // which ends the owner's connection too
	if !owned || d.abandoned() {
		d.removeFolder()
	}
}

// abandoned tells whether the parent has ended. Signals often go to daemon and parent at once: it has a moment to end.
func (d *daemon) abandoned() bool {
	select {
	case <-d.parentGone:
		return true
	case <-time.After(abandonTime):
		return false
	}
}

// removeFolder comes before the guests' connections end: by the folder they know whether there will be another daemon.
func (d *daemon) removeFolder() {
	if d.cfg.OwnFolder {
		_ = os.RemoveAll(filepath.Dir(d.cfg.ControlPath))
	}
}

// close ends the connections, then leaves the network, in bounded time.
func (d *daemon) close() {
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		d.expose.Close()
		d.server.Close()
		d.node.Close()
	}()
	select {
	case <-closed:
	case <-time.After(closeTime):
		d.log.Debug("closing took too long")
	}
}
