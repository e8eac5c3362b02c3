package control

import "io"

// rawChunk is how much of a raw stream is read at once.
const rawChunk = 64 << 10

// pipeRaw moves bytes both ways until both sides have ended theirs.
func pipeRaw(s *stream, ns *netStream) error {
	sender := make(chan error, 1)
	go func() {
		err := s.sendBytes(ns)
		if err != nil {
			s.cancel(err)
		}
		sender <- err
	}()
	err := s.receiveBytes(ns)
	if err != nil {
		s.cancel(err)
	}
	if sent := <-sender; err == nil {
		err = sent
	}
	return err
}

// sendBytes writes the client's bytes; its FIN closes that direction.
func (s *stream) sendBytes(ns *netStream) error {
	for {
		it, err := s.next(s.ctx)
		if err != nil {
			return err
		}
		if it.fin {
			if err := ns.CloseWrite(); err != nil {
				return streamFault(ns, err)
			}
			return nil
		}
		_, err = ns.Write(it.payload)
		s.done(it)
		if err != nil {
			return streamFault(ns, err)
		}
	}
}

// receiveBytes relays the peer's bytes, a message a read, and its EOF as FIN.
func (s *stream) receiveBytes(ns *netStream) error {
	for {
		n, err := s.takeCredit(rawChunk)
		if err != nil {
			return err
		}
		buf := newBuffer(n)
		got, err := ns.in.Read(buf.data)
		if got == 0 {
			s.giveBack(n + frameCost)
			buf.free()
		} else {
			s.giveBack(n - got)
			f := frame{head: header{kind: typeData, stream: s.id, aux: uint32(got)}, payload: buf.data[:got], owned: buf}
			if !s.conn.out.sendData(f) {
				return errClientGone
			}
		}
		switch {
		case err == io.EOF: //nolint:errorlint // a wrapped EOF is a broken connection
			s.fin()
			return nil
		case err != nil:
			return streamFault(ns, err)
		}
	}
}
