package layerstream_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"log"

	"github.com/cowshed/cowshed/cowcommon/layerstream"
)

// A stream with one layer. Its native stream comes to its end only if the digest is right.
func Example() {
	var pipe bytes.Buffer
	header := layerstream.Header{Kind: "btrfs", Name: "web", ID: []byte("the subvolume ID")}
	_, err := layerstream.NewWriter(&pipe).Layer(header, func(w io.Writer) error {
		_, err := io.WriteString(w, "the output of btrfs send")
		return err
	})
	if err != nil {
		log.Fatal(err)
	}

	r, err := layerstream.NewReader(&pipe)
	if err != nil {
		log.Fatal(err)
	}
	for {
		layer, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			log.Fatal(err)
		}
		native, err := io.ReadAll(layer)
		if err != nil {
			log.Fatal(err)
		}
		fmt.Printf("%s: %d bytes of %s send\n", layer.Header.Name, len(native), layer.Header.Kind)
	}
	// Output: web: 24 bytes of btrfs send
}
