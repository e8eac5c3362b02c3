package main

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"sync"
	"time"

	"github.com/libp2p/go-libp2p/core/network"
	"github.com/libp2p/go-libp2p/core/peer"
	"golang.org/x/sync/errgroup"

	"hivemind/p2pd/internal/node"
)

const (
	kib = 1 << 10
	mib = 1 << 20
	// pieceSize is that of a write of a large message, as the daemon's.
	pieceSize = 256 * kib
)

// Protocols of the serving peer.
const (
	echoProtocol = "bench.echo" // a message of 4 bytes' length and its bytes, and back
	takeProtocol = "bench.take" // bytes until the end; 8 bytes back: how many
	giveProtocol = "bench.give" // 8 bytes: how many bytes to send back
)

var pieces = sync.Pool{New: func() any { piece := make([]byte, 4*mib); return &piece }}

func handle(n *node.Node) {
	n.Handle(echoProtocol, func(s network.Stream) { finish(s, echo(s)) })
	n.Handle(takeProtocol, func(s network.Stream) { finish(s, take(s)) })
	n.Handle(giveProtocol, func(s network.Stream) { finish(s, give(s)) })
}

func finish(s network.Stream, err error) {
	if err != nil {
		_ = s.Reset() // the caller sees that it failed
		return
	}
	_ = s.Close() // all has been written
}

// echo reads the message whole before it answers, as a handler does.
func echo(s network.Stream) error {
	buf := pieces.Get().(*[]byte)
	defer pieces.Put(buf)
	head := (*buf)[:4]
	if _, err := io.ReadFull(s, head); err != nil {
		return err
	}
	size := int(binary.BigEndian.Uint32(head))
	if size > len(*buf)-4 {
		return fmt.Errorf("a message of %d bytes", size)
	}
	message := (*buf)[:4+size]
	if _, err := io.ReadFull(s, message[4:]); err != nil {
		return err
	}
	_, err := s.Write(message)
	return err
}

func take(s network.Stream) error {
	buf := pieces.Get().(*[]byte)
	defer pieces.Put(buf)
	total := uint64(0)
	for {
		n, err := s.Read((*buf)[:pieceSize])
		total += uint64(n)
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
	}
	return binary.Write(s, binary.BigEndian, total)
}

func give(s network.Stream) error {
	var total uint64
	if err := binary.Read(s, binary.BigEndian, &total); err != nil {
		return err
	}
	return pour(s, int(total))
}

// pour writes n bytes in pieces.
func pour(s network.Stream, n int) error {
	buf := pieces.Get().(*[]byte)
	defer pieces.Put(buf)
	for n > 0 {
		size := min(n, pieceSize)
		if _, err := s.Write((*buf)[:size]); err != nil {
			return err
		}
		n -= size
	}
	return nil
}

// caller calls one serving peer.
type caller struct {
	node *node.Node
	peer peer.ID
}

func (c *caller) open(protocol string) (network.Stream, error) {
	return c.node.Open(context.Background(), c.peer, protocol)
}

// call sends a message of len(buf)-4 bytes on a new stream and reads it back.
func (c *caller) call(buf []byte) error {
	s, err := c.open(echoProtocol)
	if err != nil {
		return err
	}
	binary.BigEndian.PutUint32(buf, uint32(len(buf)-4))
	if _, err = s.Write(buf); err == nil {
		_, err = io.ReadFull(s, buf)
	}
	finish(s, err)
	return err
}

// calls measures calls of three sizes, one after another and several at once.
func calls(c *caller, quick bool) (figures, error) {
	found := figures{}
	for _, each := range []struct {
		name             string
		size             int
		repeat, inFlight int
	}{{"1 KiB", kib, 2000, 32}, {"1 MiB", mib, 200, 4}, {"3 MiB", 3 * mib, 60, 0}} {
		if quick {
			each.repeat /= 4
		}
		times := make([]time.Duration, 0, each.repeat)
		buf := make([]byte, each.size+4)
		for range each.repeat {
			started := time.Now()
			if err := c.call(buf); err != nil {
				return nil, err
			}
			times = append(times, time.Since(started))
		}
		found["unary "+each.name+", median"] = [2]any{percentile(times, 0.5), "s"}
		if each.inFlight == 0 {
			continue
		}
		found["unary "+each.name+", p99"] = [2]any{percentile(times, 0.99), "s"}
		rate, err := c.rate(each.size, each.inFlight, 2*each.repeat)
		if err != nil {
			return nil, err
		}
		found[fmt.Sprintf("unary %s, %d in flight", each.name, each.inFlight)] = [2]any{rate, "/s"}
	}
	return found, nil
}

// rate is how many calls a second go through with some at once.
func (c *caller) rate(size, inFlight, total int) (float64, error) {
	var group errgroup.Group
	started := time.Now()
	for range inFlight {
		group.Go(func() error {
			buf := make([]byte, size+4)
			for range total / inFlight {
				if err := c.call(buf); err != nil {
					return err
				}
			}
			return nil
		})
	}
	err := group.Wait()
	return float64(total/inFlight*inFlight) / time.Since(started).Seconds(), err
}

func (c *caller) up(total int) error {
	s, err := c.open(takeProtocol)
	if err != nil {
		return err
	}
	var arrived uint64
	if err = pour(s, total); err == nil {
		if err = s.CloseWrite(); err == nil {
			err = binary.Read(s, binary.BigEndian, &arrived)
		}
	}
	if err == nil && arrived != uint64(total) {
		err = fmt.Errorf("%d of %d bytes arrived", arrived, total)
	}
	finish(s, err)
	return err
}

func (c *caller) down(total int) error {
	s, err := c.open(giveProtocol)
	if err != nil {
		return err
	}
	buf := pieces.Get().(*[]byte)
	defer pieces.Put(buf)
	err = binary.Write(s, binary.BigEndian, uint64(total))
	for n, left := 0, total; err == nil && left > 0; left -= n {
		n, err = s.Read((*buf)[:min(left, pieceSize)])
	}
	finish(s, err)
	return err
}

// streams measures bytes a second, on one stream and on four at once. Messages are no concept here: the figure stands for every size
// of them.
func streams(c *caller, quick bool) (figures, error) {
	total := 256 * mib
	if quick {
		total = 64 * mib
	}
	found := figures{}
	for _, direction := range []struct {
		name string
		move func(int) error
	}{{"to", c.up}, {"from", c.down}} {
		if err := direction.move(total / 10); err != nil {
			return nil, err
		}
		one, err := speed(direction.move, total, 1)
		if err != nil {
			return nil, err
		}
		four, err := speed(direction.move, total, 4)
		if err != nil {
			return nil, err
		}
		for _, size := range []string{"256 KiB", "1 MiB"} {
			found[fmt.Sprintf("stream %s a handler, %s messages", direction.name, size)] = [2]any{one, "B/s"}
		}
		found[fmt.Sprintf("four streams %s a handler, 256 KiB messages", direction.name)] = [2]any{four, "B/s"}
	}
	return found, nil
}

func speed(move func(int) error, total, parts int) (float64, error) {
	var group errgroup.Group
	started := time.Now()
	for range parts {
		group.Go(func() error { return move(total / parts) })
	}
	err := group.Wait()
	return float64(total) / time.Since(started).Seconds(), err
}
