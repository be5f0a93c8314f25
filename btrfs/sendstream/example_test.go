package sendstream_test

import (
	"bytes"
	"fmt"
	"log"
	"os"

	"github.com/cowshed/cowshed/btrfs/sendstream"
)

// An incremental stream without file data tells which names and files have changed.
func ExampleReader() {
	b, err := os.ReadFile("testdata/nodata-v1.stream")
	if err != nil {
		log.Fatal(err)
	}
	stream, err := sendstream.NewReader(bytes.NewReader(b))
	if err != nil {
		log.Fatal(err)
	}
	for stream.Next() {
		switch c := stream.Command().(type) {
		case *sendstream.Rename:
			fmt.Printf("rename %q to %q\n", c.Path, c.To)
		case *sendstream.Unlink:
			fmt.Printf("unlink %q\n", c.Path)
		case *sendstream.UpdateExtent:
			fmt.Printf("%d bytes changed in %q\n", c.Size, c.Path)
		}
	}
	if err := stream.Err(); err != nil {
		log.Fatal(err)
	}
	// Output:
	// rename "d" to "e"
	// 11 bytes changed in "e/f"
	// unlink "p"
	// unlink "c"
	// rename "o267-9-0" to "n"
	// rename "o268-9-0" to "n/m"
	// rename "o269-9-0" to "odd\nname\xff"
	// 3000 bytes changed in "odd\nname\xff"
}
