package layerstore

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
	"github.com/cowshed/cowshed/cowcommon/fault"
	"github.com/cowshed/cowshed/internal/layerref"
	"github.com/cowshed/cowshed/live"
	"github.com/cowshed/cowshed/quota"
)

// MaxForks is the most forks that one request makes.
const MaxForks = 10_000

// ForkOptions says how forks are made.
type ForkOptions struct {
	Name   string // made up if it is ""; several forks are called NAME-1, NAME-2 and so on
	Count  int
	Limit  quota.Limit   // of each
	TTL    time.Duration // time after which each is removed; 0: none
	Labels map[string]string
}

// Fork makes forks of a layer or snapshot, all of the same moment. The forks have their names in the store.
func (s *Store) Fork(ctx context.Context, source cowcommon.Volume, opts ForkOptions) ([]live.Fork, error) {
	names, err := s.ForkNames(opts.Name, opts.Count)
	if err != nil {
		return nil, err
	}
	if opts.TTL < 0 {
		return nil, fault.Said(errdefs.ErrInvalidArgument, "forks cannot expire after %s: say a time in the future", opts.TTL)
	}
	fork := live.ForkOptions{Fork: live.Fork{Labels: opts.Labels}, Volume: cowcommon.VolumeOptions{Limit: opts.Limit}}
	if opts.TTL > 0 {
		fork.Fork.Expires = time.Now().Add(opts.TTL).UTC().Truncate(time.Second)
	}
	m, err := s.Live.Fork(ctx, source.Name, names, fork)
	return m.Forks, err
}

// ForkNames are the names of forks in the store. A fork of a container may be named as a reference.
func (s *Store) ForkNames(name string, count int) ([]string, error) {
	if count < 1 || count > MaxForks {
		return nil, fault.Said(errdefs.ErrInvalidArgument, "%d forks cannot be made at once: say 1 to %d", count, MaxForks)
	}
	if name == "" {
		name = RandomName()
	}
	check := CheckNewLayer
	if s.Containers != nil {
		name, check = strings.TrimPrefix(name, string(layerref.Fork)+":"), CheckFork
	}
	if err := cowcommon.CheckID(name); err != nil { // before there are many of it
		return nil, err
	}
	if count == 1 {
		return []string{name}, check(name)
	}
	names := make([]string, count)
	for i := range names {
		names[i] = fmt.Sprintf("%s-%d", name, i+1)
		if err := check(names[i]); err != nil {
			return nil, err
		}
	}
	return names, nil
}

// ForkLimit is the limit of the forks of a layer or snapshot, which has none itself. size is the limit that the request names, "" for none.
func (s *Store) ForkLimit(ctx context.Context, source cowcommon.Volume, size string) (quota.Limit, error) {
	if size != "" {
		bytes, err := ParseLimitOrNone(size)
		return s.Driver.Limit(bytes), err
	}
	if !live.IsMoment(source.Name) {
		return source.Limit, nil
	}
	m, err := s.Live.Moment(source.Name)
	if err != nil {
		return quota.Limit{}, err
	}
	layer, err := s.Driver.Backend().Stat(ctx, m.Layer)
	return layer.Limit, err
}
