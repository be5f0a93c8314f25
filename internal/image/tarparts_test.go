package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"testing"

	"github.com/stretchr/testify/require"
	"github.com/vbatts/tar-split/tar/asm"
	"github.com/vbatts/tar-split/tar/storage"
)

// treeFiles are the files of a tree.
type treeFiles map[string][]byte

func (f treeFiles) Get(name string) (io.ReadCloser, error) {
	data, ok := f[name]
	if !ok {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return openedFile{bytes.NewReader(data)}, nil
}

type openedFile struct{ *bytes.Reader }

func (openedFile) Close() error { return nil }

// readTree has the files that a tar makes, and of a name that it has twice the last, up to limit bytes each.
func readTree(data []byte, limit int64) (treeFiles, error) {
	tree := make(treeFiles)
	for tr := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			return tree, nil
		}
		if err != nil {
			return tree, err
		}
		if h.Size > limit {
			return tree, errTooLarge
		}
		if name, ok := treeFile(h); ok {
			if tree[name], err = io.ReadAll(tr); err != nil {
				return tree, err
			}
		}
	}
}

// splitAndJoin takes a tar apart, a second time if the tree lacks data, and puts it together again.
func splitAndJoin(data []byte, tree treeFiles) ([]byte, error) {
	var parts bytes.Buffer
	if _, err := splitTar(bytes.NewReader(data), &parts, nil); err != nil {
		return nil, err
	}
	lost, err := lostData(tree, bytes.NewReader(parts.Bytes()))
	if err != nil {
		return nil, err
	}
	if len(lost) > 0 {
		parts.Reset()
		if _, err := splitTar(bytes.NewReader(data), &parts, lost); err != nil {
			return nil, err
		}
	}
	var joined bytes.Buffer
	err = joinTar(tree, &parts, &joined)
	return joined.Bytes(), err
}

func TestSplitTar(t *testing.T) {
	for _, data := range [][]byte{baseTar(t), upperTar(t), oddSparse(), rawTar(rawFile("f", noise(100_000)), rawFile("f", noise(10)))} {
		tree, err := readTree(data, 1<<20)
		require.NoError(t, err)
		joined, err := splitAndJoin(data, tree)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, joined))
	}
}

// The stored parts of the module tar-split are put together, and better than by itself.
func TestJoinOldParts(t *testing.T) {
	for _, data := range [][]byte{
		baseTar(t), upperTar(t), rawTar(rawEntry(tar.TypeDir, "d/", "", 4096, ""), rawEntry(tar.TypeSymlink, "l", "f", 1, ""), rawFile("f", "data")),
	} {
		var parts, joined bytes.Buffer
		rest, done, err := asm.NewInputTarStreamWithDone(bytes.NewReader(data), storage.NewJSONPacker(&parts), nil)
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, rest)
		require.NoError(t, err)
		require.NoError(t, <-done)
		tree, err := readTree(data, 1<<20)
		require.NoError(t, err)
		require.NoError(t, joinTar(tree, &parts, &joined))
		require.True(t, bytes.Equal(data, joined.Bytes()))
	}
}

// FuzzSplitTar takes any bytes apart, and expects them back.
func FuzzSplitTar(f *testing.F) {
	f.Add(rawTar(rawFile("f", "first"), dirty(rawFile("f", "second")), rawEntry(tar.TypeDir, "d/", "", 4096, ""), rawFile(".wh.x", "data")))
	f.Add(append(rawTar(rawFile("/a/../b\xff", noise(3000)), rawEntry(tar.TypeLink, "l", "b", 5, "")), "behind"...))
	f.Add(oddSparse())
	f.Add(rawEntry(tar.TypeXHeader, "x", "", 13, "13 comment=x\n"))
	f.Add(rawEntry(tar.TypeReg, "f", "", 1<<30, "cut off"))
	f.Fuzz(func(t *testing.T, data []byte) {
		tree, err := readTree(data, 1<<20)
		if errors.Is(err, errTooLarge) {
			return
		}
		joined, err := splitAndJoin(data, tree)
		require.NoError(t, err)
		require.True(t, bytes.Equal(data, joined))
	})
}

// FuzzJoinTar puts any parts together.
func FuzzJoinTar(f *testing.F) {
	f.Add([]byte(`{"type":2,"payload":"AAAA","position":0}` + "\n" + `{"type":1,"name":"f","size":4,"payload":"AAAAAAAAAAA=","position":1}`))
	f.Add([]byte(`{"type":1,"name_raw":"Zg==","size":2,"offset":1,"payload":"","position":-1}`))
	f.Add([]byte(`{"type":1,"name":"f","size":-2,"offset":-1,"payload":""}{"type":3}`))
	f.Fuzz(func(t *testing.T, parts []byte) {
		tree := treeFiles{"f": []byte("data")}
		var joined bytes.Buffer
		err := joinTar(tree, bytes.NewReader(parts), &joined)
		_ = fmt.Sprint(err) // any error will do
		_, _ = lostData(tree, bytes.NewReader(parts))
		require.LessOrEqual(t, joined.Len(), 2*len(parts)+64)
	})
}
