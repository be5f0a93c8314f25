package apiserver

import (
	"fmt"
	"slices"

	"github.com/cowshed/cowshed/api"
)

// Bounds of the texts in bodies and queries, which openapi.yaml has too. Lengths are in bytes.
const (
	maxName    = 200
	maxShort   = 64 // sizes and times
	maxImage   = 512
	maxTarget  = 4096
	maxMessage = 4096
	maxPaths   = 1000
	maxPath    = 4096
	maxLabels  = 64
	// maxLabelBytes is for all labels of a request. Each list and each removal of expired forks reads them.
	maxLabelBytes = 4096
)

// checkBody refuses the body of a request if a part of it is out of bounds.
func checkBody(body any) error {
	switch b := body.(type) {
	case *api.NewLayer:
		return firstOf(checkLength("name", b.Name, 0, maxName), checkLength("size", b.Size, 0, maxShort))
	case *api.NewForks:
		return firstOf(checkLength("name", b.Name, 0, maxName), checkLength("size", b.Size, 0, maxShort), checkLength("ttl", b.TTL, 0, maxShort),
			checkLabels(b.Labels))
	case *api.NewSnapshot:
		return firstOf(checkLength("name", b.Name, 0, maxName), checkLength("message", b.Message, 0, maxMessage))
	case *api.NewRollback:
		return checkLength("snapshot", b.Snapshot, 1, maxName)
	case *api.NewMerge:
		return checkPaths(b.Paths)
	case *api.NewLimit:
		return checkLength("size", b.Size, 1, maxShort)
	case *api.NewImage:
		return firstOf(checkLength("to", b.To, 1, maxTarget), checkLength("message", b.Message, 0, maxMessage))
	}
	return nil
}

func firstOf(errs ...error) error {
	if i := slices.IndexFunc(errs, func(err error) bool { return err != nil }); i >= 0 {
		return errs[i]
	}
	return nil
}

// checkLength refuses texts that are too short or too long.
func checkLength(what, text string, least, most int) error {
	switch {
	case len(text) < least:
		return refused(api.KindInvalidArgument, what+" is missing", "")
	case len(text) > most:
		return tooLong(what, most, "bytes")
	}
	return nil
}

func checkLabels(labels map[string]string) error {
	if len(labels) > maxLabels {
		return tooLong("labels", maxLabels, "labels")
	}
	size := 0
	for key, value := range labels {
		size += len(key) + len(value)
	}
	if size > maxLabelBytes {
		return tooLong("all labels", maxLabelBytes, "bytes")
	}
	return nil
}

func checkPaths(paths []string) error {
	if len(paths) > maxPaths {
		return tooLong("paths", maxPaths, "paths")
	}
	for _, p := range paths {
		if len(p) > maxPath {
			return tooLong("a path", maxPath, "bytes")
		}
	}
	return nil
}

func tooLong(what string, most int, of string) error {
	return refused(api.KindInvalidArgument, fmt.Sprintf("%s may have at most %d %s", what, most, of), "")
}
