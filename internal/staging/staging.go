// Package staging makes volumes in several steps. A volume has a temporary name, which no other volume has, and gets
// its own name only when it is complete. A crash may leave a volume under its temporary name. The next process that
// opens the home alone destroys it.
package staging

import (
	"crypto/rand"
	"errors"
	"strings"
)

// Name returns a new name that starts with prefix, for something that exists for a while.
func Name(prefix string) string {
	return prefix + strings.ToLower(rand.Text()[:12])
}

// Steps are the steps in which a filesystem makes one volume.
type Steps struct {
	// Create makes the volume under its temporary name.
	Create func() error
	// Complete gives the volume all that it is to have: owner, limit, label, content.
	Complete func() error
	// Publish gives the volume its own name in one step, so that it survives a power cut.
	Publish func() error
	// Discard destroys the volume under the temporary name, if it is there. cause is the error of the step that failed.
	Discard func(cause error) error
}

// Make takes the steps. If one fails, nothing is left under the temporary name.
func Make(s Steps) error {
	for _, step := range []func() error{s.Create, s.Complete, s.Publish} {
		if err := step(); err != nil {
			return errors.Join(err, s.Discard(err))
		}
	}
	return nil
}
