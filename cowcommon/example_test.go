package cowcommon_test

import (
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/cowcommon"
)

func ExampleCheckID() {
	for _, id := range []string{"web-1", "../web"} {
		err := cowcommon.CheckID(id)
		fmt.Println(id, err == nil, errdefs.IsInvalidArgument(err))
	}
	// Output:
	// web-1 true false
	// ../web false true
}
