package main

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestReasons: testify's text about the first fault of a failed test is shown with its name at the end.
func TestReasons(t *testing.T) {
	text := "    a_test.go:5: \n        \tError Trace:\ta_test.go:5\n        \tError:      \tNot equal\n        \tTest:       \tTestA\n"
	var events, out strings.Builder
	for _, line := range []string{"    a_test.go:4: begins\n", text, text, "    a_test.go:9: ends\n"} {
		fmt.Fprintf(&events, `{"Action":"output","Package":"p","Test":"TestA","Output":%q}`+"\n", line)
	}
	events.WriteString(`{"Action":"fail","Package":"p","Test":"TestA"}` + "\n")
	j := newJudge(&out, nil)
	require.NoError(t, j.read(strings.NewReader(events.String())))
	assert.Equal(t, counts{failed: 1, faults: []string{
		"failed: p TestA", "        \tError Trace:\ta_test.go:5", "        \tError:      \tNot equal", "        \tTest:       \tTestA",
	}}, j.finish())
}

func TestSlowestTestsAreShown(t *testing.T) {
	var events, out strings.Builder
	end := func(test string, seconds float64) {
		fmt.Fprintf(&events, `{"Action":"run","Package":"p","Test":%q}`+"\n", test)
		fmt.Fprintf(&events, `{"Action":"pass","Package":"p","Test":%q,"Elapsed":%g}`+"\n", test, seconds)
	}
	end("TestQuick", slowSeconds-1)
	for i := range slowShown + 1 {
		end(fmt.Sprintf("TestSlow%d", i), slowSeconds+float64(i))
	}
	j := newJudge(&out, nil)
	require.NoError(t, j.read(strings.NewReader(events.String())))
	assert.Equal(t, counts{passed: slowShown + 2}, j.finish())
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	require.Len(t, lines, slowShown)
	assert.Equal(t, "took 23 s: p TestSlow8", lines[0])
	assert.Equal(t, "took 16 s: p TestSlow1", lines[slowShown-1])
}
