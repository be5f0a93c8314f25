package setup

import (
	"bytes"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"slices"
)

// recordSuffix makes the name of a file's record. No pattern like *.toml matches it.
const recordSuffix = ".cowshed-undo"

// record has the former state of a file, so that it can be put back. It stands beside the file from before the change
// until after the file was put back.
type record struct {
	Target Target  `json:"target"`
	Before *string `json:"before"` // null: the file was not there
	// After are the contents that the set-up may have given the file: the last, or an earlier one if it was
	// interrupted.
	After []string `json:"after"`
	// Made are directories that were made for it.
	Made []string `json:"made,omitempty"`
}

// readRecord returns the record of a file, nil if there is none.
func readRecord(real string) (*record, error) {
	text, err := os.ReadFile(real + recordSuffix)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	r := &record{}
	if err := json.Unmarshal(text, r); err != nil || len(r.After) == 0 {
		return nil, &RefusedError{File: real + recordSuffix, Reason: "cowshed setup has not written it so; look at it, and delete it", Cause: err}
	}
	return r, nil
}

func (r *record) write(real string) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	return replaceFile(real+recordSuffix, append(text, '\n'), recordMode)
}

func (r *record) before() []byte {
	if r.Before == nil {
		return nil
	}
	return []byte(*r.Before)
}

// applied reports whether a file has the set-up's content.
func (r *record) applied(current []byte) bool {
	return r != nil && current != nil && slices.Contains(r.After, string(current))
}

// untouched reports whether a file is as it was before.
func (r *record) untouched(current []byte) bool {
	return r != nil && (r.Before == nil) == (current == nil) && bytes.Equal(r.before(), current)
}
