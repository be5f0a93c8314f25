package apiserver

import (
	"bufio"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"

	"github.com/moby/go-archive"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/internal/layerstore"
)

func (r *request) getDescription() error {
	r.out.begin(http.StatusOK, "application/yaml")
	_, err := r.out.Write(api.OpenAPI)
	return err
}

func (r *request) getInfo() error {
	info := api.Info{Version: r.server.opts.Version, UID: r.caller.peer.UID, Admin: r.caller.admin, Namespaces: []api.Namespace{}}
	for _, n := range r.caller.namespaces {
		info.Namespaces = append(info.Namespaces, n.describe())
	}
	return r.json(http.StatusOK, info)
}

func (r *request) listLayers() error {
	forks, err := boolOf(r.query, "forks")
	if err != nil {
		return err
	}
	s, release, err := r.openAll(forks)
	if err != nil {
		return err
	}
	defer release()
	s.Sweep(r.Context())
	layers, err := s.List(r.Context(), func(volume string) bool {
		return r.caller.admin || r.caller.namespaceOf(volume) != nil || r.caller.isReadable(s.Shown(volume))
	})
	if err != nil {
		return err
	}
	for i := range layers {
		r.redact(&layers[i])
	}
	return r.json(http.StatusOK, api.Layers{Layers: layers})
}

// openAll opens the store, or that of the daemon's volumes, for a request that names no layer.
func (r *request) openAll(containers bool) (s *layerstore.Store, release func(), err error) {
	if containers {
		return r.server.opts.Stores.OpenContainers(r.Context(), nil)
	}
	return r.server.opts.Stores.Open(r.Context())
}

// redact takes facts about the host out of the description of a layer, unless the caller is an admin.
func (r *request) redact(l *api.Layer) {
	if !r.caller.admin {
		l.Details = nil
	}
}

func (r *request) getLayer() error {
	return r.withLayer(reads, layer, func(s *layerstore.Store, v cowcommon.Volume) error {
		l, err := s.Describe(r.Context(), v)
		if err != nil {
			return err
		}
		r.redact(&l)
		return r.json(http.StatusOK, l)
	})
}

func (r *request) listSnapshots() error {
	return r.withLayer(reads, layerAlone, func(s *layerstore.Store, v cowcommon.Volume) error {
		s.Sweep(r.Context())
		snapshots, err := s.Snapshots(r.Context(), v)
		if err != nil {
			return err
		}
		return r.json(http.StatusOK, api.Snapshots{Snapshots: snapshots})
	})
}

func (r *request) getLog() error {
	return r.withLayer(changes, layerAlone, func(s *layerstore.Store, v cowcommon.Volume) error {
		s.Sweep(r.Context())
		l, err := s.History(r.Context(), v)
		if err != nil {
			return err
		}
		r.leaveOut(&l)
		return r.json(http.StatusOK, l)
	})
}

// leaveOut takes the forks out of a log that are not the caller's.
func (r *request) leaveOut(l *api.Log) {
	if r.caller.admin {
		return
	}
	for i := range l.Moments {
		m := &l.Moments[i]
		m.Forks = slices.DeleteFunc(m.Forks, func(fork api.Log) bool {
			return r.caller.namespaceOf(strings.TrimPrefix(fork.Name, string(layerref.Fork)+":")) == nil
		})
		for j := range m.Forks {
			r.leaveOut(&m.Forks[j])
		}
	}
}

func (r *request) getUsage() error {
	return r.withLayer(reads, layer, func(s *layerstore.Store, v cowcommon.Volume) error {
		leave, err := r.enterWalk()
		if err != nil {
			return err
		}
		defer leave()
		usage, err := s.Usage(r.Context(), v)
		if err != nil {
			return err
		}
		return r.json(http.StatusOK, usage)
	})
}

// compare compares the layer in the path as the query says, and calls do.
func (r *request) compare(do func(c *cowcommon.Comparison) error) error {
	whole, err := boolOf(r.query, "whole")
	if err != nil {
		return err
	}
	walk, err := boolOf(r.query, "walk")
	if err != nil {
		return err
	}
	since, way := r.query["since"], cowcommon.Auto
	if whole && since != "" {
		return refused(api.KindInvalidArgument, "whole compares with an empty tree, and since with a layer", "leave one of them out")
	}
	if walk {
		way = cowcommon.Walk
	}
	return r.withLayer(reads, layer, func(s *layerstore.Store, v cowcommon.Volume) (err error) {
		var parent string
		if since == "" {
			parent, err = s.Parent(r.Context(), v, "", whole)
		} else {
			var other cowcommon.Volume
			other, err = r.find(s, reads, since, s.Layer)
			parent = other.Name
		}
		if err != nil {
			return err
		}
		leave, err := r.enterWalk()
		if err != nil {
			return err
		}
		defer leave()
		c, err := s.Compare(r.Context(), v, parent, way)
		if err != nil {
			return err
		}
		defer func() { err = errors.Join(err, c.Close()) }()
		return do(c)
	}, since)
}

func (r *request) listChanges() error {
	return r.compare(func(c *cowcommon.Comparison) error {
		return writeChanges(stream{r.out, "application/json"}, api.Changes{Native: c.Native, Reason: c.Reason}, c.Changes)
	})
}

// writeChanges writes the JSON of an api.Changes, without another copy of all changes.
func writeChanges(w io.Writer, about api.Changes, changes []archive.Change) error {
	about.Changes = []api.Change{}
	head, err := json.Marshal(about)
	if err != nil {
		return err
	}
	const end = "]}"
	b := bufio.NewWriterSize(w, writeSize) // it keeps its first error
	_, _ = b.Write(head[:len(head)-len(end)])
	for i, change := range changes {
		if i > 0 {
			_ = b.WriteByte(',')
		}
		one, err := json.Marshal(layerstore.Change(change))
		if err != nil {
			return err
		}
		if _, err := b.Write(one); err != nil {
			return err
		}
	}
	_, _ = b.WriteString(end + "\n")
	return b.Flush()
}
