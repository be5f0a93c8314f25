// Package contentstore opens content stores of containerd that need no containerd, for tests and benchmarks.
package contentstore

import (
	"maps"
	"runtime"
	"sync"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/opencontainers/go-digest"
)

// Open opens a store in a directory, which it makes. Labels of blobs are forgotten with the process.
//
// The store's check for fsverity leaves a descriptor to the garbage collector. Open runs it, so that tests which look for
// leaks do not find that descriptor.
func Open(dir string) (content.Store, error) {
	store, err := local.NewLabeledStore(dir, &labels{all: make(map[digest.Digest]map[string]string)})
	runtime.GC()
	return store, err
}

// labels keeps the labels of blobs, as containerd's metadata does.
type labels struct {
	mu  sync.Mutex
	all map[digest.Digest]map[string]string
}

// Get implements local.LabelStore.
func (l *labels) Get(d digest.Digest) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return maps.Clone(l.all[d]), nil
}

// Set implements local.LabelStore.
func (l *labels) Set(d digest.Digest, set map[string]string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all[d] = maps.Clone(set)
	return nil
}

// Update implements local.LabelStore. An empty value takes a label away.
func (l *labels) Update(d digest.Digest, update map[string]string) (map[string]string, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.all[d] == nil {
		l.all[d] = make(map[string]string)
	}
	for name, value := range update {
		if l.all[d][name] = value; value == "" {
			delete(l.all[d], name)
		}
	}
	return maps.Clone(l.all[d]), nil
}
