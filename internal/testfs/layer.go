package testfs

import (
	"archive/tar"
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// BenchLayer is a layer of 9,500 files, one in nineteen of which is large. Gzip makes it less than half as large.
func BenchLayer(b *testing.B) []byte {
	b.Helper()
	check := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatalf("testfs: %v", err)
		}
	}
	const files, small, large = 9500, 9 << 10, 200 << 10
	noise := make([]byte, 1<<20)
	_, err := rand.NewChaCha8([32]byte{}).Read(noise)
	check(err)
	text := bytes.Repeat([]byte("some text that can be compressed\n"), large/33+1)
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for i := range files {
		size := small
		if i%19 == 0 {
			size = large
		}
		from := i * 127 % (len(noise) - size)
		data := slices.Concat(noise[from:][:size*2/5], text[:size-size*2/5])
		name := fmt.Sprintf("files/%03d/%05d", i/50, i)
		check(w.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(size), ModTime: time.Unix(1_700_000_000, 0)}))
		_, err := w.Write(data)
		check(err)
	}
	check(w.Close())
	return layer.Bytes()
}
