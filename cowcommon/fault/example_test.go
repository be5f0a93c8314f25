package fault_test

import (
	"errors"
	"fmt"
	"io/fs"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon/fault"
)

// The function that finds the fault gives the kind. Each function above it gives its operation.
func Example() {
	err := fault.New(fault.ErrInUse, "mounts: %d", 1)
	err = fault.WrapWith("clone volume", "web", fault.From("base"), err)
	err = fault.Wrap("create layer", "web", err)
	fmt.Println(err)
	fmt.Println(errors.Is(err, fault.ErrInUse), errdefs.IsFailedPrecondition(err))

	var f *fault.Error
	if errors.As(err, &f) {
		fmt.Println(f.Op, f.Name)
	}
	// Output:
	// create layer "web": clone volume from "base": in use: mounts: 1
	// true true
	// create layer web
}

// An error of the system gets a kind that callers know, and still matches its own.
func ExampleAs() {
	err := fault.As(errdefs.ErrNotFound, &fs.PathError{Op: "open", Path: "metadata", Err: fs.ErrNotExist})
	fmt.Println(err)
	fmt.Println(errdefs.IsNotFound(err), errors.Is(err, fs.ErrNotExist))
	// Output:
	// not found: open metadata: file does not exist
	// true true
}
