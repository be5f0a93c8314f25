package main

import (
	"archive/tar"
	"errors"
	"io"
	"time"
)

// countFiles makes readDiff look into the tar: the trial run of each contender does so to check later measurements;
// then it only costs time.
var countFiles bool

// readDiff reads a tar to its end.
func readDiff(start time.Time, r io.Reader) (diffResult, error) {
	if countFiles {
		return countDiff(r)
	}
	n, err := io.Copy(io.Discard, r)
	return diffResult{bytes: n, files: -1, ready: time.Since(start)}, err
}

func countDiff(r io.Reader) (diffResult, error) {
	var result diffResult
	tr := tar.NewReader(r)
	for {
		header, err := tr.Next()
		if errors.Is(err, io.EOF) {
			n, err := io.Copy(io.Discard, r)
			result.bytes += n
			return result, err
		}
		if err != nil {
			return result, err
		}
		if header.Typeflag == tar.TypeReg {
			result.files++
		}
		result.bytes += header.Size
	}
}
