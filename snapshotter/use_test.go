package snapshotter

import (
	"bufio"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestRecordedKeys: testdata/keys.tsv has keys that clients have asked for, as they reach the snapshotter.
func TestRecordedKeys(t *testing.T) {
	file, err := os.Open("testdata/keys.tsv")
	require.NoError(t, err)
	defer file.Close()
	uses := make(map[Use]int)
	for lines := bufio.NewScanner(file); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "#") {
			continue
		}
		fields := strings.Split(lines.Text(), "\t")
		require.Len(t, fields, 3, "%q", lines.Text())
		source, want, key := fields[0], Use(fields[1]), fields[2]
		assert.Equal(t, want, UseOf(key), "%s: %q", source, key)
		uses[want]++
	}
	for _, use := range Uses() {
		assert.NotZero(t, uses[use], "%s", use)
	}
}

func TestUseOf(t *testing.T) {
	const layer = "sha256:0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"
	id := strings.TrimPrefix(layer, "sha256:") // as of a container
	for key, want := range map[string]Use{
		"extract-123456789-AbCd sha256:abc":            UseUnpack, // of a client of the snapshotter itself
		"default/12/extract-SOMETHING name of a layer": UseUnpack, // package rootfs
		"zo2wm3h5dsw5v1yoo4iiplkfu":                    UseBuild,
		"buildkit/12/anything":                         UseBuild,
		"buildkit/12/extract-1-AbCd " + layer:          UseUnpack,
		// From the sources of BuildKit 0.34.2 (stargz) and moby 2.0.0-beta.24 (migration; commit with userns-remap).
		"buildkit/12/tmp-zo2wm3h5dsw5v1yoo4iiplkfu " + layer:        UseUnpack,
		"moby/12/migration-" + layer:                                UseUnpack,
		"moby-1.1/12/" + id + "-100000-100000-123456789-A_-d-remap": UseUnpack,
		// Ids that somebody may give a container.
		"default/12/extract-layer":                 UseContainer,
		"default/12/extract-1":                     UseContainer,
		"default/12/buildkit":                      UseContainer,
		"buildkit":                                 UseContainer,
		"default/12/sha256-" + id:                  UseContainer,
		"default/12/" + id + "-remap":              UseContainer,
		"default/12/zo2wm3h5dsw5v1yoo4iiplkf":      UseContainer,
		"default/12/zo2wm3h5dsw5v1yoo4iiplkfuu":    UseContainer,
		"default/12/Zo2wm3h5dsw5v1yoo4iiplkfu":     UseContainer,
		"default/12/zo2wm3h5dsw5v1yoo4iiplkf-":     UseContainer,
		"default/12/zo2wm3h5dsw5v1yoo4iiplkfu\n":   UseContainer,
		"default/12/buildkit/13/" + id:             UseContainer,
		"default/12/buildkit/zo2wm3h5dsw5v1yoo4ii": UseContainer,
		// Keys that only a client of containerd's snapshot service can choose.
		"default/12/my/extract-layer":             UseContainer,
		"my/extract-123456789-AbCd sha256:abc":    UseContainer,
		"default/12/my/extract-1-AbCd sha256:abc": UseContainer,
		"default/12/extract-1 ":                   UseContainer,
		"default/12/" + layer + "-more":           UseContainer,
		"default/12/x" + layer:                    UseContainer,
		"":                                        UseContainer,
	} {
		assert.Equal(t, want, UseOf(key), "%q", key)
	}
}
