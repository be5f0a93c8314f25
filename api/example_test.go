package api_test

import (
	"encoding/json"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"

	"github.com/cowshed/cowshed/api"
)

// The body of an answer that is no success is an error of package errdefs.
func ExampleError() {
	body := `{"kind":"not_found","object":"web","message":"not found: layer web"}`
	err := new(api.Error)
	if jsonErr := json.Unmarshal([]byte(body), err); jsonErr != nil {
		fmt.Println(jsonErr)
		return
	}
	fmt.Println(err, errors.Is(err, errdefs.ErrNotFound), err.Kind.Status())
	// Output: not found: layer web true 404
}
