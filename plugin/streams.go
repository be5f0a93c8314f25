package plugin

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"
)

// firstPart is how much of a diff, in bytes, is read before the answer begins: an error up to there can
// still be told. It is also the size of the buffer that the rest goes through.
const firstPart = 32 << 10

// diff streams the driver's tar to the engine. If the client goes away, the driver's reader is closed.
func (h *Handler) diff(w *response, r *http.Request) error {
	var request DiffRequest
	if err := decode(w, r, &request); err != nil {
		return err
	}
	if err := checkID(request.ID); err != nil {
		return err
	}
	answer := DiffResponse{Stream: h.driver.Diff(request.ID, request.Parent)}
	closeStream := sync.OnceFunc(func() { answer.Stream.Close() })
	defer closeStream()
	defer context.AfterFunc(r.Context(), closeStream)()

	buf := make([]byte, firstPart)
	n, err := readFirst(answer.Stream, buf)
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	w.Header().Set("Content-Type", "application/x-tar")
	if _, err := w.Write(buf[:n]); err != nil {
		return err
	}
	if errors.Is(err, io.EOF) {
		return nil
	}
	// If a connection breaks before the header has come, the engine sends the request once more. If it breaks later,
	// the engine sees a broken body.
	if err := http.NewResponseController(w).Flush(); err != nil {
		return err
	}
	_, err = io.CopyBuffer(writerOnly{w}, readerOnly{answer.Stream}, buf)
	if err != nil && r.Context().Err() == nil {
		h.log().Warn("a diff broke off", "layer", request.ID, "parent", request.Parent, "error", err)
	}
	return err
}

// readFirst reads until buf is full or an error comes. Unlike io.ReadFull it returns the reader's own error.
func readFirst(r io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var more int
		more, err = r.Read(buf[n:])
		n += more
	}
	return n, err
}

// writerOnly and readerOnly hide the methods by which io.CopyBuffer would not use its buffer.
type writerOnly struct{ io.Writer }

type readerOnly struct{ io.Reader }

// applyDiff has the driver read the body of the request.
func (h *Handler) applyDiff(w *response, r *http.Request) error {
	request, err := applyDiffRequest(r)
	if err != nil {
		return err
	}
	archive := &body{Reader: request.Stream, control: http.NewResponseController(w)}
	size, err := h.driver.ApplyDiff(request.ID, request.Parent, archive)
	if err != nil {
		return err
	}
	// The bytes after the end of the tar.
	if _, err := io.Copy(io.Discard, r.Body); err != nil {
		return fmt.Errorf("read the end of the diff: %w", err)
	}
	sdk.EncodeResponse(w, ApplyDiffResponse{Size: size}, false)
	return nil
}

// body is the body of a request that can be told to end.
type body struct {
	io.Reader
	control *http.ResponseController
}

// Interrupt makes the Read that is under way, and those to come, return an error.
func (b *body) Interrupt() {
	_ = b.control.SetReadDeadline(time.Now()) // fails if there is no connection any more
}
