package testfs

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/internal/loopdevice"
)

// Loop attaches the image to a loop device, until the test ends or detach is called.
func Loop(t testing.TB, image string) (device string, detach func()) {
	t.Helper()
	loop := attachLoop(t, image)
	detach = sync.OnceFunc(func() {
		if err := loop.Close(); err != nil {
			t.Errorf("testfs: %v", err)
		}
		waitDetached(t, loop.Name(), image)
	})
	t.Cleanup(detach)
	return loop.Name(), detach
}

// attachLoop attaches the image to a free loop device that detaches itself once its last user is gone, and returns that
// device open.
func attachLoop(t testing.TB, image string) *os.File {
	t.Helper()
	backing, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	defer backing.Close()
	loop, err := loopdevice.Attach(backing, image, 0)
	if errdefs.IsNotImplemented(err) {
		Skip(t, "needs loop devices (/dev/loop-control): %v", err)
	}
	if err != nil {
		t.Fatalf("testfs: attach %s: %v", image, err)
	}
	return loop
}

// waitDetached waits until the loop device has let go of the image, which happens when the last of its
// users closes it: an udev that looks at new devices may take a moment.
func waitDetached(t testing.TB, device, image string) {
	t.Helper()
	ok := eventually(patience, func() bool {
		data, err := os.ReadFile(filepath.Join("/sys/block", filepath.Base(device), "loop/backing_file"))
		return err != nil || strings.TrimSuffix(strings.TrimSpace(string(data)), " (deleted)") != image
	})
	if !ok {
		t.Errorf("testfs: %s is still attached to %s after the unmount", device, image)
	}
}

// patience is how long the kernel may take until the things of a test are free. Tests of failures have less.
var patience = Patience

// eventually polls a condition that another process or the kernel brings about, and reports whether it held
// before the time was up. It looks a last time after that: the machine may have been busy with something else meanwhile.
func eventually(limit time.Duration, condition func() bool) bool {
	deadline := time.Now().Add(limit)
	for wait := time.Millisecond; ; wait = min(2*wait, 50*time.Millisecond) {
		last := time.Now().After(deadline)
		if condition() {
			return true
		}
		if last {
			return false
		}
		time.Sleep(wait)
	}
}
