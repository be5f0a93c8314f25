package snapshotter_test

import (
	"fmt"

	"github.com/cowshed/cowshed/snapshotter"
)

// The key tells the use of a snapshot.
func ExampleUseOf() {
	for _, key := range []string{
		"k8s.io/12/1f2e3d4c5b6a79881f2e3d4c5b6a79881f2e3d4c5b6a79881f2e3d4c5b6a7988",
		"buildkit/13/k2n7p0q9r8s7t6u5v4w3x2y1z",
		"default/14/extract-123-abcd sha256:0000000000000000000000000000000000000000000000000000000000000000",
	} {
		fmt.Println(snapshotter.UseOf(key))
	}
	// Output:
	// container
	// build
	// unpack
}
