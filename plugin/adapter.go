package plugin

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/graphdriver"
)

// AdapterOptions says how an [Adapter] works. The zero value is usable.
type AdapterOptions struct {
	// StateFile is the path of a file in which the last Init is kept until Cleanup. The engine does not notice a
	// restart of the plugin. The Adapter then opens the driver again with the arguments in the file. The file belongs
	// on a filesystem that a reboot empties, such as below /run. "" keeps nothing. The layers that the engine has by
	// Get are kept beside it, in a directory with that name and ".held".
	StateFile string

	// Patience is how long Init, Cleanup and Close wait for calls that use the driver, after which it is closed
	// later. 0 stands for ten seconds.
	Patience time.Duration

	// Logger receives errors that no caller gets. nil stands for slog.Default().
	Logger *slog.Logger
}

// Adapter is a [Driver] that passes requests on to a graphdriver.Driver. It opens that driver when the engine names
// the place.
//
// Another Init closes the open driver and opens a driver anew, even for the same place: the engine that held layers
// by Get is gone, or has forgotten them. Running operations of the earlier driver end: streams break, and other calls
// are waited for, as long as AdapterOptions.Patience.
type Adapter struct {
	open func(InitRequest) (graphdriver.Driver, error)
	opts AdapterOptions
	log  *slog.Logger
	held heldLayers

	changing sync.Mutex // locked while a driver is opened or closed
	closed   bool       // by Close; guarded by changing
	mu       sync.Mutex // guards current
	current  *session   // nil: no driver is open
}

var _ Driver = (*Adapter)(nil)

// NewAdapter makes an Adapter that opens drivers by open. The engine's Init gets the error of open.
func NewAdapter(open func(InitRequest) (graphdriver.Driver, error), opts AdapterOptions) *Adapter {
	log := opts.Logger
	if log == nil {
		log = slog.Default()
	}
	a := &Adapter{open: open, opts: opts, log: log}
	if opts.StateFile != "" {
		a.held.dir = opts.StateFile + ".held"
	}
	return a
}

// Init closes the driver that is open and opens one as the engine asks.
func (a *Adapter) Init(home string, options []string, uidMaps, gidMaps []user.IDMap) error {
	request := InitRequest{Home: home, Options: options, UIDMaps: uidMaps, GIDMaps: gidMaps}
	if err := request.check(); err != nil {
		return err
	}
	a.changing.Lock()
	defer a.changing.Unlock()
	if a.closed {
		return errPluginStopped
	}
	if err := a.end(errEngineRestarted); err != nil {
		a.log.Warn("closing the driver of an earlier start of the engine failed", "error", err)
	}
	if err := errors.Join(a.forgetState(), a.held.forget()); err != nil {
		return err
	}
	if err := a.begin(request, nil); err != nil {
		return err
	}
	if err := a.saveState(request); err != nil {
		return errors.Join(err, a.end(err))
	}
	return nil
}

// Resume opens the driver as the engine asked for it before the plugin was restarted, if one is not open. Otherwise
// the first request does that. Returns errdefs.ErrFailedPrecondition if the engine has not called Init, or has called
// Cleanup since.
func (a *Adapter) Resume() error {
	a.changing.Lock()
	defer a.changing.Unlock()
	if a.closed {
		return errPluginStopped
	}
	if a.session() != nil {
		return nil
	}
	request, err := a.loadState()
	if err != nil {
		return err
	}
	err = a.begin(request, func(driver graphdriver.Driver) {
		if err := a.held.getAgain(driver); err != nil {
			a.log.Error("not all layers are where the engine was told before the plugin was restarted", "error", err)
		}
	})
	if err != nil {
		return fmt.Errorf("open the driver again after a restart of the plugin: %w", err)
	}
	return nil
}

// Cleanup closes the driver. The engine calls it when it stops.
func (a *Adapter) Cleanup() error {
	a.changing.Lock()
	defer a.changing.Unlock()
	return errors.Join(a.forgetState(), a.held.forget(), a.end(errEngineStopped))
}

// Close closes the driver and keeps the state file, for when the plugin stops before the engine does. The Adapter opens
// no driver any more. Closing twice does nothing.
func (a *Adapter) Close() error {
	a.changing.Lock()
	defer a.changing.Unlock()
	a.closed = true
	return a.end(errPluginStopped)
}

// begin opens a driver, with a.changing locked and none open. prepare, if not nil, has it before all requests.
func (a *Adapter) begin(request InitRequest, prepare func(graphdriver.Driver)) error {
	driver, err := a.open(request)
	if err != nil {
		return err
	}
	if prepare != nil {
		prepare(driver)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.current = newSession(driver)
	return nil
}

// end closes the driver, if one is open, with a.changing locked. Streams that are under way get the cause.
func (a *Adapter) end(cause error) error {
	a.mu.Lock()
	s := a.current
	a.current = nil
	a.mu.Unlock()
	if s == nil {
		return nil
	}
	patience := a.opts.Patience
	if patience == 0 {
		patience = defaultGrace
	}
	return s.close(cause, patience, a.log)
}

func (a *Adapter) session() *session {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current
}

// use returns the session that is open. Its driver stays open until the caller has called s.done.
func (a *Adapter) use() (*session, error) {
	for {
		a.mu.Lock()
		s := a.current
		if s != nil {
			s.users.Add(1)
		}
		a.mu.Unlock()
		if s != nil {
			return s, nil
		}
		if err := a.Resume(); err != nil {
			return nil, err
		}
	}
}

// Create implements Driver.
func (a *Adapter) Create(id, parent, mountLabel string, storageOpt map[string]string) error {
	s, err := a.use()
	if err != nil {
		return err
	}
	defer s.done()
	return s.driver.Create(id, parent, &graphdriver.CreateOpts{MountLabel: mountLabel, StorageOpt: storageOpt})
}

// CreateReadWrite implements Driver.
func (a *Adapter) CreateReadWrite(id, parent, mountLabel string, storageOpt map[string]string) error {
	s, err := a.use()
	if err != nil {
		return err
	}
	defer s.done()
	return s.driver.CreateReadWrite(id, parent, &graphdriver.CreateOpts{MountLabel: mountLabel, StorageOpt: storageOpt})
}

// Remove implements Driver. An engine that breaks a stream off, and removes the layer right away, may be
// faster than this process in noticing: so Remove waits for streams of the layer to end, for ten seconds at
// most, before it leaves it to the driver to refuse.
func (a *Adapter) Remove(id string) error {
	s, err := a.use()
	if err != nil {
		return err
	}
	defer s.done()
	s.waitForStreams(id)
	puts, err := a.held.giveUp(id)
	for range puts {
		err = errors.Join(err, s.driver.Put(id))
	}
	return errors.Join(err, s.driver.Remove(id))
}

// Get implements Driver.
func (a *Adapter) Get(id, mountLabel string) (string, error) {
	s, err := a.use()
	if err != nil {
		return "", err
	}
	defer s.done()
	dir, err := s.driver.Get(id, mountLabel)
	if err != nil {
		return "", err
	}
	if err := a.held.add(id, mountLabel, 1); err != nil {
		return "", errors.Join(err, s.driver.Put(id))
	}
	return dir, nil
}

// Put implements Driver.
func (a *Adapter) Put(id string) error {
	s, err := a.use()
	if err != nil {
		return err
	}
	defer s.done()
	if err := s.driver.Put(id); err != nil {
		return err
	}
	return a.held.add(id, "", -1)
}

// Exists implements Driver. If no driver can be opened, Exists returns false, and the log says why.
func (a *Adapter) Exists(id string) bool {
	s, err := a.use()
	if err != nil {
		a.log.Error("the engine was told that a layer does not exist, since there is no driver to ask", "layer", id, "error", err)
		return false
	}
	defer s.done()
	return s.driver.Exists(id)
}

// Status implements Driver. If no driver can be opened, Status says why.
func (a *Adapter) Status() [][2]string {
	s, err := a.use()
	if err != nil {
		return [][2]string{{"Error", err.Error()}}
	}
	defer s.done()
	return s.driver.Status()
}

// GetMetadata implements Driver.
func (a *Adapter) GetMetadata(id string) (map[string]string, error) {
	s, err := a.use()
	if err != nil {
		return nil, err
	}
	defer s.done()
	return s.driver.GetMetadata(id)
}

// Diff implements Driver.
func (a *Adapter) Diff(id, parent string) io.ReadCloser {
	s, err := a.use()
	if err != nil {
		return failedReader{err}
	}
	defer s.done()
	end := s.stream(id, parent)
	begun := false
	defer func() {
		if !begun {
			end()
		}
	}()
	r, err := s.driver.Diff(id, parent)
	if err != nil {
		return failedReader{err}
	}
	begun = true
	return s.reader(r, end)
}

// Changes implements Driver.
func (a *Adapter) Changes(id, parent string) ([]Change, error) {
	s, err := a.use()
	if err != nil {
		return nil, err
	}
	defer s.done()
	list, err := s.driver.Changes(id, parent)
	if err != nil {
		return nil, err
	}
	changes := make([]Change, 0, len(list))
	for _, c := range list {
		changes = append(changes, Change{Path: c.Path, Kind: ChangeKind(c.Kind)})
	}
	return changes, nil
}

// ApplyDiff implements Driver. Where the archive has a method Interrupt, that ends it when the driver is to
// be closed.
func (a *Adapter) ApplyDiff(id, parent string, archive io.Reader) (int64, error) {
	s, err := a.use()
	if err != nil {
		return 0, err
	}
	defer s.done()
	defer s.stream(id)()
	defer s.interrupt(archive)()
	return s.driver.ApplyDiff(id, parent, archive)
}

// DiffSize implements Driver.
func (a *Adapter) DiffSize(id, parent string) (int64, error) {
	s, err := a.use()
	if err != nil {
		return 0, err
	}
	defer s.done()
	return s.driver.DiffSize(id, parent)
}

// Capabilities implements Driver: a diff has the same content as the applied tar, but not the same bytes.
func (a *Adapter) Capabilities() Capabilities { return Capabilities{ReproducesExactDiffs: false} }

var (
	errEngineRestarted = fault.New(errdefs.ErrAborted, "the engine was started again")
	errEngineStopped   = fault.New(errdefs.ErrAborted, "the engine has called Cleanup")
	errPluginStopped   = fault.New(errdefs.ErrAborted, "the plugin is stopping")
	errNoInit          = fault.New(errdefs.ErrFailedPrecondition, "the engine has not called Init")
)
