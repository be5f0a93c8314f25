package testfs

import "os"

// Long reports whether the long variants of tests are to run: the environment variable COWSHED_TEST_LONG is set.
func Long() bool { return os.Getenv("COWSHED_TEST_LONG") != "" }
