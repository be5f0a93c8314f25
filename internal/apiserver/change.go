package apiserver

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/api"
	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/internal/layerstore"
	"github.com/cowshed/cowshed/live"
)

// add lets the request make an addition to a namespace, which may be nil: see namespace.add. The request calls done before it
// answers, so that a client that reads slowly does not keep others waiting.
func (r *request) add(n *namespace, a amount) (done func(), err error) {
	return n.add(r.Context(), a, func(ctx context.Context) (amount, error) { return r.server.count(ctx, n, volumeOf{}) })
}

// addLimit lets the request give a layer a limit. The whole limit is the addition, since another request may change the former one
// at any time. A limit that is no larger than the former one is good where the namespace has too much already.
func (r *request) addLimit(n *namespace, s *layerstore.Store, v cowcommon.Volume, bytes uint64) (done func(), err error) {
	done, err = n.add(r.Context(), amount{bytes: bytes}, func(ctx context.Context) (amount, error) {
		return r.server.count(ctx, n, volumeOf{v.Name, s.Containers != nil})
	})
	if errdefs.IsResourceExhausted(err) {
		now, statErr := s.Driver.Backend().Stat(r.Context(), v.Name)
		if statErr == nil && now.Limit.Bytes != 0 && bytes <= now.Limit.Bytes {
			return func() {}, nil
		}
	}
	return done, err
}

func (r *request) createLayer() error {
	var body api.NewLayer
	if err := r.body(&body); err != nil {
		return err
	}
	name, n, err := r.caller.newName(body.Name, layerstore.RandomName)
	if err != nil {
		return err
	}
	if name == "" {
		name = layerstore.RandomName()
	}
	if n != nil && n.Lifetime > 0 {
		return refused(api.KindPermissionDenied, fmt.Sprintf("layers of namespace %s expire, and only forks can", n.Name), "fork a layer")
	}
	opts := layerstore.CreateOptions{Size: body.Size, RootStyle: body.RootStyle, ReadWrite: body.ReadWrite}
	if layerref.Is(name) || r.server.opts.Stores.IsContainer(body.Parent) {
		return refused(api.KindInvalidArgument, "a layer cannot be made from a container", "fork the container")
	}
	s, release, err := r.open(changes, body.Parent) // the parent is sealed
	if err != nil {
		return err
	}
	defer release()
	if body.Parent != "" {
		if opts.Parent, err = r.find(s, changes, body.Parent, s.Layer); err != nil {
			return fmt.Errorf("parent: %w", err)
		}
	}
	var bytes uint64
	if body.Size != "" {
		if bytes, err = layerstore.ParseLimit(body.Size); err != nil {
			return err
		}
	}
	if err := n.checkLimit(bytes); err != nil {
		return err
	}
	done, err := r.add(n, amount{layers: 1, bytes: bytes})
	if err != nil {
		return err
	}
	defer done()
	if err := s.Create(r.Context(), name, opts); err != nil {
		return err
	}
	done()
	l, err := describeNew(r.Context(), s, cowcommon.Volume{Name: name, Parent: opts.Parent.Name, Created: time.Now()})
	r.noteUndescribed(err)
	r.redact(&l)
	return r.json(http.StatusCreated, l)
}

// describeNew describes a layer that was made. An error leaves the facts out that are not known.
func describeNew(ctx context.Context, s *layerstore.Store, made cowcommon.Volume) (api.Layer, error) {
	v, err := s.Driver.Backend().Stat(ctx, made.Name)
	if err != nil {
		v = made
	}
	l, describeErr := s.Describe(ctx, v)
	return l, errors.Join(err, describeErr)
}

// noteUndescribed logs that a change cannot be described whole, which may be nil. The change has happened, so the answer is a success.
func (r *request) noteUndescribed(err error) {
	if err != nil {
		r.server.opts.Log.Warn("a change of the API cannot be described", "method", r.Method, "path", r.URL.Path, "error", err)
	}
}

func (r *request) removeLayer() error {
	force, err := boolOf(r.query, "force")
	if err != nil {
		return err
	}
	err = r.withLayer(changes, layerAlone, func(s *layerstore.Store, v cowcommon.Volume) error {
		return s.Remove(r.Context(), []cowcommon.Volume{v}, force, func(cowcommon.Volume) error { return nil })
	})
	if err != nil && !(force && errdefs.IsNotFound(err)) {
		return err
	}
	return r.done()
}

func (r *request) forkLayer() error {
	var body api.NewForks
	if err := r.body(&body); err != nil {
		return err
	}
	name, n, err := r.caller.newName(body.Name, layerstore.RandomName)
	if err != nil {
		return err
	}
	opts := layerstore.ForkOptions{Name: name, Count: max(body.Count, 1), Labels: body.Labels}
	if body.Count < 0 {
		opts.Count = body.Count
	}
	if opts.TTL, err = n.lifetime(body.TTL); err != nil {
		return err
	}
	return r.withLayer(reads, layer, func(s *layerstore.Store, v cowcommon.Volume) error {
		if opts.Limit, err = s.ForkLimit(r.Context(), v, body.Size); err != nil {
			return err
		}
		if err := n.checkLimit(opts.Limit.Bytes); err != nil {
			return err
		}
		if _, err := s.ForkNames(opts.Name, opts.Count); err != nil {
			return err
		}
		done, err := r.addForks(n, s, v, opts)
		if err != nil {
			return err
		}
		defer done()
		forks, err := s.Fork(r.Context(), v, opts)
		if err != nil {
			return err
		}
		done()
		answer := api.Forks{Forks: make([]api.Fork, 0, len(forks))}
		for _, f := range forks {
			answer.Forks = append(answer.Forks, api.Fork{Name: s.Shown(f.Name), Expires: f.Expires, Labels: f.Labels})
		}
		return r.json(http.StatusCreated, answer)
	})
}

// addForks lets the request add forks of a layer or snapshot to a namespace. The moment that they need counts for them.
func (r *request) addForks(n *namespace, s *layerstore.Store, v cowcommon.Volume, opts layerstore.ForkOptions) (done func(), err error) {
	a := amount{layers: opts.Count, bytes: bytesOf(opts.Count, opts.Limit.Bytes)}
	source, err := layerNameOf(s, v)
	if err != nil {
		return nil, err
	}
	held := s.Live.HeldForForks
	if n != nil && n.owns(source) {
		held = s.Live.Held
	}
	if a, err = r.withHeld(a, n, s, v, 1, held); err != nil {
		return nil, err
	}
	return r.add(n, a)
}

// lifetime is the time after which forks expire, of which a request says ttl. n may be nil.
func (n *namespace) lifetime(ttl string) (time.Duration, error) {
	var d time.Duration
	if ttl != "" {
		var err error
		if d, err = time.ParseDuration(ttl); err != nil || d <= 0 {
			return 0, refused(api.KindInvalidArgument, fmt.Sprintf("ttl %.64q: say a time in the future, such as 2h", ttl), "")
		}
	}
	switch {
	case n == nil || n.Lifetime == 0:
	case d == 0:
		d = n.Lifetime
	case d > n.Lifetime:
		return 0, refused(api.KindPermissionDenied, fmt.Sprintf("a fork of namespace %s exists for at most %s", n.Name, n.Lifetime), "say a shorter ttl")
	}
	return d, nil
}

func (r *request) takeSnapshot() error {
	var body api.NewSnapshot
	if err := r.body(&body); err != nil {
		return err
	}
	return r.makeSnapshot(http.StatusCreated, func(s *layerstore.Store, v cowcommon.Volume) (live.Moment, error) {
		return s.Live.Snapshot(r.Context(), v.Name, body.Name, live.SnapshotOptions{Message: body.Message})
	})
}

// makeSnapshot calls change, which makes a snapshot of the layer of the request, within the limits of the layer's namespace. It
// answers with the snapshot.
func (r *request) makeSnapshot(status int, change func(s *layerstore.Store, v cowcommon.Volume) (live.Moment, error)) error {
	return r.withLayer(changes, layerOf, func(s *layerstore.Store, v cowcommon.Volume) error {
		done, err := r.addSnapshot(s, v, 1)
		if err != nil {
			return err
		}
		defer done()
		m, err := change(s, v)
		if err != nil {
			return err
		}
		done()
		return r.snapshot(s, status, m)
	})
}

// addSnapshot lets the request add a snapshot to a layer, of as many moments that hold its content.
func (r *request) addSnapshot(s *layerstore.Store, v cowcommon.Volume, moments int) (done func(), err error) {
	n := r.caller.namespaceOf(v.Name)
	a, err := r.withMoments(amount{layers: 1}, n, s, v, moments)
	if err != nil {
		return nil, err
	}
	return r.add(n, a)
}

// withMoments adds moments of a layer or snapshot to an amount. n may be nil.
func (r *request) withMoments(a amount, n *namespace, s *layerstore.Store, v cowcommon.Volume, moments int) (amount, error) {
	return r.withHeld(a, n, s, v, moments, s.Live.Held)
}

// withHeld is withMoments, and held says how many bytes each of them holds.
func (r *request) withHeld(a amount, n *namespace, s *layerstore.Store, v cowcommon.Volume, moments int,
	held func(context.Context, string) (uint64, error),
) (amount, error) {
	if n == nil || n.Bytes == 0 {
		return a, nil
	}
	if err := s.Driver.Backend().Sync(r.Context(), v.Name); err != nil { // data that is not written yet does not count yet
		return a, err
	}
	bytes, err := held(r.Context(), v.Name)
	return a.plus(amount{bytes: bytesOf(moments, bytes)}), err
}

// snapshot answers with a snapshot that was made.
func (r *request) snapshot(s *layerstore.Store, status int, m live.Moment) error {
	info, err := s.DescribeSnapshot(r.Context(), m)
	r.noteUndescribed(err)
	return r.json(status, info)
}

func (r *request) removeSnapshot() error {
	if err := checkLength("the name of the snapshot", r.PathValue("snapshot"), 1, maxName); err != nil {
		return err
	}
	return r.withLayer(changes, layerAlone, func(s *layerstore.Store, v cowcommon.Volume) error {
		if err := s.Live.RemoveSnapshot(r.Context(), v.Name, r.PathValue("snapshot")); err != nil {
			return err
		}
		return r.done()
	})
}

func (r *request) rollBackLayer() error {
	var body api.NewRollback
	if err := r.body(&body); err != nil {
		return err
	}
	return r.makeSnapshot(http.StatusOK, func(s *layerstore.Store, v cowcommon.Volume) (live.Moment, error) {
		return s.Rollback(r.Context(), v, body.Snapshot, live.RollbackOptions{Live: body.Live, Changing: untilStop})
	})
}

func (r *request) mergeFork() error {
	var body api.NewMerge
	if err := r.body(&body); err != nil {
		return err
	}
	opts := layerstore.MergeOptions{Live: body.Live, Changing: untilStop, Strategy: body.Strategy}
	switch opts.Strategy {
	case "", api.Refuse, api.Ours, api.Theirs:
	default:
		return refused(api.KindInvalidArgument, fmt.Sprintf("strategy %.64q: say refuse, ours or theirs", body.Strategy), "")
	}
	var err error
	if opts.Paths, err = layerstore.CleanPaths(body.Paths); err != nil {
		return err
	}
	return r.withLayer(changes, layerAlone, func(s *layerstore.Store, fork cowcommon.Volume) error {
		target, err := s.MergeTarget(r.Context(), fork, body.Into)
		if err != nil {
			return err
		}
		into := s.Shown(target.Name)
		if err := r.caller.mayUse(into, target.Name, changes); err != nil {
			return err
		}
		if err := r.checkExpired(s, into, target); err != nil {
			return err
		}
		done, err := r.addSnapshot(s, target, 2) // the content of before, and the moment with which the fork is compared
		if err != nil {
			return err
		}
		defer done()
		merged, err := s.Merge(r.Context(), fork, target, opts)
		done()
		var conflict *live.ConflictError
		if errors.As(err, &conflict) {
			return &conflictError{ConflictError: conflict, into: into}
		}
		if err != nil {
			return err
		}
		return r.json(http.StatusOK, merged)
	}, body.Into)
}

// conflictError is a ConflictError with the layer of the merge as requests name it.
type conflictError struct {
	*live.ConflictError
	into string
}

// Unwrap returns the ConflictError.
func (e *conflictError) Unwrap() error { return e.ConflictError }

func (r *request) setLimit() error {
	var body api.NewLimit
	if err := r.body(&body); err != nil {
		return err
	}
	bytes, err := layerstore.ParseLimitOrNone(body.Size)
	if err != nil {
		return err
	}
	return r.withLayer(changes, layer, func(s *layerstore.Store, v cowcommon.Volume) error {
		if live.IsMoment(v.Name) {
			return refused(api.KindInvalidArgument, "a snapshot has no limit of its own", "name the layer alone")
		}
		if s.IsContainer(v) {
			if err := r.server.opts.Stores.LimitContainer(r.Context(), r.PathValue("layer"), bytes); err != nil {
				return err
			}
			return r.done()
		}
		n := r.caller.namespaceOf(v.Name)
		if err := n.checkLimit(bytes); err != nil {
			return err
		}
		done, err := r.addLimit(n, s, v, bytes)
		if err != nil {
			return err
		}
		defer done()
		if err := s.SetLimit(r.Context(), v, s.Shown(v.Name), bytes); err != nil {
			return err
		}
		done()
		return r.done()
	})
}
