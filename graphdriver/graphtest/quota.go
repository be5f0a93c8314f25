//go:build linux

package graphtest

import (
	"errors"
	"os"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/cowshed/cowshed/graphdriver"
)

var quotaTests = []Test{
	{"Quota", quotaIsEnforced},
	{"QuotaIsNotInherited", quotaIsNotInherited},
	{"QuotaAndParent", quotaAndParent},
	{"QuotaOfSiblings", quotaOfSiblings},
	{"QuotaOfIDUsedAgain", quotaOfIDUsedAgain},
}

const mib = 1 << 20

func sizeOption(s string) map[string]string { return map[string]string{"size": s} }

// refusesQuota checks that a driver which does not declare quotas refuses them, and says whether it does
// not declare them.
func (c Config) refusesQuota(t testing.TB) bool {
	t.Helper()
	if c.Quota {
		return false
	}
	l := c.open(t)
	id := newID()
	require.Error(t, l.CreateReadWrite(id, "", &graphdriver.CreateOpts{StorageOpt: sizeOption("50M")}), "a limit that cannot be enforced is refused")
	assert.False(t, l.Exists(id))
	return true
}

// fill writes a new file of that size, which does not compress, and has the filesystem count it.
func (w tree) fill(name string, size int) error {
	f, err := os.Create(w.path(name))
	if err != nil {
		return err
	}
	// A filesystem that counts when it writes back must be made to, or it would allow too much.
	const chunk, sync = mib, 8
	for i := 0; err == nil && i < size/chunk; i++ {
		if _, err = f.Write(randomBytes(uint64(time.Now().UnixNano()), chunk)); err == nil && i%sync == sync-1 {
			err = unix.Syncfs(int(f.Fd()))
		}
	}
	if err == nil {
		err = unix.Syncfs(int(f.Fd()))
	}
	return errors.Join(err, f.Close())
}

// fits fails the test unless a new file of that size can be written.
func (w tree) fits(name string, size int) {
	w.t.Helper()
	require.NoError(w.t, w.fill(name, size), "%d MiB fit", size/mib)
}

// exceeds fails the test unless writing a new file of that size runs into the limit. The partial file is deleted.
func (w tree) exceeds(name string, size int) {
	w.t.Helper()
	err := w.fill(name, size)
	require.Error(w.t, err, "%d MiB do not fit", size/mib)
	require.True(w.t, errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.ENOSPC), "%v is EDQUOT or ENOSPC", err)
	w.deleteOverLimit(name)
}

// deleteOverLimit deletes a file that was written until the limit was hit. If nothing more fits at all, the file
// could not even be made.
func (w tree) deleteOverLimit(name string) {
	w.t.Helper()
	if err := os.Remove(w.path(name)); !errors.Is(err, os.ErrNotExist) {
		require.NoError(w.t, err, "deleting works over the limit")
	}
}

// fitsSoon is fits for space that was just made free: filesystems give it back in their own time.
func (w tree) fitsSoon(name string, size int) {
	w.t.Helper()
	deadline := time.Now().Add(time.Minute)
	for {
		err := w.fill(name, size)
		if err == nil {
			return
		}
		require.True(w.t, errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.ENOSPC), "%v is EDQUOT or ENOSPC", err)
		require.True(w.t, time.Now().Before(deadline), "%d MiB fit after as much was deleted: %v", size/mib, err)
		w.deleteOverLimit(name)
		time.Sleep(100 * time.Millisecond)
	}
}

// quotaIsEnforced: up to the limit there is space, beyond it there is none, and after deleting there is
// again.
func quotaIsEnforced(t testing.TB, c Config) {
	if c.refusesQuota(t) {
		return
	}
	l := c.open(t)
	base := l.filled("", someContent)
	for _, parent := range []string{"", base} {
		id := l.readWrite(parent, sizeOption("50M"))
		l.edit(id, func(w tree) {
			w.fits("half", 25*mib)
			w.exceeds("too much", 50*mib)
			w.remove("half")
			w.fitsSoon("half again", 25*mib)
		})
		l.edit(id, func(w tree) { w.exceeds("too much after Put and Get", 50*mib) })
	}
}

func quotaIsNotInherited(t testing.TB, c Config) {
	if c.refusesQuota(t) {
		return
	}
	l := c.open(t)
	parent := l.readWrite("", sizeOption("20M"))
	l.edit(parent, func(w tree) { w.fits("f", 5*mib) })
	l.edit(l.readWrite(parent, nil), func(w tree) { w.fits("more", 40*mib) })
	l.edit(l.layer(parent), func(w tree) { w.fits("more", 40*mib) })
	l.edit(l.readWrite(parent, sizeOption("60M")), func(w tree) {
		w.fits("more", 40*mib)
		w.exceeds("too much", 40*mib)
	})
}

// quotaAndParent: a limit counts the data that a layer adds to its parent, or the parent's too if the driver declares
// that.
func quotaAndParent(t testing.TB, c Config) {
	if c.refusesQuota(t) {
		return
	}
	l := c.open(t)
	parent := l.filled("", func(w tree) { w.fits("large", 60*mib) })
	if c.QuotaTotal {
		limitBelowParent(l, parent)
	} else {
		l.edit(l.readWrite(parent, sizeOption("20M")), func(w tree) {
			w.fits("f", 10*mib)
			w.exceeds("too much", 30*mib)
		})
	}
	l.edit(l.readWrite(parent, sizeOption("80M")), func(w tree) {
		w.fits("f", 10*mib)
		if c.QuotaTotal {
			w.exceeds("too much", 30*mib)
		}
	})
}

// limitBelowParent: if the parent counts, a limit below its size leaves nothing to write, or is refused, depending on
// the filesystem.
func limitBelowParent(l layers, parent string) {
	l.t.Helper()
	id := newID()
	err := l.CreateReadWrite(id, parent, &graphdriver.CreateOpts{StorageOpt: sizeOption("20M")})
	if errdefs.IsInvalidArgument(err) {
		assert.False(l.t, l.Exists(id))
		return
	}
	require.NoError(l.t, err)
	l.removeLater(id)
	l.edit(id, func(w tree) { w.exceeds("f", 10*mib) })
}

func quotaOfSiblings(t testing.TB, c Config) {
	if c.refusesQuota(t) {
		return
	}
	l := c.open(t)
	base := l.filled("", someContent)
	one, two := l.readWrite(base, sizeOption("20M")), l.readWrite(base, sizeOption("40M"))
	l.edit(one, func(w tree) { w.fits("f", 10*mib) })
	l.edit(two, func(w tree) { w.fits("f", 30*mib); w.exceeds("too much", 30*mib) })
	l.edit(one, func(w tree) { w.exceeds("too much", 20*mib) })
}

// quotaOfIDUsedAgain: a layer's limit goes with the layer.
func quotaOfIDUsedAgain(t testing.TB, c Config) {
	if c.refusesQuota(t) {
		return
	}
	l := c.open(t)
	id := newID()
	require.NoError(t, l.CreateReadWrite(id, "", &graphdriver.CreateOpts{StorageOpt: sizeOption("10M")}))
	require.NoError(t, l.Remove(id))
	require.NoError(t, l.CreateReadWrite(id, "", nil))
	l.edit(id, func(w tree) { w.fits("f", 30*mib) })
	require.NoError(t, l.Remove(id))
}
