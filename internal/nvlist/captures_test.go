package nvlist

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestCaptures decodes answers of OpenZFS 2.3.2 about a dataset, a snapshot, a clone and a pool. They agree with the output
// of "zfs get -Hp all" and "zpool get -Hp all" at the same time, as far as these print numbers and texts as they are. They can be
// encoded again.
func TestCaptures(t *testing.T) {
	for capture, want := range map[string]struct {
		numbers []string
		texts   []string
	}{
		"filesystem": {[]string{"guid", "creation", "used", "available", "referenced", "quota", "createtxg", "objsetid"}, []string{"mountpoint", "cowshed:test"}},
		"snapshot":   {[]string{"guid", "creation", "used", "referenced", "createtxg", "userrefs"}, []string{"cowshed:test"}},
		"clone":      {[]string{"guid", "creation", "used", "available", "referenced", "quota", "createtxg", "objsetid"}, []string{"origin", "mountpoint", "cowshed:test"}},
		"pool":       {[]string{"guid", "load_guid", "size", "free", "allocated", "capacity", "fragmentation"}, nil},
	} {
		t.Run(capture, func(t *testing.T) {
			answer, err := os.ReadFile(filepath.Join("testdata", capture+".nvlist"))
			require.NoError(t, err)
			list, err := Decode(answer)
			require.NoError(t, err)
			printed := readPrinted(t, filepath.Join("testdata", capture+".txt"))
			for _, name := range want.numbers {
				n, ok := valueOf(list, name).(uint64)
				assert.True(t, ok, name)
				assert.Equal(t, printed[name], strconv.FormatUint(n, 10), name)
			}
			for _, name := range want.texts {
				assert.Equal(t, printed[name], valueOf(list, name), name)
			}
			assert.Greater(t, len(list), len(want.numbers)+len(want.texts))

			encoded, err := Encode(list)
			require.NoError(t, err)
			again, err := Decode(encoded)
			require.NoError(t, err)
			assert.Equal(t, list, again)
			assert.Len(t, encoded, len(answer), "only the order of the pairs may differ")
		})
	}
}

// valueOf is the value of a property.
func valueOf(list List, name string) any {
	property, _ := list[name].(List)
	return property["value"]
}

// readPrinted reads lines of a property, a tab and its value.
func readPrinted(t *testing.T, path string) map[string]string {
	t.Helper()
	content, err := os.ReadFile(path)
	require.NoError(t, err)
	printed := make(map[string]string)
	for line := range strings.Lines(string(content)) {
		name, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "\t")
		printed[name] = value
	}
	return printed
}
