package setup

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestUnifiedDiff(t *testing.T) {
	assert.Empty(t, unifiedDiff("f", []byte("a\n"), []byte("a\n")))
	assert.Equal(t, "--- /dev/null\n+++ f\n@@ -0,0 +1 @@\n+a\n", unifiedDiff("f", nil, []byte("a\n")))
	assert.Equal(t, "--- f\n+++ /dev/null\n@@ -1,2 +0,0 @@\n-a\n-b\n\\ No newline at end of file\n", unifiedDiff("f", []byte("a\nb"), nil))
	assert.Equal(t, "--- f\n+++ f\n@@ -2,7 +2,7 @@\n 2\n 3\n 4\n-5\n+five\n 6\n 7\n 8\n",
		unifiedDiff("f", []byte("1\n2\n3\n4\n5\n6\n7\n8\n9\n"), []byte("1\n2\n3\n4\nfive\n6\n7\n8\n9\n")))
}

// TestDiffApplies: a diff, applied to the first text, gives the second.
func TestDiffApplies(t *testing.T) {
	for seed := range uint64(500) {
		rng := rand.New(rand.NewPCG(seed, 1))
		text := func(lines int) []byte {
			var b strings.Builder
			for range rng.IntN(lines) {
				fmt.Fprintf(&b, "%d\n", rng.IntN(4))
			}
			if rng.IntN(3) == 0 {
				b.WriteString("end")
			}
			return []byte(b.String())
		}
		before, after := text(40), text(40)
		require.Equal(t, string(after), patch(t, string(before), unifiedDiff("f", before, after)), "seed %d", seed)
	}
}

// patch applies a unified diff, and checks its numbers.
func patch(t *testing.T, text, diff string) string {
	t.Helper()
	if diff == "" {
		return text
	}
	old := splitLines([]byte(text))
	var out strings.Builder
	at, written := 0, 0
	lines := strings.SplitAfter(diff, "\n")[2:]
	for i := 0; i < len(lines) && lines[i] != ""; i++ {
		line := lines[i]
		if strings.HasPrefix(line, "@@ ") {
			fields := strings.Fields(line)
			from, length := span(t, fields[1])
			if length > 0 {
				from--
			}
			for ; at < from; at++ {
				out.WriteString(old[at])
				written++
			}
			to, length := span(t, fields[2])
			if length > 0 {
				to--
			}
			require.Equal(t, to, written)
			continue
		}
		content := line[1:]
		if i+1 < len(lines) && strings.HasPrefix(lines[i+1], "\\") {
			content = strings.TrimSuffix(content, "\n")
		}
		switch line[0] {
		case ' ', '-':
			require.Equal(t, old[at], content)
			at++
		}
		if line[0] == ' ' || line[0] == '+' {
			out.WriteString(content)
			written++
		}
	}
	for ; at < len(old); at++ {
		out.WriteString(old[at])
	}
	return out.String()
}

func span(t *testing.T, text string) (start, length int) {
	t.Helper()
	length = 1
	text = text[1:]
	if strings.Contains(text, ",") {
		_, err := fmt.Sscanf(text, "%d,%d", &start, &length)
		require.NoError(t, err)
		return start, length
	}
	_, err := fmt.Sscanf(text, "%d", &start)
	require.NoError(t, err)
	return start, length
}
