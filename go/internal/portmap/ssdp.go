package portmap

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"
)

// Devices of UPnP are found by SSDP: a question to a multicast group, which those that it is for answer one by one.
const (
	ssdpSearches  = 3 // as datagrams get lost
	ssdpPause     = 700 * time.Millisecond
	ssdpMostFound = 8
	ssdpMaxAnswer = 2048
)

var ssdpGroup = netip.MustParseAddrPort("239.255.255.250:1900")

// searchDevices asks the network of one of this machine's addresses for devices of the given types, and calls found with the place of each
// device's description, each once, until that returns true.
func searchDevices(ctx context.Context, local netip.Addr, types []string, found func(*url.URL) bool) error {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)))
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	seen := make(map[string]bool)
	buffer := make([]byte, ssdpMaxAnswer)
	for range ssdpSearches {
		for _, kind := range types {
			question := fmt.Sprintf("M-SEARCH * HTTP/1.1\r\nHOST: %s\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\nST: %s\r\n\r\n", ssdpGroup, kind)
			if _, err := conn.WriteToUDPAddrPort([]byte(question), ssdpGroup); err != nil {
				return err
			}
		}
		if err := conn.SetReadDeadline(time.Now().Add(ssdpPause)); err != nil {
			return err
		}
		for {
			count, err := conn.Read(buffer)
			if err != nil {
				break // the time is over
			}
			place := placeOf(buffer[:count])
			if place == nil || seen[place.String()] || len(seen) == ssdpMostFound {
				continue
			}
			seen[place.String()] = true
			if found(place) {
				return nil
			}
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
	}
	return nil
}

// placeOf is where an answer says that the description of its device is; nil if it does not.
func placeOf(answer []byte) *url.URL {
	response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(answer)), nil)
	if err != nil {
		return nil
	}
	defer response.Body.Close()
	place, err := response.Location()
	if err != nil || response.StatusCode != http.StatusOK || place.Scheme != "http" {
		return nil
	}
	return place
}
