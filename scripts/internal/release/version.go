package main

import "strings"

// packageVersion is the version of a Go module in the form that dpkg and rpm sort in the same way: a tilde stands before
// the mark of a version that precedes a release.
//
//	v1.2.3                              1.2.3
//	v1.2.3-rc.1                         1.2.3~rc.1
//	v0.0.0-20261129152238-5b24963d33f0  0.0.0~20261129152238.5b24963d33f0
func packageVersion(module string) string {
	release, before, ok := strings.Cut(strings.TrimPrefix(module, "v"), "-")
	if !ok {
		return release
	}
	return release + "~" + strings.ReplaceAll(before, "-", ".")
}
