package e2e

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/user"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/cowdriver"
)

// lister lists volumes.
type lister interface {
	Volumes(ctx context.Context) iter.Seq2[cowcommon.Volume, error]
}

// faultOperation is an operation with faults. It starts from the layers of prepare.
type faultOperation struct {
	name    string
	prepare func(ctx context.Context, d *cowdriver.Driver) error // may be nil
	run     func(ctx context.Context, d *cowdriver.Driver) error
	again   func(ctx context.Context, d *cowdriver.Driver) error // after a failure; nil: run
	verify  func(ctx context.Context, d *cowdriver.Driver) error // that it is done, as a whole
	leaves  []string                                             // begin differences that are part of the result
	broken  []string                                             // begin differences that remain where a step fails
}

// viewLeft begin the differences that remain where a step of closing a view fails.
var viewLeft = []string{"left: views/child", "left: mount on ", "left: dataset ", "left: roots/"}

// cancelledBySignal returns a context that SIGUSR1 ends, which is then acknowledged.
func cancelledBySignal(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, unix.SIGUSR1)
	go func() {
		<-signals
		cancel()
		acknowledge()
	}()
	return ctx
}

func faultOperations(s system) []faultOperation {
	sized, limit := &graphdriver.CreateOpts{}, uint64(0)
	if s.limits() {
		sized.StorageOpt, limit = map[string]string{"size": "64M"}, limitBytes
	}
	restoredParent := "base"
	if s.driver == "btrfs" { // where the snapshot that takes the place of the volume is not one of base
		restoredParent = ""
	}
	var stream bytes.Buffer
	operations := []faultOperation{
		{
			name: "create",
			run: func(ctx context.Context, d *cowdriver.Driver) error {
				return d.WithContext(ctx).Create("new", "", sized)
			},
			verify: func(ctx context.Context, d *cowdriver.Driver) error { return isThere(ctx, d, "new", "", false, limit) },
		},
		{
			name: "clone",
			run: func(ctx context.Context, d *cowdriver.Driver) error {
				return d.WithContext(ctx).CreateReadWrite("new", "base", sized)
			},
			verify: func(ctx context.Context, d *cowdriver.Driver) error {
				return isThere(ctx, d, "new", "base", false, limit)
			},
		},
		{
			name: "clone and seal",
			run: func(ctx context.Context, d *cowdriver.Driver) error {
				return d.WithContext(ctx).CreateReadWrite("new", "child", nil)
			},
			verify: func(ctx context.Context, d *cowdriver.Driver) error {
				return errors.Join(isThere(ctx, d, "new", "child", false, 0), isThere(ctx, d, "child", "base", true, 0), hasContent(d, "new"))
			},
		},
		{
			name: "seal",
			run:  func(ctx context.Context, d *cowdriver.Driver) error { return cowcommon.Seal(ctx, d.Backend(), "child") },
			verify: func(ctx context.Context, d *cowdriver.Driver) error {
				return errors.Join(isThere(ctx, d, "child", "base", true, 0), hasContent(d, "child"))
			},
		},
		{
			name: "rename",
			run: func(ctx context.Context, d *cowdriver.Driver) error {
				return cowcommon.Rename(ctx, d.Backend(), "child", "renamed")
			},
			verify: func(ctx context.Context, d *cowdriver.Driver) error {
				return errors.Join(isGone(ctx, d, "child"), isThere(ctx, d, "renamed", "base", false, 0), hasContent(d, "renamed"))
			},
		},
		{
			name:   "remove",
			run:    func(ctx context.Context, d *cowdriver.Driver) error { return d.WithContext(ctx).Remove("child") },
			verify: func(ctx context.Context, d *cowdriver.Driver) error { return isGone(ctx, d, "child") },
		},
		{
			name:    "remove parent",
			prepare: func(_ context.Context, d *cowdriver.Driver) error { return d.Create("new", "child", nil) },
			run:     func(ctx context.Context, d *cowdriver.Driver) error { return d.WithContext(ctx).Remove("child") },
			verify: func(ctx context.Context, d *cowdriver.Driver) error {
				return errors.Join(isGone(ctx, d, "child"), isThere(ctx, d, "new", "", false, 0), hasContent(d, "new"))
			},
			leaves: []string{"left: dataset "}, // on ZFS it is set aside
		},
		{
			name:   "remove nested",
			run:    func(ctx context.Context, d *cowdriver.Driver) error { return d.WithContext(ctx).Remove("nested") },
			verify: func(ctx context.Context, d *cowdriver.Driver) error { return isGone(ctx, d, "nested") },
			broken: []string{"left: subvolumes/.removed-", "lost: volume nested "},
		},
		{
			name: "mount",
			run: func(ctx context.Context, d *cowdriver.Driver) error {
				dir, err := d.Backend().Mount(ctx, "child", "")
				if err != nil {
					return err
				}
				err = contentIn(dir)
				if unmountErr := d.Backend().Unmount(ctx, "child"); unmountErr != nil {
					// A use that could not be given back can be given back again.
					return errors.Join(err, unmountErr, d.Backend().Unmount(context.WithoutCancel(ctx), "child"))
				}
				return err
			},
			verify: func(_ context.Context, d *cowdriver.Driver) error { return hasContent(d, "child") },
			broken: []string{"left: graph/child", "left: roots/child", "left: mount on "},
		},
		{
			name: "changes",
			run: func(ctx context.Context, d *cowdriver.Driver) error {
				changes, err := d.WithContext(ctx).Changes("child", "base")
				if err == nil && (len(changes) != 1 || changes[0].Path != "/change") {
					return fmt.Errorf("success, and the changes are %v", changes)
				}
				return err
			},
			verify: func(_ context.Context, d *cowdriver.Driver) error { return hasContent(d, "child") },
			broken: viewLeft,
		},
		{
			name: "diff",
			run: func(ctx context.Context, d *cowdriver.Driver) error {
				diff, err := d.WithContext(ctx).Diff("child", "base")
				if err != nil {
					return err
				}
				layer, err := io.ReadAll(diff)
				if err := errors.Join(err, diff.Close()); err != nil {
					return err
				}
				return isDiff(layer)
			},
			verify: func(_ context.Context, d *cowdriver.Driver) error { return hasContent(d, "child") },
			broken: viewLeft,
		},
		{
			name: "diff path",
			run: func(ctx context.Context, d *cowdriver.Driver) error {
				path, release, err := d.WithContext(ctx).DiffPath("child")
				if err != nil {
					return err
				}
				content, err := os.ReadFile(filepath.Join(path, "change"))
				if err == nil && !bytes.Equal(bytes.Repeat([]byte("diff"), fileSize/4), content) {
					err = errors.New("success, and the changed file holds something else")
				}
				return errors.Join(err, release())
			},
			verify: func(_ context.Context, d *cowdriver.Driver) error { return hasContent(d, "child") },
			broken: append([]string{"left: views/scratch"}, viewLeft...),
		},
		{
			name:    "apply",
			prepare: func(_ context.Context, d *cowdriver.Driver) error { return d.Create("new", "base", nil) },
			run:     applyChange,
			again: func(ctx context.Context, d *cowdriver.Driver) error {
				// It may be part-filled.
				if err := errors.Join(d.Remove("new"), d.Create("new", "base", nil)); err != nil {
					return err
				}
				return applyChange(ctx, d)
			},
			verify: func(_ context.Context, d *cowdriver.Driver) error { return hasContent(d, "new") },
		},
		{
			name: "take back",
			run:  takeBackChange,
			again: func(ctx context.Context, d *cowdriver.Driver) error {
				// It may not have been taken back.
				if _, err := d.Apply(ctx, "child", bytes.NewReader(changeLayer())); err != nil {
					return err
				}
				return takeBackChange(ctx, d)
			},
			verify: func(ctx context.Context, d *cowdriver.Driver) error {
				return errors.Join(isThere(ctx, d, "child", restoredParent, false, 0), hasContent(d, "child"))
			},
			broken: []string{"left: staging/child", "left: dataset ", "left: graph/child", "left: roots/child", "left: mount on ", `lost: volume child of "base"`, `left: volume child of ""`},
		},
		{
			name: "send",
			run: func(ctx context.Context, d *cowdriver.Driver) error {
				view, err := d.Backend().View(ctx, "child")
				if err != nil {
					return err
				}
				var out bytes.Buffer
				return errors.Join(cowcommon.Send(ctx, d.Backend(), &out, nil, view), view.Close())
			},
			verify: func(_ context.Context, d *cowdriver.Driver) error { return hasContent(d, "child") },
			broken: viewLeft,
		},
		{
			name: "receive",
			prepare: func(ctx context.Context, d *cowdriver.Driver) error {
				view, err := d.Backend().View(ctx, "child")
				if err != nil {
					return err
				}
				return errors.Join(cowcommon.Send(ctx, d.Backend(), &stream, nil, view), view.Close())
			},
			run: func(ctx context.Context, d *cowdriver.Driver) error {
				return cowcommon.Receive(ctx, d.Backend(), "new", "", bytes.NewReader(stream.Bytes()))
			},
			verify: func(ctx context.Context, d *cowdriver.Driver) error {
				return errors.Join(isThere(ctx, d, "new", "", true, 0), hasContent(d, "new"))
			},
		},
	}
	operations = append(operations, faultOperation{
		name: "open",
		run: func(_ context.Context, d *cowdriver.Driver) error {
			// The home that d has open.
			dir, err := d.Get("base", "")
			if err != nil {
				return err
			}
			if err := d.Put("base"); err != nil {
				return err
			}
			within := map[string]string{"btrfs": "/btrfs/subvolumes/base", "zfs": "/zfs/graph/base"}[s.driver]
			other, err := s.tryOpen(strings.TrimSuffix(dir, within), user.IdentityMapping{})
			if err != nil {
				return err
			}
			return other.Cleanup()
		},
		verify: func(_ context.Context, d *cowdriver.Driver) error { return hasContent(d, "child") },
	})
	if s.driver == "btrfs" { // on ZFS, zfs TestInterrupted adopts with faults
		operations = append(operations, faultOperation{
			name: "adopt",
			run:  func(ctx context.Context, d *cowdriver.Driver) error { return adoptForeign(ctx, d, s) },
			verify: func(ctx context.Context, d *cowdriver.Driver) error {
				return errors.Join(isThere(ctx, d, "new", "base", false, limit), hasContent(d, "new"))
			},
		})
	}
	if s.shared {
		unsent := func(op faultOperation) bool { return op.name == "send" || op.name == "receive" }
		operations = append(slices.DeleteFunc(operations, unsent), sharedFaultOperations(s)...)
	}
	if s.limits() {
		operations = append(operations, faultOperation{
			name: "set limit",
			run:  func(ctx context.Context, d *cowdriver.Driver) error { return d.SetLimit(ctx, "child", limitBytes) },
			verify: func(ctx context.Context, d *cowdriver.Driver) error {
				return isThere(ctx, d, "child", "base", false, limitBytes)
			},
		}, faultOperation{
			name: "usage",
			run: func(ctx context.Context, d *cowdriver.Driver) error {
				_, err := d.Usage(ctx, "child")
				return err
			},
			verify: func(_ context.Context, d *cowdriver.Driver) error { return hasContent(d, "child") },
		})
	}
	return operations
}

func isThere(ctx context.Context, d *cowdriver.Driver, id, parent string, sealed bool, limit uint64) error {
	v, err := d.Backend().Stat(ctx, id)
	if err != nil {
		return err
	}
	if v.Parent != parent || v.Sealed != sealed || v.Limit.Bytes != limit {
		return fmt.Errorf("layer %s has parent %q, sealed %v, limit %v", id, v.Parent, v.Sealed, v.Limit)
	}
	return nil
}

func isGone(ctx context.Context, d *cowdriver.Driver, id string) error {
	_, err := d.Backend().Stat(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return fmt.Errorf("layer %s is there: %w", id, err)
}

// hasContent reports whether a layer has the content of base and child.
func hasContent(d *cowdriver.Driver, id string) error {
	dir, err := d.Get(id, "")
	if err != nil {
		return err
	}
	return errors.Join(contentIn(dir), d.Put(id))
}

func contentIn(dir string) error {
	for name, word := range map[string]string{"file": "base", "change": "diff"} {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if !bytes.Equal(bytes.Repeat([]byte(word), fileSize/4), content) {
			return fmt.Errorf("%s/%s holds something else", dir, name)
		}
	}
	return nil
}

// changeLayer is the diff of child.
func changeLayer() []byte {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	content := bytes.Repeat([]byte("diff"), fileSize/4)
	_ = w.WriteHeader(&tar.Header{Name: "change", Typeflag: tar.TypeReg, Mode: 0o600, Size: int64(len(content))})
	_, _ = w.Write(content)
	_ = w.Close() // in memory nothing fails
	return layer.Bytes()
}

func applyChange(ctx context.Context, d *cowdriver.Driver) error {
	_, err := d.Apply(ctx, "new", bytes.NewReader(changeLayer()))
	return err
}

// takeBackChange keeps child, changes it, and takes the change back.
func takeBackChange(ctx context.Context, d *cowdriver.Driver) (err error) {
	keeper, ok := cowcommon.As[cowcommon.Keeper](d.Backend())
	if !ok {
		return fmt.Errorf("%T keeps nothing", d.Backend())
	}
	kept, err := keeper.Keep(ctx, "child")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, kept.Close()) }()
	dir, err := d.Get("child", "")
	if err != nil {
		return err
	}
	if err := errors.Join(os.WriteFile(filepath.Join(dir, "change"), nil, 0o600), d.Put("child")); err != nil {
		return err
	}
	return kept.Restore(ctx)
}

// isDiff reports whether a layer tar holds the diff of child.
func isDiff(layer []byte) error {
	r := tar.NewReader(bytes.NewReader(layer))
	hdr, err := r.Next()
	if err != nil {
		return err
	}
	content, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	if hdr.Name != "change" || !bytes.Equal(content, bytes.Repeat([]byte("diff"), fileSize/4)) {
		return fmt.Errorf("success, and the diff begins with %s of %d bytes", hdr.Name, len(content))
	}
	if _, err := r.Next(); !errors.Is(err, io.EOF) {
		return fmt.Errorf("success, and the diff goes on: %w", err)
	}
	return nil
}
