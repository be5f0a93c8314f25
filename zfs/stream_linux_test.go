package zfs

import (
	"bytes"
	"errors"
	"io"
	"os/exec"
	"slices"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/cowcommon"
)

// TestBadStreams: the error of a stream that cannot be received names its fault and what to do, and is of a kind that fits.
// Nothing is left.
func TestBadStreams(t *testing.T) {
	from, to := open(t), open(t)
	ctx := t.Context()
	require.NoError(t, from.Create(ctx, "base", cowcommon.VolumeOptions{}))
	fill(t, from, "base", "f", randomBytes(1<<20))
	require.NoError(t, from.Clone(ctx, "top", "base", cowcommon.VolumeOptions{}))
	fill(t, from, "top", "g", []byte("top"))
	stream := func(base, top string) []byte {
		var views [2]cowcommon.View
		for i, name := range []string{base, top} {
			if name != "" {
				v, err := from.View(ctx, name)
				require.NoError(t, err)
				defer func() { assert.NoError(t, v.Close()) }()
				views[i] = v
			}
		}
		var out bytes.Buffer
		require.NoError(t, from.Send(ctx, &out, views[0], views[1]))
		return out.Bytes()
	}
	whole, increment := stream("", "base"), stream("base", "top")
	replicated, err := exec.Command("zfs", "send", "-R", from.sealOf("base")).Output()
	require.NoError(t, err)
	volume := from.root + "/volume"
	zfs(t, "create", "-s", "-V", "1M", volume)
	zfs(t, "snapshot", volume+"@s")
	device, err := exec.Command("zfs", "send", volume+"@s").Output()
	require.NoError(t, err)
	change := func(at int) []byte {
		changed := bytes.Clone(whole)
		changed[at] ^= 1
		return changed
	}
	resumed := bytes.Clone(whole)
	resumed[18] ^= 1 << 6
	require.NoError(t, to.Create(ctx, "stranger", cowcommon.VolumeOptions{}))
	require.NoError(t, to.Seal(ctx, "stranger"))
	before := zfs(t, "list", "-Hr", "-t", "all", "-o", "name", to.root)

	broken := errors.New("the network is down")
	for name, test := range map[string]struct {
		stream io.Reader
		source string
		kind   error
		says   string
	}{
		"empty":               {bytes.NewReader(nil), "", errdefs.ErrInvalidArgument, "is cut off: send it again"},
		"cut off at once":     {bytes.NewReader(whole[:100]), "", errdefs.ErrInvalidArgument, "is cut off: send it again"},
		"cut off":             {bytes.NewReader(whole[:len(whole)/2]), "", errdefs.ErrInvalidArgument, "is cut off: send it again"},
		"without its end":     {bytes.NewReader(whole[:len(whole)-312]), "", errdefs.ErrInvalidArgument, "is cut off: send it again"},
		"read error":          {io.MultiReader(bytes.NewReader(whole[:1000]), failing{broken}), "", broken, "the network is down"},
		"garbage":             {bytes.NewReader(randomBytes(1 << 16)), "", errdefs.ErrInvalidArgument, "not a stream of zfs send"},
		"damaged":             {bytes.NewReader(change(len(whole) / 2)), "", errdefs.ErrInvalidArgument, "checksum is wrong: send it again"},
		"several snapshots":   {bytes.NewReader(replicated), "", errdefs.ErrInvalidArgument, "without -R"},
		"block device":        {bytes.NewReader(device), "", errdefs.ErrInvalidArgument, "does not hold a filesystem"},
		"without its parent":  {bytes.NewReader(increment), "", errdefs.ErrInvalidArgument, "incremental: name the layer"},
		"another parent":      {bytes.NewReader(increment), "stranger", errdefs.ErrFailedPrecondition, "another snapshot than that of stranger"},
		"needless parent":     {bytes.NewReader(whole), "stranger", errdefs.ErrInvalidArgument, "leave the parent out"},
		"resumed":             {bytes.NewReader(resumed), "", errdefs.ErrNotImplemented, "resumed streams are not taken"},
		"more after its end":  {bytes.NewReader(slices.Concat(whole, increment)), "", errdefs.ErrInvalidArgument, "more than one snapshot"},
		"error after its end": {io.MultiReader(bytes.NewReader(whole), failing{broken}), "", broken, "the network is down"},
		"unknown feature":     {bytes.NewReader(change(17)), "", errdefs.ErrNotImplemented, "needs a feature"},
	} {
		err := to.Receive(ctx, "bad", test.source, test.stream)
		require.ErrorIs(t, err, test.kind, name)
		require.ErrorContains(t, err, test.says, name)
		assert.Equal(t, errdefs.IsInvalidArgument(test.kind), errdefs.IsInvalidArgument(err), name)
		t.Logf("%s: %v", name, err)
		assert.Equal(t, before, zfs(t, "list", "-Hr", "-t", "all", "-o", "name", to.root), name)
	}
}
