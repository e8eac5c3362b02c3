package life

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"sync/atomic"
	"time"

	golog "github.com/ipfs/go-log/v2"
	"github.com/libp2p/go-libp2p/gologshim"
	"go.uber.org/zap/zapcore"
)

// logBacklog is how many lines wait for a slow reader of the log before lines are dropped.
const logBacklog = 1024

// LogWriter passes whole lines to a writer from a goroutine of its own, and drops lines rather than wait: a full pipe that
// nobody reads must not stop the daemon. It is safe for concurrent use.
type LogWriter struct {
	lines   chan []byte
	dropped atomic.Int64
	flushed chan struct{}
}

// NewLogWriter starts a writer on out.
func NewLogWriter(out io.Writer) *LogWriter {
	w := &LogWriter{lines: make(chan []byte, logBacklog), flushed: make(chan struct{})}
	go w.run(out)
	return w
}

// Write implements io.Writer; it never blocks and never fails.
func (w *LogWriter) Write(line []byte) (int, error) {
	select {
	case w.lines <- append([]byte(nil), line...):
	default:
		w.dropped.Add(1)
	}
	return len(line), nil
}

// Sync implements zapcore.WriteSyncer.
func (w *LogWriter) Sync() error { return nil }

// Flush waits until the lines so far are written, at most for the given time. It is called once, at the end.
func (w *LogWriter) Flush(most time.Duration) {
	select {
	case w.lines <- nil:
	case <-time.After(most):
		return
	}
	select {
	case <-w.flushed:
	case <-time.After(most):
	}
}

func (w *LogWriter) run(out io.Writer) {
	for line := range w.lines {
		if line == nil {
			close(w.flushed)
			return
		}
		if _, err := out.Write(line); err != nil {
			continue // nobody is left to be told
		}
		if n := w.dropped.Swap(0); n > 0 {
			fmt.Fprintf(out, `{"time":%q,"level":"WARN","logger":"p2pd","msg":"log lines dropped","count":%d}`+"\n",
				time.Now().Format(time.RFC3339Nano), n)
		}
	}
}

// SetUpLogs makes one JSON log of everything: the daemon's own lines, go-libp2p's, kad-dht's (which logs by zap) and those of
// the standard log. It must run before the first log line of the libraries.
func SetUpLogs(out *LogWriter, level slog.Level) *slog.Logger {
	_ = os.Setenv("QUIC_GO_DISABLE_RECEIVE_BUFFER_WARNING", "1") // not a fault that a user can be asked to mend
	handler := slog.NewJSONHandler(out, &slog.HandlerOptions{Level: level})
	gologshim.SetDefaultHandler(libraryHandler{handler})
	log := slog.New(handler).With("logger", "p2pd")
	slog.SetDefault(log)

	encoder := zapcore.NewJSONEncoder(zapcore.EncoderConfig{
		TimeKey: "time", LevelKey: "level", NameKey: "logger", MessageKey: "msg",
		EncodeTime: zapcore.RFC3339NanoTimeEncoder, EncodeLevel: zapcore.CapitalLevelEncoder,
		EncodeDuration: zapcore.StringDurationEncoder,
	})
	golog.SetPrimaryCore(zapcore.NewCore(encoder, out, zapLevel(level)))
	golog.SetAllLoggers(golog.LogLevel(zapLevel(level)))
	// A peer that is alone, as the first and the last of a swarm are, cannot refresh its routing table: no reason for a warning.
	for _, name := range []string{"dht", "dht/RtRefreshManager"} {
		_ = golog.SetLogLevel(name, quietest(level).String())
	}
	return log
}

// libraryHandler hides warnings of go-libp2p that say nothing to a user: that a peer has left while it was asked who it is.
type libraryHandler struct{ slog.Handler }

// WithAttrs implements slog.Handler; a logger of the library gives its name so.
func (h libraryHandler) WithAttrs(attrs []slog.Attr) slog.Handler {
	named := h.Handler.WithAttrs(attrs)
	for _, attr := range attrs {
		if attr.Key == "logger" && attr.Value.String() == "net/identify" && !h.Enabled(context.Background(), slog.LevelDebug) {
			return errorsOnly{named}
		}
	}
	return named
}

type errorsOnly struct{ slog.Handler }

// Enabled implements slog.Handler.
func (h errorsOnly) Enabled(_ context.Context, level slog.Level) bool {
	return level >= slog.LevelError
}

// quietest hides warnings of the routing, unless somebody looks for a fault.
func quietest(level slog.Level) zapcore.Level {
	if level < slog.LevelInfo {
		return zapcore.DebugLevel
	}
	return zapcore.ErrorLevel
}

func zapLevel(level slog.Level) zapcore.Level {
	switch {
	case level < slog.LevelInfo:
		return zapcore.DebugLevel
	case level < slog.LevelWarn:
		return zapcore.InfoLevel
	case level < slog.LevelError:
		return zapcore.WarnLevel
	}
	return zapcore.ErrorLevel
}
