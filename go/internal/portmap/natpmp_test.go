package portmap

import (
	"bytes"
	"context"
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// gatewayOf answers requests as it is told to; nil is no answer.
func gatewayOf(t *testing.T, answer func(request []byte) []byte) natPMP {
	t.Helper()
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	go func() {
		buffer := make([]byte, 64)
		for {
			count, from, err := conn.ReadFrom(buffer)
			if err != nil {
				return
			}
			if reply := answer(bytes.Clone(buffer[:count])); reply != nil {
				_, _ = conn.WriteTo(reply, from) // the peer may have given up
			}
		}
	}()
	return natPMP{netip.MustParseAddrPort(conn.LocalAddr().String())}
}

func unhex(t *testing.T, text string) []byte {
	t.Helper()
	data, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// TestNATPMP: the bytes of RFC 6886, sections 3.2 to 3.4, with a first answer that is lost and one that is another request's.
func TestNATPMP(t *testing.T) {
	requests := make(chan []byte, 8)
	tries := 0
	gateway := gatewayOf(t, func(request []byte) []byte {
		requests <- request
		switch tries++; {
		case request[1] == 0 && tries == 1:
			return nil
		case request[1] == 0 && tries == 2:
			return unhex(t, "00 82 0000 00000001 0fa1 0fa1 00000e10")
		case request[1] == 0:
			return unhex(t, "00 80 0000 00000001 c00000c8")
		default:
			return append(append([]byte{0, request[1] + 128, 0, 0, 0, 0, 0, 1}, request[4:6]...), unhex(t, "1388 0000003c")...)
		}
	})
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	if addr, err := gateway.External(ctx); err != nil || addr.String() != "192.0.0.200" {
		t.Fatalf("%s, %v", addr, err)
	}
	external, granted, err := gateway.Map(ctx, Port{UDP: true, Number: 4001}, 4002, false)
	if err != nil || external != 5000 || granted != time.Minute {
		t.Fatalf("%d, %s, %v", external, granted, err)
	}
	if err := gateway.Unmap(ctx, Port{Number: 4001}, 5000); err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"0000", "0000", "0000", "0001 0000 0fa1 0fa2 00000258", "0002 0000 0fa1 0000 00000000"} {
		if got := <-requests; !bytes.Equal(got, unhex(t, want)) {
			t.Errorf("sent %x, not %s", got, want)
		}
	}
}

// TestNATPMPRefused: a gateway that does not want to, one that answers nonsense, and none.
func TestNATPMPRefused(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	refusing := gatewayOf(t, func([]byte) []byte { return unhex(t, "00 80 0002 00000001") })
	if _, err := refusing.External(ctx); err == nil || !strings.Contains(err.Error(), "refused") {
		t.Error(err)
	}
	soon, end := context.WithTimeout(ctx, 100*time.Millisecond)
	defer end()
	confused := gatewayOf(t, func([]byte) []byte { return unhex(t, "00 80 00") })
	if _, err := confused.External(soon); err == nil {
		t.Error("nonsense was taken for an answer")
	}
	nobody := natPMP{netip.MustParseAddrPort("127.0.0.1:9")}
	if _, err := nobody.External(ctx); err == nil || ctx.Err() != nil {
		t.Error(err, ctx.Err())
	}
}
