package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// sumsFile has the checksums of all other files, as sha256sum prints them.
const sumsFile = "SHA256SUMS"

func writeSums(dir string) error {
	names, err := namesIn(dir)
	if err != nil {
		return err
	}
	var sums strings.Builder
	for _, name := range names {
		content, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		fmt.Fprintf(&sums, "%x  %s\n", sha256.Sum256(content), name)
	}
	return os.WriteFile(filepath.Join(dir, sumsFile), []byte(sums.String()), 0o644)
}

// compare returns an error for each file that two directories do not have in common.
func compare(one, other string) error {
	inOne, err := namesIn(one)
	if err != nil {
		return err
	}
	inOther, err := namesIn(other)
	if err != nil {
		return err
	}
	if !slices.Equal(inOne, inOther) {
		return fmt.Errorf("two builds gave different files: %v and %v", inOne, inOther)
	}
	var errs []error
	for _, name := range inOne {
		a, err := os.ReadFile(filepath.Join(one, name))
		if err != nil {
			return err
		}
		b, err := os.ReadFile(filepath.Join(other, name))
		if err != nil {
			return err
		}
		if !bytes.Equal(a, b) {
			errs = append(errs, fmt.Errorf("two builds gave different bytes in %s", name))
		}
	}
	return errors.Join(errs...)
}

// namesIn lists the files of a directory in the order of their names.
func namesIn(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	return names, nil
}
