package plugin

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/docker/go-plugins-helpers/sdk"
)

// manifest is the answer to /Plugin.Activate.
const manifest = `{"Implements": ["GraphDriver"]}`

// Handler answers the engine's requests with the help of a [Driver]. It is served by [Handler.ServeContext],
// or by the methods of sdk.Handler, which have no way to stop in order.
//
// Whatever a request holds, and even if the driver panics over it, the Handler answers it or cuts its connection. Other
// requests are not disturbed.
type Handler struct {
	sdk.Handler

	// Logger receives errors that nobody else gets. nil stands for slog.Default().
	Logger *slog.Logger

	// Grace is how long requests may go on after ServeContext was told to stop. 0 stands for ten seconds.
	Grace time.Duration

	driver   Driver
	requests counter // those under way
}

// NewHandler makes a Handler for a driver.
func NewHandler(driver Driver) *Handler {
	h := &Handler{Handler: sdk.NewHandler(manifest), driver: driver}
	h.answer("Init", h.init)
	h.answer("Create", func(w http.ResponseWriter, r *http.Request) (any, error) { return create(w, r, driver.Create) })
	h.answer("CreateReadWrite", func(w http.ResponseWriter, r *http.Request) (any, error) {
		return create(w, r, driver.CreateReadWrite)
	})
	h.answer("Remove", h.remove)
	h.answer("Get", h.get)
	h.answer("Put", h.put)
	h.answer("Exists", h.exists)
	h.answer("Status", h.status)
	h.answer("GetMetadata", h.getMetadata)
	h.answer("Cleanup", h.cleanup)
	h.answer("Changes", h.changes)
	h.answer("DiffSize", h.diffSize)
	h.answer("Capabilities", h.capabilities)
	h.serve("/GraphDriver.Diff", h.diff)
	h.serve("/GraphDriver.ApplyDiff", h.applyDiff)
	h.serve("/", func(_ *response, r *http.Request) error {
		return &requestError{http.StatusNotFound, fmt.Errorf("graph drivers have no %q", r.URL.Path)}
	})
	return h
}

// answer has requests of a method answered by the result of f.
func (h *Handler) answer(method string, f func(w http.ResponseWriter, r *http.Request) (any, error)) {
	h.serve("/GraphDriver."+method, func(w *response, r *http.Request) error {
		result, err := f(w, r)
		if err != nil {
			return err
		}
		sdk.EncodeResponse(w, result, false)
		return nil
	})
}

// serve has requests of a path answered by f. An error of f is the answer if nothing was written yet, and
// else cuts the connection.
func (h *Handler) serve(path string, f func(w *response, r *http.Request) error) {
	h.HandleFunc(path, func(rw http.ResponseWriter, r *http.Request) {
		defer h.requests.begin()()
		w := &response{ResponseWriter: rw}
		err := h.contained(r, func() error { return checked(w, r, f) })
		if err == nil {
			return
		}
		h.log().Debug("a request of the engine failed", "path", r.URL.Path, "error", err)
		if !w.begun {
			err = refuse(w, r, err)
		}
		if err != nil {
			panic(http.ErrAbortHandler) // net/http's way to cut a connection
		}
	})
}

func checked(w *response, r *http.Request, f func(w *response, r *http.Request) error) error {
	// For refuse, and it must be said before anything is written.
	if err := http.NewResponseController(w).EnableFullDuplex(); err != nil {
		return err
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		return &requestError{http.StatusMethodNotAllowed, fmt.Errorf("requests of the engine have the method %[2]s, not %[1]s", r.Method, http.MethodPost)}
	}
	return f(w, r)
}

// contained runs f for a request and makes its panics errors.
func (h *Handler) contained(r *http.Request, f func() error) (err error) {
	defer func() {
		if reason := recover(); reason != nil {
			h.log().Error("a request of the engine caused a panic", "path", r.URL.Path, "panic", reason, "stack", string(debug.Stack()))
			err = fmt.Errorf("internal error in %s, described in the log of the plugin: %v", r.URL.Path, reason)
		}
	}()
	return f()
}

// refuse answers a request with an error. It sends the answer while the client may still be sending, and reads the
// rest of the request after it. Otherwise the engine might find its connection broken before it finds the answer. It
// would then send the request, or the rest of a tar, once more.
func refuse(w *response, r *http.Request, reason error) error {
	answer, err := json.Marshal(NewErrorResponse(reason.Error()))
	if err != nil {
		return err
	}
	header := w.Header()
	header.Set("Content-Type", sdk.DefaultContentTypeV1_1)
	header.Set("Content-Length", strconv.Itoa(len(answer))) // so that the client sees its end
	w.WriteHeader(status(reason))
	if _, err := w.Write(answer); err != nil {
		return err
	}
	if err := http.NewResponseController(w).Flush(); err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, r.Body)
	return err
}

func (h *Handler) log() *slog.Logger {
	if h.Logger != nil {
		return h.Logger
	}
	return slog.Default()
}

// response knows whether the answer has begun.
type response struct {
	http.ResponseWriter
	begun bool
}

func (w *response) WriteHeader(status int) {
	w.begun = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *response) Write(p []byte) (int, error) {
	w.begun = true
	return w.ResponseWriter.Write(p)
}

// Unwrap is for http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }
