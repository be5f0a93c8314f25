//go:build linux

package graphtest

import (
	"path/filepath"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var describeTests = []Test{
	{"Status", statusIsSane},
	{"Metadata", metadataIsSane},
}

func statusIsSane(t testing.TB, c Config) {
	l := c.open(t)
	name := l.String()
	assert.NotEmpty(t, name)
	assert.Equal(t, filepath.Base(name), name, "the driver's name is a plain name")

	l.layer(l.filled("", someContent))
	assert.Equal(t, name, l.String())
	seen := make(map[string]bool)
	for _, pair := range l.Status() {
		assert.NotEmpty(t, pair[0])
		assert.False(t, seen[pair[0]], "Status has %q twice", pair[0])
		seen[pair[0]] = true
		assert.True(t, utf8.ValidString(pair[0]+pair[1]), "%q is for people", pair)
	}
	inParallel(t, func(int) error {
		l.Status()
		return nil
	})
}

func metadataIsSane(t testing.TB, c Config) {
	l := c.open(t)
	base := l.filled("", someContent)
	for _, id := range []string{base, l.layer(base), l.readWrite(base, nil)} {
		metadata, err := l.GetMetadata(id)
		require.NoError(t, err)
		for name := range metadata {
			assert.NotEmpty(t, name)
		}
		if metadata != nil {
			metadata["mine"] = "x"
		}
		again, err := l.GetMetadata(id)
		require.NoError(t, err)
		assert.NotContains(t, again, "mine", "the map is the caller's")
	}
	inParallel(t, func(int) error {
		_, err := l.GetMetadata(base)
		return err
	})
}
