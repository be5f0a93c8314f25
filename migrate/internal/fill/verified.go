package fill

import (
	"context"
	"errors"
	"sync"

	"github.com/cowshed/cowshed/migrate"
)

// Verified are the volumes that this process has made and compared. The zero value is none.
type Verified struct {
	mu    sync.Mutex
	names map[string]bool
}

// Add adds a volume.
func (v *Verified) Add(name string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.names == nil {
		v.names = make(map[string]bool)
	}
	v.names[name] = true
}

// take reports, once, whether a volume was added.
func (v *Verified) take(name string) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	was := v.names[name]
	delete(v.names, name)
	return was
}

// Verify calls compare with the content of a layer, unless the layer's volume was compared just now.
func (v *Verified) Verify(ctx context.Context, name string, layer *migrate.Layer, source migrate.Source, compare func(*migrate.Content) error) (err error) {
	if v.take(name) {
		return nil
	}
	content, err := source.Open(ctx, layer.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, content.Close()) }()
	return compare(content)
}
