// Command p2pd is the network daemon of a hivemind peer. It reads its configuration from standard input and serves control
// connections; see docs/control-protocol.md.
package main

import (
	"os"

	"hivemind/p2pd/internal/life"
)

func main() {
	os.Exit(life.Run(os.Stdin, os.Stdout, os.Stderr))
}
