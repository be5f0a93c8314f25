package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/apiserver"
	"github.com/cowshed/cowshed/internal/enginelimits"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/internal/unixsocket"
	"github.com/cowshed/cowshed/quota"
)

// apiService is the HTTP API.
type apiService struct {
	server *apiserver.Server
	gid    int // of the socket; 0: only root connects
}

// openAPI makes the server of the API, if the configuration has one.
func (d *daemon) openAPI(containers *layerstore.Store) error {
	if d.config.API == "" {
		return nil
	}
	opts := apiserver.Options{
		Version: d.opts.Version, StopTimeout: d.config.StopTimeout.Duration, Log: d.log,
		Stores: &apiStores{daemon: d, containers: containers, patience: storePatience},
	}
	var err error
	if opts.Token, err = readToken(d.config.APITokenFile); err != nil {
		return fmt.Errorf("api_token_file: %w", err)
	}
	service := &apiService{}
	if d.config.APIGroup != "" {
		gid, err := groupID(d.config.APIGroup)
		if err != nil {
			return fmt.Errorf("api_group: %w", err)
		}
		service.gid, opts.Groups = int(gid), []uint32{gid}
	}
	for _, c := range d.config.APINamespaces {
		n, err := c.resolve()
		if err != nil {
			return fmt.Errorf("api_namespaces: namespace %q: %w", c.Name, err)
		}
		opts.Namespaces = append(opts.Namespaces, n)
	}
	service.server = apiserver.New(opts)
	d.api = service
	return nil
}

// listen makes the socket of the API.
func (s *apiService) listen(ctx context.Context, path string) (net.Listener, error) {
	if s.gid == 0 {
		return unixsocket.Listen(ctx, path)
	}
	return unixsocket.ListenFor(ctx, path, s.gid)
}

// resolve finds the users and groups of a namespace.
func (n APINamespace) resolve() (r apiserver.Namespace, err error) {
	r = apiserver.Namespace{Name: n.Name, Readable: n.Readable, Layers: n.MaxLayers, Lifetime: n.MaxLifetime.Duration}
	if r.Bytes, err = parseLimit(n.MaxBytes); err != nil {
		return r, err
	}
	for _, name := range n.Users {
		uid, err := numberOr(name, func() (int, error) {
			u, err := user.LookupUser(name)
			return u.Uid, err
		})
		if err != nil {
			return r, fmt.Errorf("user %q: %w", name, err)
		}
		r.UIDs = append(r.UIDs, uid)
	}
	for _, name := range n.Groups {
		gid, err := groupID(name)
		if err != nil {
			return r, err
		}
		r.GIDs = append(r.GIDs, gid)
	}
	return r, nil
}

func groupID(name string) (uint32, error) {
	gid, err := numberOr(name, func() (int, error) {
		g, err := user.LookupGroup(name)
		return g.Gid, err
	})
	if err != nil {
		err = fmt.Errorf("group %q: %w", name, err)
	}
	return gid, err
}

// numberOr is the number that a text is, or that lookUp finds.
func numberOr(text string, lookUp func() (int, error)) (uint32, error) {
	if n, err := strconv.ParseUint(text, 10, 32); err == nil {
		return uint32(n), nil
	}
	n, err := lookUp()
	if err != nil {
		return 0, fault.As(errdefs.ErrInvalidArgument, err)
	}
	return uint32(n), nil
}

// Bounds of a token.
const (
	minToken = 32
	maxToken = 4096
)

// readToken reads the token of the API, "" if there is no file. The file is root's, and nobody else may read or change it.
func readToken(path string) (token string, err error) {
	if path == "" {
		return "", nil
	}
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0) // a pipe does not wait for its writer
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	var stat unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &stat); err != nil {
		return "", os.NewSyscallError("fstat", err)
	}
	if stat.Mode&unix.S_IFMT != unix.S_IFREG || stat.Mode&0o077 != 0 || stat.Uid != 0 {
		return "", fault.New(errdefs.ErrInvalidArgument, "%s must be a file of root with the mode 0600", path)
	}
	data, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	if err != nil {
		return "", err
	}
	token = strings.TrimSpace(string(data))
	switch {
	case len(data) > maxToken:
		return "", fault.New(errdefs.ErrInvalidArgument, "%s has more than %d bytes", path, maxToken)
	case len(token) < minToken:
		return "", fault.New(errdefs.ErrInvalidArgument, "%s has fewer than %d bytes", path, minToken)
	}
	return token, nil
}

// apiStores opens the stores for requests of the API. That of the daemon's volumes is open as long as the daemon. The command's
// store is open while requests use it, so that remains in it can be cleaned up.
type apiStores struct {
	daemon     *daemon
	containers *layerstore.Store
	patience   time.Duration // of a request that waits until the command's store is open

	mu    sync.Mutex // never held while the store is opened or closed
	store *openStore // nil: it is closed
}

// storePatience is how long a request waits for the command's store, while another process that has just begun to use it cleans up.
const storePatience = 30 * time.Second

// openStore is a store that requests share.
type openStore struct {
	users  int
	cancel context.CancelFunc // ends the attempt to open it
	opened chan struct{}      // closed when store and err are set
	store  *layerstore.Store
	err    error
}

// IsContainer implements apiserver.Stores.
func (s *apiStores) IsContainer(ref string) bool {
	return layerstore.IsContainer(s.daemon.config.Root, ref, s.daemon.log)
}

// Open implements apiserver.Stores.
func (s *apiStores) Open(ctx context.Context) (*layerstore.Store, func(), error) {
	s.mu.Lock()
	o := s.store
	if o == nil {
		opening, cancel := context.WithCancel(context.WithoutCancel(ctx)) // for others too
		o = &openStore{cancel: cancel, opened: make(chan struct{})}
		s.store = o
		go func() {
			defer close(o.opened)
			o.store, o.err = s.openStore(opening)
		}()
	}
	o.users++
	s.mu.Unlock()
	release := sync.OnceFunc(func() { s.release(o) })
	waiting, end := context.WithTimeoutCause(ctx, s.patience, fault.New(errdefs.ErrUnavailable,
		"the store in %s is not open after %s: another process may be cleaning up there, so try again later", s.daemon.config.Root, s.patience))
	defer end()
	select {
	case <-o.opened:
	case <-waiting.Done():
		release()
		return nil, nil, context.Cause(waiting)
	}
	if o.err != nil {
		release()
		return nil, nil, o.err
	}
	return o.store, release, nil
}

// release closes a store with its last user. Nobody waits for a store that is not open yet.
func (s *apiStores) release(o *openStore) {
	s.mu.Lock()
	o.users--
	last := o.users == 0
	if last && s.store == o {
		s.store = nil
	}
	s.mu.Unlock()
	if !last {
		return
	}
	select {
	case <-o.opened:
		s.close(o)
	default:
		o.cancel()
		go func() {
			<-o.opened
			s.close(o)
		}()
	}
}

func (s *apiStores) close(o *openStore) {
	defer o.cancel()
	if o.store != nil {
		if err := o.store.Driver.Cleanup(); err != nil {
			s.daemon.log.Warn("the store cannot be closed", "error", err)
		}
	}
}

func (s *apiStores) openStore(ctx context.Context) (*layerstore.Store, error) {
	c := s.daemon.config
	driver := c.Driver
	if driver == autoDriver {
		driver = ""
	}
	there, err := layerstore.IsThere(c.Root, driver)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	if !there {
		return nil, fault.Said(errdefs.ErrNotFound, "there is no store in %s; make one with: cowshed init", c.Root)
	}
	store, err := layerstore.OpenThere(ctx, layerstore.Options{Root: c.Root, Driver: driver, DriverOptionsFor: c.storeOptions, Log: s.daemon.log})
	if err == nil {
		store.Containerd = c.ConnectContainerd
	}
	return store, err
}

// storeOptions are the storage options of a driver for the command's store, which is in another place than containerd's volumes.
func (c Config) storeOptions(driver string) []string {
	var options []string
	for _, option := range c.StorageOptions {
		if of, _ := splitOption(option); of == driver && !isPlace(option) {
			options = append(options, option)
		}
	}
	return options
}

// OpenContainers implements apiserver.Stores.
func (s *apiStores) OpenContainers(ctx context.Context, refs []string) (*layerstore.Store, func(), error) {
	store := *s.containers
	store.Containers, store.Containerd = make(map[string]string), s.daemon.config.ConnectContainerd
	store.Origins = &layerstore.Origins{
		Engines: Resolver(s.daemon.config), Containerd: s.daemon.config.ConnectContainerd, VolumeOf: s.daemon.snapshotter.VolumeOf,
	}
	for _, ref := range refs {
		volume, err := layerstore.VolumeOf(ctx, ref, Resolver(s.daemon.config), s.daemon.snapshotter.VolumeOf)
		if err != nil {
			return nil, nil, err
		}
		store.Containers[layerref.Layer(ref)] = volume
	}
	return &store, func() {}, nil
}

// LimitContainer implements apiserver.Stores. The limit is at most max_limit: a client of the API is no operator of the host.
func (s *apiStores) LimitContainer(ctx context.Context, ref string, bytes uint64) error {
	parsed, err := layerref.Parse(ref)
	if err != nil {
		return err
	}
	c := s.daemon.config
	most, err := parseLimit(c.MaxLimit)
	if err != nil {
		return err
	}
	if err := enginelimits.CheckMax(quota.FormatSize(bytes), bytes, most); err != nil {
		return err
	}
	return layerstore.LimitContainer(ctx, parsed, bytes, Resolver(c), s.daemon.measured)
}
