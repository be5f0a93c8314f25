//go:build linux

package graphtest

import (
	"maps"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/cowshed/cowshed/graphdriver"
)

var optionTests = []Test{
	{"OptionsThatCannotBe", optionsThatCannotBe},
	{"OptionsThatMustBe", optionsThatMustBe},
}

// optionsThatCannotBe: an option that is not known or makes no sense is an error, and no layer is made.
func optionsThatCannotBe(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", someContent)
	options := []map[string]string{
		{"": ""}, {"unknown": "1"}, {"sise": "1G"}, {"size ": "1G"}, {"btrfs.size": "1G"},
		{"size": "1G", "unknown": "1"},
	}
	for _, size := range []string{
		"", " ", "0", "0G", "-1", "-50M", "abc", "G", "10X", "10 Gallons", "1.2.3G", "NaN", "Inf", "+Inf", "0x10", "1e400",
		"99999999999999999999", "9999999999999G", "16777216T", "1G2G", "10G;rm", "10\nG", "ten", "10,5G",
	} {
		options = append(options, map[string]string{"size": size})
	}
	for _, option := range options {
		for _, parent := range []string{"", base} {
			for _, creator := range creators(l.Driver) {
				id := newID()
				err := creator.create(id, parent, &graphdriver.CreateOpts{StorageOpt: maps.Clone(option)})
				require.Error(t, err, "%s with %q", creator.name, option)
				if c.Quota {
					assert.ErrorIs(t, err, errdefs.ErrInvalidArgument, "%s with %q", creator.name, option)
				}
				assert.False(t, l.Exists(id), "%s with %q left a layer", creator.name, option)
			}
		}
	}
	id := newID()
	require.NoError(t, l.Create(id, "", nil))
	err := l.Create(id, "", &graphdriver.CreateOpts{StorageOpt: map[string]string{"unknown": "1"}})
	require.Error(t, err)
	assert.True(t, l.Exists(id), "a layer that was there stays")
	require.NoError(t, l.Remove(id))
}

// optionsThatMustBe: no options are all the same, and a driver that limits layers takes sizes as Docker
// does.
func optionsThatMustBe(t testing.TB, c Config) {
	l := c.open(t)
	for _, opts := range []*graphdriver.CreateOpts{nil, {}, {StorageOpt: map[string]string{}}} {
		for _, creator := range creators(l.Driver) {
			id := newID()
			require.NoError(t, creator.create(id, "", opts))
			l.removeLater(id)
		}
	}
	for _, size := range []string{"104857600", "100m", "100M", "100MB", "100MiB", "0.5g", "10G", "2t"} {
		option := map[string]string{"size": size}
		if c.Quota {
			l.edit(l.readWrite("", option), func(w tree) { w.file("f", size) })
			continue
		}
		id := newID()
		err := l.CreateReadWrite(id, "", &graphdriver.CreateOpts{StorageOpt: option})
		require.Error(t, err, "a limit that cannot be enforced is refused")
		assert.False(t, l.Exists(id))
	}
}
