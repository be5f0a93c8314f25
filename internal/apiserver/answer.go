package apiserver

import (
	"errors"
	"net/http"
	"time"
)

// answer writes the answer to a request. The client has a time for each writeSize bytes. If there is a rate, the server waits for
// the client no longer than that time and the time for all bytes at that rate. Time in which the answer is made does not count.
type answer struct {
	w       http.ResponseWriter
	control *http.ResponseController
	timeout time.Duration
	begun   bool
	status  int  // once it has begun
	cut     bool // an error has ended it

	rate    int64 // bytes in a second; 0: any
	written int64
	waited  time.Duration
}

func newAnswer(w http.ResponseWriter, timeout time.Duration) *answer {
	return &answer{w: w, control: http.NewResponseController(w), timeout: timeout}
}

// begin writes the status. Errors after that end the connection.
func (a *answer) begin(status int, mediaType string) {
	if mediaType != "" {
		a.w.Header().Set("Content-Type", mediaType)
	}
	a.begun, a.status = true, status
	a.w.WriteHeader(status)
}

// Write implements io.Writer.
func (a *answer) Write(data []byte) (written int, err error) {
	for len(data) > 0 {
		next, start := data[:min(len(data), writeSize)], time.Now()
		err := a.control.SetWriteDeadline(start.Add(a.patience(len(next))))
		if err != nil && !errors.Is(err, http.ErrNotSupported) {
			return written, err
		}
		n, err := a.w.Write(next)
		a.waited += time.Since(start)
		a.written += int64(n)
		written += n
		if err != nil {
			return written, err
		}
		data = data[n:]
	}
	return written, nil
}

// patience is how long the server waits until the client has read the next bytes.
func (a *answer) patience(next int) time.Duration {
	if a.rate == 0 {
		return a.timeout
	}
	forAll := time.Duration(float64(a.written+int64(next)) / float64(a.rate) * float64(time.Second))
	return min(a.timeout, a.timeout+forAll-a.waited)
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
