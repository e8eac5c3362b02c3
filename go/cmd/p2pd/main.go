// Command p2pd is the network daemon of a hivemind peer. It reads its configuration from standard input and serves control
// connections; see docs/control-protocol.md. With --version it only says what it is.
package main

import (
	"os"

	"hivemind/p2pd/internal/life"
)

func main() {
	if len(os.Args) > 1 {
		os.Exit(life.Tell(os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(life.Run(os.Stdin, os.Stdout, os.Stderr))
}
