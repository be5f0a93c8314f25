package apiserver

import (
	"fmt"

	"github.com/cowshed/cowshed/api"
)

// Bounds of the texts in bodies, which openapi.yaml has too.
const (
	maxMessage = 4096
	maxPaths   = 1000
	maxPath    = 4096
	maxLabels  = 64
	// maxLabelBytes is for all labels of a request. Each list and each removal of expired forks reads them.
	maxLabelBytes = 4096
)

// checkMessage refuses texts that are too long to be kept.
func checkMessage(message string) error {
	if len(message) > maxMessage {
		return tooLong("the message", maxMessage, "bytes")
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
