package portmap

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"net/url"
	"time"

	"github.com/huin/goupnp"
	"github.com/huin/goupnp/dcps/internetgateway2"
)

// upnpTargets are the devices that are searched for, until one has a service that forwards ports.
var upnpTargets = []string{
	"urn:schemas-upnp-org:device:InternetGatewayDevice:1", "urn:schemas-upnp-org:device:InternetGatewayDevice:2",
	"urn:schemas-upnp-org:device:WANConnectionDevice:1",
}

const (
	upnpPorts       = 4 // ports of the outside that are tried
	upnpDescription = "hivemind p2p"
	// Where a port is chosen at random: above those that programs are known by.
	firstRandomPort = 16384
)

// upnpService is what the versions of WANIPConnection and WANPPPConnection have in common.
type upnpService interface {
	GetExternalIPAddressCtx(ctx context.Context) (string, error)
	AddPortMappingCtx(
		ctx context.Context, remoteHost string, externalPort uint16, protocol string, internalPort uint16, internalClient string,
		enabled bool, description string, leaseSeconds uint32,
	) error
	DeletePortMappingCtx(ctx context.Context, remoteHost string, externalPort uint16, protocol string) error
	GetSpecificPortMappingEntryCtx(ctx context.Context, remoteHost string, externalPort uint16, protocol string) (
		internalPort uint16, internalClient string, enabled bool, description string, leaseSeconds uint32, err error,
	)
}

// upnp is a gateway that speaks UPnP.
type upnp struct {
	service upnpService
	host    string // its address and port in this network
}

func findUPnP(ctx context.Context) (Router, error) {
	_, local, err := defaultGateway()
	if err != nil {
		return nil, fmt.Errorf("UPnP: default gateway: %w", err)
	}
	failed := errors.New("UPnP: no gateway answers")
	var router *upnp
	err = searchDevices(ctx, local, upnpTargets, func(place *url.URL) bool {
		root, err := goupnp.DeviceByURLCtx(ctx, place)
		if err != nil {
			failed = fmt.Errorf("%w; %w", failed, err)
			return false
		}
		for _, service := range servicesOf(root) {
			one := &upnp{service, root.URLBase.Host}
			if _, err := one.External(ctx); err != nil {
				failed = fmt.Errorf("%w; %w", failed, err)
				continue
			}
			router = one
			return true
		}
		return false
	})
	if router == nil {
		return nil, errors.Join(failed, err)
	}
	return router, nil
}

// servicesOf are those of a device that forward ports.
func servicesOf(root *goupnp.RootDevice) (found []upnpService) {
	root.Device.VisitServices(func(service *goupnp.Service) {
		client := goupnp.ServiceClient{SOAPClient: service.NewSOAPClient(), RootDevice: root, Service: service, Location: &root.URLBase}
		switch service.ServiceType {
		case internetgateway2.URN_WANIPConnection_1:
			found = append(found, &internetgateway2.WANIPConnection1{ServiceClient: client})
		case internetgateway2.URN_WANIPConnection_2:
			found = append(found, &internetgateway2.WANIPConnection2{ServiceClient: client})
		case internetgateway2.URN_WANPPPConnection_1:
			found = append(found, &internetgateway2.WANPPPConnection1{ServiceClient: client})
		}
	})
	return found
}

// Name implements Router.
func (r *upnp) Name() string { return "UPnP" }

// External implements Router.
func (r *upnp) External(ctx context.Context) (netip.Addr, error) {
	text, err := r.service.GetExternalIPAddressCtx(ctx)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("UPnP: %w", err)
	}
	addr, err := netip.ParseAddr(text)
	if err != nil || !addr.Is4() || addr.IsUnspecified() {
		return netip.Addr{}, fmt.Errorf("UPnP: the gateway has the address %q", text)
	}
	return addr, nil
}

// Map implements Router. Some gateways let anybody overwrite a mapping, so that it is asked first whose the port is; some know no leases.
func (r *upnp) Map(ctx context.Context, port Port, wanted uint16, held bool) (external uint16, granted time.Duration, err error) {
	own, err := r.ownAddress()
	if err != nil {
		return 0, 0, fmt.Errorf("UPnP: %w", err)
	}
	external = wanted
	for try := range upnpPorts {
		if try > 0 {
			external, held = randomPort(), false
		}
		if !held && r.isTaken(ctx, port, external, own) {
			err = fmt.Errorf("port %d is another's", external)
			continue
		}
		for _, granted := range []time.Duration{lease, 0} {
			err = r.service.AddPortMappingCtx(
				ctx, "", external, protocolOf(port), port.Number, own, true, upnpDescription, uint32(granted.Seconds()),
			)
			if err == nil {
				return external, granted, nil
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return 0, 0, fmt.Errorf("UPnP: %s was not mapped: %w", port, err)
}

// isTaken tells whether the gateway forwards a port of the outside to somebody else.
func (r *upnp) isTaken(ctx context.Context, port Port, external uint16, own string) bool {
	number, client, _, _, _, err := r.service.GetSpecificPortMappingEntryCtx(ctx, "", external, protocolOf(port))
	return err == nil && (client != own || number != port.Number)
}

// Unmap implements Router.
func (r *upnp) Unmap(ctx context.Context, port Port, external uint16) error {
	if err := r.service.DeletePortMappingCtx(ctx, "", external, protocolOf(port)); err != nil {
		return fmt.Errorf("UPnP: %w", err)
	}
	return nil
}

// ownAddress is this machine's in the gateway's network.
func (r *upnp) ownAddress() (string, error) {
	conn, err := net.Dial("udp4", r.host) // nothing is sent
	if err != nil {
		return "", err
	}
	defer conn.Close()
	host, _, err := net.SplitHostPort(conn.LocalAddr().String())
	return host, err
}

func protocolOf(port Port) string {
	if port.UDP {
		return "UDP"
	}
	return "TCP"
}

func randomPort() uint16 { return uint16(firstRandomPort + rand.IntN(1<<16-firstRandomPort)) }
