// Package staging makes volumes that take several steps: under a name that no volume has, and with the volume's own name
// only when it is complete. A crash may leave a temporary name, and the next process that opens the home alone destroys
// the volume under it.
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

// Steps are how a filesystem makes one volume.
type Steps struct {
	// Create makes it under its temporary name.
	Create func() error
	// Complete gives it all that it is to have: owner, limit, label, content.
	Complete func() error
	// Publish gives it its own name in one step, so that it survives a power cut.
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
