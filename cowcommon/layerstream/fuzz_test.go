package layerstream

import (
	"bytes"
	"io"
	"testing"
)

// FuzzReader: a stream that is read without an error is the same if it is written again. Only the sizes of its chunks may differ.
func FuzzReader(f *testing.F) {
	small := sample()
	for i := range small {
		small[i].data = small[i].data[:20]
	}
	f.Add(write(f, small))
	f.Add(write(f, small[:1]))
	f.Add([]byte(Magic + "\x01"))
	f.Fuzz(func(t *testing.T, stream []byte) {
		parts, err := read(bytes.NewReader(stream))
		if err != nil {
			return
		}
		var out bytes.Buffer
		w := NewWriter(&out)
		for i, p := range parts {
			write := w.Parent
			if i == len(parts)-1 {
				write = w.Layer
			}
			if _, err := write(p.header, func(w io.Writer) error { _, err := w.Write(p.data); return err }); err != nil {
				t.Fatalf("layer %d cannot be written: %v", i, err)
			}
		}
		again, err := read(&out)
		if err != nil {
			t.Fatal(err)
		}
		for i, p := range parts {
			if !bytes.Equal(p.data, again[i].data) {
				t.Fatalf("layer %d has other data", i)
			}
		}
	})
}

// FuzzHeader: each header has one form.
func FuzzHeader(f *testing.F) {
	for _, p := range sample() {
		b, err := p.header.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		h, err := decode(b)
		if err != nil || len(b) > MaxHeader {
			return
		}
		again, err := h.encode()
		if err != nil || !bytes.Equal(b, again) {
			t.Fatalf("%x became %x, %v", b, again, err)
		}
	})
}
