package apiserver

import (
	"bytes"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// maxRefusals is how many connections are answered at once that are too many. Further ones are closed without an answer.
const maxRefusals = 16

// refusals answer connections that are too many.
type refusals struct {
	time    time.Duration // for the request and the answer
	slots   chan struct{} // with a place for each connection
	waiting sync.WaitGroup
}

func newRefusals(t time.Duration) *refusals {
	return &refusals{time: t, slots: make(chan struct{}, maxRefusals)}
}

// answer answers the first request of a connection with an error, and closes the connection.
func (r *refusals) answer(conn net.Conn, err error) {
	select {
	case r.slots <- struct{}{}:
	default:
		_ = conn.Close()
		return
	}
	r.waiting.Go(func() {
		defer func() { <-r.slots }()
		defer conn.Close()
		if conn.SetDeadline(time.Now().Add(r.time)) != nil {
			return
		}
		// Clients take no answer before they have sent the request, which does not matter.
		if _, err := conn.Read(make([]byte, maxHeader)); err != nil {
			return
		}
		_ = writeRefusal(conn, err)
	})
}

// writeRefusal writes the answer to a connection that is too many.
func writeRefusal(w io.Writer, refusal error) error {
	e := errorOf(refusal, "")
	body, err := json.Marshal(e)
	if err != nil {
		return err
	}
	answer := http.Response{
		StatusCode: e.Kind.Status(), ProtoMajor: 1, ProtoMinor: 1, Close: true, ContentLength: int64(len(body)),
		Header: http.Header{"Content-Type": {"application/json"}, "Retry-After": {"1"}}, Body: io.NopCloser(bytes.NewReader(body)),
	}
	return answer.Write(w)
}
