package main

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"
)

// Parts of a report, in their order. Each is written by a run of its own, which leaves the others.
const (
	enginesPart    = "engines"
	containersPart = "containers"
	livePart       = "live"
	layersPart     = "layers"
)

var documentParts = []string{enginesPart, containersPart, livePart, layersPart}

func documentTitle(filesystem string) string { return "# Benchmarks on " + filesystem + "\n" }

func partMark(part string) string { return "\n<!-- " + part + " -->\n" }

// updateDocument writes a part of a file that may have others.
func updateDocument(name, title, part string, write func(w io.Writer)) error {
	parts, err := readDocument(name)
	if err != nil {
		return err
	}
	var text strings.Builder
	write(&text)
	parts[part] = text.String()
	return writeFile(name, func(w io.Writer) {
		fmt.Fprint(w, title)
		for _, part := range documentParts {
			if parts[part] != "" {
				fmt.Fprintf(w, "%s\n%s\n", partMark(part), strings.Trim(parts[part], "\n"))
			}
		}
	})
}

// readDocument returns the parts of a report, none if there is no such file. It is an error if the file is something else.
func readDocument(name string) (map[string]string, error) {
	text, err := os.ReadFile(name)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	parts := splitDocument(string(text))
	if len(text) > 0 && len(parts) == 0 {
		return nil, fmt.Errorf("%s has no parts of a report, so it is something else: remove it, or name another file", name)
	}
	return parts, nil
}

// splitDocument returns the parts of a text.
func splitDocument(text string) map[string]string {
	parts := make(map[string]string)
	for _, part := range documentParts {
		_, rest, found := strings.Cut(text, partMark(part))
		if !found {
			continue
		}
		for _, other := range documentParts {
			rest, _, _ = strings.Cut(rest, partMark(other))
		}
		parts[part] = rest
	}
	return parts
}
