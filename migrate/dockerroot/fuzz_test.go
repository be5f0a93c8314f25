package dockerroot

import (
	"testing"

	"github.com/distribution/reference"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const someID = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

// FuzzNames reads any file of names. The names that are taken are normalised, and of IDs.
func FuzzNames(f *testing.F) {
	f.Add([]byte(`{"Repositories":{"debian":{"debian:12":"sha256:` + someID + `","debian@sha256:` + someID + `":"sha256:` + someID + `"}}}`))
	f.Add([]byte(`{"Repositories":{"a":{"a:1":"sha256:` + someID + `","docker.io/library/a":"x","A:1":"sha256:` + someID + `","":""}}}`))
	f.Add([]byte(`{"Repositories":null}`))
	f.Add([]byte(`[[[`))
	f.Fuzz(func(t *testing.T, data []byte) {
		named, _, err := parseNames(data)
		if err != nil {
			require.Empty(t, named)
			return
		}
		for id, of := range named {
			_, err := parseDigest(string(id))
			require.NoError(t, err)
			require.NotEmpty(t, of.first())
			for i, name := range append(of.tags, of.digests...) {
				ref, err := reference.ParseNamed(name)
				require.NoError(t, err)
				_, tagged := ref.(reference.Tagged)
				_, digested := ref.(reference.Digested)
				assert.Equal(t, i < len(of.tags), tagged, name)
				assert.Equal(t, i >= len(of.tags), digested, name)
			}
		}
	})
}

// FuzzImage reads any configuration of an image.
func FuzzImage(f *testing.F) {
	f.Add([]byte(`{"rootfs":{"type":"layers","diff_ids":["sha256:` + someID + `"]}}`))
	f.Add([]byte(`{"rootfs":{"type":"layers","diff_ids":[1]}}`))
	f.Add([]byte(`{"rootfs":{"type":"layers"}}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		diffs, err := diffIDs(data)
		require.LessOrEqual(t, len(diffs), maxDepth)
		for _, diff := range diffs {
			require.NoError(t, err)
			require.NoError(t, diff.Validate())
		}
	})
}

// FuzzContainer reads any configuration of a container, and its options.
func FuzzContainer(f *testing.F) {
	f.Add([]byte(`{"ID":"`+someID+`","Name":"/web","Driver":"vfs","Image":"sha256:`+someID+`","State":{"Running":true}}`), someID)
	f.Add([]byte(`{"StorageOpt":{"size":"10G"},"ID":"","Name":"../../x"}`), "")
	f.Add([]byte(`{"StorageOpt":{"SIZE":""},"Name":"`+"\u0000"+`"}`), "")
	f.Fuzz(func(t *testing.T, data []byte, id string) {
		if config, err := parseContainer(data, id); err == nil {
			require.Equal(t, id, config.ID)
			require.NotContains(t, containerName(config.Name), "/")
			require.NotContains(t, containerName(config.Name), "\x00")
		}
		_, _ = parseLimit(data)
	})
}
