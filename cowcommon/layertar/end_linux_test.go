package layertar

import (
	"archive/tar"
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestApplyEnd ends tars in all ways, and asks GNU tar about each.
func TestApplyEnd(t *testing.T) {
	first := append(rawHeader(tar.TypeReg, "a", 1), rawData("1")...)
	dirty := bytes.Clone(first)
	dirty[blockSize+1], dirty[2*blockSize-1] = 'x', 'y'
	second := append(rawHeader(tar.TypeReg, "b", 1), rawData("2")...)
	zero, junk := make([]byte, blockSize), bytes.Repeat([]byte("junk"), blockSize/4)
	both, one := []string{"a = 1", "b = 2"}, []string{"a = 1"}
	for name, tt := range map[string]struct {
		layer         [][]byte
		strict, loose []string // the tree; nil: an error
		fails         bool     // GNU tar fails
	}{
		"two blocks":                {[][]byte{first, second, zero, zero}, both, both, false},
		"one block":                 {[][]byte{first, second, zero}, both, both, false},
		"no block":                  {[][]byte{first, second}, both, both, false},
		"part of a block":           {[][]byte{first, second, zero[:100]}, nil, both, false},
		"one block and a part":      {[][]byte{first, second, zero, zero[:100]}, nil, both, false},
		"one block and other bytes": {[][]byte{first, second, zero, junk}, nil, both, false},
		"one block between entries": {[][]byte{first, zero, second, zero, zero}, nil, one, false},
		"bytes behind the end":      {[][]byte{first, second, zero, zero, []byte("\n")}, both, both, false},
		"blocks behind the end":     {[][]byte{first, second, zero, zero, junk}, both, both, false},
		"dirty padding":             {[][]byte{dirty, second, zero, zero}, both, both, false},
		"dirty padding last":        {[][]byte{dirty, zero, zero}, one, one, false},
		"dirty padding, no block":   {[][]byte{dirty}, one, one, false},
		"part of a header":          {[][]byte{first, second[:100]}, nil, one, false},
		"cut off in data":           {[][]byte{first, second[:blockSize]}, nil, nil, true},
		"no header":                 {[][]byte{first, junk, zero, zero}, nil, nil, true},
	} {
		t.Run(name, func(t *testing.T) {
			layer := bytes.Join(tt.layer, nil)
			for _, loose := range []bool{false, true} {
				want := map[bool][]string{false: tt.strict, true: tt.loose}[loose]
				root := t.TempDir()
				_, err := Apply(t.Context(), root, bytes.NewReader(layer), ApplyOptions{LooseEnd: loose})
				if want == nil {
					var entry *EntryError
					require.ErrorAs(t, err, &entry, "loose: %v", loose)
					continue
				}
				require.NoError(t, err, "loose: %v", loose)
				assert.Equal(t, want, listing(t, root), "loose: %v", loose)
			}
			root, file := t.TempDir(), filepath.Join(t.TempDir(), "tar")
			require.NoError(t, os.WriteFile(file, layer, 0o600))
			out, err := exec.Command("tar", "--extract", "--file", file, "--directory", root).CombinedOutput()
			if tt.fails {
				require.Error(t, err)
				return
			}
			require.NoError(t, err, "%s", out)
			assert.Equal(t, tt.loose, listing(t, root), "GNU tar")
		})
	}
}

// GNU tar takes a tar that ends behind an extended header for whole.
func TestApplyEndAfterExtendedHeader(t *testing.T) {
	for _, loose := range []bool{false, true} {
		_, err := Apply(t.Context(), t.TempDir(), bytes.NewReader(rawTar(rawPAX("path", "c"))), ApplyOptions{LooseEnd: loose})
		require.ErrorIs(t, err, ErrMalformed)
	}
}

// TestApplyReport asks for which layers something of theirs may be missing in the tree.
func TestApplyReport(t *testing.T) {
	lower := tarOf(t, folder("d"), file("d/f", "0"), symlink("l", "d"), file("g", "0"))
	for name, tt := range map[string]struct {
		layer []ent
		want  bool
	}{
		"nothing twice":                      {[]ent{folder("d"), file("d/f", "1"), file("g", "1"), hardlink("h", "g")}, false},
		"a directory twice":                  {[]ent{folder("d"), file("d/f", "1"), folder("d")}, false},
		"a whiteout of what is below":        {[]ent{file(".wh.g", ""), file("d/.wh.f", "")}, false},
		"an opaque marker":                   {[]ent{file("d/n", ""), file("d/.wh..wh..opq", "")}, false},
		"a file in place of one below":       {[]ent{file("g", "1"), symlink("d", "g")}, false},
		"a file twice":                       {[]ent{file("g", "1"), file("g", "2")}, true},
		"a file twice, by two names":         {[]ent{file("d/n", "1"), file("l/n", "2")}, true},
		"a file, then a link":                {[]ent{file("n", "1"), symlink("n", "g")}, true},
		"a file, then a hard link":           {[]ent{file("n", "1"), hardlink("n", "g")}, true},
		"a file, then a directory":           {[]ent{file("n", "1"), folder("n")}, true},
		"a whiteout of its own":              {[]ent{file("n", "1"), file(".wh.n", "")}, true},
		"a directory of its own":             {[]ent{folder("n"), file("n/f", "1"), file("n", "")}, true},
		"a directory without entry":          {[]ent{file("n/m/f", "1"), file(".wh.n", "")}, true},
		"a link below, after a file":         {[]ent{file("l/n", "1"), symlink("l", "x")}, true},
		"a link below":                       {[]ent{symlink("l", "x"), file("d/n", "1")}, false},
		"a directory below, with a new file": {[]ent{file("d/n", "1"), file(".wh.d", "")}, true},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			apply(t, root, lower, ApplyOptions{})
			report := ApplyReport{}
			apply(t, root, tarOf(t, tt.layer...), ApplyOptions{Report: &report})
			assert.Equal(t, tt.want, report.Overwritten)
		})
	}
}
