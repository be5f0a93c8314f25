package windows_test

import (
	"fmt"

	"github.com/cowshed/cowshed/graphdriver"
	"github.com/cowshed/cowshed/graphdriver/windows"
)

// A program that was written for Windows learns that it needs another driver.
func ExampleInitFilter() {
	_, err := windows.InitFilter("layers", nil, nil, nil)
	fmt.Println("another driver may be tried:", graphdriver.IsDriverNotSupported(err))
	// Output: another driver may be tried: true
}
