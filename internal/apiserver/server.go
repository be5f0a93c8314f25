package apiserver

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/internal/layerstore"
)

// Stores opens the stores of layers for requests.
type Stores interface {
	// IsContainer reports whether a reference names a container or the fork of one, and no image of the store.
	IsContainer(ref string) bool
	// Open opens the store, which the caller releases. Returns errdefs.ErrNotFound if there is none.
	Open(ctx context.Context) (s *layerstore.Store, release func(), err error)
	// OpenContainers opens the store of the daemon's volumes, for a request that names these references to containers.
	OpenContainers(ctx context.Context, refs []string) (s *layerstore.Store, release func(), err error)
	// LimitContainer sets the limit of the container that a reference names, while the container runs or not.
	LimitContainer(ctx context.Context, ref string, bytes uint64) error
}

// Options say how a Server answers.
type Options struct {
	Version    string
	Stores     Stores
	Namespaces []Namespace
	// Groups are those whose members may send requests, besides root.
	Groups []uint32
	// Token makes its bearer root's equal; "" is none.
	Token string
	// StopTimeout is how long changes may go on when the server stops.
	StopTimeout time.Duration
	Log         *slog.Logger

	patience patience // the zero value: usualPatience
}

// Server answers requests. It is a prometheus.Collector.
type Server struct {
	opts        Options
	token       [sha256.Size]byte
	namespaces  []*namespace
	connections *gate
	requests    *gate
	exports     *gate
	walks       *gate
	metrics     *metrics
	handler     http.Handler

	mu     sync.Mutex
	ended  bool           // no request begins any more
	active sync.WaitGroup // requests
}

// New returns a server.
func New(opts Options) *Server {
	m := newMetrics()
	s := &Server{
		opts: opts, token: sha256.Sum256([]byte(opts.Token)), metrics: m, connections: m.gate("connections", connectionBounds),
		requests: m.gate("requests", requestBounds), exports: m.gate("exports", exportBounds), walks: m.gate("walks", walkBounds),
	}
	if s.opts.patience == (patience{}) {
		s.opts.patience = usualPatience
	}
	for _, n := range opts.Namespaces {
		s.namespaces = append(s.namespaces, &namespace{Namespace: n})
	}
	s.handler = s.routes()
	return s
}

// Serve answers the requests of a unix socket until ctx is done. Then it cancels requests that change nothing. Changes may go on
// for StopTimeout, before they are cancelled. It returns when all have ended.
func (s *Server) Serve(ctx context.Context, l net.Listener) error { return s.serve(ctx, l, kernelPeer) }

// serve is Serve, where peer names the process at the other end of a connection.
func (s *Server) serve(ctx context.Context, l net.Listener, peer func(net.Conn) (Peer, error)) error {
	requests, cancel := context.WithCancel(context.WithoutCancel(ctx))
	defer cancel()
	requests = context.WithValue(requests, stopKey{}, requests)
	server := &http.Server{
		Handler: s, ReadHeaderTimeout: s.opts.patience.header, IdleTimeout: s.opts.patience.idle, MaxHeaderBytes: maxHeader,
		ConnContext: withPeer, BaseContext: func(net.Listener) context.Context { return requests },
		ErrorLog: slog.NewLogLogger(s.opts.Log.Handler(), slog.LevelDebug), // clients cause these
	}
	ended := make(chan error, 1)
	open := &connections{last: s.opts.patience.last, open: make(map[*peerConn]bool)}
	refusals := newRefusals(s.opts.patience.last)
	defer refusals.waiting.Wait()
	go func() {
		ended <- server.Serve(&listener{
			Listener: l, gate: s.connections, peer: peer, sender: s.senderOf, connections: open, refusals: refusals,
		})
	}()
	var err error
	select {
	case err = <-ended:
	case <-ctx.Done():
		open.stop()
		patient, stop := context.WithTimeout(requests, s.opts.StopTimeout)
		if server.Shutdown(patient) != nil {
			s.opts.Log.Warn("cancelling requests of the API that have not ended", "after", s.opts.StopTimeout)
		}
		stop()
		err = <-ended
	}
	cancel()
	closeErr := server.Close()
	s.mu.Lock()
	s.ended = true
	s.mu.Unlock()
	s.active.Wait()
	if errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	return errors.Join(err, closeErr)
}

type stopKey struct{}

// untilStop is the context of a part of a request that does not end with its client, but when the server cancels its requests.
func untilStop(ctx context.Context) context.Context {
	if stop, ok := ctx.Value(stopKey{}).(context.Context); ok {
		return stop
	}
	return context.WithoutCancel(ctx)
}

// ServeHTTP answers a request.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	req := &request{Request: r, server: s, out: newAnswer(w, s.opts.patience.write)}
	defer s.metrics.begin(req)()
	if err := req.limitBody(); err != nil {
		req.reply(err)
		return
	}
	if !s.begin() {
		req.reply(errEnding())
		return
	}
	defer s.active.Done()
	defer req.endChange()
	req.reply(s.admit(req))
}

func errEnding() error { return refused(api.KindUnavailable, "the server is about to end", "") }

// begin notes that a request begins, which then calls s.active.Done. It reports false if the server has ended.
func (s *Server) begin() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.ended {
		s.active.Add(1)
	}
	return !s.ended
}

// admit calls the handler of a request if its sender may send requests.
func (s *Server) admit(r *request) (err error) {
	if r.caller, err = s.callerOf(r.Request); err != nil {
		return err
	}
	if !r.caller.admin {
		r.out.rate = s.opts.patience.rate
	}
	who := s.senderOf(r.caller.peer)
	leave, kind := s.requests.enter(who)
	if kind != "" {
		return tooMany(kind, who, "requests under way")
	}
	defer leave()
	if err := r.checkForm(); err != nil {
		return err
	}
	ctx := context.WithValue(r.Context(), requestKey{}, r)
	s.handler.ServeHTTP(r.out.w, r.WithContext(ctx))
	return r.err
}

// tooMany is the error of a kind that gate.enter has returned.
func tooMany(kind api.Kind, who sender, what string) error {
	if kind == api.KindUnavailable {
		return refused(kind, "the server has too many "+what, "")
	}
	return refused(kind, fmt.Sprintf("%s: too many %s", who, what), "")
}

// isMember reports whether a peer is a member of the groups that may send requests.
func (s *Server) isMember(p Peer) bool {
	return slices.ContainsFunc(p.Groups, func(gid uint32) bool { return slices.Contains(s.opts.Groups, gid) })
}

// callerOf finds the rights of the sender of a request.
func (s *Server) callerOf(r *http.Request) (*caller, error) {
	peer, ok := peerOf(r.Context())
	c := &caller{peer: peer, admin: peer.UID == 0}
	if !ok || !c.admin && !s.isMember(peer) {
		c.admin = false
		return c, refused(api.KindPermissionDenied, fmt.Sprintf("user %d is not a member of api_group", peer.UID), "ask an administrator")
	}
	if header := r.Header.Get("Authorization"); header != "" {
		token, _ := strings.CutPrefix(header, "Bearer ")
		sum := sha256.Sum256([]byte(token))
		if s.opts.Token == "" || subtle.ConstantTimeCompare(sum[:], s.token[:]) != 1 {
			return c, refused(api.KindUnauthenticated, "the token is not the server's token", "")
		}
		c.admin = true
	}
	if !c.admin {
		for _, n := range s.namespaces {
			if n.hasMember(peer) {
				c.namespaces = append(c.namespaces, n)
			}
		}
	}
	return c, nil
}

// routes returns the handler of all paths.
func (s *Server) routes() http.Handler {
	const (
		layers   = api.Prefix + "/layers"
		layer    = layers + "/{layer}"
		snapshot = layer + "/snapshots/{snapshot}"
	)
	methods := make(map[string][]string)
	mux := http.NewServeMux()
	handle := func(method, path string, do func(r *request) error, parameters ...string) { // parameters of the query
		methods[path] = append(methods[path], method)
		mux.HandleFunc(method+" "+path, handler(func(r *request) (err error) {
			if r.query, err = queryOf(r.URL, parameters); err != nil {
				return err
			}
			if method == http.MethodDelete { // other changes begin when the body has come
				if err := r.beginChange(); err != nil {
					return err
				}
			}
			return do(r)
		}))
	}
	handle("GET", api.Prefix+"/openapi.yaml", (*request).getDescription)
	handle("GET", api.Prefix+"/info", (*request).getInfo)
	handle("GET", layers, (*request).listLayers, "forks")
	handle("POST", layers, (*request).createLayer)
	handle("GET", layer, (*request).getLayer)
	handle("DELETE", layer, (*request).removeLayer, "force")
	handle("POST", layer+"/forks", (*request).forkLayer)
	handle("GET", layer+"/snapshots", (*request).listSnapshots)
	handle("POST", layer+"/snapshots", (*request).takeSnapshot)
	handle("DELETE", snapshot, (*request).removeSnapshot)
	handle("POST", layer+"/rollback", (*request).rollBackLayer)
	handle("POST", layer+"/merge", (*request).mergeFork)
	handle("GET", layer+"/changes", (*request).listChanges, "since", "whole", "walk")
	handle("GET", layer+"/diff", (*request).diffLayer, "since", "whole", "walk", "compress")
	handle("GET", layer+"/log", (*request).getLog)
	handle("GET", layer+"/usage", (*request).getUsage)
	handle("PUT", layer+"/limit", (*request).setLimit)
	handle("GET", layer+"/export", (*request).exportLayer, "format", "compress", "name")
	handle("GET", layer+"/stream", (*request).sendLayer, "from", "withParents")
	handle("POST", layer+"/promote", (*request).promoteLayer)
	for path, allowed := range methods {
		mux.HandleFunc(path, handler(func(r *request) error {
			r.out.w.Header().Set("Allow", strings.Join(allowed, ", "))
			return refused(api.KindMethodNotAllowed, "the path is for "+strings.Join(allowed, " and "), "GET /v1/openapi.yaml describes the API")
		}))
	}
	mux.HandleFunc("/", handler(func(*request) error { return unknownPath() }))
	return mux
}

func unknownPath() error {
	return refused(api.KindNotFound, "the API has no such path", "GET /v1/openapi.yaml describes the API")
}

// checkForm refuses requests that the multiplexer would redirect, and bodies that no handler reads.
func (r *request) checkForm() error {
	switch escaped := r.URL.EscapedPath(); {
	case !strings.HasPrefix(escaped, "/"), path.Clean(escaped) != escaped:
		return unknownPath()
	case r.Method == http.MethodConnect || r.Method == http.MethodHead:
		return refused(api.KindMethodNotAllowed, fmt.Sprintf("there is no method %s", r.Method), "")
	case r.ContentLength != 0 && r.Method != http.MethodPost && r.Method != http.MethodPut:
		return refused(api.KindInvalidArgument, fmt.Sprintf("a request %s has no body", r.Method), "")
	}
	return nil
}
