package life

import (
	"fmt"
	"io"
	"runtime"
	"runtime/debug"
	"slices"

	"hivemind/p2pd/internal/control"
	"hivemind/p2pd/internal/node"
)

// Versions is what the daemon is made of.
type Versions struct {
	Version int    `json:"version"` // of the control protocol
	Agent   string `json:"agent"`   // what other peers are told
	Go      string `json:"go"`
	Libp2p  string `json:"libp2p"`
}

// Tell answers the command line and returns the exit code. The configuration is no part of it: other users of the machine can read it.
func Tell(args []string, out, errOut io.Writer) int {
	if !slices.Equal(args, []string{"--version"}) {
		fmt.Fprintln(errOut, "p2pd: the configuration is read from standard input; the only argument is --version")
		return ExitConfig
	}
	versions := Versions{Version: control.Version, Agent: node.UserAgent, Go: runtime.Version(), Libp2p: "unknown"}
	if build, ok := debug.ReadBuildInfo(); ok {
		for _, module := range build.Deps {
			if module.Path == "github.com/libp2p/go-libp2p" {
				versions.Libp2p = module.Version
			}
		}
	}
	if err := WriteLine(out, &versions); err != nil {
		return ExitInternal
	}
	return ExitOK
}
