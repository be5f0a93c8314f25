package treediff_test

import (
	"context"
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/cowshed/cowshed/cowcommon/treediff"
)

func ExampleCompare() {
	base, err := os.MkdirTemp("", "base")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(base)
	top, err := os.MkdirTemp("", "top")
	if err != nil {
		log.Fatal(err)
	}
	defer os.RemoveAll(top)
	for file, text := range map[string]string{
		base + "/removed": "", base + "/changed": "before", top + "/changed": "now", top + "/added": "",
	} {
		if err := os.WriteFile(filepath.FromSlash(file), []byte(text), 0o600); err != nil {
			log.Fatal(err)
		}
	}

	changes, err := treediff.Compare(context.Background(), top, base, nil)
	if err != nil {
		log.Fatal(err)
	}
	for _, change := range changes {
		fmt.Println(change.String())
	}
	// Output:
	// A /added
	// C /changed
	// D /removed
}
