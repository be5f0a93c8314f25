package testfs

import (
	"io"
	"os"
	"strings"
	"testing"
)

// Example runs an example that needs the filesystem of a test, and fails the test unless it prints want. Space around
// both does not count. Nothing else may run in parallel.
func Example(t testing.TB, example func(), want string) {
	t.Helper()
	file, err := os.CreateTemp(t.TempDir(), "stdout")
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	defer file.Close()
	func() {
		stdout := os.Stdout
		defer func() { os.Stdout = stdout }()
		os.Stdout = file
		example()
	}()
	if _, err := file.Seek(0, io.SeekStart); err != nil {
		t.Fatalf("testfs: %v", err)
	}
	got, err := io.ReadAll(file)
	if err != nil {
		t.Fatalf("testfs: %v", err)
	}
	if strings.TrimSpace(string(got)) != strings.TrimSpace(want) {
		t.Errorf("the example printed\n%s\nand should have printed\n%s", got, want)
	}
}
