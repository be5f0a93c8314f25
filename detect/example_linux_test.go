package detect_test

import (
	"fmt"

	"github.com/cowshed/cowshed/detect"
	"github.com/cowshed/cowshed/graphdriver"
)

// A path that does not exist yet is on the filesystem of its nearest ancestor.
func ExampleProbe() {
	filesystem, err := detect.Probe("/proc/sys/cowshed/not/there")
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(filesystem.Type, filesystem.Path)
	// Output: proc /proc/sys
}

func ExampleBtrfs() {
	err := detect.Btrfs("/proc")
	fmt.Println("another driver may be tried:", graphdriver.IsDriverNotSupported(err))
	// Output: another driver may be tried: true
}
