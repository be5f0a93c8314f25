// Command proselint checks the words of comments, documents, messages and help texts by the rules of CONTRIBUTING.md that a
// program can check. It prints each fault as "file:line: rule: sentence", and exits with 1 if there is one.
package main

import (
	"flag"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// measured begins the names of documents that the benchmarks write.
const measured = "docs/benchmarks"

func main() {
	flag.Usage = func() {
		fmt.Fprintf(flag.CommandLine.Output(), "Usage: proselint FILE...\n\n"+
			"Checks the comments of Go files, the messages and help texts of Go files that are no tests, and Markdown files.\n")
	}
	flag.Parse()
	if flag.NArg() == 0 {
		flag.Usage()
		os.Exit(2)
	}
	faults, err := run(os.Stdout, flag.Args())
	if err == nil && faults > 0 {
		err = fmt.Errorf("%d faults", faults)
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "proselint: %v\n", err)
		os.Exit(1)
	}
}

// run checks the files, and prints and counts the faults.
func run(out io.Writer, files []string) (faults int, err error) {
	for _, file := range files {
		if strings.HasPrefix(file, measured) {
			continue
		}
		passages, err := passagesOf(file)
		if err != nil {
			return faults, err
		}
		for _, f := range check(passages) {
			faults++
			fmt.Fprintf(out, "%s:%d: %s: %s\n", file, f.line, f.rule, f.sentence)
		}
	}
	return faults, nil
}

// passagesOf reads the text of a file.
func passagesOf(file string) ([]passage, error) {
	switch filepath.Ext(file) {
	case ".go":
		return goPassages(file)
	case ".md":
		return markdownPassages(file)
	}
	return nil, fmt.Errorf("%s is neither a Go file nor a Markdown file", file)
}
