// Package expose serves what the daemon counts as Prometheus text, and its profiles, over HTTP where it is asked to.
package expose

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"os"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"hivemind/p2pd/internal/config"
)

// Times of the HTTP server; a profile of the default 30 s must fit.
const (
	headerTime = 5 * time.Second
	answerTime = 2 * time.Minute
)

// Endpoint is a listener with its HTTP server.
type Endpoint struct {
	server *http.Server
	// Address is where it is reached: http://host:port/metrics, or unix:/path.
	Address string
}

// Serve listens as configured and serves /metrics from registry, and /debug/pprof/ if that is configured.
func Serve(cfg *config.Config, registry *prometheus.Registry, log *slog.Logger) (*Endpoint, error) {
	network, address := cfg.MetricsAddress()
	listener, err := net.Listen(network, address)
	if err != nil {
		return nil, err
	}
	where := "unix:" + address
	if network == "unix" {
		err = os.Chmod(address, 0o600)
	} else {
		where = fmt.Sprintf("http://%s/metrics", listener.Addr())
	}
	if err != nil {
		listener.Close()
		return nil, err
	}
	mux := http.NewServeMux()
	mux.Handle("/metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{MaxRequestsInFlight: 4}))
	if cfg.Pprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	e := &Endpoint{Address: where, server: &http.Server{
		Handler: mux, ReadHeaderTimeout: headerTime, ReadTimeout: headerTime, WriteTimeout: answerTime, IdleTimeout: answerTime,
		MaxHeaderBytes: 16 << 10, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}}
	go func() { _ = e.server.Serve(listener) }() // until Close
	return e, nil
}

// Close ends the server at once, and removes its socket file. It is safe on nil.
func (e *Endpoint) Close() {
	if e != nil {
		_ = e.server.Close()
	}
}
