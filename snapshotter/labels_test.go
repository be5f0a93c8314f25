package snapshotter

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestIsUnpacking(t *testing.T) {
	for key, want := range map[string]bool{
		"default/12/extract-123456789-Ab_- sha256:abc": true, // as containerd passes it on
		"extract-123456789-AbCd sha256:abc":            true, // as a client of the snapshotter itself does
		"default/12/extract-SOMETHING name of a layer": true, // package rootfs
		"default/12/extract-1 ":                        false,
		"default/12/my/extract-layer":                  false,
		"default/12/extract-layer":                     false,
		"my/extract-123456789-AbCd sha256:abc":         false,
		"default/12/my/extract-1-AbCd sha256:abc":      false,
		"extract-1": false,
		"extract":   false,
		"":          false,
	} {
		assert.Equal(t, want, isUnpacking(request{}, key), "%q", key)
	}
}
