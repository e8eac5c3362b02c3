package portmap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"time"

	"github.com/libp2p/go-netroute"
)

// NAT-PMP (RFC 6886): requests and answers of a few bytes over UDP, between this machine and its default gateway.
const (
	pmpPort        = 5351
	pmpVersion     = 0
	pmpAddress     = 0
	pmpMapUDP      = 1
	pmpMapTCP      = 2
	pmpAnswer      = 128 // is added to the operation in its answer
	pmpFirstWait   = 250 * time.Millisecond
	pmpTries       = 5 // each waits twice as long as the one before
	pmpAddressSize = 12
	pmpMappedSize  = 16
)

// natPMP is a gateway that speaks NAT-PMP.
type natPMP struct{ gateway netip.AddrPort }

func findNATPMP(ctx context.Context) (Router, error) {
	gateway, _, err := defaultGateway()
	if err != nil {
		return nil, fmt.Errorf("NAT-PMP: default gateway: %w", err)
	}
	router := natPMP{netip.AddrPortFrom(gateway, pmpPort)}
	if _, err := router.External(ctx); err != nil {
		return nil, err
	}
	return router, nil
}

// farAway is an address of the internet, to which nothing is sent: the way there is the default one. The library refuses to tell that of 0.0.0.0,
// which is why go-libp2p's own port mapping (v0.51) finds no gateway.
var farAway = net.IPv4(1, 1, 1, 1)

// defaultGateway is the router on the way to the internet, and this machine's address on that side.
func defaultGateway() (gateway, local netip.Addr, err error) {
	routes, err := netroute.New()
	if err != nil {
		return gateway, local, err
	}
	_, next, from, err := routes.Route(farAway)
	if err != nil {
		return gateway, local, err
	}
	gateway, ok := netip.AddrFromSlice(next.To4())
	local, localOK := netip.AddrFromSlice(from.To4())
	if !ok || !localOK {
		return gateway, local, errors.New("none")
	}
	return gateway, local, nil
}

// Name implements Router.
func (r natPMP) Name() string { return "NAT-PMP" }

// External implements Router.
func (r natPMP) External(ctx context.Context) (netip.Addr, error) {
	answer, err := r.ask(ctx, []byte{pmpVersion, pmpAddress}, pmpAddressSize)
	if err != nil {
		return netip.Addr{}, err
	}
	return netip.AddrFrom4([4]byte(answer[8:12])), nil
}

// Map implements Router. The gateway gives a port that is held by somebody else to nobody: it chooses another one.
func (r natPMP) Map(ctx context.Context, port Port, wanted uint16, _ bool) (external uint16, granted time.Duration, err error) {
	answer, err := r.ask(ctx, mapRequest(port, wanted, lease), pmpMappedSize)
	if err != nil {
		return 0, 0, err
	}
	external = binary.BigEndian.Uint16(answer[10:])
	granted = time.Duration(binary.BigEndian.Uint32(answer[12:])) * time.Second
	if external == 0 || granted == 0 {
		return 0, 0, fmt.Errorf("NAT-PMP: %s was not mapped", port)
	}
	return external, granted, nil
}

// Unmap implements Router: a lifetime of 0 removes the mapping of that port of ours.
func (r natPMP) Unmap(ctx context.Context, port Port, _ uint16) error {
	_, err := r.ask(ctx, mapRequest(port, 0, 0), pmpMappedSize)
	return err
}

func mapRequest(port Port, external uint16, lifetime time.Duration) []byte {
	operation := byte(pmpMapTCP)
	if port.UDP {
		operation = pmpMapUDP
	}
	request := []byte{pmpVersion, operation, 0, 0}
	request = binary.BigEndian.AppendUint16(request, port.Number)
	request = binary.BigEndian.AppendUint16(request, external)
	return binary.BigEndian.AppendUint32(request, uint32(lifetime.Seconds()))
}

// ask sends a request until it is answered.
//
//   - size is that of the answer
func (r natPMP) ask(ctx context.Context, request []byte, size int) ([]byte, error) {
	conn, err := (&net.Dialer{}).DialContext(ctx, "udp4", r.gateway.String())
	if err != nil {
		return nil, fmt.Errorf("NAT-PMP: %w", err)
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	wait := pmpFirstWait
	for range pmpTries {
		if _, err = conn.Write(request); err == nil {
			var answer []byte
			if answer, err = readAnswer(conn, request[1], size, time.Now().Add(wait)); err == nil {
				return answer, resultOf(answer)
			}
		}
		if ctx.Err() != nil {
			return nil, fmt.Errorf("NAT-PMP: %w", ctx.Err())
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			break // the gateway has nobody there
		}
		wait *= 2
	}
	return nil, fmt.Errorf("NAT-PMP: %s: %w", r.gateway, err)
}

// readAnswer reads until the answer comes to the given operation.
func readAnswer(conn net.Conn, operation byte, size int, until time.Time) ([]byte, error) {
	if err := conn.SetReadDeadline(until); err != nil {
		return nil, err
	}
	for {
		answer := make([]byte, size+1)
		count, err := conn.Read(answer)
		if err != nil {
			return nil, err
		}
		if count < 4 || answer[1] != operation+pmpAnswer {
			continue
		}
		if result := binary.BigEndian.Uint16(answer[2:]); result != 0 || count == size && answer[0] == pmpVersion {
			return answer[:count], nil
		}
	}
}

// resultOf is the error that an answer of at least four bytes tells.
func resultOf(answer []byte) error {
	code := binary.BigEndian.Uint16(answer[2:])
	if code == 0 {
		return nil
	}
	what := "result " + strconv.Itoa(int(code))
	if names := []string{"", "version not supported", "refused", "network failure", "out of resources", "not supported"}; int(code) < len(names) {
		what = names[code]
	}
	return fmt.Errorf("NAT-PMP: the gateway says: %s", what)
}
