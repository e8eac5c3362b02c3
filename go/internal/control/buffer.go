package control

import "sync"

// Buffers come in a few sizes from pools, as the path of a message allocates nothing else of size.
var bufferSizes = [...]int{1 << 10, 8 << 10, 64 << 10, MaxPayload + 1<<10}

var bufferPools [len(bufferSizes)]sync.Pool

// buffer is a pooled slice; data is the part in use.
type buffer struct {
	data  []byte
	whole []byte
	class int
}

// newBuffer returns a buffer of n bytes with any content; n is at most MaxPayload and a target.
func newBuffer(n int) *buffer {
	for class, size := range bufferSizes {
		if n <= size {
			b, _ := bufferPools[class].Get().(*buffer)
			if b == nil {
				b = &buffer{whole: make([]byte, size), class: class}
			}
			b.data = b.whole[:n]
			return b
		}
	}
	return &buffer{data: make([]byte, n), class: -1} // not reached within a frame's bounds
}

// free gives the buffer back; nobody may use its bytes any more. It is safe on nil.
func (b *buffer) free() {
	if b != nil && b.class >= 0 {
		bufferPools[b.class].Put(b)
	}
}
