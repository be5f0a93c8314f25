package overlaysource

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestSource(t *testing.T) {
	for _, s := range []Source{
		{Upper: 0x1, Lower: 0x2, Name: "web"},
		{Upper: 0xffffffffffffffff, Lower: 0x123456789abcdef0, Name: strings.Repeat("n", 200)},
		{Upper: 0x1, Lower: 0x1, Name: "@view-1"},
	} {
		text := s.String()
		got, ok := Parse(text)
		assert.True(t, ok, text)
		assert.Equal(t, s, got)
		assert.NotContains(t, text, ":", "it looks like a remote filesystem")
		assert.Less(t, len(text), 256, "fsconfig(2) takes no more")
	}
	s := Source{Upper: 0xab, Lower: 0xcd, Name: "web"}
	assert.Equal(t, "cowshed/ab-cd/web", s.String())
	assert.True(t, s.Has(0xab))
	assert.True(t, s.Has(0xcd))
	assert.False(t, s.Has(0xef))
	assert.False(t, Source{}.Has(0))
	assert.Equal(t, "web", Source{Upper: 1, Name: "web"}.String(), "a volume is not known")
}

func TestNoSource(t *testing.T) {
	for _, text := range []string{
		"", "web", "overlay", "cowshed", "cowshed/", "cowshed/1/web", "cowshed/1-/web", "cowshed/-1/web", "cowshed/1-2", "cowshed/1-2/",
		"cowshed/1-2/we/b", "cowshed/0-2/web", "cowshed/1-0/web", "cowshed/01-2/web", "cowshed/1-A/web", "cowshed/1-2-3/web",
		"cowshed/+1-2/web", "cowshed/0x1-2/web", "cowshed/1-10000000000000000/web", " cowshed/1-2/web", "/cowshed/1-2/web", "1-2/web",
		`cowshed\0571-2/web`,
	} {
		_, ok := Parse(text)
		assert.False(t, ok, "%q", text)
	}
}
