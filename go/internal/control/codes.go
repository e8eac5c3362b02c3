package control

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/libp2p/go-libp2p/core/network"

	"hivemind/p2pd/internal/node"
	"hivemind/p2pd/internal/wire"
)

// Code is the reason of a RESET, or of a request's error.
type Code uint16

// Reset codes, as docs/control-protocol.md lists them.
const (
	CodeCancelled    Code = 1
	CodeDeadline     Code = 2
	CodeUnreachable  Code = 3
	CodeNotSupported Code = 4
	CodeRemoteReset  Code = 5
	CodeTooLarge     Code = 6
	CodeBusy         Code = 7
	CodeMalformed    Code = 8
	CodeInternal     Code = 9
	CodeHandlerTaken Code = 10
	CodeClosing      Code = 11
	CodeNotFound     Code = 12
	CodeTruncated    Code = 13
	CodeBadRequest   Code = 14
)

// errProtocol: the client broke the control protocol, which ends its connection.
var errProtocol = errors.New("control protocol broken")

// Fault is an error with the code that the client is told.
type Fault struct {
	Code Code
	Text string
}

func (f *Fault) Error() string { return f.Text }

func faultf(code Code, format string, args ...any) *Fault {
	return &Fault{Code: code, Text: fmt.Sprintf(format, args...)}
}

// Ends of streams that are nobody's fault: causes of a stream's context.
var (
	errFinished    = errors.New("the stream is over")
	errClientReset = errors.New("the client reset the stream")
	errClientBusy  = fmt.Errorf("%w: %w", errClientReset, &Fault{Code: CodeBusy, Text: "the handler is busy"})
	errClientGone  = errors.New("the client is gone")
	errClosing     = &Fault{Code: CodeClosing, Text: "the daemon is stopping"}
)

// clientReset is the cause of the end of a stream that the client has reset; of its reasons, peers are told one.
func clientReset(code Code) error {
	if code == CodeBusy {
		return errClientBusy
	}
	return errClientReset
}

// faultOf finds the code for an error of a node or of a network stream.
func faultOf(err error) *Fault {
	var fault *Fault
	code := CodeInternal
	switch {
	case errors.As(err, &fault):
		return fault
	case errors.Is(err, context.DeadlineExceeded):
		code = CodeDeadline
	case errors.Is(err, context.Canceled):
		code = CodeCancelled
	case errors.Is(err, node.ErrNotFound):
		code = CodeNotFound
	case errors.Is(err, node.ErrNotSupported):
		code = CodeNotSupported
	case errors.Is(err, node.ErrUnreachable):
		code = CodeUnreachable
	case errors.Is(err, node.ErrBusy):
		code = CodeBusy
	case errors.Is(err, wire.ErrMalformed):
		code = CodeMalformed
	}
	return &Fault{Code: code, Text: err.Error()}
}

// readFault is the fault of a read from a peer's stream that had to give more bytes. Only the bare io.EOF and its form
// inside io.ReadFull are the peer's end of the stream: yamux wraps the EOF of a connection that broke, and taking that for an end
// would pass truncated data for whole.
func readFault(s *netStream, err error) *Fault {
	if err == io.EOF || err == io.ErrUnexpectedEOF { //nolint:errorlint // see above
		return faultf(CodeTruncated, "the peer's stream ended inside a message")
	}
	return streamFault(s, err)
}

// streamFault is the fault of a broken network stream.
func streamFault(s *netStream, err error) *Fault {
	named := node.ClassifyStream(s.Conn().RemotePeer(), s.name, err)
	if errors.Is(named, node.ErrNotSupported) || errors.Is(named, node.ErrBusy) {
		return faultOf(named)
	}
	return faultf(CodeRemoteReset, "the peer reset the stream or the connection broke: %s", err)
}

// resetCode is what a peer is told when its stream is reset for a fault.
func resetCode(fault *Fault) network.StreamErrorCode {
	switch fault.Code {
	case CodeBusy:
		return node.CodeBusy
	case CodeNotSupported:
		return network.StreamProtocolNegotiationFailed
	case CodeMalformed, CodeTooLarge, CodeTruncated:
		return network.StreamProtocolViolation
	case CodeClosing:
		return network.StreamShutdown
	}
	return network.StreamNoError
}
