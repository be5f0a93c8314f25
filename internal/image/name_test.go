package image

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestNames(t *testing.T) {
	hex := strings.Repeat("0123456789abcdef", 4)
	for name, want := range map[string]struct{ canonical, familiar, repoTag, refName string }{
		"debian":                      {"docker.io/library/debian:latest", "debian", "debian:latest", "debian"},
		"debian:12":                   {"docker.io/library/debian:12", "debian:12", "debian:12", "12"},
		"docker.io/library/debian:12": {"docker.io/library/debian:12", "debian:12", "debian:12", "12"},
		"team/app:1":                  {"docker.io/team/app:1", "team/app:1", "team/app:1", "1"},
		"reg.example:5000/a":          {"reg.example:5000/a:latest", "reg.example:5000/a", "reg.example:5000/a:latest", "reg.example:5000/a"},
		"localhost/a:1":               {"localhost/a:1", "localhost/a:1", "localhost/a:1", "1"},
		"debian@sha256:" + hex:        {"docker.io/library/debian@sha256:" + hex, "debian@sha256:" + hex, "", ""},
		"debian:12@sha256:" + hex:     {"docker.io/library/debian@sha256:" + hex, "debian:12@sha256:" + hex, "", ""},
		"Web":                         {"", "Web", "", "Web"},
		hex:                           {"", hex, "", hex},
		"a_b+c":                       {"", "a_b+c", "", "a_b+c"},
	} {
		assert.Equal(t, want.canonical, canonicalName(name), name)
		assert.Equal(t, want.familiar, familiarName(name), name)
		assert.Equal(t, want.refName, refName(name), name)
		repository, tag, ok := repoTag(name)
		assert.Equal(t, want.repoTag != "", ok, name)
		if ok {
			assert.Equal(t, want.repoTag, repository+":"+tag, name)
		}
	}
}
