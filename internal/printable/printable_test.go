package printable

import (
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestLine(t *testing.T) {
	for line, want := range map[string]string{
		"":                       "",
		"\ta \"b\" \\ é 日本":      "\ta \"b\" \\ é 日本",
		"\x1b[31mred":            `\x1b[31mred`,
		"a\rb":                   `a\rb`,
		"\xff\u202e\u200b\u00a0": `\xff\u202e\u200b\u00a0`,
	} {
		assert.Equal(t, want, Line(line))
	}
}
