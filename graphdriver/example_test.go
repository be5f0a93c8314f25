package graphdriver_test

import (
	"errors"
	"fmt"

	"github.com/moby/sys/user"

	"github.com/cowshed/cowshed/graphdriver"
)

// A driver of a program's own. If it cannot compare layers, NewNaiveDiffDriver does so for it.
func ExampleRegister() {
	err := graphdriver.Register("mine", func(root string, _ []string, _ user.IdentityMapping) (graphdriver.Driver, error) {
		return nil, fmt.Errorf("%w: %s is on no filesystem of mine", graphdriver.ErrPrerequisites, root)
	})
	if err != nil {
		fmt.Println(err)
		return
	}
	_, err = graphdriver.New("mine", graphdriver.Options{Root: "/srv"})
	fmt.Println(err)
	fmt.Println(graphdriver.IsDriverNotSupported(err), errors.Is(err, graphdriver.ErrPrerequisites))
	// Output:
	// open storage driver "mine": prerequisites for driver not satisfied (wrong filesystem?): /srv/mine is on no filesystem of mine
	// true true
}
