package control

import (
	"net"
	"sync"
)

const (
	// queueLimit bounds the bytes that wait in a writer; streams block at it, so slow clients slow their peers.
	queueLimit = 2 << 20
	// batchBytes bounds one system call.
	batchBytes = 1 << 20
	// copyLimit: payloads up to this size are copied behind their header; larger ones have a vector element of their own.
	copyLimit = 4 << 10
)

// frame is a header and its payload on the way out.
type frame struct {
	head    header
	payload []byte
	owned   *buffer // freed once written
}

// writer sends frames in the order of the calls, batched, from one goroutine.
type writer struct {
	out func(net.Buffers) (int64, error)

	mu     sync.Mutex
	room   sync.Cond // mu: queued shrank, or err set
	queue  []frame   // mu
	queued int       // mu: bytes in queue
	err    error     // mu: why nothing more is sent
	wake   chan struct{}
	done   chan struct{} // closed when the goroutine has ended

	heads []byte // the goroutine's: headers and small payloads of a batch
}

func newWriter(out func(net.Buffers) (int64, error)) *writer {
	w := &writer{out: out, wake: make(chan struct{}, 1), done: make(chan struct{})}
	w.room.L = &w.mu
	go w.run()
	return w
}

// send queues a frame and never blocks: for frames without much payload.
func (w *writer) send(f frame) {
	w.mu.Lock()
	w.push(f)
	w.mu.Unlock()
}

// sendData queues a frame once there is room; it reports whether the connection still lives.
func (w *writer) sendData(f frame) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	for w.queued >= queueLimit && w.err == nil {
		w.room.Wait()
	}
	return w.push(f)
}

// waiting is the number of bytes that wait.
func (w *writer) waiting() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.queued
}

func (w *writer) push(f frame) bool {
	if w.err != nil {
		f.owned.free()
		return false
	}
	f.head.length = uint32(len(f.payload))
	w.queue = append(w.queue, f)
	w.queued += headSize + len(f.payload)
	if len(w.queue) == 1 {
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
	return true
}

// close drops what waits, unless flush is set: then it is written first. It returns when the goroutine has ended; a writer
// blocked in its connection ends when that is closed.
func (w *writer) close(flush bool) {
	w.mu.Lock()
	if w.err == nil {
		w.err = net.ErrClosed
	}
	if !flush {
		w.drop()
	}
	w.room.Broadcast()
	w.mu.Unlock()
	select {
	case w.wake <- struct{}{}:
	default:
	}
}

// drop frees the queue; mu is held.
func (w *writer) drop() {
	for i := range w.queue {
		w.queue[i].owned.free()
	}
	w.queue, w.queued = nil, 0
}

func (w *writer) run() {
	defer close(w.done)
	var batch []frame
	for {
		w.mu.Lock()
		batch, w.queue = w.queue, batch[:0]
		w.queued = 0
		ended := w.err != nil
		w.room.Broadcast()
		w.mu.Unlock()
		if len(batch) == 0 {
			if ended {
				return
			}
			<-w.wake
			continue
		}
		if err := w.write(batch); err != nil {
			w.mu.Lock()
			w.err = err
			w.drop()
			w.room.Broadcast()
			w.mu.Unlock()
			return
		}
	}
}

// write sends frames, a system call for each batchBytes or so, and frees them.
func (w *writer) write(frames []frame) error {
	for len(frames) > 0 {
		vector, n := w.gather(frames)
		_, err := w.out(vector)
		for i := range n {
			frames[i].owned.free()
			frames[i] = frame{}
		}
		if err != nil {
			for i := range frames {
				frames[i].owned.free()
			}
			return err
		}
		frames = frames[n:]
	}
	return nil
}

// gather lays out the next batch. Headers and small payloads share one slice, whose pieces between large payloads become
// elements of the vector; its space is reserved first, so that it does not move.
func (w *writer) gather(frames []frame) (vector net.Buffers, n int) {
	space, total := 0, 0
	for n < len(frames) && total < batchBytes {
		size := len(frames[n].payload)
		space += headSize
		if size <= copyLimit {
			space += size
		}
		total += headSize + size
		n++
	}
	if cap(w.heads) < space {
		w.heads = make([]byte, 0, 2*space)
	}
	heads, start := w.heads[:0], 0
	var head [headSize]byte
	for i := range n {
		frames[i].head.put(&head)
		heads = append(heads, head[:]...)
		payload := frames[i].payload
		if len(payload) <= copyLimit {
			heads = append(heads, payload...)
			continue
		}
		vector = append(vector, heads[start:], payload)
		start = len(heads)
	}
	if start < len(heads) {
		vector = append(vector, heads[start:])
	}
	return vector, n
}
