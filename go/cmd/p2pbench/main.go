// Command p2pbench is what benchmarks/ needs besides the two libraries: go-libp2p itself, with the daemon's transport and
// nothing above it, as the ceiling of what a daemon on it can reach; and a crowd of light peers that connect to one.
package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"runtime/debug"
	"slices"
	"time"

	"github.com/libp2p/go-libp2p/core/peer"

	"hivemind/p2pd/internal/config"
	"hivemind/p2pd/internal/control"
	"hivemind/p2pd/internal/node"
)

// gcPercent is the daemon's.
const gcPercent = 400

func main() {
	debug.SetGCPercent(gcPercent)
	if err := run(os.Args[1:]); err != nil {
		fmt.Fprintln(os.Stderr, "p2pbench:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: p2pbench serve | calls [-quick] | streams [-quick] | crowd -addr A -count N")
	}
	flags := flag.NewFlagSet(args[0], flag.ContinueOnError)
	quick := flags.Bool("quick", false, "fewer repetitions")
	addr := flags.String("addr", "", "crowd: whom to connect to, a multiaddr with /p2p/")
	count := flags.Int("count", 1, "crowd: how many peers")
	if err := flags.Parse(args[1:]); err != nil {
		return err
	}
	switch args[0] {
	case "serve":
		return serve()
	case "calls":
		return withServer(func(c *caller) (figures, error) { return calls(c, *quick) })
	case "streams":
		return withServer(func(c *caller) (figures, error) { return streams(c, *quick) })
	case "crowd":
		return crowd(*addr, *count)
	}
	return fmt.Errorf("unknown command %q", args[0])
}

// figures are values with their units, "s", "B/s" or "/s", by the names that the workloads of benchmarks/ use.
type figures map[string][2]any

func emit(line any) error { return json.NewEncoder(os.Stdout).Encode(line) }

// newNode starts a peer with the daemon's transport and none of its services.
func newNode() (*node.Node, error) {
	cfg := config.Default()
	cfg.AutoNAT, cfg.Relay, cfg.DHTMode = false, false, config.DHTOff
	return node.New(context.Background(), &cfg, slog.New(slog.DiscardHandler))
}

// serve answers until standard input ends.
func serve() error {
	n, err := newNode()
	if err != nil {
		return err
	}
	defer n.Close()
	handle(n)
	if err := emit(map[string]any{"addrs": control.Texts(n.Addrs())}); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, os.Stdin)
	return err
}

// withServer runs measure on a connection to `p2pbench serve` in another process, and prints its figures.
func withServer(measure func(*caller) (figures, error)) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	server := exec.Command(self, "serve")
	server.Stderr = os.Stderr
	stdin, err := server.StdinPipe()
	if err != nil {
		return err
	}
	stdout, err := server.StdoutPipe()
	if err != nil {
		return err
	}
	if err := server.Start(); err != nil {
		return err
	}
	defer func() {
		stdin.Close()
		_ = server.Wait() // what went wrong there shows here
	}()
	var started struct {
		Addrs []string `json:"addrs"`
	}
	line, err := bufio.NewReader(stdout).ReadBytes('\n')
	if err != nil {
		return fmt.Errorf("the serving process: %w", err)
	}
	if err := json.Unmarshal(line, &started); err != nil {
		return err
	}
	n, err := newNode()
	if err != nil {
		return err
	}
	defer n.Close()
	info, err := peer.AddrInfoFromString(started.Addrs[0])
	if err != nil {
		return err
	}
	if err := n.Connect(context.Background(), *info); err != nil {
		return err
	}
	found, err := measure(&caller{n, info.ID})
	if err != nil {
		return err
	}
	return emit(found)
}

// percentile returns the value that a fraction of the sorted values do not exceed.
func percentile(times []time.Duration, fraction float64) float64 {
	slices.Sort(times)
	return times[min(len(times)-1, int(fraction*float64(len(times))))].Seconds()
}
