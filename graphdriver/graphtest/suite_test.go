//go:build linux

package graphtest

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/go-archive"
	"github.com/moby/sys/user"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/internal/testfs"
)

func openCopyDriver(t testing.TB, root string, idMap user.IdentityMapping) graphdriver.Driver {
	t.Helper()
	d, err := newCopyDriver(root, idMap)
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, d.Cleanup()) })
	return d
}

func copyConfig() Config {
	return Config{
		New: func(t testing.TB) graphdriver.Driver { return openCopyDriver(t, t.TempDir(), user.IdentityMapping{}) },
		NewIDMapped: func(t testing.TB, idMap user.IdentityMapping) graphdriver.Driver {
			return openCopyDriver(t, t.TempDir(), idMap)
		},
		Reopen: func(t testing.TB, d graphdriver.Driver) graphdriver.Driver {
			require.NoError(t, d.Cleanup())
			return openCopyDriver(t, d.(*graphdriver.NaiveDiffDriver).ProtoDriver.(*copyDriver).root, user.IdentityMapping{})
		},
	}
}

// TestCopyDriver: the suite can be passed.
func TestCopyDriver(t *testing.T) {
	testfs.Root(t)
	Run(t, copyConfig())
}

func TestTestsHaveNames(t *testing.T) {
	seen := make(map[string]bool)
	for _, test := range Tests() {
		assert.NotEmpty(t, test.Name)
		assert.False(t, seen[test.Name], test.Name)
		seen[test.Name] = true
		assert.NotNil(t, test.run, test.Name)
	}
}

// TestSuiteFindsFaults: a driver with a fault fails the tests that are about it.
func TestSuiteFindsFaults(t *testing.T) {
	testfs.Root(t)
	for _, fault := range []struct {
		name    string
		wrap    func(d graphdriver.Driver) graphdriver.Driver
		declare func(c *Config)
		fails   []string
	}{
		{
			name:  "a child is its parent",
			wrap:  func(d graphdriver.Driver) graphdriver.Driver { return &sharingDriver{Driver: d} },
			fails: []string{"ParentStaysUnchanged", "SiblingsAreIsolated", "CreateFromHeldLayer"},
		}, {
			name:  "Remove is not idempotent",
			wrap:  func(d graphdriver.Driver) graphdriver.Driver { return removeOnce{d} },
			fails: []string{"RemoveAbsent"},
		}, {
			name:  "Remove does nothing",
			wrap:  func(d graphdriver.Driver) graphdriver.Driver { return removeNothing{d} },
			fails: []string{"RemoveAbsent", "RemoveThenCreate", "ConcurrentDifferentIDs"},
		}, {
			name:  "Create takes an id twice",
			wrap:  func(d graphdriver.Driver) graphdriver.Driver { return createTwice{d} },
			fails: []string{"CreateExisting", "ConcurrentCreateOfOneID"},
		}, {
			name:  "Create makes its parent",
			wrap:  func(d graphdriver.Driver) graphdriver.Driver { return createParents{d} },
			fails: []string{"CreateWithoutParent"},
		}, {
			name:    "options are ignored",
			wrap:    func(d graphdriver.Driver) graphdriver.Driver { return ignoreOptions{d} },
			declare: func(c *Config) { c.Quota = true },
			fails:   []string{"OptionsThatCannotBe", "Quota"},
		}, {
			name:  "options are ignored, quotas not declared",
			wrap:  func(d graphdriver.Driver) graphdriver.Driver { return ignoreOptions{d} },
			fails: []string{"OptionsThatCannotBe", "OptionsThatMustBe", "Quota"},
		}, {
			name:  "ids are cleaned instead of refused",
			wrap:  func(d graphdriver.Driver) graphdriver.Driver { return cleanIDs{d} },
			fails: []string{"IDsThatCannotBe"},
		}, {
			name:  "Put is not counted",
			wrap:  func(d graphdriver.Driver) graphdriver.Driver { return &uncountedPut{Driver: d} },
			fails: []string{"GetTwicePutTwice"},
		}, {
			name:  "Diff says when",
			wrap:  func(d graphdriver.Driver) graphdriver.Driver { return timedDiff{d} },
			fails: []string{"EmptyDiff", "ConcurrentDiffs"},
		}, {
			name:  "Diff leaks a descriptor",
			wrap:  func(d graphdriver.Driver) graphdriver.Driver { return &leakyDiff{Driver: d} },
			fails: []string{"DiffReadInPart"},
		}, {
			name:  "Changes misses removals",
			wrap:  func(d graphdriver.Driver) graphdriver.Driver { return noRemovals{d} },
			fails: []string{"Changes", "ChangesBetweenAnyTwo"},
		}, {
			name:  "DiffSize is wrong",
			wrap:  func(d graphdriver.Driver) graphdriver.Driver { return oneByteMore{d} },
			fails: []string{"ChangesBetweenAnyTwo", "EmptyDiff"},
		}, {
			name:  "ApplyDiff swallows errors",
			wrap:  func(d graphdriver.Driver) graphdriver.Driver { return applyAnyway{d} },
			fails: []string{"ApplyBrokenTar", "FailuresLeaveNothing"},
		}, {
			name:    "DiffPath is the layer",
			wrap:    func(d graphdriver.Driver) graphdriver.Driver { return layerAsDiffPath{d} },
			declare: func(c *Config) { c.DiffPath, c.CustomImages = true, true },
			fails:   []string{"DiffPath", "DiffPathErrors", "CustomImages"},
		}, {
			name: "much is declared and nothing kept",
			wrap: func(d graphdriver.Driver) graphdriver.Driver { return d },
			declare: func(c *Config) {
				c.DiffPath, c.CustomImages, c.DiffGetter, c.SealsParents, c.SeesWrites = true, true, true, true, true
			},
			fails: []string{"DiffPath", "DiffPathErrors", "CustomImages", "DiffGetter", "DiffGetterStaysInside", "ParentIsSealed", "HiddenWrites", "WritesAfterApply"},
		},
	} {
		t.Run(fault.name, func(t *testing.T) {
			c := copyConfig()
			c.New = func(t testing.TB) graphdriver.Driver {
				return fault.wrap(openCopyDriver(t, t.TempDir(), user.IdentityMapping{}))
			}
			c.Reopen = func(_ testing.TB, d graphdriver.Driver) graphdriver.Driver { return d }
			if fault.declare != nil {
				fault.declare(&c)
			}
			found := 0
			for _, test := range Tests() {
				if !slices.Contains(fault.fails, test.Name) {
					continue
				}
				found++
				failed, messages := record(t, test, c)
				assert.True(t, failed, "%s does not find it", test.Name)
				assert.NotEmpty(t, messages, "%s does not say what it found", test.Name)
			}
			assert.Len(t, fault.fails, found, "all tests named here exist")
		})
	}
}

// layerAsDiffPath shows the whole layer in place of its diff, and the same image twice.
type layerAsDiffPath struct{ graphdriver.Driver }

func (d layerAsDiffPath) DiffPath(id string) (string, func() error, error) {
	path, _ := d.Get(id, "")
	return path, func() error { return d.Put(id) }, nil
}

func (d layerAsDiffPath) GetCustomImageInfos() ([]graphdriver.CustomImageInfo, error) {
	return []graphdriver.CustomImageInfo{{ID: "x", Name: "x"}, {ID: "x", Name: "y"}}, nil
}

type sharingDriver struct {
	graphdriver.Driver
	parents sync.Map
}

func (d *sharingDriver) Create(id, parent string, opts *graphdriver.CreateOpts) error {
	if parent != "" {
		d.parents.Store(id, parent)
	}
	return d.Driver.Create(id, parent, opts)
}

func (d *sharingDriver) Get(id, label string) (string, error) {
	for {
		parent, ok := d.parents.Load(id)
		if !ok {
			return d.Driver.Get(id, label)
		}
		id = parent.(string)
	}
}

type removeOnce struct{ graphdriver.Driver }

func (d removeOnce) Remove(id string) error {
	if !d.Exists(id) {
		return errdefs.ErrNotFound
	}
	return d.Driver.Remove(id)
}

type removeNothing struct{ graphdriver.Driver }

func (removeNothing) Remove(string) error { return nil }

type createTwice struct{ graphdriver.Driver }

func (d createTwice) Create(id, parent string, opts *graphdriver.CreateOpts) error {
	if d.Exists(id) {
		return nil
	}
	if err := d.Driver.Create(id, parent, opts); !errors.Is(err, errdefs.ErrAlreadyExists) {
		return err
	}
	return nil
}

func (d createTwice) CreateReadWrite(id, parent string, opts *graphdriver.CreateOpts) error {
	return d.Create(id, parent, opts)
}

type createParents struct{ graphdriver.Driver }

func (d createParents) Create(id, parent string, opts *graphdriver.CreateOpts) error {
	if parent != "" && !d.Exists(parent) {
		if err := d.Driver.Create(parent, "", nil); err != nil {
			return err
		}
	}
	return d.Driver.Create(id, parent, opts)
}

type ignoreOptions struct{ graphdriver.Driver }

func (d ignoreOptions) Create(id, parent string, _ *graphdriver.CreateOpts) error {
	return d.Driver.Create(id, parent, nil)
}

func (d ignoreOptions) CreateReadWrite(id, parent string, _ *graphdriver.CreateOpts) error {
	return d.Driver.CreateReadWrite(id, parent, nil)
}

type cleanIDs struct{ graphdriver.Driver }

func (d cleanIDs) Exists(id string) bool {
	parts := strings.Split(strings.Trim(id, "./"), "/")
	return d.Driver.Exists(parts[len(parts)-1])
}

type uncountedPut struct {
	graphdriver.Driver
	mu sync.Mutex
}

// Get mounts, as it were, and the first Put unmounts.
func (d *uncountedPut) Get(id, label string) (string, error) {
	dir, err := d.Driver.Get(id, label)
	if err != nil {
		return "", err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := os.Symlink(dir, dir+".mounted"); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return dir + ".mounted", nil
}

func (d *uncountedPut) Put(id string) error {
	dir, err := d.Driver.Get(id, "")
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := os.Remove(dir + ".mounted"); !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

type timedDiff struct{ graphdriver.Driver }

func (d timedDiff) Diff(id, parent string) (io.ReadCloser, error) {
	r, err := d.Driver.Diff(id, parent)
	if err != nil {
		return nil, err
	}
	now := strings.NewReader(fmt.Sprint(time.Now().UnixNano()))
	return struct {
		io.Reader
		io.Closer
	}{io.MultiReader(r, now), r}, nil
}

type leakyDiff struct {
	graphdriver.Driver
	calls int
}

// Diff leaks in its second call only: it takes the test seconds to be sure of a leak.
func (d *leakyDiff) Diff(id, parent string) (io.ReadCloser, error) {
	if d.calls++; d.calls == 2 {
		if _, err := unix.Open(os.DevNull, unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return nil, err
		}
	}
	return d.Driver.Diff(id, parent)
}

type noRemovals struct{ graphdriver.Driver }

func (d noRemovals) Changes(id, parent string) ([]archive.Change, error) {
	changes, err := d.Driver.Changes(id, parent)
	return slices.DeleteFunc(changes, func(c archive.Change) bool { return c.Kind == archive.ChangeDelete }), err
}

type oneByteMore struct{ graphdriver.Driver }

func (d oneByteMore) DiffSize(id, parent string) (int64, error) {
	size, err := d.Driver.DiffSize(id, parent)
	return size + 1, err
}

type applyAnyway struct{ graphdriver.Driver }

func (d applyAnyway) ApplyDiff(id, parent string, diff io.Reader) (int64, error) {
	data, _ := io.ReadAll(diff)
	size, _ := d.Driver.ApplyDiff(id, parent, bytes.NewReader(data))
	return size, nil
}

// BenchmarkCopyDriver shows how the benchmarks are run; its figures are those of copying.
func BenchmarkCopyDriver(b *testing.B) {
	testfs.Root(b)
	RunBenchmarks(b, copyConfig(), 200)
}
