package apiserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/live"
)

// request is a request that is being answered.
type request struct {
	*http.Request
	server *Server
	caller *caller
	out    *answer
	query  map[string]string // parameters
	unread bool              // it has a body of which some may still come
	err    error             // of the handler
}

type requestKey struct{}

// handler makes a handler of net/http of a function that returns its error.
func handler(do func(r *request) error) http.HandlerFunc {
	return func(_ http.ResponseWriter, r *http.Request) {
		if req, ok := r.Context().Value(requestKey{}).(*request); ok {
			req.Request = r
			req.err = do(req)
		}
	}
}

// reply answers with an error, if there is one and the answer has not begun. Otherwise it ends the connection.
func (r *request) reply(err error) {
	if err == nil {
		return
	}
	e := errorOf(err, r.PathValue("layer"))
	level := slog.LevelDebug
	if e.Kind == api.KindUnknown || e.Kind == api.KindDataLoss {
		level = slog.LevelWarn
	}
	r.server.opts.Log.Log(r.Context(), level, "a request of the API has failed", "method", r.Method, "path", r.URL.Path, "kind", e.Kind, "error", err)
	if r.out.begun {
		r.cutOff()
	}
	if e.Kind == api.KindTooManyRequests || e.Kind == api.KindUnavailable {
		r.out.w.Header().Set("Retry-After", "1")
	}
	if r.unread {
		r.out.w.Header().Set("Connection", "close")
	}
	if r.json(e.Kind.Status(), e) != nil {
		r.cutOff()
	}
}

// cutOff ends the connection, so that the client does not take the answer for a whole one.
func (r *request) cutOff() {
	r.out.cut = true
	panic(http.ErrAbortHandler)
}

// json answers with JSON.
func (r *request) json(status int, value any) error {
	r.out.begin(status, "application/json")
	enc := json.NewEncoder(r.out)
	enc.SetEscapeHTML(false)
	return enc.Encode(value)
}

// done answers without a body.
func (r *request) done() error {
	r.out.begin(http.StatusNoContent, "")
	return nil
}

// limitBody sets the time for the body, whether a handler reads it or not. If none does, net/http reads it before it answers.
func (r *request) limitBody() error {
	if r.unread = r.ContentLength != 0; !r.unread {
		return nil
	}
	return r.readUntil(time.Now().Add(r.server.opts.patience.body))
}

// readUntil sets the time until which the client may send; the zero value is without end.
func (r *request) readUntil(deadline time.Time) error {
	err := r.out.control.SetReadDeadline(deadline)
	if errors.Is(err, http.ErrNotSupported) {
		err = nil
	}
	return err
}

// body reads the JSON body of the request.
func (r *request) body(into any) (err error) {
	dec := json.NewDecoder(http.MaxBytesReader(r.out.w, r.Body, maxBody))
	dec.DisallowUnknownFields()
	err = dec.Decode(into)
	if err == nil {
		if _, err = dec.Token(); errors.Is(err, io.EOF) {
			err = nil
		} else if err == nil {
			err = errors.New("it has data after the object")
		}
	}
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return err
	case err != nil:
		return refused(api.KindInvalidArgument, fmt.Sprintf("body: %v", err), "send one JSON object, as GET /v1/openapi.yaml describes")
	}
	r.unread = false
	if err := checkBody(into); err != nil {
		return err
	}
	if err := r.readUntil(time.Time{}); err != nil { // the end of the connection is the end of the request from here on
		return err
	}
	return r.beginChange()
}

// beginChange notes that the request begins to change something: the end of the server waits for it. Returns an error of
// KindUnavailable if the server is about to end.
func (r *request) beginChange() error {
	if c, ok := r.Context().Value(connKey{}).(*peerConn); ok && !c.beginChange() {
		return errEnding()
	}
	return nil
}

func (r *request) endChange() {
	if c, ok := r.Context().Value(connKey{}).(*peerConn); ok {
		c.endChange()
	}
}

// queryOf returns the parameters of the query, "" for those that it does not have. Returns an error if the query is malformed, or
// if a parameter is unknown, empty or there twice.
func queryOf(u *url.URL, known []string) (map[string]string, error) {
	const advice = "GET /v1/openapi.yaml lists the parameters"
	all, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return nil, refused(api.KindInvalidArgument, fmt.Sprintf("the query %.64q is malformed", u.RawQuery), advice)
	}
	values := make(map[string]string)
	for name, each := range all {
		switch {
		case !slices.Contains(known, name):
			return nil, refused(api.KindInvalidArgument, fmt.Sprintf("unknown parameter %.64q", name), advice)
		case len(each) > 1:
			return nil, refused(api.KindInvalidArgument, fmt.Sprintf("parameter %s is given twice", name), "")
		case each[0] == "":
			return nil, refused(api.KindInvalidArgument, fmt.Sprintf("parameter %s is empty", name), "leave it out")
		}
		values[name] = each[0]
	}
	return values, nil
}

// boolOf reads a parameter that is true or false.
func boolOf(values map[string]string, name string) (bool, error) {
	switch values[name] {
	case "true":
		return true, nil
	case "", "false":
		return false, nil
	}
	return false, refused(api.KindInvalidArgument, fmt.Sprintf("parameter %s: say true or false", name), "")
}

// maxRef is the longest reference to a layer.
const maxRef = 512

// checkRef refuses texts that cannot be a reference to a layer.
func checkRef(ref string) error {
	if ref == "" || len(ref) > maxRef || !utf8.ValidString(ref) || strings.ContainsFunc(ref, unicode.IsControl) {
		return refused(api.KindInvalidArgument, fmt.Sprintf("%.64q cannot name a layer", ref), "")
	}
	return nil
}

// open opens the store in which the layers of the references are. All are of the same one. The caller releases it. References that
// are "" do not count.
func (r *request) open(a access, refs ...string) (_ *layerstore.Store, release func(), err error) {
	var containers []string
	named := 0
	for _, ref := range refs {
		if ref == "" {
			continue
		}
		named++
		if err := checkRef(ref); err != nil {
			return nil, nil, err
		}
		if err := r.caller.mayName(ref, a); err != nil {
			return nil, nil, err
		}
		if r.server.opts.Stores.IsContainer(ref) {
			containers = append(containers, ref)
		}
	}
	switch len(containers) {
	case 0:
		return r.server.opts.Stores.Open(r.Context())
	case named:
		return r.server.opts.Stores.OpenContainers(r.Context(), containers)
	}
	return nil, nil, refused(api.KindInvalidArgument, fmt.Sprintf("%s: a container and a layer of the store do not go together, since they are in different places",
		strings.Join(refs, ", ")), "")
}

// find finds a layer of a store that open has opened for it, by a method of the store such as Layer.
func (r *request) find(s *layerstore.Store, a access, ref string, by func(ctx context.Context, ref string) (cowcommon.Volume, error)) (cowcommon.Volume, error) {
	v, err := by(r.Context(), ref)
	if err != nil {
		return v, err
	}
	if err := r.mayUse(s, a, ref, v); err != nil {
		return v, err
	}
	return v, r.checkExpired(s, ref, v)
}

// checkExpired refuses a fork that has expired to a member, and snapshots of the fork. It is removed at any time.
func (r *request) checkExpired(s *layerstore.Store, ref string, v cowcommon.Volume) error {
	if r.caller.admin {
		return nil
	}
	if live.IsMoment(v.Name) {
		m, err := s.Live.Moment(v.Name)
		if err == nil {
			v, err = s.Driver.Backend().Stat(r.Context(), m.Layer)
		}
		if err != nil {
			return err
		}
	}
	expired, err := s.Live.IsExpired(r.Context(), v)
	if err != nil || !expired {
		return err
	}
	return refused(api.KindNotFound, fmt.Sprintf("%q has expired", ref), "fork a layer anew")
}

// mayUse refuses a volume to which a reference has led, if it is not the caller's.
func (r *request) mayUse(s *layerstore.Store, a access, ref string, v cowcommon.Volume) error {
	if r.caller.admin {
		return nil
	}
	layer, err := layerNameOf(s, v)
	if err != nil {
		return err
	}
	return r.caller.mayUse(ref, layer, a)
}

// withLayer opens the store of the layer in the path and of others, finds the layer by a method of the store, and calls do.
func (r *request) withLayer(a access, by func(s *layerstore.Store) func(ctx context.Context, ref string) (cowcommon.Volume, error),
	do func(s *layerstore.Store, v cowcommon.Volume) error, others ...string,
) error {
	ref := r.PathValue("layer")
	s, release, err := r.open(a, append([]string{ref}, others...)...)
	if err != nil {
		return err
	}
	defer release()
	v, err := r.find(s, a, ref, by(s))
	if err != nil {
		return err
	}
	return do(s, v)
}

// Methods of a store that find a layer.
type findBy = func(s *layerstore.Store) func(ctx context.Context, ref string) (cowcommon.Volume, error)

var (
	layer      findBy = func(s *layerstore.Store) func(context.Context, string) (cowcommon.Volume, error) { return s.Layer }
	layerAlone findBy = func(s *layerstore.Store) func(context.Context, string) (cowcommon.Volume, error) { return s.LayerAlone }
	layerOf    findBy = func(s *layerstore.Store) func(context.Context, string) (cowcommon.Volume, error) { return s.LayerOf }
)

// layerNameOf is the name of a layer, or of the layer of a moment.
func layerNameOf(s *layerstore.Store, v cowcommon.Volume) (string, error) {
	if !live.IsMoment(v.Name) {
		return v.Name, nil
	}
	m, err := s.Live.Moment(v.Name)
	return m.Layer, err
}
