package life

import (
	"os"
	"os/signal"
	"syscall"
)

// Signals returns a channel that is closed at the first SIGTERM, SIGINT or SIGHUP; at the second the process exits at once.
func Signals() <-chan struct{} {
	received := make(chan os.Signal, 2)
	signal.Notify(received, syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	signal.Ignore(syscall.SIGPIPE) // a parent that is gone shows by its pidfd, not by a write to its pipe
	stop := make(chan struct{})
	go func() {
		<-received
		close(stop)
		<-received
		os.Exit(ExitKilled)
	}()
	return stop
}
