package apiserver

import (
	"errors"
	"net/http"
	"time"
)

// answer writes the answer to a request. The client has a time for each writeSize bytes.
type answer struct {
	w       http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	begun   bool
}

func newAnswer(w http.ResponseWriter, timeout time.Duration) *answer {
	return &answer{w: w, control: http.NewResponseController(w), timeout: timeout}
}

// begin writes the status. Errors after that end the connection.
func (a *answer) begin(status int, mediaType string) {
	if mediaType != "" {
		a.w.Header().Set("Content-Type", mediaType)
	}
	a.begun = true
	a.w.WriteHeader(status)
}

// Write implements io.Writer.
func (a *answer) Write(data []byte) (written int, err error) {
	for len(data) > 0 {
		err := a.control.SetWriteDeadline(time.Now().Add(a.timeout))
		if err != nil && !errors.Is(err, http.ErrNotSupported) {
			return written, err
		}
		n, err := a.w.Write(data[:min(len(data), writeSize)])
		written += n
		if err != nil {
			return written, err
		}
		data = data[n:]
	}
	return written, nil
}

// stream begins the answer with the first byte, so that an error before that has a status of its own.
type stream struct {
	*answer
	mediaType string
}

// Write implements io.Writer.
func (s stream) Write(data []byte) (int, error) {
	if !s.begun {
		s.begin(http.StatusOK, s.mediaType)
	}
	return s.answer.Write(data)
}
